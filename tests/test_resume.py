"""A run that is stopped anywhere and resumed ends as the run that was left alone, bit for bit."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import DATA, Runs
from processes import CommandLine
from stagecost.storage import remove_leftovers, write_atomically
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.folder import RunFolder
from stagecost.training.loop import train

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_and_resume.py"
NETWORK = ("--num-blocks", 3, "--width", 6, "--batch-size", 16, "--epochs", 4)
VARIANTS: dict[str, tuple[object, ...]] = {
    "sgd": (),
    "adamw, average, clipping": ("--optimizer", "adamw", "--ema-decay", 0.9, "--clip-norm", 0.5),
    "plain": ("--gamma", 0),
    "steered, average": ("--gamma", "auto", "--ema-decay", 0.9),
    "staged": ("--model", "staged", "--blocks-per-stage", "1,2", "--widths", "4,6"),
    "shrink": ("--shrink", "--shrink-tolerance", 0.9),
    "staged, shrink": (
        *("--model", "staged", "--blocks-per-stage", "2,3", "--widths", "4,6"),
        *("--shrink", "--shrink-tolerance", 0.9, "--optimizer", "adamw", "--normalize-objective"),
        *("--seed", 6),  # a seed with which a stage loses blocks
    ),
    "cuts, average": ("--cut-at", "1:2,3:1", "--ema-decay", 0.9, "--sampled-depths", 1),
    "cuts, plain afterwards": ("--cut-at", "1:2", "--plain-after-cuts"),
}


def settings_of(variant: str) -> tuple[object, ...]:
    size = NETWORK[4:] if "staged" in variant else NETWORK
    return (*DATA, *size, *VARIANTS[variant], "--checkpoint-minutes", 1e-4)


def rows(path: Path) -> list[list[str]]:
    """Read a table without its seconds, which no two runs share."""
    table = [line.split(",") for line in path.read_text().splitlines()]
    gone = table[0].index("seconds") if "seconds" in table[0] else None
    return [[cell for i, cell in enumerate(row) if i != gone] for row in table]


def same_file(one: Path, other: Path) -> None:
    tensors, twins = load_file(one), load_file(other)
    assert tensors.keys() == twins.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], twins[name])]
    assert not different


def same_run(one: Path, other: Path) -> None:
    """Compare networks, optimisers, averages, random numbers, progress and tables."""
    for name in ("last.safetensors", "best.safetensors"):
        same_file(one / name, other / name)
        progress, twin = (read_checkpoint(run / name).progress for run in (one, other))
        for entry in (*progress.history, *twin.history):
            entry.pop("seconds")
        assert (progress.epoch, progress.batch, progress.sums) == (twin.epoch, twin.batch, twin.sums)
        assert (progress.history, progress.averaged) == (twin.history, twin.averaged)
        assert (progress.pieces, progress.reference) == (twin.pieces, twin.reference)
    for name in ("metrics.csv", "trajectory.csv"):
        assert rows(one / name) == rows(other / name)
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments(cli: CommandLine, tmp_path: Path, variant: str) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    arguments = ("train", *settings_of(variant), "--output")
    assert cli(*arguments, alone).status == 0
    parts = [name.split(".")[0] for name in load_file(alone / "last.safetensors")]
    assert {"network", "optimizer", "rng"} <= set(parts)
    assert ("average" in parts) == ("average" in variant)
    progress = read_checkpoint(alone / "last.safetensors").progress
    cuts = [entry["cut"] for entry in progress.history if entry["cut"] is not None]
    assert bool(cuts) == ("shrink" in variant or "cuts" in variant)
    duration = progress.seconds
    moments, landed = random.Random(variant), 0
    for _ in range(12):
        running = cli.start(*arguments, killed, "--resume")
        running.process.join(moments.uniform(0.1, 0.3 + duration))
        if running.kill().status == -9:
            landed += 1
        elif landed == 0:  # it came to its end before any kill: once more, and faster
            shutil.rmtree(killed)
            duration /= 2
        if landed == 4:
            break
    assert cli(*arguments, killed, "--resume").status == 0
    assert landed
    same_run(alone, killed)


class StoppedError(Exception):
    """Stands for a kill at a certain place."""


def stop_at(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that does what it did, and stops instead of its n-th call."""
    calls = iter(range(1, 10**9))

    def counted(*arguments: object, **options: object) -> object:
        if next(calls) == number:
            raise StoppedError
        return function(*arguments, **options)

    return counted


TINY = {
    "data": "digits",
    "limit_train": 200,
    "num_blocks": 2,
    "width": 4,
    "batch_size": 32,
    "epochs": 3,
    "device": "cpu",
    "checkpoint_minutes": 1e-9,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slowed down by more threads, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(TINY, folder)
    return folder


@pytest.mark.parametrize("place", ["before the write", "between write and rename", "between files"])
@pytest.mark.parametrize("number", [1, 2, 5, 8, 9, 10])
def test_stopped_in_a_checkpoint(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    """The n-th file is not written, or not renamed, and its temporary file stays behind."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if place == "before the write":
            patch.setattr(os, "fsync", stop_at(number, os.fsync))
        elif place == "between write and rename":
            patch.setattr(Path, "replace", stop_at(number, Path.replace))
            patch.setattr(Path, "unlink", lambda *arguments, **options: None)  # as after a kill
        else:
            patch.setattr("stagecost.storage.write_atomically", stop_at(number, write_atomically))
        with pytest.raises(StoppedError):
            train(TINY, run)
    if place == "between write and rename":
        assert list(run.glob(".*.tmp"))
    train(TINY, run, resume=True)
    same_run(alone, run)


@pytest.mark.parametrize("batch", [1, 3, 5, 6, 11, 15])
@pytest.mark.parametrize("minutes", [1e-9, 10.0])
def test_stopped_in_an_epoch(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, minutes: float
) -> None:
    """With the latest step saved, and with nothing saved since the epoch began."""
    from stagecost.training import loop

    run, settings = tmp_path / "run", {**TINY, "checkpoint_minutes": minutes}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_at(batch, loop.train_step))
        with pytest.raises(StoppedError):
            train(settings, run)
    steps = 180 // 32
    saved = (batch - 1) if minutes < 1 else (batch - 1) // steps * steps
    checkpoint = RunFolder(run).last
    assert checkpoint.exists() == (saved > 0)
    if saved:
        progress = read_checkpoint(checkpoint).progress
        assert progress.epoch * steps + progress.batch == saved
    train(settings, run, resume=True)
    same_run(alone, run)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("change", [{"cut_at": "1:1"}, {"shrink": True, "shrink_tolerance": 0.9}])
def test_stopped_around_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, change: dict[str, object]
) -> None:
    """Files: configuration, then after each epoch best (if it is), last, and two tables."""
    settings = {**TINY, "checkpoint_minutes": 10.0, "ema_decay": 0.5, **change}
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert train(settings, alone).kept_blocks == [0]
    with monkeypatch.context() as patch:
        patch.setattr("stagecost.storage.write_atomically", stop_at(number, write_atomically))
        patch.setattr("stagecost.training.folder.write_atomically", stop_at(number, write_atomically))
        with pytest.raises(StoppedError):
            train(settings, run)
    train(settings, run, resume=True)
    same_run(alone, run)


def test_stopped_before_the_first_checkpoint_starts_afresh(cli: CommandLine, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    arguments = ("train", *DATA, *NETWORK, "--output")
    killed.mkdir()
    (killed / ".config.yaml.abc.tmp").write_text("data: di")  # what a kill left
    assert cli(*arguments, killed, "--resume").status == 0  # there is no run yet
    assert cli(*arguments, alone).status == 0
    same_run(alone, killed)
    for path in killed.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    assert cli("train", "--output", killed, "--resume").status == 0  # settings, and nothing more
    same_run(alone, killed)


def test_resuming_a_finished_run_changes_nothing(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.three, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    found = cli("train", "--resume", "--output", run, "--json").answer
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert found["epochs"] == 2


def test_the_best_checkpoint_is_that_of_the_best_epoch(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("train", *DATA, *NETWORK, "--output", run).status == 0
    history = read_checkpoint(run / "last.safetensors").progress.history
    best = read_checkpoint(run / "best.safetensors").progress
    accuracies = [entry["val_accuracy"] for entry in history]
    assert best.epoch == 1 + accuracies.index(max(accuracies))
    score = cli("evaluate", run, "--split", "val", "--checkpoint", "best", "--json").answer
    assert score["accuracy"] == max(accuracies)


def test_a_stop_between_write_and_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_at(1, Path.replace))
        patch.setattr(Path, "unlink", lambda *arguments, **options: None)
        with pytest.raises(StoppedError):
            write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_the_script_that_kills_and_resumes(tmp_path: Path) -> None:
    options = ("--kills", "3", "--epochs", "3", "--output", str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
    assert "bit for bit" in done.stdout
