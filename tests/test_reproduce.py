"""Experiments of the recipes on tiny tiers: rows, records, what is read back, what is refused."""

import json
import logging
import statistics
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import stagecost as sc
from stagecost.cli import main
from stagecost.errors import StageCostError
from stagecost.macs import macs_by_part
from stagecost.training.cost import training_macs
from stagecost.training.trained import open_trained
from stagecost.verbs import reproduce
from stagecost.verbs.commands import train
from stagecost.verbs.console import show
from stagecost_recipes import (
    bound,
    circumstances,
    layer_pruning,
    loss_trajectory,
    runs,
    schedules,
    staged,
    tiers,
)
from stagecost_recipes.experiment import Context, Experiment
from stagecost_recipes.paper import PAPER, paper_difference
from stagecost_recipes.rows import accuracy_row, sample_std

TINY: dict[str, Any] = {
    "model": "homogeneous",
    "num_blocks": 4,
    "width": 4,
    "stem_stride": 2,
    "val_fraction": 1 / 6,
    "epochs": 1,
    "batch_size": 32,
    "limit_test": 100,
    "device": "cpu",
    "fused": "no",
}
MODULES = {
    "layer-pruning": (layer_pruning, "LAYER_PRUNING"),
    "bound": (bound, "BOUND"),
    "loss-trajectory": (loss_trajectory, "LOSS_TRAJECTORY"),
    "staged": (staged, "STAGED"),
}
ROOT = Path(__file__).resolve().parent.parent
KEYS = {"experiment", "title", "tier", "rows", "figures", "records"}
ROW_KEYS = {"dataset", "arm", "num_blocks", "test_accuracies", "mean", "std", "paper"}
ROW_KEYS |= {"seeds", "training_macs", "seconds", "val_accuracies", "parameters", "macs"}
STAGED_DIFFERENCE_KEYS = {"dataset", "arm", "macs_saved", "to_plain_full"}
STAGED_DIFFERENCE_KEYS |= {"to_plain_final", "to_control_cut"}
DIFFERENCE_KEYS = {"dataset", "full_depth", "pruned", "paper_full_depth", "paper_pruned"}
BOUND_KEYS = {"dataset", "num_blocks", "sub_blocks", "objective", "right_hand_side", "holds"}
BOUND_KEYS |= {"tightness", "gamma", "weight_decay", "seed", "predicted_blocks"}
BOUND_KEYS |= {"normalized_loss", "normalized_bound"}
TRAJECTORY_KEYS = {"dataset", "arm", "seed", "num_blocks", "stage_starts", "plateau", "jump"}
TRAJECTORY_KEYS |= {"losses", "accuracies", "seconds"}
RECORD_KEYS = {"path", "dataset", "seeds", "command", "commit", "machine", "threads", "versions"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the CPU tier one of a few digits and tiny networks."""
    monkeypatch.setattr(tiers, "_CPU", TINY)
    monkeypatch.setitem(tiers.SUB_BLOCKS, "cpu", 2)
    monkeypatch.setitem(bound.BOUND_BLOCKS, "cpu", (1, 2))
    shape = {"model": "staged", "blocks_per_stage": [2, 2], "widths": [4, 6]}
    monkeypatch.setitem(loss_trajectory.STAGED, "cpu", shape)
    monkeypatch.setitem(staged.BLOCKS, "cpu", ([3, 3], [1, 2]))
    monkeypatch.setitem(staged.WIDTHS, "cpu", [4, 6])
    for module, attribute in MODULES.values():
        small = replace(getattr(module, attribute), datasets={"cpu": ("digits",), "gpu": ("cifar10",)})
        monkeypatch.setattr(module, attribute, small)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("stagecost")  # which the command line points at standard error
    monkeypatch.setattr(logger, "handlers", logger.handlers)
    monkeypatch.setattr(logger, "level", logger.level)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run the verb, and return the one JSON object on standard output."""
    capsys.readouterr()
    main(["reproduce", *arguments, "--results", "results", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the verb, and return the one line on standard error with which it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *arguments])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: Any) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    show("reproduce", found)
    return capsys.readouterr().out


def test_layer_pruning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The four rows say what the networks of the runs really do."""
    monkeypatch.setattr(schedules, "SCHEDULES", schedules.SCHEDULES)
    gentle = lambda n, m: {"gamma": 0.5 / n, "first_depth": m - 1}  # noqa: E731
    monkeypatch.setitem(schedules.SCHEDULES, schedules.PRUNED_SCHEDULE, gentle)
    found = answer(capsys, "layer-pruning", "--seeds", "0,1", "--work", "work")
    assert found["tier"] == "cpu"
    assert [row["arm"] for row in found["rows"]] == list(layer_pruning.ARMS)
    assert [row["num_blocks"] for row in found["rows"]] == [4, 2, 4, 2]
    for row in (*found["rows"], *found["other_rows"]):
        assert set(row) - {"schedule"} == ROW_KEYS
        assert len(row["test_accuracies"]) == len(row["val_accuracies"]) == len(row["seeds"]) == 2
        assert row["mean"] == pytest.approx(statistics.mean(row["test_accuracies"]))
        assert row["std"] == pytest.approx(statistics.stdev(row["test_accuracies"]))
        assert row["paper"] is None
    ends = [(row["arm"], row["schedule"]) for row in (*found["rows"][2:], *found["other_rows"])]
    assert ends == [
        ("stage_full", "full-depth"),
        ("stage_pruned", "pruned"),
        ("stage_pruned", "full-depth"),
        ("stage_full", "pruned"),
    ]
    mean = {row["arm"]: row["mean"] for row in found["rows"]}
    (differences,) = found["differences"]
    assert set(found) == KEYS | {"other_rows", "differences"}
    assert set(differences) == DIFFERENCE_KEYS
    assert differences["full_depth"] == pytest.approx(mean["stage_full"] - mean["plain_full"])
    assert differences["pruned"] == pytest.approx(mean["stage_pruned"] - mean["plain_sub"])
    check_truncation(found["rows"][3])
    text = shown(capsys, monkeypatch, found)
    assert "stage_pruned (pruned)" in text
    assert "Points above plain training" in text
    page = section(monkeypatch)
    assert f"| cpu, digits | stage_pruned, pruned | 2 | {found['rows'][3]['mean']:.2f} ± " in page
    assert "| (stage_full, pruned) | 4 |" in page
    assert f"| {differences['full_depth']:+.2f} |  |" in page
    check_read_back(capsys, "layer-pruning", found)


def section(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the page of results says of the records that a test has made."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return "\n".join(import_module("reproduce_tables").reproduce_section(Path("results")))


def check_truncation(row: dict[str, Any]) -> None:
    """The pruned network's accuracy is what the run's trajectory tells of that depth, untrained."""
    settings = layer_pruning.trainings("cpu", "digits")["pruned"]
    context = Context("cpu", "digits", "digits", (0, 1), Path("work/cpu-digits"), print)
    folder = runs.run_folder(context, "stage", settings, seed=1)
    trained = open_trained(folder)
    accuracies = sc.loss_trajectory(trained.network, trained.batches("test")).accuracies
    assert row["test_accuracies"][1] == pytest.approx(accuracies[2])


def check_read_back(capsys: pytest.CaptureFixture[str], name: str, found: dict[str, Any]) -> None:
    (record,) = found["records"]
    assert set(record) == RECORD_KEYS
    assert all(record.values())
    seeds = ",".join(map(str, record["seeds"]))
    command = f"stagecost reproduce {name} --tier cpu --dataset digits --seeds {seeds}"
    assert record["command"] == command
    assert answer(capsys, name, "--from-results") == found
    assert answer(capsys, name, "--from-results", "--dataset", "digits") == found


def test_a_run_goes_on_and_is_not_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training for each kind and schedule; a second call trains nothing."""
    trained = []
    real = runs.train

    def counted(given: Any, folder: Path, **options: Any) -> Any:
        fresh = not (folder / "last.safetensors").is_file()
        trained.append((folder.name.rsplit("-", 2)[0], fresh))
        return real(given, folder, **options)

    monkeypatch.setattr(runs, "train", counted)
    first = answer(capsys, "layer-pruning", "--seeds", "0", "--work", "work")
    assert [name for name, fresh in trained if fresh] == ["plain", "plain-sub", "stage", "stage"]
    assert first["rows"][0]["std"] is None
    trained.clear()
    assert answer(capsys, "layer-pruning", "--seeds", "0", "--work", "work")["rows"] == first["rows"]
    assert not any(fresh for _, fresh in trained)
    line = refusal(capsys, "layer-pruning", "--seeds", "1", "--work", "work", "--results", "results")
    assert "holds seed 0" in line
    assert "add it to --seeds" in line


def test_staged(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TINY, "epochs", 2)  # a cut needs an epoch before it and one after it
    found = answer(capsys, "staged", "--seeds", "0", "--work", "work")
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == list(staged.ARMS)
    assert all(set(row) == ROW_KEYS and row["paper"] is None for row in found["rows"])
    assert [row["num_blocks"] for row in found["rows"]] == [6, 3, 3, 3, 6, 3, 3]
    small = ("stage_cut", "control_cut", "plain_final", "vector_pruned", "plain_pruned")
    assert len({rows[arm]["macs"] for arm in small}) == 1
    assert rows["vector_pruned"]["training_macs"] > rows["plain_pruned"]["training_macs"]
    assert rows["plain_pruned"]["training_macs"] == rows["plain_full"]["training_macs"]
    whole, cut = rows["plain_full"], rows["stage_cut"]
    assert rows["plain_final"]["training_macs"] < cut["training_macs"] < whole["training_macs"]
    assert [row["arm"] for row in found["differences"]] == list(staged.COMPARED)
    assert all(set(row) == STAGED_DIFFERENCE_KEYS for row in found["differences"])
    difference = found["differences"][0]
    assert difference["to_plain_full"] == pytest.approx(cut["mean"] - whole["mean"])
    assert difference["macs_saved"] == pytest.approx(1 - cut["macs"] / whole["macs"])
    assert "gamma = 0, cut alike" in shown(capsys, monkeypatch, found)
    check_read_back(capsys, "staged", found)


def test_bound(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(capsys, "bound", "--seeds", "0", "--work", "work")
    assert [(row["num_blocks"], row["sub_blocks"]) for row in found["rows"]] == [(4, 1), (4, 2)]
    assert set(found) == KEYS
    for row in found["rows"]:
        assert set(row) == BOUND_KEYS
        assert row["holds"] == (row["objective"] <= row["right_hand_side"])
        assert row["tightness"] == pytest.approx(row["objective"] / row["right_hand_side"])
        assert (row["gamma"], row["weight_decay"], row["seed"]) == (1 / 4, 5e-4, 0)
        # Both sides over 1 + gamma·N = 2, less the weight decay, which only adds to them.
        assert row["normalized_loss"] < row["objective"] / 2
        assert row["normalized_bound"] < row["right_hand_side"] / 2
    assert found["rows"][0]["predicted_blocks"] in (1, 2)
    assert f"| cpu, digits | 0 | 1 of 4 | {found['rows'][0]['objective']:.4f} |" in section(monkeypatch)
    settings = json.loads(Path("results/bound/cpu-digits.json").read_text())["settings"]
    assert {one["augment"] for one in settings.values()} == {"none"}
    for row, holds in zip(found["rows"], (True, False), strict=True):
        row["holds"] = holds
    assert "optimisation fell short" in shown(capsys, monkeypatch, found)
    found["rows"] = found["rows"][:1]
    assert "fell short" not in shown(capsys, monkeypatch, found)


def test_loss_trajectory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(capsys, "loss-trajectory", "--seeds", "0,1", "--work", "work")
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [
        ("plain", 0),
        ("plain", 1),
        ("stage", 0),
        ("stage", 1),
    ]
    for row in found["rows"]:
        assert set(row) == TRAJECTORY_KEYS
        assert row["stage_starts"] == [0, 2]
        loss = row["losses"]
        assert row["jump"] == pytest.approx(loss[2] - loss[3])
        assert row["plateau"] == pytest.approx((loss[1] - loss[2] + loss[3] - loss[4]) / 2)
    for figure in found["figures"]:
        assert "stage cost" in Path(figure).read_text()
    assert [Path(figure).name for figure in found["figures"]] == [
        "cpu-digits-loss.svg",
        "cpu-digits-accuracy.svg",
    ]
    assert "at a stage's start" in shown(capsys, monkeypatch, found)
    page = section(monkeypatch)
    assert f"| cpu, digits | stage | 1 | {found['rows'][3]['accuracies'][-1]:.2f} |" in page
    assert "](loss-trajectory/cpu-digits-loss.svg)" in page
    check_read_back(capsys, "loss-trajectory", found)


REFUSED = [
    (["zzz"], "'zzz'", "choose from layer-pruning"),
    (["bound", "--tier", "tpu"], "'tpu'", "'cpu', 'gpu'"),
    (["bound", "--dataset", "svhn"], "'svhn'", "choose from digits"),
    (["bound", "--seeds", "x"], "'x'", "give numbers"),
    (["bound", "--seeds", "1,1"], "'1,1'", "give different numbers"),
    (["bound", "--data-root", "nowhere"], "nowhere", "local copies"),
    (["bound", "--from-results", "--results", "empty"], "nothing is recorded", "without --from-results"),
    (["bound", "--from-results", "--seeds", "0"], "--seeds", "leave it out"),
]


@pytest.mark.parametrize(("flags", "value", "remedy"), REFUSED, ids=lambda part: str(part)[:30])
def test_what_is_refused(
    flags: list[str], value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, *flags)
    assert value in line
    assert remedy in line


def test_the_gpu_tier_needs_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refusal(capsys, "layer-pruning", "--tier", "gpu", "--results", "results")
    assert "--tier cpu" in line


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"rows": 1}', '{"experiment": "bound", "rows": []}', "one row less"],
)
def test_a_damaged_record_is_named_and_left_alone(
    content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("results/bound/cpu-digits.json")
    file.parent.mkdir(parents=True)
    if content == "one row less":
        about = dict.fromkeys(RECORD_KEYS - {"path", "dataset"}, 0)
        rows = [{"dataset": "digits", "objective": 1.0}]
        whole = {"experiment": "bound", "dataset": "digits", "rows": rows, "figures": [], **about}
        content = json.dumps(whole)
    file.write_text(content)
    for flags in (["--from-results"], ["--seeds", "0"]):
        line = refusal(capsys, "bound", *flags, "--results", "results")
        assert str(file) in line
        assert "delete it" in line
    assert file.read_text() == content


def test_a_run_on_other_images_is_refused(tmp_path: Path) -> None:
    recipe = {**TINY, "gamma": 0.0, "limit_train": 300}
    context = Context("cpu", "digits", "digits", (0,), tmp_path, lambda what: None)
    runs.trained_run(context, "plain", recipe, 0)
    elsewhere = replace(context, data="copies/digits")
    with pytest.raises(StageCostError, match="give the same --data-root"):
        runs.trained_run(elsewhere, "plain", recipe, 0)


def test_the_work_of_a_training_is_counted_with_the_blocks_that_it_had(tmp_path: Path) -> None:
    settings = {**TINY, "data": "digits", "limit_train": 300, "epochs": 3, "cut_at": "1:2"}
    train(str(tmp_path / "run"), **settings)
    trained = open_trained(tmp_path / "run")
    assert trained.checkpoint is not None
    whole = sc.create_model("homogeneous", num_blocks=4, width=4, stem_stride=2, in_channels=1)
    parts = macs_by_part(whole, (1, 8, 8))
    passes = 3 * (250 // 32 * 32) + 50
    expected = passes * (sum(parts) + 2 * (sum(parts[:3]) + parts[-1]))
    assert training_macs(tmp_path / "run", trained.checkpoint.progress.history) == expected


def test_a_local_copy_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    assert reproduce._data("mnist", str(tmp_path)) == str(tmp_path / "mnist")
    assert reproduce._data("cifar10", str(tmp_path)) == "cifar10"


def test_the_papers_figures() -> None:
    """What the paper pays, as it says itself."""
    full = [paper_difference(name, "stage_full", "plain_full") for name in PAPER]
    pruned = [paper_difference(name, "stage_pruned", "plain_sub") for name in PAPER]
    assert (full, pruned) == ([-0.02, -1.46, -1.97], [-0.09, -0.41, -2.22])
    assert paper_difference("fashion-mnist", "stage_full", "plain_full") is None
    assert accuracy_row("mnist", "plain_full", [99.0, 100.0], (0, 1))["paper"] == 99.64
    assert sample_std([99.0, 100.0]) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("name", reproduce.EXPERIMENTS)
def test_every_experiment_is_a_whole_specification(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tiers name settings that a training takes, and the names in the registry are their own."""
    monkeypatch.undo()
    experiment = reproduce.find_experiment(name)
    assert isinstance(experiment, Experiment)
    assert experiment.name == name
    for tier, datasets in experiment.datasets.items():
        for settings in chain(*(experiment.settings(tier, dataset).values() for dataset in datasets)):
            parsed = runs_settings(settings)
            assert parsed.training.device == {"cpu": "cpu", "gpu": "cuda"}[tier]


def runs_settings(settings: dict[str, Any]) -> Any:
    from stagecost.training.parsing import parse_settings

    parsed = parse_settings({**settings, "data": "digits", "seed": 0})
    parsed.variant.check()
    return parsed


def test_a_commit_is_named_outside_a_checkout_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circumstances, "ROOT", tmp_path)
    assert circumstances.circumstances("x")["commit"].startswith("none, version ")
