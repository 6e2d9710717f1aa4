"""What a good run cannot do, and what goes wrong on the way: one line, and nothing is lost."""

import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from runs.conftest import TINY, Trained
from runs.workers import start
from stagecost.cli.main import main
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.export.folder import new_folder
from stagecost.runs.analysis import analyze
from stagecost.runs.bound import bound
from stagecost.runs.demo import demo
from stagecost.runs.evaluation import evaluate
from stagecost.runs.measuring import measure
from stagecost.runs.pruning import prune
from stagecost.runs.reporting import report
from stagecost.runs.training import Stop, train
from stagecost.storage import write_atomically
from stagecost.train.interruption import StoppedError

MODEL: dict[str, Any] = {**TINY, "num_blocks": 2, "width": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(verb: Callable[[], object]) -> str:
    """Return the one line with which a verb is refused."""
    with pytest.raises(StageCostError) as caught:
        verb()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------
# Verbs on good runs


PRUNE: list[tuple[dict[str, Any], str, str]] = [
    ({"keep": 0}, "keeping 0", "from 1 to 3"),
    ({"keep": 99}, "keeping 99", "from 1 to 3"),
    ({"keep": -1}, "keeping -1", "from 1 to 3"),
    ({"keep": Cut.stages(1, 1)}, "[1, 1]", "stages of [3]"),
    ({"keep": Cut.stages(9)}, "[9]", "stages of [3]"),
    ({"keep": Cut.first(9)}, "block 8", "from 0 to 2"),
    ({"keep": Cut.first(0)}, "without any block", "keep at least one"),
    ({}, "how much to prune", "--max-drop"),
    ({"max_drop": -1.0}, "--max-drop is -1.0", "at least 0"),
    ({"max_drop": float("nan")}, "--max-drop is nan", "at least 0"),
    ({"max_drop": float("inf")}, "--max-drop is inf", "at least 0"),
    ({"max_loss_increase": -1.0}, "--max-loss-increase is -1.0", "at least 0"),
    ({"keep": 1, "finetune_epochs": -1}, "--finetune-epochs is -1", "at least 0"),
]


@pytest.mark.parametrize(("options", "value", "remedy"), PRUNE, ids=str)
def test_prune(
    trained: Trained, tmp_path: Path, options: dict[str, Any], value: str, remedy: str
) -> None:
    line = refusal(lambda: prune(trained.three, tmp_path / "small", **options))
    assert value in line
    assert remedy in line
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("counts", [(1,), (3, 1), (0, 1), (1, 1, 1)])
def test_prune_staged(trained: Trained, tmp_path: Path, counts: tuple[int, ...]) -> None:
    small = tmp_path / "small"
    assert "stages of [2, 2]" in refusal(lambda: prune(trained.staged, small, keep=Cut.stages(*counts)))
    for number in (1, 5):
        assert "from 2 to 4" in refusal(lambda number=number: prune(trained.staged, small, keep=number))
    assert not small.exists()


def test_a_search_for_fewer_blocks_than_there_must_be(tmp_path: Path) -> None:
    """Two of three hold projections; of the first the skip is an identity."""
    run, small = tmp_path / "run", tmp_path / "small"
    train({**TINY, "model": "staged", "blocks_per_stage": [1, 1, 1], "widths": [4, 6, 8]}, run)
    line = refusal(lambda: prune(run, small, keep=1, search=True))
    assert "keeping 1 of 3 blocks is impossible: give a number from 2 to 3" in line
    line = refusal(lambda: prune(run, small, keep=4, search=True))
    assert "keeping 4 of 3 blocks is impossible" in line
    assert not small.exists()
    assert prune(run, small, keep=2, search=True).kept_blocks == (1, 2)


def test_nothing_is_pruned_into_a_folder_that_holds_something(trained: Trained, tmp_path: Path) -> None:
    for taken in (trained.saved, trained.two):
        copy = tmp_path / taken.name
        shutil.copytree(taken, copy)
        before = contents(copy)
        assert "already" in refusal(lambda copy=copy: prune(trained.three, copy, keep=1))
        assert contents(copy) == before
    assert "is a saved network" in refusal(lambda: prune(trained.saved, tmp_path / "x", keep=1))


def test_no_network_is_there_without_what_tells_its_images(trained: Trained, tmp_path: Path) -> None:
    """A crash between the two left one that was judged on images that it was trained on."""
    (tmp_path / "images.json").mkdir()
    with pytest.raises(OSError, match=r"images\.json"):
        prune(trained.two, tmp_path, keep=1)
    assert not (tmp_path / "config.json").exists()


def test_what_a_killed_prune_left_goes_with_the_next(trained: Trained, tmp_path: Path) -> None:
    run, small = shutil.copytree(trained.two, tmp_path / "run"), tmp_path / "small"
    small.mkdir()
    (small / ".model.safetensors.abc.tmp").write_bytes(b"half")
    prune(run, small, keep=1)
    assert set(contents(small)) == {"config.json", "images.json", "model.safetensors"}


def test_a_run_that_cannot_be_written_is_pruned(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(trained.two, tmp_path / "run")
    (run / "pruning.json").mkdir()
    assert prune(run, tmp_path / "small", keep=1).kept_blocks == (0,)
    assert "not kept for the report" in caplog.text


def test_more_than_max_drop_is_refused(tmp_path: Path) -> None:
    run, small = tmp_path / "run", tmp_path / "small"
    # Without a stage cost and after some epochs the first output knows nothing.
    train({**TINY, "num_blocks": 6, "width": 8, "gamma": 0.0, "epochs": 5}, run)
    found = analyze(run)
    assert found.accuracies[1] < found.accuracies[6] - 1
    before = contents(run)
    line = refusal(lambda: prune(run, small, keep=1, max_drop=1.0))
    assert "--max-drop 1.0" in line
    assert "keep more blocks or allow a larger drop" in line
    assert not small.exists()
    assert contents(run) == before


@pytest.mark.parametrize("verb", [analyze, report])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_tolerance(trained: Trained, verb: Callable[..., object], value: float) -> None:
    line = refusal(lambda: verb(trained.two, tolerance=value))
    assert str(value) in line
    assert "give" in line


def test_bound(trained: Trained, tmp_path: Path) -> None:
    train({**TINY, "num_blocks": 2, "width": 7}, tmp_path / "wide")
    train({**MODEL, "val_fraction": 0.2}, tmp_path / "other data")
    train({**MODEL, "num_blocks": 2, "seed": 5}, tmp_path / "other seed")
    cases = (
        (trained.two, trained.three, "needs fewer"),
        (trained.three, trained.three, "needs fewer"),
        (trained.three, tmp_path / "wide", "change only N"),
        (trained.three, trained.staged, "change only N"),
        (trained.three, tmp_path / "other data", "other images"),
        (trained.three, tmp_path / "other seed", "the same seed, which draws images"),
        (trained.saved, trained.two, "is a saved network"),
    )
    for run, sub, words in cases:
        assert words in refusal(lambda run=run, sub=sub: bound(run, [sub]))


@pytest.mark.parametrize(
    ("full", "sub", "words"),
    [
        ({}, {"stem_stride": 2}, "another kind of network"),
        ({}, {"targets": ["1"], "target_norms": "own"}, "norms of its own for .*--target-norms shared"),
        (
            {"model": "staged", "blocks_per_stage": [2, 3], "widths": [4, 6]},
            {
                "model": "staged",
                "blocks_per_stage": [1, 1],
                "widths": [4, 6],
                "projection": "average",
            },
            "another kind of network",
        ),
    ],
)
def test_what_is_no_sub_resnet(
    tmp_path: Path, full: dict[str, Any], sub: dict[str, Any], words: str
) -> None:
    """Weights of the same shapes do not make the same kind of network."""
    base = {"data": "digits", "limit_train": 60, "epochs": 1, "batch_size": 30, "device": "cpu"}
    for name, given, blocks in (("full", full, 4), ("sub", sub, 2)):
        shape = {} if "model" in given else {"num_blocks": blocks, "width": 4}
        train({**base, **shape, **given}, tmp_path / name)
    with pytest.raises(StageCostError, match=words):
        bound(tmp_path / "full", [tmp_path / "sub"])


def test_demo(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((StageCostError, OSError)):
        demo(tmp_path / "file")
    assert "--seed is -1" in refusal(lambda: demo(tmp_path / "demo", seed=-1))
    assert not (tmp_path / "demo").exists()


def test_checkpoints_are_those_of_runs(trained: Trained, tmp_path: Path) -> None:
    for verb in (analyze, evaluate):
        line = refusal(lambda verb=verb: verb(trained.saved, checkpoint="best"))
        assert "saved network" in line
        assert "leave --checkpoint out" in line
    run = tmp_path / "run"
    train({**MODEL, "val_fraction": 0.0, "epochs": 1}, run)
    line = refusal(lambda: evaluate(run, checkpoint="best"))
    assert "no best checkpoint, which validation images choose after an epoch" in line
    assert "--checkpoint last" in line
    (run / "last.safetensors").unlink()
    assert "no last checkpoint yet" in refusal(lambda: evaluate(run))


# ---------------------------------------------------------------------------------------------
# What goes wrong on the way


def test_a_loss_that_becomes_no_number_keeps_what_was_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # One step an epoch; the rate rises from 1e-6 of a huge one, so the first epoch does no harm.
    settings = {**MODEL, "limit_train": 100, "batch_size": 90, "epochs": 50}
    line = refusal(lambda: train({**settings, "warmup_epochs": 40.0, "lr": 1e6}, run))
    assert "lower --lr" in line
    assert "the last good checkpoint is kept" in line
    before = (run / "last.safetensors").read_bytes()
    assert evaluate(run).num_blocks == 2
    assert "lower --lr" in refusal(lambda: train({}, run, resume=True))  # the same end, told again
    assert (run / "last.safetensors").read_bytes() == before


def train_with_small_files(limit: int, run: Path) -> None:
    """Let no file grow beyond a limit, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match="safetensors"):
        train({}, run, resume=True)


def interrupted(run: Path, settings: dict[str, Any], told: Path, number: int = signal.SIGINT) -> str:
    """Train until there is a checkpoint, send a signal, and return the line that was said."""
    process = start(train, {**settings, "checkpoint_minutes": 1e-9}, run, told=told)
    limit = time.monotonic() + 60
    while not (run / "last.safetensors").exists():
        assert time.monotonic() < limit
        time.sleep(0.002)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 2, told.read_text()
    return told.read_text()


def same_tensors(one: Path, other: Path) -> bool:
    tensors, twins = (load_file(run / "last.safetensors") for run in (one, other))
    return tensors.keys() == twins.keys() and all(torch.equal(tensors[k], twins[k]) for k in tensors)


def test_no_room_for_a_checkpoint(tmp_path: Path) -> None:
    run, twin, told = tmp_path / "run", tmp_path / "twin", tmp_path / "told"
    settings = {**MODEL, "epochs": 3}
    train(settings, twin)
    interrupted(run, settings, told)
    before = contents(run)
    process = start(train_with_small_files, 4000, run, told=told)
    process.join(60)
    assert process.exitcode == 0, told.read_text()
    after = contents(run)
    assert after["last.safetensors"] == before["last.safetensors"]
    assert not list(run.glob(".*"))
    train({}, run, resume=True)
    assert same_tensors(run, twin)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    run, twin = tmp_path / "run", tmp_path / "twin"
    settings = {**TINY, "num_blocks": 4, "width": 8, "epochs": 6, "batch_size": 16}
    train(settings, twin)
    line = interrupted(run, settings, tmp_path / "told", number)
    assert "interrupted in epoch" in line
    assert f"stagecost train --resume --output {run}" in line
    assert evaluate(run).num_blocks == 4
    assert train({}, run, resume=True).epochs == 6
    assert same_tensors(run, twin)


def test_processes_leave_together_once_an_interrupted_epoch_is_saved() -> None:
    """Those that leave first would have the one that still writes killed."""
    told: list[str] = []
    files, state = mock.MagicMock(), mock.MagicMock()
    files.setup.settings.training.checkpoint_minutes = 10.0
    files.run.path = "run"
    files.save.side_effect = lambda *_: told.append("saved")
    state.fabric.barrier.side_effect = lambda: told.append("waited")
    state.fabric.world_size, state.progress.epoch = 1, 0
    with pytest.raises(StoppedError):
        Stop(files, lambda: True).save_or_stop(state)
    assert told == ["saved", "waited"]


def test_a_long_epoch_is_saved_as_often_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = [0.0], list[float]()
    monkeypatch.setattr("stagecost.runs.training.monotonic", lambda: now[0])
    files, state = mock.MagicMock(), mock.MagicMock()
    files.setup.settings.training.checkpoint_minutes = 2.0
    files.save.side_effect = lambda *_: saved.append(now[0])
    state.fabric.world_size = 1
    stop = Stop(files, lambda: False)
    for seconds in range(0, 420, 50):
        now[0] = seconds
        stop.save_or_stop(state)
    assert saved == [150, 300]


def test_a_verb_that_is_ended_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        "stagecost.cli.main._dispatch", lambda given: signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "stagecost: interrupted: what was saved before is kept\n"
    assert signal.getsignal(signal.SIGTERM) == before


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


def test_a_folder_that_takes_nothing_is_told_by_the_name_of_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(prefix: str, suffix: str, dir: Path) -> None:  # noqa: A002
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}3x7{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", fail)
    with pytest.raises(PermissionError) as caught:
        write_atomically(tmp_path / "report.html", "new")
    assert caught.value.filename == str(tmp_path / "report.html")
    monkeypatch.setattr("tempfile.mkdtemp", fail)
    with pytest.raises(PermissionError) as caught, new_folder(tmp_path / "onnx"):
        raise AssertionError
    assert caught.value.filename == str(tmp_path / "onnx")


def test_a_ring_of_links_is_no_folder(tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    ring.symlink_to(ring)
    assert "is no folder" in refusal(lambda: measure([ring]))
    with pytest.raises(OSError) as caught, new_folder(ring):  # noqa: PT011
        pass
    assert caught.value.filename == str(ring)
    assert [path.name for path in tmp_path.iterdir()] == ["ring"]
