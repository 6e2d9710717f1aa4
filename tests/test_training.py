"""The training loop against loops written independently here; schedules; displays."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import stagecost as sc
from stagecost.data.batches import epoch_batches
from stagecost.data.config import DataConfig
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.folder import RunFolder, claim, write_config
from stagecost.training.loop import train
from stagecost.training.parsing import parse_settings
from stagecost.training.progress import sparkline
from stagecost.training.schedule import learning_rate_factor
from stagecost.training.session import start_session
from stagecost.training.settings import Sizes

TINY = {
    "data": "digits",
    "num_blocks": 3,
    "width": 4,
    "epochs": 2,
    "limit_train": 300,
    "batch_size": 64,
    "device": "cpu",
}


def plain_loop(path: Path) -> dict[str, torch.Tensor]:
    """Plain training as anybody would write it, without the objective and without the loop."""
    data = load_data(DataConfig(data="digits", limit_train=300), seed=7, splits=("train", "val"))
    torch.manual_seed(7)
    network = sc.create_model("homogeneous", num_blocks=3, width=4, num_classes=10, in_channels=1)
    network = network.to(memory_format=torch.channels_last)
    decayed = [p for n, p in network.named_parameters() if ".residual." in n]
    others = [p for n, p in network.named_parameters() if ".residual." not in n]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-3}, {"params": others}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    steps = 270 // 64
    for epoch in range(2):
        network.train()
        batches = epoch_batches(
            data.splits["train"],
            data.format,
            batch_size=64,
            seed=7,
            epoch=epoch,
            augmentation=data.augmentation,
        )
        for batch, (x, y) in enumerate(batches):
            step = epoch * steps + batch
            rate = (
                (step + 1) / steps
                if step < steps
                else 0.5 * (1 + math.cos(math.pi * (step / steps - 1)))
            )
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * rate
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network.state_dict()


def test_gamma_zero_is_plain_training_to_the_last_bit(tmp_path: Path) -> None:
    train({**TINY, "gamma": 0.0, "weight_decay": 1e-3, "seed": 7}, tmp_path / "run")
    trained = read_checkpoint(tmp_path / "run" / "last.safetensors").network().state_dict()
    for name, expected in plain_loop(tmp_path).items():
        if name.startswith("head.norm.") and expected.dim() and len(expected) == 4:
            # Rows of intermediate outputs are estimated for the analysis; the terminal one is trained.
            assert torch.equal(trained[name][-1], expected[-1]), name
        else:
            assert torch.equal(trained[name], expected), name


def test_gamma_zero_draws_the_same_random_numbers(tmp_path: Path) -> None:
    states = []
    for gamma in (0.0, 0.3):
        train({**TINY, "gamma": gamma, "epochs": 1}, tmp_path / str(gamma))
        states.append(read_checkpoint(tmp_path / str(gamma) / "last.safetensors").tensors["rng"])
    assert torch.equal(*states)


def test_a_golden_short_run(tmp_path: Path) -> None:
    """Loose enough for another processor, tight enough to notice a changed recipe."""
    recipe = {"data": "digits", "num_blocks": 3, "width": 8, "batch_size": 32, "epochs": 3, "gamma": 0.2}
    result = train({**recipe, "device": "cpu"}, tmp_path / "run")
    losses = [entry["train_loss"] for entry in result.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(GOLDEN_LOSS, rel=0.2)
    assert result.epochs == 3
    assert len(result.history[-1]["val_losses"]) == 4


GOLDEN_LOSS = 0.707


@given(total=st.integers(1, 500), warmup=st.integers(0, 500))
def test_the_learning_rate_warms_up_and_falls_to_zero(total: int, warmup: int) -> None:
    warmup = min(warmup, total)
    factors = [learning_rate_factor(step, total, warmup) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < total:
        assert factors[warmup] == 1.0


def test_default_gamma_is_one_over_n(tmp_path: Path) -> None:
    train({**TINY, "epochs": 1}, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").metadata["gamma"] == 1 / 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gamma": -1.0}, "gamma is -1"),
        ({"lr": 0.0}, "lr is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"num_processes": 3, "batch_size": 64}, "cannot be shared"),
        ({"ema_decay": 1.0}, "ema_decay is 1"),
        ({"nonsense": 1}, "'nonsense' is unknown"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    change: dict[str, object], match: str, tmp_path: Path
) -> None:
    with pytest.raises(StageCostError, match=match):
        train({**TINY, **change}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    train({**TINY, "epochs": 1}, tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    config = tmp_path / "run" / "config.yaml"
    # The same run with more epochs and an absurd rate, as if it had been going to diverge.
    config.write_text(
        config.read_text().replace("epochs: 1\n", "epochs: 5\n").replace("lr: null", "lr: 1.0e+30")
    )
    with pytest.raises(StageCostError, match=r"no finite number|objective is"):
        train({}, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_settings_go_to_a_file_and_back() -> None:
    flat = {"data": "x", "widths": Sizes((1, 2)), "gamma": 0.5, "model": "staged"}
    settings = parse_settings(flat)
    assert parse_settings(settings.to_flat()) == settings
    assert settings.to_flat()["widths"] == [1, 2]
    assert Sizes.parse("3,4") == Sizes.parse([3, 4]) == (3, 4)
    for wrong in ("a,b", "1.5", [1.5], 3, True):
        with pytest.raises(ValueError, match="whole numbers"):
            Sizes.parse(wrong)


def test_sparklines() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([1.0, 1.0, 1.0]) == "▁▁▁"
    assert sparkline([0.0, math.nan, 1.0]) == "▁×█"
    assert len(sparkline(list(range(1001)))) == 24
    assert sparkline([math.inf]) == ""


def test_the_package_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, stagecost, stagecost.cli; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_a_run_on_a_local_folder_can_be_used_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    run = RunFolder(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    settings = claim(run, {"data": "images"}, resume=False)
    assert settings.data.data == str(tmp_path / "images")
    write_config(run, settings)
    monkeypatch.chdir("/")
    assert claim(run, {"data": str(tmp_path / "images")}, resume=True) == settings
    assert claim(RunFolder(tmp_path / "other"), {"data": "digits"}, resume=False).data.data == "digits"


def test_long_trainings_on_a_cpu_take_the_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` weighs the length of the training; `yes` and `no` decide; gamma = 0 has no use for them."""

    def decides(**changes: object) -> bool:
        settings = parse_settings(
            {"data": "digits", "num_blocks": 2, "width": 4, "device": "cpu", **changes}
        )
        data = load_data(settings.data, seed=0, splits=("train",))
        return start_session(settings, data).fused

    monkeypatch.setattr("stagecost.training.session.can_compile", lambda: True)
    monkeypatch.setattr("stagecost.training.session.compiled_kernels", lambda: None)
    assert not decides(epochs=1)
    assert decides(epochs=10**6)
    assert decides(epochs=1, fused="yes")
    assert not decides(epochs=10**6, fused="no")
    assert not decides(epochs=10**6, gamma=0.0)
    assert not decides(epochs=10**6, precision="bf16")
    monkeypatch.setattr("stagecost.training.session.can_compile", lambda: False)
    assert not decides(epochs=10**6)


def test_activation_checkpointing_trains_to_the_same_weights(tmp_path: Path) -> None:
    recipe = {
        "data": "digits",
        "limit_train": 128,
        "num_blocks": 5,
        "width": 4,
        "epochs": 1,
        "device": "cpu",
    }
    histories = [
        train({**recipe, "activation_checkpointing": chosen}, tmp_path / str(chosen)).history[-1]
        for chosen in (False, True)
    ]
    assert histories[1]["val_losses"] == pytest.approx(histories[0]["val_losses"], rel=1e-4)
