"""Trainings that start from weights that others trained."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import stagecost as sc
from helpers import contents
from stagecost.cli.main import main
from stagecost.cut import Cut
from stagecost.data.config import DataConfig
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.models.adapters.libraries import library_model, preprocessing
from stagecost.objective import parameter_groups
from stagecost.probes import fit_classifier
from stagecost.runs.analysis import analyze
from stagecost.runs.evaluation import evaluate
from stagecost.runs.inspection import inspect_model
from stagecost.runs.pruning import prune
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train
from stagecost.storage import read_tensors, write_tensors
from stagecost.train.loop import Step
from stagecost.train.state import State, by_layer
from stagecost.train.teacher import Taught
from stagecost.trajectory import evaluate_cuts, terminal_score

NAME = "timm/test_resnet"
SETTINGS = {
    "data": "digits",
    "model": NAME,
    "image_size": 32,
    "limit_train": 120,
    "limit_test": 60,
    "batch_size": 32,
    "epochs": 2,
    "lr": 0.02,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(library_model(NAME).state_dict(), file)
    return file


def test_a_run_starts_from_weights_and_goes_on_without_them(weights: Path, tmp_path: Path) -> None:
    targets = {"targets": ["[0 2]"], "target_norms": "own"}
    settings = {**SETTINGS, **targets, "weights": str(weights), "layer_decay": 0.5}
    train(settings, tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(state: State, step: Step) -> None:
        if state.progress.epoch == 1:
            raise StopError

    file = tmp_path / "copy.pth"
    file.write_bytes(weights.read_bytes())
    settings["weights"] = str(file)
    with pytest.raises(StopError):
        train(settings, tmp_path / "stopped", on_step=stop)
    file.unlink()
    train(settings, tmp_path / "stopped", resume=True)
    whole, stopped = (open_trained(tmp_path / name).network for name in ("whole", "stopped"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, stopped.state_dict()[name]), name
    trained = open_trained(tmp_path / "whole")
    prepared = preprocessing(NAME)
    assert trained.image_format.mean == prepared.mean
    assert trained.image_format.channels == 3  # the digits are grey, the network is not
    assert evaluate(tmp_path / "whole").num_images == 60


def test_the_user_says_otherwise_how_images_are_prepared(weights: Path, tmp_path: Path) -> None:
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "epochs": 1}
    train({**SETTINGS, **given, "weights": str(weights)}, tmp_path / "run")
    image_format = open_trained(tmp_path / "run").image_format
    assert image_format.mean == (0.1, 0.2, 0.3)
    assert image_format.interpolation == "bilinear"
    with pytest.raises(StageCostError, match="go together"):
        train({**SETTINGS, "mean": [0.1, 0.2, 0.3]}, tmp_path / "other")
    assert not contents(tmp_path / "other")


def test_a_frozen_stem_stays_as_it_was(weights: Path, tmp_path: Path) -> None:
    train({**SETTINGS, "weights": str(weights), "freeze_stem": True}, tmp_path / "run")
    network = open_trained(tmp_path / "run").network
    start = torch.load(weights, weights_only=True)
    names = {id(t): name for name, t in network.state_dict(keep_vars=True).items()}
    stem = {names[id(t)] for t in (*network.stem.parameters(), *network.stem.buffers())}
    assert len(stem) > 5
    moved = {n for n, t in network.state_dict().items() if n in start and t.shape == start[n].shape}
    moved = {n for n in moved if not torch.equal(network.state_dict()[n], start[n])}
    assert not moved & stem
    assert {"layer4.0.conv1.weight", "layer4.0.bn1.running_mean"} <= moved


def test_frozen_norms_keep_their_statistics_and_act_by_them(weights: Path, tmp_path: Path) -> None:
    steps: list[Tensor] = []

    def watch(state: State, step: Step) -> None:
        steps.append(step.terms.losses)

    settings = {**SETTINGS, "weights": str(weights), "freeze_norms": True, "epochs": 1}
    train(settings, tmp_path / "run", on_step=watch)
    network, start = open_trained(tmp_path / "run").network, torch.load(weights, weights_only=True)
    state = network.state_dict()
    statistics = {name for name in start if "running" in name}
    assert len(statistics) > 10
    assert all(torch.equal(state[name], start[name]) for name in statistics)
    assert not torch.equal(state["layer4.0.bn1.weight"], start["layer4.0.bn1.weight"])
    batch_statistics: list[Tensor] = []
    train(
        {**settings, "freeze_norms": False},
        tmp_path / "other",
        on_step=lambda _, step: batch_statistics.append(step.terms.losses),
    )
    assert not torch.allclose(steps[0], batch_statistics[0])  # of the same weights and images


def test_frozen_statistics_of_outputs_that_are_sampled_stay_too(tmp_path: Path) -> None:
    arguments = {"model": "homogeneous", "num_blocks": 5, "width": 4}
    start = sc.create_model("homogeneous", num_blocks=5, width=4, in_channels=1)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    own = {"image_size": None, "epochs": 1, "freeze_norms": True, **arguments}
    train({**SETTINGS, **own, "weights": str(tmp_path / "start.safetensors")}, tmp_path / "run")
    norm = open_trained(tmp_path / "run").network.head.get_submodule("norm")
    assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(6, 4))


def test_frozen_statistics_stay_when_stages_are_cut(tmp_path: Path) -> None:
    arguments = {"model": "staged", "blocks_per_stage": [2, 2], "widths": [4, 8]}
    start = sc.create_model("staged", blocks_per_stage=(2, 2), widths=(4, 8), in_channels=1)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    own = {"image_size": None, "epochs": 2, "freeze_norms": True, "cut_at": "1:2+1", **arguments}
    train({**SETTINGS, **own, "weights": str(tmp_path / "start.safetensors")}, tmp_path / "run")
    network = open_trained(tmp_path / "run").network
    assert network.block_indices == (0, 1, 2)
    means = [buffer for name, buffer in network.named_buffers() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)


def test_layers_learn_at_rates_that_fall_towards_the_stem() -> None:
    network = sc.create_model("homogeneous", num_blocks=3, width=4)
    network.give_norms(Cut.first(1))
    groups = parameter_groups(network, 0.1)
    split = by_layer(network, groups, 0.5)
    scale = {id(p): group["lr_scale"] for group in split for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in split for p in group["params"]}
    assert len(scale) == len(list(network.parameters()))
    for parts, expected in (
        (network.head, 1.0),
        (network.blocks["2"], 0.5),
        (network.blocks["0"], 0.125),
        (network.stem, 0.0625),
        (network.norms[0].get_submodule("blocks.0"), 0.125),
        (network.norms[0].get_submodule("head"), 1.0),
    ):
        assert isinstance(parts, nn.Module)
        assert {scale[id(p)] for p in parts.parameters()} == {expected}
    assert {decay[id(p)] for p in network.blocks["1"].parameters()} == {0.1}
    assert by_layer(network, groups, 1.0) is groups


def test_layers_of_a_target_learn_as_they_would_alone() -> None:
    network = sc.create_model("homogeneous", num_blocks=4, width=4)
    groups, targets = parameter_groups(network, 0.1), [Cut((0, 3)), Cut((0, 2, 3))]
    split = by_layer(network, groups, 0.5, targets)
    scale = {id(p): group["lr_scale"] for group in split for p in group["params"]}
    parts = [network.stem, *network.blocks.values(), network.head]
    found = [{scale[id(p)] for p in part.parameters()} for part in parts]
    assert found == [{0.5**n} for n in (3, 2, 3, 2, 1, 0)]
    alone = network.keep(targets[0])
    split = by_layer(alone, parameter_groups(alone, 0.1), 0.5)
    scale = {id(p): group["lr_scale"] for group in split for p in group["params"]}
    parts = [alone.stem, *alone.blocks.values(), alone.head]
    assert [{scale[id(p)] for p in part.parameters()} for part in parts] == [
        {0.5**n} for n in (3, 2, 1, 0)
    ]


def test_of_two_targets_that_are_not_nested_the_smaller_says_the_rates() -> None:
    network = sc.create_model("homogeneous", num_blocks=6, width=4)
    targets = [Cut((0, 3, 4, 5)), Cut((0, 1, 2, 3, 4))]
    split = by_layer(network, parameter_groups(network, 0.1), 0.5, targets)
    scale = {id(p): group["lr_scale"] for group in split for p in group["params"]}
    parts = [network.stem, *network.blocks.values(), network.head]
    found = [{scale[id(p)] for p in part.parameters()} for part in parts]
    assert found == [{0.5**n} for n in (5, 4, 4, 3, 3, 2, 1, 0)]


def test_rates_of_a_target_stay_when_blocks_leave_and_when_training_goes_on(tmp_path: Path) -> None:
    given = {**SETTINGS, "num_blocks": 4, "width": 4, "targets": "[0 2]", "layer_decay": 0.5}
    rates = []

    def note(state: State, step: object) -> None:
        scale = {id(p): g["lr_scale"] for g in state.optimizer.param_groups for p in g["params"]}
        parts = [state.network.stem, *state.network.blocks.values()]
        rates.append([scale[id(next(part.parameters()))] for part in parts])
        if len(rates) == 5 and state.progress.epoch == 1:
            raise ZeroDivisionError  # behind the cut

    given |= {"epochs": 3, "cut_at": "1:3", "image_size": None, "model": "homogeneous"}
    with pytest.raises(ZeroDivisionError):
        train(given, tmp_path / "run", on_step=note)
    assert rates[0] == [0.5**n for n in (3, 2, 3, 1, 1)]
    smaller = [0.5**n for n in (3, 2, 2, 1)]
    assert rates[-1] == smaller
    rates.clear()
    train(given, tmp_path / "run", resume=True, on_step=note)
    assert rates
    assert all(rate == smaller for rate in rates)


def test_a_saved_cut_has_the_blocks_that_it_has(tmp_path: Path) -> None:
    small = sc.create_model("staged", blocks_per_stage=(2, 2), widths=(4, 4)).keep(Cut.stages(1, 2))
    small.save_pretrained(tmp_path)
    again = sc.create_model("staged", blocks_per_stage=(2, 2), weights=tmp_path)
    assert again.block_indices == small.block_indices
    with pytest.raises(StageCostError, match=r"\[2, 2\], not \[2, 3\]: leave --blocks-per-stage out"):
        sc.create_model("staged", blocks_per_stage=(2, 3), weights=tmp_path)


def test_listed_blocks_of_a_network_cut_before_are_told_by_their_k(tmp_path: Path) -> None:
    """In `--targets`, in what `analyze` prints, and in `prune --keep`."""
    small = sc.create_model("homogeneous", num_blocks=4, width=4, in_channels=1)
    small.keep(Cut((0, 2, 3))).save_pretrained(tmp_path / "small")
    size = {"model": "homogeneous", "image_size": None, "weights": str(tmp_path / "small")}
    given = {**SETTINGS, **size, "epochs": 1, "target_norms": "own"}
    train({**given, "targets": ["[0 3]"]}, tmp_path / "run")
    assert open_trained(tmp_path / "run").network.targets == (Cut((0, 2)),)
    analysis = analyze(tmp_path / "run")
    assert analysis.target_norms == ("[0 3]",)
    assert {cut.cut: cut.kept_blocks for cut in analysis.cuts}["[0 3]"] == (0, 3)
    kept = prune(tmp_path / "run", tmp_path / "kept", keep=[0, 3])
    assert kept.kept_blocks == (0, 3)
    with pytest.raises(StageCostError, match=r"targets \[0 1\] is impossible .* some of \[0, 2, 3\]"):
        train({**given, "targets": ["[0 1]"]}, tmp_path / "other")


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_starts_from_a_saved_cut_of_a_run_and_goes_on_from_anywhere(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    train({**SETTINGS, "weights": str(weights), "epochs": 1}, tmp_path / "run")
    trained = open_trained(tmp_path / "run")
    small = trained.network.keep(Cut.without(1))
    small.save_pretrained(tmp_path / "small", **trained.details())

    class StopError(Exception):
        pass

    def stop(state: State, step: Step) -> None:
        if state.progress.epoch == 1:
            raise StopError

    settings = {**SETTINGS, "image_size": None, "weights": "small"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StopError):
        train(settings, tmp_path / "second", on_step=stop)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if gone:  # what it began with is in the checkpoint, and so is how its images are prepared
        (tmp_path / "small").rename(tmp_path / "renamed")
    last = tmp_path / "second" / "last.safetensors"
    tensors, told = read_tensors(last)
    write_tensors(last, tensors, {k: v for k, v in told.items() if k != "initial_blocks"})
    with pytest.raises(StageCostError, match="is of an earlier version"):
        train({}, tmp_path / "second", resume=True)
    write_tensors(last, tensors, told)
    result = train({}, tmp_path / "second", resume=True)
    assert result.kept_blocks == small.block_indices
    assert result.gamma == 1 / small.num_blocks  # of the blocks that it began with
    again = open_trained(tmp_path / "second")
    assert again.image_format == trained.image_format
    assert again.image_format.size == 32
    assert again.network.block_indices == small.block_indices


def test_a_model_is_looked_at_without_training(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", NAME, "--weights", str(weights), "--data", "digits", "--image-size", "32"]
    main([*arguments, "--json", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert told["head"] == "fitted"
    assert told["num_images"] > 100
    bundle = load_data(DataConfig(data="digits"), seed=0, splits=("val",))
    assert told["num_images"] == len(bundle.splits["val"])
    assert [block["block"] for block in told["blocks"]] == list(range(told["num_blocks"]))
    assert all(b["macs"] > 0 and b["path"].startswith("layer") for b in told["blocks"])
    for block in told["blocks"]:
        assert block["removal_cost"] == pytest.approx(block["loss"] - told["loss"], abs=1e-6)
    assert len(told["heads"]) == told["num_blocks"] + 1
    assert told["heads"][-1]["accuracy"] > 50  # of ten digits, by random weights
    main([*arguments, "--device", "cpu"])
    assert "a head fitted to" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--tolerance", "1"])
    assert "about a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["analyze", NAME, "--data", "digits"])
    assert "give --weights" in capsys.readouterr().err


def test_a_classifier_of_as_many_classes_is_that_of_the_images_only_if_it_says_so(
    weights: Path, tmp_path: Path
) -> None:
    train({**SETTINGS, "weights": str(weights), "epochs": 1}, tmp_path / "run")
    trained, given = (
        open_trained(tmp_path / "run"),
        {"data": "digits", "image_size": 32, "device": "cpu"},
    )
    network, details = trained.network, trained.details()
    network.save_pretrained(tmp_path / "same", **details)
    told = inspect_model(NAME, weights=str(tmp_path / "same"), **given)
    assert (told.head, [w for w in told.warnings if "granted" in w]) == ("own", [])
    names = details["image_format"]["class_names"]
    others = {**details["image_format"], "class_names": [*names[1:], names[0]]}
    network.save_pretrained(tmp_path / "others", **{**details, "image_format": others})
    assert inspect_model(NAME, weights=str(tmp_path / "others"), **given).head == "fitted"
    model = network.to(memory_format=torch.contiguous_format).get_submodule("model")
    save_file(model.state_dict(), tmp_path / "unnamed.safetensors")
    told = inspect_model(NAME, weights=str(tmp_path / "unnamed.safetensors"), **given)
    assert told.head == "own"
    assert "do not name them" in told.warnings[0]


def test_removal_costs_are_those_of_the_objective() -> None:
    network = sc.create_model(NAME, num_classes=3, image_size=32).eval()
    loader = [(torch.randn(8, 3, 32, 32), torch.randint(3, (8,)))]
    cuts = [Cut.whole(), *map(Cut.without, range(network.num_blocks))]
    whole, *without = evaluate_cuts(network, loader, cuts)
    costs = sc.removal_cost(network, loader, gamma=0.0)
    assert [s.loss - whole.loss for s in without] == pytest.approx(costs, abs=1e-5)


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train({**SETTINGS, "weights": str(weights), "epochs": 1}, folder)
    return folder


def test_a_search_prunes_a_model_of_a_library(run: Path, tmp_path: Path) -> None:
    pruning = prune(run, tmp_path / "small", max_loss_increase=0.5, search=True)
    trained = open_trained(run)
    val = trained.judged("val")
    scores = [terminal_score(n, val.batches) for n in (trained.network, sc.load(tmp_path / "small"))]
    assert pruning.loss_before == pytest.approx(scores[0].loss, abs=1e-5)
    assert pruning.loss_after == pytest.approx(scores[1].loss, abs=1e-5)
    assert pruning.loss_after - pruning.loss_before <= 0.5
    assert pruning.macs_after < pruning.macs_before
    assert pruning.latency_ms_before > 0 < pruning.latency_ms_after
    assert evaluate(tmp_path / "small").num_blocks == len(pruning.kept_blocks)


def test_given_blocks_are_kept_and_the_whole_network_teaches_the_rest(run: Path, tmp_path: Path) -> None:
    kept = open_trained(run).network.block_indices
    wanted = (kept[0], kept[2])
    given = {"keep": wanted, "finetune_epochs": 1}
    for name, teacher in (("alone", False), ("taught", True)):
        pruning = prune(run, tmp_path / name, **given, teacher=teacher)
        assert pruning.kept_blocks == wanted
        assert pruning.finetune_epochs == 1
    alone, taught = (sc.load(tmp_path / name).state_dict() for name in ("alone", "taught"))
    assert alone.keys() == taught.keys()
    assert not torch.equal(alone["fc.weight"], taught["fc.weight"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0,99"], "choose some of"),
        (["--keep", "0", "--search"], "leave it out"),
        (["--keep", "0", "--keep-blocks", "2"], "exclude each other"),
        (["--keep", "0", "--teacher"], "give --finetune-epochs"),
        (["--max-loss-increase", "-1"], "at least 0"),
        ([], "say how much"),
    ],
)
def test_impossible_cuts_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prune", str(run), "--output", str(tmp_path / "small"), *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "small" / "config.json").exists()


def test_half_of_a_taught_loss_is_the_divergence_from_the_teacher() -> None:
    teacher, images = nn.Linear(4, 3), torch.randn(6, 4)
    targets = torch.randint(3, (6,))

    class Batches:
        batch_size = 6

        def __len__(self) -> int:
            return 1

        def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            yield images, targets

    taught = Taught(Batches(), teacher, F.cross_entropy)
    ((seen, _),) = taught.epoch(0)
    output = torch.randn(6, 3)
    said = teacher(seen).detach()
    divergence = (said.softmax(1) * (said.log_softmax(1) - output.log_softmax(1))).sum(1).mean()
    expected = 0.5 * F.cross_entropy(output, targets) + 0.5 * divergence
    assert torch.allclose(taught.loss(output, targets), expected, atol=1e-6)


@pytest.mark.parametrize("num_classes", [10, 11])
def test_a_norm_as_wide_as_there_are_classes_is_no_classifier(tmp_path: Path, num_classes: int) -> None:
    shape = {"num_blocks": 2, "width": 10, "in_channels": 1}
    source = sc.create_model("homogeneous", num_classes=7, **shape)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    write_tensors(tmp_path / "w.safetensors", source.state_dict(), {})
    network = sc.create_model(
        "homogeneous", num_classes=num_classes, weights=tmp_path / "w.safetensors", **shape
    )
    tensors = network.state_dict()
    other = {name for name, tensor in source.state_dict().items() if tensors[name].shape != tensor.shape}
    assert other == {"head.linear.weight", "head.linear.bias"}
    same = {name: tensor for name, tensor in source.state_dict().items() if name not in other}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in same.items())


def test_one_classifier_of_two_is_not_fitted_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
            self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x).relu()
            return (self.one(x) + self.two(x)) / 2

    network = sc.adapt(Two(), torch.randn(2, 8))
    with pytest.raises(sc.StageCostError, match="2 linear classifiers of 3 classes"):
        fit_classifier(network, [(torch.randn(9, 8), torch.arange(9) % 3)], 3)


@pytest.mark.parametrize(
    ("format_", "reason"),
    [
        (None, "damaged"),
        ([1], "damaged"),
        ({"size": 8}, "has no entry"),
        ({"mean": 1, "std": 1}, "has no entry"),
    ],
)
def test_a_folder_of_weights_that_does_not_fit_is_named(
    tmp_path: Path, format_: object, reason: str
) -> None:
    sc.create_model("homogeneous", num_blocks=2, width=4).save_pretrained(tmp_path)
    other = {**SETTINGS, "model": "staged", "image_size": 8, "weights": str(tmp_path)}
    with pytest.raises(StageCostError, match="holds a network 'homogeneous': give it as --model"):
        train(other, tmp_path / "run")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_format": format_}))
    with pytest.raises(StageCostError, match=f"stored image format .*{reason}"):
        train({**other, "model": "homogeneous"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    network = sc.create_model("homogeneous", num_blocks=2, width=4)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["blocks.1.residual.2.weight"][0] = math.nan
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(StageCostError, match=r"weights.pt has a weight that is no finite number"):
        sc.create_model("homogeneous", weights=tmp_path / "weights.pt", num_blocks=2, width=4)
