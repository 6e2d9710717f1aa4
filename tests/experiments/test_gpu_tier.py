"""The GPU tier's experiment, tiny and on a CPU: what is trained, what is cut, what is recorded."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from experiments.gpu_tier import stages
from experiments.gpu_tier.images import Images, Splits, decode, load_splits
from experiments.gpu_tier.job import Job, build, rates, stage_loss, target_loss
from experiments.gpu_tier.plan import PLAN, VARIANTS, Recipe
from experiments.gpu_tier.records import TABLE, write_records
from experiments.gpu_tier.session import Session
from experiments.records import RESULTS
from torch import Tensor, nn

from experiments import gpu_speed
from stagecost.cut import Cut
from stagecost.models.catalogue import create_model
from stagecost.objective import StageCost, parameter_groups
from stagecost.storage import read_tensors, write_tensors

TINY = Recipe(num_blocks=4, kept=2, middle=3, width=4, stem_stride=4, batch_size=16, compiled=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images of all data sets whose brightness tells their class."""
    path = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for name in ("pilot", *PLAN):
        size, channels = (28, 1) if name == "mnist" else (32, 3)
        tensors = {}
        for part, count in (("train", 120), ("test", 40)):
            labels = torch.randint(10, (count,), generator=generator)
            noise = torch.randint(60, (count, size, size, channels), generator=generator)
            tensors[f"{part}_pixels"] = (noise + 18 * labels[:, None, None, None]).to(torch.uint8)
            tensors[f"{part}_labels"] = labels
        write_tensors(path / f"{name}.safetensors", tensors, {})
    return path


@pytest.fixture(scope="module")
def splits(folder: Path) -> Splits:
    return load_splits("cifar10", folder / "cifar10.safetensors", torch.device("cpu"))


def trained(arm: str, splits: Splits, recipe: Recipe = TINY, steps: int = 6) -> Job:
    job = Job(arm, 0, 2, recipe, splits)
    job.advance(steps)
    return job


def test_splits_share_no_image(splits: Splits) -> None:
    images = torch.cat([splits.train.pixels, splits.val.pixels]).flatten(1)
    assert len(splits.val.labels) == 12
    assert len(images.unique(dim=0)) == 120


def test_crops_are_those_of_a_padded_image(splits: Splits) -> None:
    images = splits.train
    draws = torch.tensor([[3, 0, 8, 0], [5, 2, 1, 1]])
    crops = images.crops(draws)
    for crop, (index, row, column, mirrored) in zip(crops, draws.tolist(), strict=True):
        pixels = images.pixels[index, row : row + 32, column : column + 32].float()
        expected = ((pixels - images.mean) / images.std).permute(2, 0, 1)
        assert torch.equal(crop, expected.flip(2) if mirrored else expected)


def test_an_epoch_sees_each_image_once(splits: Splits) -> None:
    draws = splits.train.draw(steps=14, batch_size=16, seed=1)
    first, second = (
        draws[:6, :, 0].flatten(),
        draws[6:12, :, 0].flatten(),
    )  # 6 full batches of 108 images
    assert len(first.unique()) == len(second.unique()) == 96
    assert not torch.equal(first, second)
    assert draws[:, :, 1:3].max() == 8
    assert set(draws[:, :, 3].unique().tolist()) == {0, 1}


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rate = rates(100, TINY)
    assert rate.argmax() == 14
    assert rate[14].item() == pytest.approx(TINY.learning_rate)
    assert rate[-1].item() == pytest.approx(0, abs=1e-7)


def test_the_stage_loss_is_the_normalised_objective() -> None:
    outputs, labels = torch.randn(5, 7, 10), torch.randint(10, (7,))
    weights = torch.tensor([TINY.gamma] * 4 + [1.0])
    expected = StageCost.uniform(4, TINY.gamma, normalized=True)(outputs, labels).total
    torch.testing.assert_close(stage_loss(outputs, labels, weights), expected)


def test_half_of_a_distilled_loss_is_the_divergence_from_the_whole_output() -> None:
    output, whole, labels = torch.randn(7, 10), torch.randn(7, 10), torch.randint(10, (7,))
    wanted, given = whole.softmax(1), output.softmax(1)
    divergence = (wanted * (wanted.log() - given.log())).sum(1).mean()
    expected = 0.5 * F.cross_entropy(output, labels) + 0.5 * divergence
    torch.testing.assert_close(target_loss(output, whole, labels, distilled=True), expected)


def test_plain_training_is_that_of_an_ordinary_loop(splits: Splits) -> None:
    job = trained("plain_full", splits, steps=3)
    torch.manual_seed(0)
    network = create_model("homogeneous", num_blocks=4, width=4, stem_stride=4)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(network, TINY.weight_decay)
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=TINY.momentum, nesterov=True, fused=True)
    for draws, rate in zip(job.draws[:3].long(), job.rates[:3].tolist(), strict=True):
        for group in sgd.param_groups:
            group["lr"] = rate
        sgd.zero_grad()
        F.cross_entropy(network(splits.train.crops(draws)), splits.train.labels[draws[:, 0]]).backward()
        sgd.step()
    for name, values in network.state_dict().items():
        torch.testing.assert_close(job.network.state_dict()[name], values)


def test_a_job_learns(splits: Splits) -> None:
    job = Job("plain_sub", 0, 20, replace(TINY, learning_rate=0.1), splits)
    job.advance(job.steps)
    assert job.results()["networks"]["cut"]["test"] > 30  # chance is 10


def test_the_joint_cut_is_an_ordinary_network(splits: Splits) -> None:
    job = trained("joint", splits)
    assert job.target is not None
    ordinary = create_model("homogeneous", num_blocks=4, width=4, stem_stride=4)
    ordinary = ordinary.keep(Cut.first(2))
    ordinary.load_state_dict(job.target.state_dict())
    ordinary.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = splits.val.crops(torch.tensor([[i, 4, 4, 0] for i in range(12)]))
    with torch.no_grad():
        assert torch.equal(ordinary.eval()(images), job.target.eval()(images))


def test_joint_networks_share_weights_but_no_norms(splits: Splits) -> None:
    job = trained("joint", splits)
    assert job.target is not None
    for name, module in job.target.named_modules():
        twin = job.network.get_submodule(name)
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight is twin.weight
        elif list(module.parameters(recurse=False)):
            assert not torch.equal(module.weight, twin.weight)  # type: ignore[arg-type]
            if name not in ("head.norm", "blocks.0.residual.0"):  # the first norms see the same x_0
                assert not torch.equal(module.running_mean, twin.running_mean)  # type: ignore[arg-type]
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters)
    assert {id(p) for net in job.networks for p in net.parameters()} == {id(p) for p in parameters}


def gradients(arm: str, splits: Splits, recipe: Recipe) -> list[Tensor]:
    job = Job(arm, 0, 1, recipe, splits)
    draws = job.draws[0].long()
    job.backward(splits.train.crops(draws), splits.train.labels[draws[:, 0]])
    return [p.grad.clone() for p in job.network.blocks["0"].parameters() if p.grad is not None]


def test_shared_gradients_are_the_weighted_sum_of_both_passes(splits: Splits) -> None:
    """At the start both passes have the same norms, so the second is that of the small network alone."""
    recipe = replace(TINY, beta=0.5)
    whole, cut = gradients("plain_full", splits, recipe), gradients("plain_sub", splits, recipe)
    joint = gradients("joint_light", splits, recipe)
    for index in (2, 5):  # the two convolutions of the block
        torch.testing.assert_close(joint[index], 0.5 * whole[index] + 0.3 * cut[index])


def test_compute_of_the_long_arms_is_that_of_joint(splits: Splits) -> None:
    recipe = replace(TINY, num_blocks=54, kept=12)
    for arm, blocks in (("plain_long", 54), ("cut_first", 12)):
        assert recipe.epoch_factor(arm) * blocks == pytest.approx(54 + 12)
    assert recipe.epoch_factor("plain_longer") == recipe.epoch_factor("several")


@pytest.mark.parametrize(("arm", "weight"), [("several", 1.0), ("several_light", 0.3)])
def test_several_minimises_the_weighed_mean_of_its_losses(
    arm: str, weight: float, splits: Splits
) -> None:
    job = Job(arm, 0, 1, TINY, splits)
    draws = job.draws[0].long()
    images, labels = splits.train.crops(draws), splits.train.labels[draws[:, 0]]
    twin = build(TINY, splits, 4, 0, torch.device("cpu"))
    outputs = twin(images, depths="all")
    losses = [F.cross_entropy(outputs[depth], labels) for depth in (2, 3, 4)]
    ((weight * (losses[0] + losses[1]) + losses[2]) / (2 * weight + 1)).backward()  # type: ignore[no-untyped-call]
    job.backward(images, labels)
    for ours, expected in zip(job.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_several_yields_three_networks_for_the_block_passes_of_three(splits: Splits) -> None:
    job = Job("several", 0, 1, TINY, splits)
    assert set(job.results()["networks"]) == {"whole", "middle", "cut"}
    assert set(Job("plain_mid", 0, 1, TINY, splits).results()["networks"]) == {"middle"}
    apart = [Job(arm, 0, 40, TINY, splits) for arm in ("plain_full", "plain_mid", "plain_sub")]
    passes = sum(each.steps * each.network.num_blocks for each in apart)
    assert Job("several", 0, 40, TINY, splits).steps * 4 == pytest.approx(passes, rel=0.02)


def test_a_session_stops_at_the_end_of_its_time(splits: Splits, tmp_path: Path) -> None:
    session = Session(tmp_path, seconds=-1)
    assert session.train_all("main", [("plain_sub", 0, 50, TINY), ("stage", 1, 50, TINY)], splits) == []
    last = json.loads(session.lines.read_text().splitlines()[-1])
    assert last["stage"] == "stopped"
    assert sorted(last["jobs"]) == [["plain_sub", 0], ["stage", 1]]


def test_lines_of_a_whole_run_make_valid_records(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PILOT_EPOCHS", 1)
    monkeypatch.setattr(stages, "SEEDS", (0, 1))
    monkeypatch.setattr(stages, "PILOT_SEEDS", (5, 6))
    monkeypatch.setattr(stages, "LEARNING_RATES", (0.1, 0.2))
    monkeypatch.setattr(stages, "VARIANTS", VARIANTS[::3])
    plan = {name: replace(each, epochs=1, changes={}) for name, each in PLAN.items()}
    monkeypatch.setattr(stages, "PLAN", plan)
    monkeypatch.setattr(stages, "fastest", lambda session, recipe, splits: recipe)
    session = Session(tmp_path)
    stages.train(session, folder, ("pilot", *PLAN), TINY)
    gpu_speed.speed(session, TINY, sizes=(2,), rounds=2)
    write_records(session.lines, tmp_path / "results")
    for name in ("cifar10", "cifar100", "mnist"):
        table = read(tmp_path / "results" / "layer-pruning" / f"gpu-{name}.json")
        assert [row["arm"] for row in table["rows"]] == list(TABLE)
    arms = {}
    for name in PLAN:
        targets = read(tmp_path / "results" / "targets" / f"gpu-{name}.json")
        assert all(len(row["test_accuracies"]) == 2 for row in targets["rows"])
        arms[name] = {row["arm"] for row in targets["rows"]}
    assert arms["mnist"] == {"alone", "joint", "several"}
    assert arms["cifar10-long"] == {"alone", "several", "several_light", "plain_longer"}
    assert read(tmp_path / "results" / "gpu-speed" / "gpu.json")["rows"]


def read(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{path} holds {constant}, which is no JSON")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return content


def test_committed_records_are_those_of_the_committed_lines(tmp_path: Path) -> None:
    write_records(RESULTS / "targets" / "gpu-lines.jsonl", tmp_path)
    for path in sorted(tmp_path.rglob("*.json")):
        written, committed = read(path), read(RESULTS / path.relative_to(tmp_path))
        assert written == committed, path.name
    assert len(list(tmp_path.rglob("*.json"))) == 8


def test_images_are_decoded_to_their_pixels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    pixels = torch.randint(
        256, (6, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    encoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"image": encoded, "fine_label": list(range(6)), "coarse_label": [0] * 6})
    pq.write_table(table, tmp_path / "train-0.parquet")
    decode(tmp_path, tmp_path / "images.safetensors", processes=1)
    tensors, _ = read_tensors(tmp_path / "images.safetensors")
    assert torch.equal(tensors["train_pixels"], pixels)
    assert tensors["train_labels"].tolist() == list(range(6))


def test_colour_images_are_padded_and_know_their_statistics(splits: Splits) -> None:
    images: Images = splits.train
    assert images.pixels.shape == (108, 40, 40, 3)
    assert splits.image_shape == (3, 32, 32)
    assert not images.pixels[:, :4].any()
    assert math.isclose(float(images.mean[0]), 0.4914 * 255, rel_tol=1e-4)
