"""Kill a training run at random moments, resume it each time, and compare its end with a run left alone.

    python tests/kill_and_resume.py --kills 20

Every step writes a checkpoint, and every second kill waits for the next file that is being written, so
that it lands in the middle of it. The processes are forked from one that has imported everything: what
is killed is training, not the start of Python. With `--cut-at` blocks leave on the way. A run that ends
before all kills have landed is compared and started over. Exit status 0: every run ended in the same
weights, optimiser state and metrics, bit for bit; else 1.
"""

import argparse
import csv
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from stagecost.runs.folder import RunFolder
from stagecost.runs.training import train
from stagecost.train.checkpoint import read_checkpoint

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["stagecost.runs.training"]
SETTINGS: Mapping[str, Any] = {
    "data": "digits",
    "num_blocks": 4,
    "width": 8,
    "limit_train": 600,
    "batch_size": 32,
    "optimizer": "adamw",
    "ema_decay": 0.9,
    "clip_norm": 1.0,
    "device": "cpu",
    "checkpoint_minutes": 1e-9,
}


@dataclass(frozen=True)
class Kill:
    """Where a kill landed: seconds after the start, what was saved by then, and if a write was cut."""

    seconds: float
    epoch: int
    batch: int
    during_write: bool

    def __str__(self) -> str:
        """Say it in a row of the table."""
        cut = "  a file was being written" if self.during_write else ""
        where = f"epoch {self.epoch + 1:2d}, batch {self.batch:2d}"
        return f"after {self.seconds:5.2f} s  saved so far: {where}{cut}"


def main() -> int:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills that must land (20)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the run (12)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--cut-at", help="blocks leave at these epochs, such as 4:3,8:1")
    parser.add_argument("--output", type=Path, help="folder for the runs; a temporary one if not given")
    given = parser.parse_args()
    settings = {**SETTINGS, "epochs": given.epochs, "cut_at": given.cut_at}
    if given.output is not None:
        return experiment(given.output, given.kills, settings, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        return experiment(Path(folder), given.kills, settings, given.seed)


def experiment(folder: Path, kills: int, settings: Mapping[str, Any], seed: int) -> int:
    """Train the reference, kill and resume, compare; return the exit status."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the same sums in the same order, and no idle threads
    CONTEXT.set_forkserver_preload(PRELOAD)
    reference, killed = RunFolder(folder / "reference"), RunFolder(folder / "killed")
    for run in (reference, killed):
        shutil.rmtree(run.path, ignore_errors=True)
    finish(settings, reference)
    started = time.monotonic()
    finish(settings, reference)  # has ended already: this takes as long as a process takes to start
    overhead = time.monotonic() - started
    duration = read_checkpoint(reference.last).progress.seconds
    print(f"a run trains for {duration:.1f} s; its processes are killed at {kills} random moments")
    moments, landed, differences = random.Random(seed), list[Kill](), list[str]()
    while len(landed) < kills:
        seconds = moments.uniform(0, overhead + 1.5 * duration / kills)
        kill = run_until(settings, killed, seconds, in_write=len(landed) % 2 == 1)
        if kill is not None:
            landed.append(kill)
            print(f"kill {len(landed):2d}  {kill}", flush=True)
        else:
            differences += compare(reference, killed)
            print(f"a run ended after {len(landed)} kills: {verdict(differences)}")
            shutil.rmtree(killed.path)
    finish(settings, killed)
    differences += compare(reference, killed)
    writes = sum(kill.during_write for kill in landed)
    print(f"{kills} kills, {writes} of them during the writing of a file: {verdict(differences)}")
    return 1 if differences else 0


def verdict(differences: list[str]) -> str:
    """Say in words what was found."""
    if not differences:
        return "the same, bit for bit, as the run left alone"
    return f"DIFFERENT: {', '.join(differences)}"


def start(settings: Mapping[str, Any], run: RunFolder) -> ForkServerProcess:
    """Start a process that begins the run or goes on with it."""
    process = CONTEXT.Process(target=session, args=(dict(settings), str(run.path)))
    process.start()
    return process


def session(settings: dict[str, Any], folder: str) -> None:
    """Train, as `stagecost train --resume` does; what it would show is not shown."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stderr.fileno())
    train(settings, folder, resume=True)


def run_until(
    settings: Mapping[str, Any], run: RunFolder, seconds: float, in_write: bool
) -> Kill | None:
    """Go on with the run, and kill it after some seconds; return None if it ended before.

    With `in_write` the kill waits for the next temporary file, which a write begins with.
    """
    process, started = start(settings, run), time.monotonic()
    process.join(timeout=seconds)
    while in_write and process.is_alive() and not any(run.path.glob(".*.tmp")):
        time.sleep(0)
    seconds = time.monotonic() - started
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    if process.exitcode != -9:
        raise SystemExit(f"a training process ended with status {process.exitcode}: see its message")
    during_write = any(run.path.glob(".*.tmp"))
    if not run.last.is_file():
        return Kill(seconds, 0, 0, during_write)
    progress = read_checkpoint(run.last).progress
    return Kill(seconds, progress.epoch, progress.batch, during_write)


def finish(settings: Mapping[str, Any], run: RunFolder) -> None:
    """Leave the run alone until it ends."""
    process = start(settings, run)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"a training process ended with status {process.exitcode}")


def compare(one: RunFolder, other: RunFolder) -> list[str]:
    """Name what differs between two finished runs: tensors, progress, metrics; not the seconds."""
    names = [
        f"{path.name}: {name}"
        for path, twin in ((one.last, other.last), (one.best, other.best))
        for name in different_tensors(path, twin)
    ]
    tables = ("metrics.csv", "trajectory.csv")
    return names + [t for t in tables if rows(one.path / t) != rows(other.path / t)]


def different_tensors(one: Path, other: Path) -> list[str]:
    """Return the names of the tensors that differ, or that only one of two files has."""
    tensors, twins = read_checkpoint(one).tensors, read_checkpoint(other).tensors
    return sorted(tensors.keys() ^ twins.keys()) + [
        name for name in tensors.keys() & twins.keys() if not torch.equal(tensors[name], twins[name])
    ]


def rows(path: Path) -> list[dict[str, str]]:
    """Read a table, without the column that no two runs share."""
    table = csv.DictReader(path.read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


if __name__ == "__main__":
    sys.exit(main())
