"""Depth that shrinks: tail blocks leave while training once the validation loss can do without them.

A network with gamma = 0 that is cut to the same depths at the same moments (`--cut-at`) does as well
(`python -m experiments show shrink`), so the rule is not recommended; see docs/cutting.md. It is for
homogeneous networks, where the trajectory tells the loss of every cut exactly. The stage cost presses in
the first half of the training alone, on the outputs to which the next cut can go::

    rule = Shrinking(settings)
    train(settings, "runs/shrunk", stage_cost=rule, after_epoch=rule.after_epoch)

It remembers more than a run's folder does, so a training by it is not resumed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stagecost.cut import Cut
from stagecost.data.loading import load_data
from stagecost.objective import StageCost
from stagecost.train.cutting import cut_network
from stagecost.train.history import CutRecord, EpochRecord
from stagecost.train.parsing import parse_settings
from stagecost.train.recipe import Moment
from stagecost.train.setup import prepare
from stagecost.train.stage_cost import loss_of
from stagecost.train.state import State

TOLERANCE = 0.06
"""The part of what the network has taken off the validation loss of a guess that may be missing if all
blocks left; if half of them leave, half of it may be."""
AFTER = 0.1
"""Part of the training before which no block leaves."""


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
    """The rule: a stage cost as a function of the moment, and what cuts after an epoch."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Begin with all blocks of the network that the settings of the training describe."""
        self.settings = parse_settings(settings)
        seed = self.settings.training.seed
        self.setup = prepare(
            self.settings, load_data(self.settings.data, seed=seed, splits=("train", "val"))
        )
        self.num_blocks = self.blocks = self.setup.network.num_blocks
        self.guess = math.log(self.setup.data.num_classes)
        self.cuts: list[CutRecord] = []

    def __call__(self, moment: Moment) -> StageCost:
        """Press on the outputs to which the next cut can go, as long as one can follow."""
        training = self.settings.training
        if moment.epoch + 1 >= moment.epochs / 2:
            return StageCost(loss=loss_of(training.label_smoothing))
        return StageCost.uniform(
            self.num_blocks,
            self.settings.gamma(self.num_blocks),
            first=math.ceil(self.blocks / 2),
            loss=loss_of(training.label_smoothing),
            normalized=training.normalize_objective,
        )

    def after_epoch(self, state: State, record: EpochRecord) -> EpochRecord:
        """Cut if the epoch could do without some blocks."""
        losses = record.val_losses or ()
        keep = self.blocks
        if self._may_cut(record.epoch, losses):
            keep = enough_blocks(losses, self.num_blocks, self.guess, sum(map(self._missing, self.cuts)))
        if keep == self.blocks:
            return record
        training = self.settings.training
        done = cut_network(state, Cut.first(keep), record, self.setup.validation, training)
        assert done.cut is not None
        self.blocks = keep
        self.cuts.append(done.cut)
        return done

    def _may_cut(self, epoch: int, losses: Sequence[float]) -> bool:
        """Tell whether blocks may leave after an epoch: not at the very start, nor in the second half.

        Nor while the loss is above what the latest cut left behind; nor a second time while every output
        has more than half of the loss of a guess: early on nearly every tail looks superfluous.
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
