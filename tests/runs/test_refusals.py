"""What a good run cannot do, and what goes wrong on the way: status 2, one line, nothing lost."""

import errno
import functools
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import DATA, RECIPE, Runs
from helpers import contents
from processes import CommandLine
from stagecost.storage import write_atomically

MODEL = ("--num-blocks", 2, "--width", 4)


def flags_only(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


# ---------------------------------------------------------------------------------------------
# Verbs on good runs


PRUNE = [
    (["--keep-blocks", "0"], "keeping 0", "from 1 to 3"),
    (["--keep-blocks", "99"], "keeping 99", "from 1 to 3"),
    (["--keep-blocks", "-1"], "keeping -1", "from 1 to 3"),
    (["--keep-blocks", "x"], "'x'", "give a whole number"),
    (["--keep-per-stage", "1,1"], "[1, 1]", "stages of [3]"),
    (["--keep-per-stage", "9"], "[9]", "stages of [3]"),
    (["--keep-per-stage", "1,"], "'1,'", "numbers like 16,32,64"),
    ([], "max_drop", "keep_blocks"),
    (["--keep-blocks", "1", "--keep-per-stage", "1"], "exclude each other", "give one of them"),
    (["--max-drop", "-1"], "max_drop is -1", "at least 0"),
    (["--max-drop", "nan"], "'nan'", "give a number"),
    (["--max-drop", "1e999"], "max_drop is inf", "at least 0"),
    (["--keep-blocks", "1", "--finetune-epochs", "-1"], "finetune_epochs is -1", "at least 0"),
    (["--keep-blocks", "1", "--checkpoint", "first"], "'first'", "'last', 'best'"),
]


@pytest.mark.parametrize(("flags", "value", "remedy"), PRUNE, ids=flags_only)
def test_prune(
    cli: CommandLine, runs: Runs, tmp_path: Path, flags: list[str], value: str, remedy: str
) -> None:
    line = cli("prune", runs.three, *flags, "--output", tmp_path / "small").refusal
    assert value in line
    assert remedy in line
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("wish", ["1", "3,1", "0,1", "1,1,1"])
def test_prune_staged(cli: CommandLine, runs: Runs, tmp_path: Path, wish: str) -> None:
    flags = ("--keep-per-stage", wish, "--output", tmp_path / "small")
    assert "stages of [2, 2]" in cli("prune", runs.staged, *flags).refusal
    for number in (1, 5):
        flags = ("--keep-blocks", str(number), "--output", tmp_path / "small")
        assert "from 2 to 4" in cli("prune", runs.staged, *flags).refusal
    assert not (tmp_path / "small").exists()


def test_more_than_max_drop_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    run, small = tmp_path / "run", tmp_path / "small"
    # Without a stage cost and after some epochs the first output knows nothing.
    settings = (*DATA, "--num-blocks", 6, "--width", 8, "--gamma", 0, "--epochs", 5, "--batch-size", 32)
    assert cli("train", *settings, "--output", run).status == 0
    found = cli("analyze", run, "--json").answer
    assert found["accuracies"][1] < found["accuracies"][6] - 1
    before = contents(run)
    flags = ("--keep-blocks", 1, "--max-drop", 1)
    line = cli("prune", run, *flags, "--output", small).refusal
    assert "max_drop 1" in line
    assert "keep more blocks or allow a larger drop" in line
    assert not small.exists()
    assert contents(run) == before


@pytest.mark.parametrize("verb", ["analyze", "report"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x"])
def test_tolerance(cli: CommandLine, runs: Runs, verb: str, value: str) -> None:
    line = cli(verb, runs.two, "--tolerance", value).refusal
    assert value in line
    assert "give" in line


def test_bound(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    for name, flags in (("wide", ("--num-blocks", 2, "--width", 7)), ("other data", ())):
        settings = flags or (*MODEL, "--seed", 0, "--val-fraction", 0.2)
        assert cli("train", *RECIPE, *settings, "--output", tmp_path / name).status == 0
    cases = (
        (runs.two, runs.three, "needs fewer"),
        (runs.three, runs.three, "needs fewer"),
        (runs.three, tmp_path / "wide", "change only N"),
        (runs.three, runs.staged, "change only N"),
        (runs.three, tmp_path / "other data", "other images"),
        (runs.saved, runs.two, "is a saved network"),
    )
    for run, sub, words in cases:
        assert words in cli("bound", run, "--sub", sub).refusal
    assert "--sub" in cli("bound", runs.three, "--sub").refusal


def test_demo(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in cli("demo", "--output", tmp_path / "file").refusal
    assert "seed is -1" in cli("demo", "--seed", -1, "--output", tmp_path / "demo").refusal


# ---------------------------------------------------------------------------------------------
# What goes wrong on the way


def last_line(stderr: str) -> str:
    """Return the one line of the refusal; the lines of the epochs before it are progress."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if not line.startswith("train epoch")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("stagecost: ")
    return lines[0]


def test_a_loss_that_is_no_number(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*DATA, *MODEL, "--epochs", 4, "--batch-size", 32, "--warmup-epochs", 3)
    # The warm-up begins with a tiny part of the rate: the first epoch of one step survives.
    outcome = cli("train", *settings, "--lr", "1e30", "--output", run)
    assert outcome.status == 2
    line = last_line(outcome.stderr)
    assert "lower --lr" in line
    assert "the last good checkpoint is kept" in line
    assert not (run / "last.safetensors").exists() or cli("evaluate", run).status == 0


def test_a_loss_that_becomes_no_number_keeps_what_was_saved(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # One step an epoch; the rate rises from 1e-6 of a huge one, so the first epoch does no harm.
    settings = ("--data", "digits", "--limit-train", 100, *MODEL, "--batch-size", 90, "--device", "cpu")
    rates = ("--epochs", 50, "--warmup-epochs", 40, "--lr", 1e6)
    outcome = cli("train", *settings, *rates, "--output", run)
    assert outcome.status == 2
    assert "lower --lr" in last_line(outcome.stderr)
    assert "train epoch 1/50" in outcome.stderr
    assert cli("evaluate", run).status == 0
    again = cli("train", "--resume", "--output", run)  # the same end, told again
    assert "lower --lr" in last_line(again.stderr)


def small_files_only(limit: int) -> None:
    """Let no file grow beyond a limit, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_no_room_for_a_checkpoint(cli: CommandLine, tmp_path: Path) -> None:
    run, twin = tmp_path / "run", tmp_path / "twin"
    settings = (*DATA, *MODEL, "--epochs", 3, "--batch-size", 32)
    assert cli("train", *settings, "--output", twin).status == 0
    begun = interrupted_run(cli, run, settings)
    before = contents(run)
    outcome = cli(
        "train", "--resume", "--output", run, prepare=functools.partial(small_files_only, 4000)
    )
    assert outcome.status == 2
    assert "safetensors" in last_line(outcome.stderr)
    after = contents(run)
    assert after["last.safetensors"] == before["last.safetensors"]
    assert not list(run.glob(".*"))
    assert begun
    assert cli("train", "--resume", "--output", run).status == 0
    assert same_tensors(run, twin)


def interrupted_run(
    cli: CommandLine, run: Path, settings: tuple[object, ...], number: int = signal.SIGINT
) -> str:
    """Train until there is a checkpoint, send a signal, and return the line that was said."""
    running = cli.start("train", *settings, "--checkpoint-minutes", 1e-9, "--output", run)
    wait_for(run / "last.safetensors")
    os.kill(running.process.pid or 0, number)
    outcome = running.wait()
    assert outcome.status == 2, outcome.stderr
    return last_line(outcome.stderr)


def wait_for(path: Path, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.002)


def same_tensors(one: Path, other: Path) -> bool:
    tensors, twins = (load_file(run / "last.safetensors") for run in (one, other))
    return tensors.keys() == twins.keys() and all(torch.equal(tensors[k], twins[k]) for k in tensors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_and_says_how_to_go_on(cli: CommandLine, tmp_path: Path, number: int) -> None:
    run, twin = tmp_path / "run", tmp_path / "twin"
    settings = (*DATA, "--num-blocks", 4, "--width", 8, "--epochs", 6, "--batch-size", 16)
    assert cli("train", *settings, "--output", twin).status == 0
    line = interrupted_run(cli, run, settings, number)
    assert "interrupted" in line
    assert f"stagecost train --resume --output {run}" in line
    assert cli("evaluate", run).status == 0
    found = cli("train", "--resume", "--output", run, "--json").answer
    assert found["epochs"] == 6
    assert same_tensors(run, twin)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_atomically(file, "new")
    assert caught.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "old"


def test_the_best_checkpoint_of_a_run_without_validation(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", *RECIPE, *MODEL, "--val-fraction", 0, "--epochs", 1, "--output", run)
    assert cli(*command).status == 0
    assert "--checkpoint last" in cli("evaluate", run, "--checkpoint", "best").refusal
