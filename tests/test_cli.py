"""The command line as its contract describes it, from outside."""

import csv
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import stagecost as sc
from helpers import DATA, RECIPE, Runs
from processes import CommandLine
from stagecost.cli import verbs as command_line
from stagecost.models.native import homogeneous, staged
from stagecost.train.settings import RunSettings, StageCostSettings, TrainingSettings

VERBS = ("demo", "train", "analyze", "prune", "evaluate", "exit", "bound", "report", "compare", "models")
ANALYZE_LISTS = {"losses": 4, "accuracies": 4, "residual_ratios": 3, "weight_norms": 3}
SIZES = {"parameters_before", "parameters_after", "macs_before", "macs_after"}
PRUNE_KEYS = SIZES | {
    "kept_blocks",
    "accuracy_before",
    "accuracy_predicted",
    "accuracy_after",
    "network",
}


def really_run(*arguments: object, script: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, import of torch included."""
    beside = Path(sys.executable).with_name("stagecost")
    command = [str(beside)] if script else [sys.executable, "-m", "stagecost"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def metrics(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


# ---------------------------------------------------------------------------------------------
# Help and version


@pytest.mark.parametrize("verb", [*VERBS, None])
def test_help(cli: CommandLine, verb: str | None) -> None:
    outcome = cli(*([verb] if verb else []), "--help")
    assert outcome.status == 0
    assert "stagecost" in outcome.stdout
    for name in [verb] if verb else VERBS:
        assert str(name) in outcome.stdout


def test_help_of_training_shows_a_dozen_flags_and_help_all_the_rest(cli: CommandLine) -> None:
    few, most = (cli("train", form).stdout for form in ("--help", "--help-all"))
    shown = [re.findall(r"^ +(--[\w-]+)", text, re.MULTILINE) for text in (few, most)]
    assert len(shown[0]) <= 14
    assert {"--num-blocks", "--gamma", "--targets", "--resume", "--json"} <= set(shown[0])
    every = {flag.option for flag in command_line.VERBS["train"].flags}
    assert every | {"--json", "--help-all"} == set(shown[1])
    for text in ("--seed N ", "(default 20)", "{sgd,adamw}", "data settings:", "--output PATH "):
        assert text in most


def test_defaults_that_help_tells_are_those_of_the_builders() -> None:
    texts = {flag.name: flag.text for flag in command_line.VERBS["train"].flags}
    told = {
        "num_blocks": homogeneous,
        "blocks_per_stage": staged,
        "widths": staged,
        "stem_stride": staged,
    }
    for name, builder in told.items():
        default = inspect.signature(builder).parameters[name].default
        value = ",".join(map(str, default)) if isinstance(default, tuple) else default
        assert texts[name].rstrip(".").endswith(f"; {value} if not given"), name
    assert inspect.signature(homogeneous).parameters["width"].default == 16
    assert "(16 if not given)" in texts["width"]


def test_sampled_depths_that_help_tells_are_those_of_a_run() -> None:
    texts = {flag.name: flag.text for flag in command_line.VERBS["train"].flags}
    told = "3 if not given, or all with targets or compile"
    assert texts["sampled_depths"].rstrip(".").endswith(told)
    assert RunSettings().sampled_depths == 3
    assert RunSettings(stage=StageCostSettings(targets=("2", "4"))).sampled_depths == 0
    assert RunSettings(training=TrainingSettings(compile=True)).sampled_depths == 0


@pytest.mark.parametrize("script", [False, True])
def test_version(script: bool) -> None:
    done = really_run("--version", script=script)
    assert done.returncode == 0
    assert sc.__version__ in done.stdout
    assert done.stderr == ""


def test_help_answers_at_once() -> None:
    before = os.times()
    assert really_run("--help", script=True).returncode == 0
    after = os.times()
    assert sum(after[2:4]) - sum(before[2:4]) < 1  # seconds of the processor, whatever else it does


# ---------------------------------------------------------------------------------------------
# Every verb, as a user runs it


@pytest.mark.parametrize("verb", VERBS[1:])
def test_a_verb_in_a_process_of_a_users_own(verb: str, runs: Runs, tmp_path: Path) -> None:
    """With nothing imported beforehand, and by the console script as well."""
    new = tmp_path / "new"
    arguments: dict[str, tuple[object, ...]] = {
        "train": (*RECIPE, "--num-blocks", 3, "--width", 6, "--output", new),
        "analyze": (runs.three,),
        "prune": (runs.three, "--keep-blocks", 1, "--output", new),
        "evaluate": (runs.saved, "--split", "val"),
        "exit": (runs.two, "--max-drop", 5, "--batch", 16),
        "bound": (runs.three, "--sub", runs.two),
        "report": (runs.staged,),
        "compare": (runs.two, runs.three, "--output", new),
        "models": ("*resnet*",),
    }
    found = answer(really_run(verb, *arguments[verb], "--json", script=verb == "train"))
    last = metrics(runs.three)[-1]
    match verb:
        case "train":  # the run of the fixture once more
            assert (found["run"], found["epochs"]) == (str(new), 2)
            assert found["val_accuracy"] == float(last["val_accuracy"])
        case "analyze":
            assert found["accuracies"][-1] == float(last["val_accuracy"])
        case "prune":
            assert (found["kept_blocks"], found["network"]) == ([0], str(new))
        case "evaluate":
            assert found["num_blocks"] == 2
        case "bound":
            assert [row["num_blocks"] for row in found["bounds"]] == [2]
        case "report":
            assert Path(found["report"]).is_file()
        case "models":
            assert "preact_resnet50" in found["models"]
            assert "staged" not in found["models"]


def test_train(cli: CommandLine, tmp_path: Path) -> None:
    outcome = cli(
        "train", *RECIPE, "--num-blocks", 2, "--width", 4, "--output", tmp_path / "a", "--json"
    )
    found = outcome.answer
    assert set(found) >= {"run", "epochs", "val_accuracy", "val_loss", "seconds"}
    assert "epoch 1/2" in outcome.stderr  # progress goes there
    assert "Traceback" not in outcome.stderr
    assert len(metrics(tmp_path / "a")) == 2
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names >= {"config.yaml", "last.safetensors", "best.safetensors", "trajectory.csv"}


def test_analyze(cli: CommandLine, runs: Runs) -> None:
    for split, count in (("val", 60), ("test", 200), ("train", 540)):
        outcome = cli("analyze", runs.three, "--split", split, "--tolerance", 0.25, "--json")
        found = outcome.answer
        assert (found["num_blocks"], found["split"], found["tolerance"]) == (3, split, 0.25)
        assert {name: len(found[name]) for name in ANALYZE_LISTS} == ANALYZE_LISTS
        assert all(0 <= accuracy <= 100 for accuracy in found["accuracies"])
        # An accuracy is a number of images out of those that the split has.
        for accuracy in found["accuracies"]:
            assert math.isclose(accuracy * count / 100, round(accuracy * count / 100), abs_tol=1e-6)
        least = found["accuracies"][-1] - 0.25
        enough = [k for k in range(1, 4) if found["accuracies"][k] >= least - 1e-9]
        assert found["needed_blocks"] == enough[0]


def test_the_validation_split_is_that_of_training(cli: CommandLine, runs: Runs) -> None:
    reported = metrics(runs.three)[-1]
    for verb in ("evaluate", "analyze"):
        found = cli(verb, runs.three, "--split", "val", "--json").answer
        accuracy = found["accuracy"] if verb == "evaluate" else found["accuracies"][-1]
        loss = found["loss"] if verb == "evaluate" else found["losses"][-1]
        assert accuracy == float(reported["val_accuracy"])
        assert loss == pytest.approx(float(reported["val_loss"]), rel=1e-6)


def test_evaluate(cli: CommandLine, runs: Runs) -> None:
    found = cli("evaluate", runs.three, "--json").answer
    assert set(found) >= {"accuracy", "loss", "num_blocks", "parameters", "macs"}
    assert found["num_blocks"] == 3
    network = sc.load(runs.saved)
    small = cli("evaluate", runs.saved, "--json").answer
    assert small["parameters"] == sum(p.numel() for p in network.parameters()) < found["parameters"]
    assert small["macs"] < found["macs"]
    assert small["num_blocks"] == network.num_blocks == 2
    assert cli("evaluate", runs.three, "--data", "digits", "--json").answer == found


def test_homogeneous_pruning_is_exact(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    found = cli("analyze", runs.three, "--json").answer
    for keep in (1, 2, 3):
        small = tmp_path / f"small{keep}"
        cut = cli("prune", runs.three, "--keep-blocks", keep, "--output", small, "--json").answer
        assert set(cut) >= PRUNE_KEYS
        assert cut["kept_blocks"] == list(range(keep))
        assert cut["accuracy_predicted"] == cut["accuracy_after"] == found["accuracies"][keep]
        assert cut["accuracy_before"] == found["accuracies"][3]
        assert (cut["macs_after"] < cut["macs_before"]) == (keep < 3)
        assert (cut["parameters_after"] < cut["parameters_before"]) == (keep < 3)
        score = cli("evaluate", small, "--split", "val", "--json").answer
        assert score["accuracy"] == cut["accuracy_after"]
        assert score["loss"] == pytest.approx(found["losses"][keep], rel=1e-6)
        assert (score["parameters"], score["macs"]) == (cut["parameters_after"], cut["macs_after"])


def test_max_drop_keeps_the_fewest_blocks(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    cut = cli("prune", runs.three, "--max-drop", 100, "--output", tmp_path / "a", "--json").answer
    assert cut["kept_blocks"] == [0]
    none = cli("prune", runs.three, "--max-drop", 0, "--output", tmp_path / "b", "--json").answer
    assert none["accuracy_after"] >= none["accuracy_before"]


def test_staged_pruning(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    wishes = (["--keep-per-stage", "1,2"], ["--keep-blocks", 2], ["--max-drop", 100], ["--max-drop", 0])
    expected = ([0, 2, 3], [0, 2], [0, 2], None)
    for number, (wish, kept) in enumerate(zip(wishes, expected, strict=True)):
        small = tmp_path / f"small{number}"
        cut = cli("prune", runs.staged, *wish, "--output", small, "--json").answer
        if kept is None:  # whichever: the whole network at least loses nothing
            assert cut["accuracy_after"] >= cut["accuracy_before"]
        else:
            assert cut["kept_blocks"] == kept
        assert (
            cli("evaluate", small, "--split", "val", "--json").answer["accuracy"]
            == cut["accuracy_after"]
        )
        assert tuple(cut["kept_blocks"]) == sc.load(small).block_indices


def test_fine_tuning(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    for run, wish in ((runs.staged, ("--keep-per-stage", "1,1")), (runs.three, ("--keep-blocks", 1))):
        small = tmp_path / run.name
        arguments = ("prune", run, *wish, "--finetune-epochs", 1, "--output", small, "--json")
        cut = cli(*arguments).answer
        score = cli("evaluate", small, "--split", "val", "--json").answer
        assert score["accuracy"] == cut["accuracy_after"]


def test_bound(cli: CommandLine, runs: Runs) -> None:
    found = cli("bound", runs.three, "--sub", runs.two, "--json").answer
    assert set(found) >= {"objective", "gamma", "weight_decay", "bounds", "predicted_blocks"}
    assert (found["gamma"], found["weight_decay"]) == (pytest.approx(1 / 3), 5e-4)
    (row,) = found["bounds"]
    assert set(row) >= {"num_blocks", "right_hand_side", "holds", "tightness"}
    assert row["num_blocks"] == found["predicted_blocks"] == 2
    assert row["holds"] == (found["objective"] <= row["right_hand_side"])
    assert row["tightness"] == pytest.approx(found["objective"] / row["right_hand_side"])
    # Written out, from what `analyze` says of the same images, with the deep run's gamma and lambda.
    (deep, of_deep), (small, of_small) = (
        (told["losses"], [0.5 * 5e-4 * norm**2 for norm in told["weight_norms"]])
        for run in (runs.three, runs.two)
        for told in [cli("analyze", run, "--split", "train", "--json").answer]
    )
    assert found["normalized_loss"] == pytest.approx((sum(deep[:3]) / 3 + deep[3]) / 2)
    assert found["objective"] == pytest.approx(2 * found["normalized_loss"] + sum(of_deep))
    assert row["normalized_bound"] == pytest.approx((sum(small[:2]) / 3 + 4 / 3 * small[2]) / 2)
    assert row["right_hand_side"] == pytest.approx(2 * row["normalized_bound"] + sum(of_small))
    sides = [sum(deep[:m]) / 3 + (1 + (3 - m) / 3) * deep[m] + sum(of_deep[:m]) for m in (1, 2, 3)]
    assert found["truncation_predicted_blocks"] == 1 + sides.index(min(sides))


def test_bound_of_a_staged_run_cut_in_its_first_stage(
    cli: CommandLine, runs: Runs, tmp_path: Path
) -> None:
    """The output that the added block repeats is y_1 of the small network, not its terminal one."""
    staged = ("--model", "staged", "--blocks-per-stage", "1,2", "--widths", "6,8")
    cli("train", *RECIPE, *staged, "--output", tmp_path / "sub")
    found = cli("bound", runs.staged, "--sub", tmp_path / "sub", "--json").answer
    small = cli("analyze", tmp_path / "sub", "--split", "train", "--json").answer
    losses, gamma = small["losses"], found["gamma"]
    decay = found["weight_decay"] / 2 * sum(norm**2 for norm in small["weight_norms"])
    (row,) = found["bounds"]
    assert row["blocks_per_stage"] == [1, 2]
    expected = gamma * (sum(losses[:-1]) + losses[1]) + losses[-1] + decay
    assert row["right_hand_side"] == pytest.approx(expected)
    assert "3 (1, 2)" in cli("bound", runs.staged, "--sub", tmp_path / "sub").stdout


def test_report(cli: CommandLine, runs: Runs) -> None:
    found = cli("report", runs.three, "--json").answer
    page = Path(found["report"]).read_text()
    assert found["report"] == str(runs.three / "report.html")
    assert page.rstrip().endswith("</html>")
    assert 'src="http' not in page
    assert 'rel="stylesheet"' not in page


def test_people_are_told_something(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    commands: list[tuple[object, ...]] = [
        ("train", *RECIPE, "--num-blocks", 1, "--width", 4, "--output", tmp_path / "run"),
        ("analyze", runs.staged),
        ("prune", runs.three, "--keep-blocks", 1, "--output", tmp_path / "small"),
        ("evaluate", runs.saved),
        ("bound", runs.three, "--sub", runs.two),
        ("report", runs.three),
    ]
    for command in commands:
        outcome = cli(*command)
        assert outcome.status == 0, outcome.stderr
        assert outcome.stdout.strip(), command
        assert "Traceback" not in outcome.stderr


def test_cuts_that_prune_alone_tries_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    from stagecost.cli.views import show
    from stagecost.runs.analysis import Analysis, CutScore

    def told(blocks: int) -> str:
        """Show the analysis of two stages of so many blocks, of which four cuts were measured."""
        cuts = tuple(CutScore(f"{k}+1", (*range(2 * blocks),), 1.0, 50.0, None, k) for k in range(1, 5))
        curve, sizes = (1.0,) * (2 * blocks + 1), (1.0,) * 2 * blocks
        rest = ((0, blocks), 0.5, 2, "1+1", cuts, (), ())
        show(
            "analyze",
            Analysis(2 * blocks, "val", 9, curve, curve, (None,) * len(curve), sizes, sizes, *rest),
        )
        return capsys.readouterr().out

    assert "prune tries more cuts" in told(3)
    assert "prune tries more cuts" not in told(2)


def test_a_loss_that_is_no_number_is_shown_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    from stagecost.cli.views import show
    from stagecost.runs.analysis import Analysis, CutScore

    cuts, rest = (CutScore("1", (0,), 1.0, 50.0, None, 1),), ((0,), 0.5, 1, "1")
    for loss in (float("nan"), float("inf")):
        curves = ((loss, 1.0), (50.0, 50.0), (None, None), (1.0,), (1.0,))
        show("analyze", Analysis(1, "val", 9, *curves, *rest, cuts, (), ()))
        assert f"{loss:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run[seed=1]", "a[/b]", "lr:100:"])
def test_a_folder_is_called_what_it_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from stagecost.cli.views import show
    from stagecost.runs.reporting import ComparedRun, Comparison

    row = ComparedRun(name, 1, 1, "1", "val", 9, 50.0, None, 50.0, 1, 1, ("doubt",))
    show("compare", Comparison(f"{name}.html", 0.5, (row,)))
    told = capsys.readouterr().out
    assert f"│ {name} " in told
    assert f"note: {name}: doubt" in told
    assert f"wrote {name}.html" in told


def test_what_is_told_to_be_typed_next_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    from stagecost.cli.views import show
    from stagecost.runs.evaluation import Evaluation
    from stagecost.runs.training import TrainingResult

    for path, typed in {"my runs/a": "'my runs/a'", "-run": "./-run"}.items():
        run = TrainingResult(path, 1, None, None, 0, None, 1, (0,), 1.0, (), (), 1.0, ())
        show("train", run)
        assert f"next: stagecost analyze {typed}" in capsys.readouterr().out
    show("evaluate", Evaluation(50.0, 1.0, 1, 1, 1, "all", 9, None, ("4 of these were trained on",)))
    assert "note: 4 of these were trained on" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# Settings


def test_flags_win_over_a_file(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    wanted = {"data": "digits", "limit_train": 300, "num_blocks": 2, "width": 4, "epochs": 3}
    file.write_text(yaml.safe_dump({**wanted, "batch_size": 32, "device": "cpu"}) + "seed: 010\n")
    first, again = tmp_path / "first", tmp_path / "again"
    found = cli("train", "--config", file, "--epochs", 1, "--output", first, "--json").answer
    assert found["epochs"] == 1
    merged = yaml.safe_load((first / "config.yaml").read_text())
    assert merged.items() >= {**wanted, "epochs": 1, "seed": 10, "optimizer": "sgd"}.items()
    repeated = cli("train", "--config", first / "config.yaml", "--output", again, "--json").answer
    assert yaml.safe_load((again / "config.yaml").read_text()) == merged
    for key in ("val_accuracy", "val_loss"):
        assert repeated[key] == found[key]


def test_gamma_zero(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "plain"
    arguments = ("--num-blocks", 2, "--width", 4, "--gamma", 0)
    trained = cli("train", *RECIPE, *arguments, "--output", run, "--json").answer
    found = cli("analyze", run, "--json").answer
    assert found["accuracies"][-1] == trained["val_accuracy"]
    assert all(math.isfinite(loss) for loss in found["losses"])


def test_many_options_together(cli: CommandLine, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    options = (
        *("--optimizer", "adamw", "--ema-decay", 0.9, "--clip-norm", 1, "--precision", "bf16"),
        *("--label-smoothing", 0.1, "--warmup-epochs", 0.5, "--augment", "none", "--stem-stride", 2),
        *("--stage-loss", "distilled", "--drop-path", 0.1, "--gamma", 0.05, "--weight-decay", 1e-3),
    )
    flags = ("--normalize-objective", "--tracker", "tensorboard", "--num-blocks", 2, "--width", 4)
    trained = cli("train", *RECIPE, *options, *flags, "--output", run, "--json").answer
    assert any(path.name.startswith("events") for path in run.rglob("*"))
    found = cli("analyze", run, "--json").answer
    assert found["accuracies"][-1] == trained["val_accuracy"]
    assert found["losses"][-1] == pytest.approx(trained["val_loss"], rel=1e-6)
    assert cli("prune", run, "--keep-blocks", 1, "--output", tmp_path / "small").status == 0
    assert cli("report", run).status == 0


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (*RECIPE, "--num-blocks", 2, "--width", 4, "--num-processes", 2)
    trained = answer(really_run("train", *arguments, "--output", run, "--json"))
    assert trained["epochs"] == len(metrics(run)) == 2


@pytest.mark.slow
def test_an_error_in_several_processes_is_one_line(tmp_path: Path) -> None:
    arguments = (*RECIPE, "--num-blocks", 2, "--width", 4, "--num-processes", 2, "--lr", 1e30)
    done = really_run("train", *arguments, "--output", tmp_path / "run")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("stagecost: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "lower --lr" in lines[0]


@pytest.mark.slow
def test_an_error_in_one_of_several_processes_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stagecost", "train", *RECIPE, "--num-processes", "2"]
    done = subprocess.run(  # the first process alone writes files, and they may not be so large
        ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *map(str, command), "--output", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("stagecost: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "ulimit" in lines[0]


def test_no_validation_images(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (*RECIPE, "--num-blocks", 2, "--width", 4, "--val-fraction", 0)
    assert cli("train", *arguments, "--output", run, "--json").answer["val_accuracy"] is None
    assert "val" in cli("analyze", run, "--split", "val").refusal
    assert "val" in cli("prune", run, "--keep-blocks", 1, "--output", tmp_path / "small").refusal
    assert len(cli("analyze", run, "--split", "test", "--json").answer["losses"]) == 3
    assert cli("report", run).status == 0


def test_a_folder_of_jpeg_files(cli: CommandLine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(24):
            pixels = random.integers(100 * number, 100 * number + 100, (20, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.jpg")
    run, small = tmp_path / "run", tmp_path / "small"
    settings = ("--image-size", 16, "--num-blocks", 2, "--width", 4, "--epochs", 4, "--batch-size", 8)
    arguments = ("--data", tmp_path / "pets", *settings, "--device", "cpu", "--output", run, "--json")
    trained = cli("train", *arguments).answer
    cut = cli("prune", run, "--keep-blocks", 1, "--output", small, "--json").answer
    assert cut["accuracy_before"] == trained["val_accuracy"]
    assert cli("evaluate", small, "--json").answer["num_blocks"] == 1


def test_underscores_work_as_dashes(cli: CommandLine, tmp_path: Path) -> None:
    arguments = (*DATA, "--num_blocks", 1, "--width", 4, "--epochs", 1, "--batch_size", 64)
    assert cli("train", *arguments, "--output", tmp_path / "run").status == 0


def test_a_reader_that_has_seen_enough(runs: Runs) -> None:
    """As in `stagecost analyze RUN | head`: no complaint, and no failure."""
    command = [sys.executable, "-m", "stagecost.cli", "analyze", str(runs.three)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    with running.stderr:
        complaint = running.stderr.read()
    assert running.wait(120) == 0, complaint
    assert b"Traceback" not in complaint
    assert b"stagecost: " not in complaint
