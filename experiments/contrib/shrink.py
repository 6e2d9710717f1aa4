"""Depth that shrinks: tail blocks leave during the training once the validation loss can do without them.

Command     python -m experiments run shrink [--dataset D] [--data-root DIR]
Machine     the records name it; one of two CPU cores, one thread
Runtime     about an hour and a half on one core
Seeds       0, 1, 2, and of the recorded digits 0 … 9, of CIFAR-10 0 … 4

plain       gamma = 0, all blocks, the measure of all costs
stage       with a stage cost, all blocks
shrink      the same by the rule
control     gamma = 0, cut to the same numbers of blocks after the same epochs (`--cut-at`)

The control does as well, so the rule is not recommended; see docs/shrink.md. It is for homogeneous
networks, where the trajectory tells the loss of every cut exactly. The stage cost presses in the first
half of the training alone, on the outputs to which the next cut can go. Costs are CPU seconds of the
training, and MACs of all passes, which no neighbour on the machine disturbs.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from experiments.recipes import Settings, base_recipe, normalized_stage_cost
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Column, grouped, rows_of, spread, table
from experiments.trainings import (
    Run,
    Training,
    accuracy_of,
    run_folder,
    trained_at_once,
    training_macs,
)
from stagecost.cut import Cut
from stagecost.objective import StageCost
from stagecost.runs.training import prepare
from stagecost.storage import read_json, write_json
from stagecost.train.cutting import cut_network
from stagecost.train.history import CutRecord, EpochRecord
from stagecost.train.loop import Step
from stagecost.train.parsing import parse_settings
from stagecost.train.recipe import Moment
from stagecost.train.state import State

TOLERANCE = 0.06
"""The part of what the network has taken off the validation loss of a guess that may be missing if all
blocks left; if half of them leave, half of it may be."""
AFTER = 0.1
"""Part of the training before which no block leaves."""
ARMS = ("plain", "stage", "shrink", "control")
TEXT = """\
The rule with its defaults, for the same number of epochs as plain training at full depth. `stage` is the stage cost
without the rule; `control` is gamma = 0, cut to the same depths at the same moments. Test accuracy of the last
checkpoint. The costs are parts of plain training's: CPU seconds, and operations (MACs) of all training and validation
passes."""
DIGITS: Settings = {
    "model": "homogeneous",
    "num_blocks": 16,
    "width": 16,
    "gamma": 0.1,
    "weight_decay": 5e-3,
    "label_smoothing": 0.1,
    "epochs": 20,
    "batch_size": 64,
    "val_fraction": 0.2,
    "sampled_depths": 0,
    "device": "cpu",
}
TIER = base_recipe("cpu", "cifar10")
RECIPES: dict[Tier, dict[str, Settings]] = {
    "cpu": {
        "digits": DIGITS,
        "mnist": {**base_recipe("cpu", "mnist"), "gamma": None, "batch_size": 128},
        "cifar10": {**TIER, **normalized_stage_cost(1 / TIER["num_blocks"], TIER["num_blocks"])},
    },
    "quick": {"digits": {**DIGITS, "num_blocks": 4, "width": 8, "epochs": 4, "limit_test": 100}},
}


def enough_blocks(losses: Sequence[float], num_blocks: int, guess: float, spent: float) -> int:
    """Return the least number of blocks, at least half of them, whose output has an allowed loss.

    The blocks that stay must do all but a small part of what all blocks together do: a part and not a
    difference, so that one number serves easy and hard data, early and late in the training. Tolerance
    has to buy depth: a part of the blocks may take as large a part of it, less what earlier cuts took.

    Args:
        losses: L_0 … L_M on validation data.
        num_blocks: N at the start.
        guess: the loss of knowing nothing: the logarithm of the number of classes.
        spent: of the tolerance, by earlier cuts.
    """
    last = len(losses) - 1
    for m in range(math.ceil(last / 2), last):
        tolerance = max(0.0, (1 - m / num_blocks) * TOLERANCE - spent)
        if losses[m] <= losses[-1] + tolerance * max(0.0, guess - losses[-1]):
            return m
    return last


def missing_part(before: float, after: float, guess: float) -> float:
    """Return the part of what all blocks do that is missing at a loss, from 0 to 1."""
    missing, gain = max(0.0, after - before), guess - before
    return missing / gain if missing < gain else float(missing > 0)


class Shrinking:
    """The rule: a stage cost and what cuts, for `train(…, stage_cost=rule, after_epoch=rule.after_epoch)`."""

    def __init__(self, settings: Settings, data: str, seed: int) -> None:
        """Begin with all blocks."""
        self.settings = parse_settings({**settings, "data": data, "seed": seed})
        self.prepared = prepare(self.settings)
        self.num_blocks = self.blocks = settings["num_blocks"]
        self.gamma = self.settings.gamma(self.num_blocks)
        self.cuts: list[CutRecord] = []

    @property
    def guess(self) -> float:
        """The loss of knowing nothing."""
        return math.log(self.prepared.data.num_classes)

    def __call__(self, moment: Moment) -> StageCost:
        """Press on the outputs to which the next cut can go, as long as one can follow."""
        normalized = self.settings.training.normalize_objective
        if moment.epoch + 1 >= moment.epochs / 2:
            return StageCost(normalized=normalized)
        first = math.ceil(self.blocks / 2)
        loss = self.prepared.loss
        return StageCost.uniform(self.num_blocks, self.gamma, first=first, loss=loss, normalized=normalized)

    def after_epoch(self, state: State, record: EpochRecord) -> EpochRecord:
        """Cut if the epoch could do without some blocks."""
        losses = record.val_losses or ()
        if not self._may_cut(record.epoch, losses):
            return record
        spent = sum(self._missing(cut) for cut in self.cuts)
        keep = enough_blocks(losses, self.num_blocks, self.guess, spent)
        if keep == self.blocks:
            return record
        training = self.settings.training
        done = cut_network(state, Cut.first(keep), record, self.prepared.validation, training)
        assert done.cut is not None
        self.blocks = keep
        self.cuts.append(done.cut)
        return done

    def _may_cut(self, epoch: int, losses: Sequence[float]) -> bool:
        """Tell whether blocks may leave after an epoch: neither at the very start nor in the second half.

        Nor while the loss is above what the latest cut left behind; nor a second time while every output
        has more than half of the loss of a guess: early in a training nearly every tail looks superfluous.
        """
        epochs = self.settings.training.epochs
        if not (AFTER * epochs <= epoch < epochs / 2 and all(map(math.isfinite, losses))):
            return False
        latest = self.cuts[-1].val_loss_after if self.cuts else None
        return latest is None or (losses[-1] <= latest and min(losses) <= self.guess / 2)

    def _missing(self, cut: CutRecord) -> float:
        assert cut.val_loss_before is not None
        assert cut.val_loss_after is not None
        return missing_part(cut.val_loss_before, cut.val_loss_after, self.guess)

    def to_json(self) -> dict[str, Any]:
        """Return what defines it."""
        return {"shrink": True, "tolerance": TOLERANCE, "after": AFTER, "gamma": self.gamma}


class CpuSeconds:
    """Watches a training: CPU seconds of the process from its first step on."""

    started: float | None = None

    def __call__(self, state: State, step: Step) -> None:
        """Begin to count with the first step."""
        self.started = time.process_time() if self.started is None else self.started

    @property
    def seconds(self) -> float:
        """Until now."""
        return 0.0 if self.started is None else round(time.process_time() - self.started, 2)


def run(context: Context) -> dict[str, Any]:
    """Train every arm with every seed."""
    stage = RECIPES[context.tier][context.dataset]
    plain = {**stage, "gamma": 0.0, "normalize_objective": False}
    plain["weight_decay"] = 5e-3 if context.dataset == "digits" else 5e-4
    runs = []
    for seed in context.seeds:
        rule = Shrinking(stage, context.data, seed)
        runs.append(_measured(context, "plain", Training(plain), seed))
        runs.append(_measured(context, "stage", Training(stage), seed))
        runs.append(_measured(context, "shrink", _shrinking(rule, stage), seed))
        cuts = ",".join(f"{cut['epoch']}:{len(cut['kept_blocks'])}" for cut in runs[-1]["cuts"])
        runs.append(_measured(context, "control", Training({**plain, "cut_at": cuts or None}), seed))
    return {"summary": summary(runs), "runs": runs}


def _shrinking(rule: Shrinking, settings: Settings) -> Training:
    """Return a training by the rule; its lambda is divided by the scale of the whole stage cost."""
    scale = 1 + rule.gamma * rule.num_blocks if rule.settings.training.normalize_objective else 1.0
    decay = rule.settings.training.weight_decay / scale
    given = {**settings, "weight_decay": decay, "normalize_objective": False}
    return Training(given, rule, after_epoch=rule.after_epoch)


def _measured(context: Context, arm: str, training: Training, seed: int) -> Row:
    clock = CpuSeconds()
    watched = replace(training, on_step=clock)
    file = run_folder(context, arm, watched, seed) / "cpu-seconds.json"
    done = trained_at_once(context, arm, watched, seed)
    if not file.is_file():
        write_json(file, clock.seconds)
    return {"arm": arm, "seed": seed, "cpu_seconds": read_json(file), **_outcome(done)}


def _outcome(done: Run) -> Row:
    return {
        "macs": training_macs(done),
        "val_accuracy": done.result.val_accuracy,
        "test_accuracy": accuracy_of(done.open()),
        "num_blocks": done.result.num_blocks,
        "cuts": [asdict(cut) for cut in done.result.cuts],
        "val_losses": [list(entry.val_losses or ()) for entry in done.result.history],
    }


def summary(runs: Sequence[Row]) -> dict[str, float]:
    """Return ratios of the costs, and differences of the mean test accuracies in points."""

    def total(arm: str, key: str) -> float:
        return sum(float(run[key]) for run in runs if run["arm"] == arm)

    mean = {arm: statistics.mean(r["test_accuracy"] for r in runs if r["arm"] == arm) for arm in ARMS}
    return {
        "total_ratio": total("shrink", "cpu_seconds") / total("plain", "cpu_seconds"),
        "macs_ratio": total("shrink", "macs") / total("plain", "macs"),
        "accuracy_difference": mean["shrink"] - mean["stage"],
        "difference_to_control": mean["shrink"] - mean["control"],
        **{f"{arm}_accuracy": value for arm, value in mean.items()},
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return the two tables."""
    runs = rows_of(records, "runs")
    plain = {row["data"]: row for row in grouped(runs, "data", "arm") if row["arm"] == "plain"}

    def part(key: str) -> Column:
        return lambda row: f"{sum(row[key]) / sum(plain[row['data']][key]):.2f}×"

    columns = {
        "data": "{data}",
        "arm": "{arm}",
        "blocks at the end": lambda row: ", ".join(map(str, row["num_blocks"])),
        "test accuracy": lambda row: spread(row["test_accuracy"]),
        "CPU seconds": part("cpu_seconds"),
        "MACs": part("macs"),
    }
    differences = {
        "data": "{data}",
        "shrink − stage": "{accuracy_difference:+.2f}",
        "shrink − control": "{difference_to_control:+.2f}",
        "depths of the seeds, epoch:blocks": lambda row: "; ".join(
            " ".join(f"{cut['epoch']}:{len(cut['kept_blocks'])}" for cut in run["cuts"]) or "none"
            for run in runs
            if (run["data"], run["arm"]) == (row["data"], "shrink")
        ),
    }
    return [
        TEXT,
        table(grouped(runs, "data", "arm"), columns),
        "Differences are of the means, in points:",
        table([{"data": record.dataset, **record["summary"]} for record in records], differences),
    ]


SHRINK = Experiment(
    name="shrink",
    title="Depth that shrinks",
    datasets={"cpu": ("cifar10", "digits", "mnist"), "quick": ("digits",)},
    run=run,
    section=section,
    rows="runs",
    facts=("summary",),
)
