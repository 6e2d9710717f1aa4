"""When blocks leave during the training: the settings, and a rule that looks at the history alone.

The rule is a pure function of what the epochs brought, so a run that is resumed decides as one that was
left alone. How blocks leave is in `stagecost.training.cutting`. Nothing heavy is imported here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagecost.errors import StageCostError

Entry = Mapping[str, Any]
"""What an epoch brought; see `stagecost.training.loop.finish_epoch`."""


@dataclass(frozen=True)
class ShrinkSettings:
    """Whether and when blocks leave during the training; see docs/shrink.md.

    Args:
        shrink: tail blocks leave during the training once the validation loss can do without them.
        shrink_tolerance: the part of what the network has taken off the validation loss of a guess that
            may be missing if all blocks left; if half of them leave, half of it may be.
        shrink_patience: epochs in a row for which that must be so.
        shrink_after: part of the training before which no block leaves.
        cut_at: cuts that are made whatever the loss, the control for shrink: epoch:blocks, such as
            3:8,6:4; or, in a staged network, epoch:blocks of each stage, such as 3:4+3+2.
        plain_after_cuts: the stage cost ends with the last cut of cut_at, and training goes on by the
            terminal loss alone. With shrink it always ends when no cut can follow.
    """

    shrink: bool = False
    shrink_tolerance: float = 0.06
    shrink_patience: int = 1
    shrink_after: float = 0.1
    cut_at: str | None = None
    plain_after_cuts: bool = False

    def check(self, epochs: int) -> None:
        """Refuse impossible values.

        Raises:
            StageCostError: names the value and what is possible.
        """
        for name in ("shrink_tolerance", "shrink_after"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise StageCostError(f"{name} is {value}: give a number from 0 to below 1")
        if self.shrink_patience < 1:
            raise StageCostError(f"shrink_patience is {self.shrink_patience}: give at least 1 epoch")
        if self.shrink and self.cut_at is not None:
            raise StageCostError("shrink and cut_at exclude each other: give one of them")
        if self.plain_after_cuts and not (self.shrink or self.cut_at):
            raise StageCostError("plain_after_cuts is on, but nothing is cut: give --cut-at as well")
        for epoch in self.schedule():
            if not 1 <= epoch < epochs:
                raise StageCostError(
                    f"cut_at names epoch {epoch} of {epochs}: give one from 1 to {epochs - 1}, so that "
                    "training follows the cut"
                )

    def schedule(self) -> dict[int, tuple[int, ...]]:
        """Return the cuts of `cut_at`: after which epoch how many blocks of each stage stay.

        Raises:
            StageCostError: the text does not say cuts, or names an epoch twice.
        """
        cuts: dict[int, tuple[int, ...]] = {}
        for part in [] if self.cut_at is None else self.cut_at.split(","):
            found = re.fullmatch(r"\s*(\d+):(\d+(?:\+\d+)*)\s*", part, re.ASCII)
            if found is None or int(found[1]) in cuts:
                raise StageCostError(
                    f"cut_at is {self.cut_at!r}: give epoch:blocks, each epoch once, such as 3:8,6:4"
                )
            cuts[int(found[1])] = tuple(int(blocks) for blocks in found[2].split("+"))
        return cuts

    def presses(self, epoch: int, epochs: int) -> bool:
        """Tell whether an epoch is trained with the stage cost.

        Args:
            epoch: counted from 0.
            epochs: of the whole training.
        """
        if self.shrink:
            return _in_first_half(epoch + 1, epochs)
        return not self.plain_after_cuts or epoch < max(self.schedule())

    def check_cuts(self, sizes: Sequence[int]) -> None:
        """Refuse cuts that a network with stages of these sizes cannot make.

        Raises:
            StageCostError: names the cut and what is possible there.
        """
        for epoch, keep in sorted(self.schedule().items()):
            fits = len(keep) == len(sizes) and all(1 <= m <= n for m, n in zip(keep, sizes, strict=True))
            if not fits or tuple(keep) == tuple(sizes):
                raise StageCostError(
                    f"cut_at keeps {_plus(keep)} blocks of {_plus(sizes)} after epoch {epoch}: give "
                    "fewer, but at least 1 in each stage"
                )
            sizes = keep


def _in_first_half(done: int, epochs: int) -> bool:
    return done < epochs / 2


def _plus(sizes: Sequence[int]) -> str:
    return "+".join(map(str, sizes))


def allowed_loss(loss: float, tolerance: float, guess: float) -> float:
    """Return the highest loss that a network without some of its blocks may have.

    That is L_N + tolerance·(guess − L_N): the blocks that stay must do all but a small part of what all
    blocks together do. A part and not a difference, so that one number serves easy and hard data, early
    and late in the training.

    Args:
        loss: L_N, of the network as it is.
        tolerance: the part that may be missing, from 0 to below 1.
        guess: the loss of knowing nothing: the logarithm of the number of classes.
    """
    return loss + tolerance * max(0.0, guess - loss)


def missing_part(before: float, after: float, guess: float) -> float:
    """Return the part of what all blocks do that is missing at a loss, from 0 to 1.

    `allowed_loss` the other way round.
    """
    missing, gain = max(0.0, after - before), guess - before
    return missing / gain if missing < gain else float(missing > 0)


def tolerance_left(history: Sequence[Entry], tolerance: float, gone: float) -> float:
    """Return what of the tolerance a cut may take.

    Tolerance has to buy depth: a part of the blocks may take as large a part of it, together with what
    earlier cuts took. Else a first cut of few blocks could use it up.

    Args:
        history: one entry an epoch.
        tolerance: of the settings.
        gone: the part of the first N blocks that has left after the cut.
    """
    cuts = [cut for cut in map(cut_of, history) if cut is not None]
    spent: float = sum(cut["missing"] for cut in cuts)
    return max(0.0, gone * tolerance - spent)


def enough_blocks(losses: Sequence[float], allowed: Sequence[float], least: int = 1) -> int:
    """Return the least M whose output y_M has an allowed loss; N if there is no such output before.

    Args:
        losses: L_0 … L_N on validation data.
        allowed: the highest loss of each output, see `allowed_loss`.
        least: the least M that may be returned.
    """
    return next((m for m in range(least, len(losses)) if losses[m] <= allowed[m]), len(losses) - 1)


def at_most_half(wanted: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return what is wanted of each stage, but at least half of its blocks: they leave step by step."""
    return tuple(max(m, math.ceil(n / 2)) for m, n in zip(wanted, sizes, strict=True))


def may_shrink(history: Sequence[Entry], settings: ShrinkSettings, epochs: int, guess: float) -> bool:
    """Tell whether the last epoch of the history can be one that lets blocks leave.

    - Not before the stated part of the training, less the patience; and not in its second half, where a
      cut saves little and is no longer made good.
    - Not while the validation loss is above what the latest cut left behind: a loss that rose after a
      cut refuses the next one.
    - Not a second time while every output has more than half of the loss of a guess: early in a training
      nearly every tail looks superfluous.

    Args:
        history: one entry an epoch.
        settings: of the rule.
        epochs: of the whole training.
        guess: the loss of knowing nothing.
    """
    done = len(history)
    first = settings.shrink_after * epochs - settings.shrink_patience
    if not settings.shrink or not (first < done and _in_first_half(done, epochs)):
        return False
    losses, before = history[-1]["val_losses"], latest_cut(history)
    if not all(map(math.isfinite, losses)):
        return False
    return before is None or (losses[-1] <= before["val_loss_after"] and min(losses) <= guess / 2)


def latest_cut(history: Sequence[Entry]) -> Entry | None:
    """Return the latest cut that was made, if there was one."""
    return next((cut for cut in map(cut_of, reversed(history)) if cut is not None), None)


def cut_of(entry: Entry) -> Entry | None:
    """Return the cut that was made after an epoch; a refused one is none."""
    cut: Entry | None = entry.get("cut")
    return cut if cut is not None and cut["made"] else None


def next_cut(
    history: Sequence[Entry], settings: ShrinkSettings, epochs: int, sizes: Sequence[int]
) -> tuple[int, ...] | None:
    """Return how many blocks of each stage stay after the last epoch; None if all do.

    As many epochs in a row as `shrink_patience` says, all of them since the latest cut, must have been
    able to do without the blocks that leave.

    Args:
        history: one entry an epoch; `wanted` is what each could do with, stage by stage.
        settings: of the rule.
        epochs: of the whole training.
        sizes: blocks of each stage now.
    """
    patience = settings.shrink_patience
    recent = history[-patience:]
    early = len(history) < max(patience, settings.shrink_after * epochs)
    if early or any(entry["wanted"] is None for entry in recent) or latest_cut(recent[:-1]):
        return None
    wanted = [max(stage) for stage in zip(*(entry["wanted"] for entry in recent), strict=True)]
    keep = at_most_half(wanted, sizes)
    return keep if keep != tuple(sizes) else None
