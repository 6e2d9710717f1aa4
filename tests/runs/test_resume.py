"""A run that is stopped anywhere and resumed ends as the run that was left alone, bit for bit."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn

from runs.conftest import Trained
from runs.workers import start
from stagecost.cut import Cut
from stagecost.dynamics import ResidualBlock
from stagecost.errors import StageCostError
from stagecost.head import OutputHead
from stagecost.models.catalogue import create_model
from stagecost.models.registry import register_model
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost
from stagecost.runs.analysis import analyze
from stagecost.runs.evaluation import evaluate
from stagecost.runs.folder import RunFolder
from stagecost.runs.pruning import prune
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train
from stagecost.storage import remove_leftovers, write_atomically
from stagecost.train import loop
from stagecost.train.checkpoint import read_checkpoint
from stagecost.train.recipe import Moment

TINY: dict[str, Any] = {
    "data": "digits",
    "limit_train": 200,
    "num_blocks": 2,
    "width": 4,
    "batch_size": 32,
    "epochs": 3,
    "device": "cpu",
    "checkpoint_minutes": 1e-9,
}
LONGER: dict[str, Any] = {
    **TINY,
    "limit_train": 400,
    "num_blocks": 5,
    "width": 6,
    "batch_size": 16,
    "epochs": 4,
    "checkpoint_minutes": 1e-4,
}
STAGED = {
    "model": "staged",
    "blocks_per_stage": [2, 3],
    "widths": [4, 6],
    "num_blocks": None,
    "width": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "sgd, sampled": {},
    "all depths": {"sampled_depths": 0},
    "plain": {"gamma": 0.0},
    "staged": STAGED,
    "drop path": {"drop_path": 0.5, "activation_checkpointing": True},
    "cuts, average": {"cut_at": "1:4,3:1", "ema_decay": 0.9, "sampled_depths": 1},
    "cuts, plain afterwards": {"cut_at": "1:2", "plain_after_cuts": True, "normalize_objective": True},
    "adamw, average, clipping, targets with norms": {
        "optimizer": "adamw",
        "ema_decay": 0.9,
        "clip_norm": 0.5,
        "targets": ["1", "2", "4"],
        "target_norms": "own",
        "sandwich": True,
        "equilibrium": True,
        "gate": 0.5,
    },
    "targets, distilled, cut": {
        **STAGED,
        "targets": ["1+2", "2+1"],
        "stage_loss": "distilled",
        "cut_at": "2:1+2",
        "optimizer": "adamw",
    },
}


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
        for entries in (progress, twin):
            entries.history = [replace(entry, seconds=0.0) for entry in entries.history]
            entries.seconds = 0.0
        assert progress == twin
    for name in ("metrics.csv", "trajectory.csv"):
        assert rows(one / name) == rows(other / name)
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments(tmp_path: Path, variant: str) -> None:
    alone, killed, told = (tmp_path / name for name in ("alone", "killed", "told"))
    settings = {key: v for key, v in {**LONGER, **VARIANTS[variant]}.items() if v is not None}
    result = train(settings, alone)
    parts = {name.split(".")[0] for name in load_file(alone / "last.safetensors")}
    assert {"network", "optimizer", "rng"} <= parts
    assert ("average" in parts) == ("average" in variant)
    assert bool(result.cuts) == ("cut" in variant)
    duration, moments, landed = result.seconds, random.Random(variant), 0
    for _ in range(12):
        process = start(train, settings, killed, resume=True, told=told)
        process.join(moments.uniform(0.1, 0.3 + duration))
        process.kill()
        process.join()
        if process.exitcode == -9:
            landed += 1
        elif landed == 0:  # it came to its end before any kill: once more, and faster
            assert process.exitcode == 0, told.read_text()
            shutil.rmtree(killed)
            duration /= 2
        if landed == 4:
            break
    train(settings, killed, resume=True)
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
            for module in ("stagecost.storage", "stagecost.runs.folder"):
                patch.setattr(f"{module}.write_atomically", stop_at(number, write_atomically))
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
def test_stopped_around_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Files: configuration, then after each epoch best (if it is), last, and two tables."""
    settings = {**TINY, "checkpoint_minutes": 10.0, "ema_decay": 0.5, "cut_at": "1:1"}
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert train(settings, alone).kept_blocks == (0,)
    stop = stop_at(number, write_atomically)
    with monkeypatch.context() as patch:
        for module in ("stagecost.storage", "stagecost.runs.folder"):
            patch.setattr(f"{module}.write_atomically", stop)
        with pytest.raises(StoppedError):
            train(settings, run)
    train(settings, run, resume=True)
    same_run(alone, run)


def test_stopped_with_a_stage_cost_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule is a function of the moment, so it goes on where it was."""

    def growing(moment: Moment) -> StageCost:
        return StageCost.uniform(2, 2 * moment.progress)

    alone, run = tmp_path / "alone", tmp_path / "run"
    train(TINY, alone, stage_cost=growing)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_at(8, loop.train_step))
        with pytest.raises(StoppedError):
            train(TINY, run, stage_cost=growing)
    with pytest.raises(StageCostError, match="with a stage cost of the caller"):
        train({}, run, resume=True)
    train(TINY, run, stage_cost=growing, resume=True)
    same_run(alone, run)


def test_stopped_with_a_loss_that_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in fp16 on an accelerator: the scale grows with the steps, and halves where it was too much."""

    def halves(*given: object) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=2)
        scaled = MixedPrecision("16-mixed", "cpu", scaler)
        return Fabric(accelerator="cpu", devices=1, plugins=[scaled])

    monkeypatch.setattr("stagecost.train.setup.make_fabric", halves)
    alone, run = tmp_path / "alone", tmp_path / "run"
    train(TINY, alone)
    scales = set()
    for batch in (3, 4):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", stop_at(batch, loop.train_step))
            with pytest.raises(StoppedError):
                train(TINY, run, resume=True)
        scales.add(read_checkpoint(run / "last.safetensors").loss_scale)
    assert len(scales) == 2
    train(TINY, run, resume=True)
    same_run(alone, run)
    ends = [read_checkpoint(folder / "last.safetensors").loss_scale for folder in (alone, run)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kept", [None, Cut((0, 2))])
def test_stopped_twice_with_weights_and_targets_with_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Cut | None
) -> None:
    """Which blocks are there is told from then on, though none has left: the norms stay."""
    given = create_model("homogeneous", num_blocks=3, width=4, num_classes=10, in_channels=1)
    (given if kept is None else given.keep(kept)).save_pretrained(tmp_path / "given")
    targets = {"num_blocks": None, "width": None, "targets": ["1"], "target_norms": "own"}
    settings = {**TINY, **targets, "weights": str(tmp_path / "given")}
    alone, run = tmp_path / "alone", tmp_path / "run"
    train(settings, alone)
    for batch in (3, 3):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", stop_at(batch, loop.train_step))
            with pytest.raises(StoppedError):
                train(settings, run, resume=True)
    shutil.rmtree(tmp_path / "given")
    create_model("staged").save_pretrained(tmp_path / "given")  # of another network by now
    train(settings, run, resume=True)
    same_run(alone, run)


class IdleStem(nn.Conv2d):
    """Has weights of which no output depends, as a pooler that nobody asks."""

    def __init__(self) -> None:
        super().__init__(1, 4, 3)
        self.idle = nn.Linear(2, 2)


@register_model("idle_stem")
def idle_stem(*, in_channels: int = 1, num_classes: int = 10) -> ResidualNetwork:
    blocks = [ResidualBlock(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2)]
    return ResidualNetwork(IdleStem(), blocks, OutputHead(4, num_classes, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_with_weights_that_nothing_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    alone, run = tmp_path / "alone", tmp_path / "run"
    settings = {**TINY, "num_blocks": None, "width": None, "model": "idle_stem", "optimizer": optimizer}
    train(settings, alone)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_at(3, loop.train_step))
        with pytest.raises(StoppedError):
            train(settings, run)
    assert set(read_checkpoint(run / "last.safetensors").unmoved or ()) == {
        "stem.idle.weight",
        "stem.idle.bias",
    }
    train({}, run, resume=True)
    same_run(alone, run)


def test_a_run_that_stands_within_an_epoch_says_so_where_it_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain training has visited y_0 never, and its statistics are those of the start."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_at(4, loop.train_step))
        with pytest.raises(StoppedError):
            train({**TINY, "gamma": 0.0}, run)
    norm = open_trained(run).network.head.norm
    assert torch.equal(norm.running_var[0], torch.ones(4))
    for warnings in (analyze(run).warnings, prune(run, tmp_path / "small", keep=1).warnings):
        assert "within epoch 1, and head statistics of outputs that not every step" in warnings[0]
    train({}, run, resume=True)
    assert not any("within epoch" in warning for warning in analyze(run).warnings)


def test_stopped_before_the_first_checkpoint_starts_afresh(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    killed.mkdir()
    (killed / ".config.yaml.abc.tmp").write_text("data: di")  # what a kill left
    train(TINY, killed, resume=True)  # there is no run yet
    train(TINY, alone)
    same_run(alone, killed)
    for path in killed.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    train({}, killed, resume=True)  # settings, and nothing more
    same_run(alone, killed)


def test_resuming_a_finished_run_changes_nothing(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert train({}, run, resume=True).epochs == 2
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_best_epoch_whose_last_checkpoint_is_lost_is_not_trained_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    train(LONGER, run.path)
    epochs = read_checkpoint(run.best).progress.epoch
    assert epochs > 1
    run.last.unlink()
    kept = run.best.read_bytes()
    with pytest.raises(StageCostError, match=f"last.safetensors is not there, .* epoch {epochs}:"):
        train({}, run.path, resume=True)
    assert run.best.read_bytes() == kept
    run.best.rename(run.last)
    assert train({}, run.path, resume=True).epochs == LONGER["epochs"]


def test_the_best_checkpoint_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(LONGER, run)
    history = read_checkpoint(run / "last.safetensors").progress.history
    best = read_checkpoint(run / "best.safetensors").progress
    accuracies = [entry.val_accuracy or 0.0 for entry in history]
    assert best.epoch == 1 + accuracies.index(max(accuracies))
    assert evaluate(run, split="val", checkpoint="best").accuracy == max(accuracies)


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
    (tmp_path / ".onnx.abc.tmp").mkdir()  # of an export that was killed
    (tmp_path / ".onnx.abc.tmp" / "model.onnx").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [file]
