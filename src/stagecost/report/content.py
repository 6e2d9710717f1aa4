"""What a report is made of, and how it is read: what is no number is missing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

SPLIT_WORDS = {"val": "validation", "train": "training"}


@dataclass(frozen=True)
class ReportData:
    """What a report is made of. Measurements that are missing are None or NaN.

    Attributes:
        run: the name or path of the run, as shown.
        settings: the merged configuration of the run.
        analysis: `num_blocks` N, `split`, `losses` and `accuracies` (percent) of y_0 … y_N,
            `residual_ratios` and `weight_norms` of the N blocks, `tolerance` in points,
            `needed_blocks`, and `stage_starts`, the paper's k of each stage's first block.
        history: one entry an epoch: `epoch` (from 1), `seconds`, `learning_rate`, `train_objective`,
            `train_loss`, `val_loss`, `val_accuracy`, `val_losses` and `val_accuracies` (0 … N).
        pruning: `kept_blocks` (the paper's k), `accuracy_before`, `accuracy_predicted`,
            `accuracy_after`, `parameters_before`, `parameters_after`, `macs_before`, `macs_after`
            and `path`; None if nothing was pruned yet.
        test: rows of test results: `name`, `num_blocks`, `accuracy`, `loss`, `parameters`, `macs`.
        version: the version of stagecost that made the report.
    """

    run: str
    settings: Mapping[str, object]
    analysis: Mapping[str, object]
    history: Sequence[Mapping[str, object]]
    pruning: Mapping[str, object] | None
    test: Sequence[Mapping[str, object]] = ()
    version: str = ""


@dataclass(frozen=True)
class Analysis:
    """The analysis with its types known; `kept` are the blocks that the figures colour."""

    num_blocks: int
    needed: int
    tolerance: float
    split: str
    losses: list[float]
    accuracies: list[float]
    ratios: list[float]
    norms: list[float]
    stage_starts: list[int]
    kept: list[int]
    pruned: bool

    @property
    def terminal_accuracy(self) -> float:
        """Percent, of y_N."""
        return value_at(self.accuracies, self.num_blocks)

    @property
    def needed_accuracy(self) -> float:
        """Percent, of y_M, M the needed blocks."""
        return value_at(self.accuracies, self.needed)


def read_analysis(data: ReportData) -> Analysis:
    """Give the analysis its types, and what was pruned its place in it."""
    analysis, pruning = data.analysis, data.pruning
    needed = int(number(analysis["needed_blocks"]))
    split = str(analysis["split"])
    return Analysis(
        num_blocks=int(number(analysis["num_blocks"])),
        needed=needed,
        tolerance=number(analysis["tolerance"]),
        split=SPLIT_WORDS.get(split, split),
        losses=numbers(analysis["losses"]),
        accuracies=numbers(analysis["accuracies"]),
        ratios=numbers(analysis["residual_ratios"]),
        norms=numbers(analysis["weight_norms"]),
        stage_starts=integers(analysis["stage_starts"]),
        kept=list(range(needed)) if pruning is None else integers(pruning["kept_blocks"]),
        pruned=pruning is not None,
    )


def number(value: object) -> float:
    """Read a number; whatever is none is missing, which is NaN from here on."""
    if value is None or not isinstance(value, SupportsFloat):
        return math.nan
    return float(value)


def numbers(value: object) -> list[float]:
    """Read a list of numbers; whatever is none is empty."""
    return [number(item) for item in value] if isinstance(value, Iterable) else []


def integers(value: object) -> list[int]:
    """Read a list of whole numbers, missing ones left out."""
    return [int(item) for item in numbers(value) if math.isfinite(item)]


def value_at(values: Sequence[float], index: int) -> float:
    """Return one of the values, or NaN beyond their end."""
    return values[index] if index < len(values) else math.nan
