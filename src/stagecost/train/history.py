"""What a training has brought: one entry an epoch, and how far it has come."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stagecost.records import JsonObject, read_record, writable


@dataclass(frozen=True)
class CutRecord:
    """A cut during the training."""

    epoch: int  #: after which it was made
    num_blocks_before: int  #: blocks that there were
    kept_blocks: tuple[int, ...]  #: the paper's indices k of those that stay
    val_loss_before: float | None  #: of the network before it; None without validation images
    val_loss_after: float | None  #: of the network after it
    val_accuracy_before: float | None  #: percent
    val_accuracy_after: float | None  #: percent


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch brought."""

    epoch: int  #: counted from 1
    num_blocks: int  #: of the network in this epoch
    seconds: float  #: since the training began, over all sessions
    learning_rate: float  #: of its last step
    train_objective: float  #: mean over its images, as they were trained on
    train_loss: float  #: L_N, likewise
    train_accuracy: float  #: percent, likewise
    gamma: float  #: the stage weight of its last step
    val_loss: float | None = None  #: L_N; None without validation images
    val_accuracy: float | None = None  #: percent
    val_losses: tuple[float, ...] | None = None  #: L_0 … L_N
    val_accuracies: tuple[float, ...] | None = None  #: percent, of y_0 … y_N
    cut: CutRecord | None = None  #: that was made after it

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        return dict(writable(self))

    def check(self) -> None:
        """Refuse measurements over depth that are not of all depths."""
        if (self.val_losses is None) != (self.val_accuracies is None):
            raise ValueError(f"epoch {self.epoch} has losses or accuracies over depth, not both")
        for values in (self.val_losses, self.val_accuracies):
            if values is not None and len(values) != self.num_blocks + 1:
                raise ValueError(f"epoch {self.epoch} has {len(values)} depths of {self.num_blocks + 1}")


@dataclass
class Sums:
    """Over the samples of the epoch under way."""

    objective: float = 0.0
    loss: float = 0.0
    correct: float = 0.0
    samples: float = 0.0

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self.correct / self.samples

    def add(self, objective: float, loss: float, correct: float, samples: float) -> None:
        """Add the sums of a batch."""
        self.objective += objective
        self.loss += loss
        self.correct += correct
        self.samples += samples


@dataclass
class Progress:
    """How far a training has come."""

    epoch: int = 0  #: complete epochs
    batch: int = 0  #: steps done in the epoch under way
    sums: Sums = field(default_factory=Sums)  #: of the epoch under way
    seconds: float = 0.0  #: spent, over all sessions
    averaged: int = 0  #: how often the moving average was updated
    history: list[EpochRecord] = field(default_factory=list)  #: one entry an epoch
    #: what callers of the loop want to have back when the training goes on, as JSON values
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        return dict(writable(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Progress":
        """Rebuild it from `to_json`'s mapping, with lists for tuples.

        Raises:
            ValueError: an entry is missing, unknown, or impossible.
        """
        progress = read_record(cls, content)
        if missing := {f.name for f in fields(cls)} - content.keys():
            raise ValueError(f"{min(missing)} is missing")
        if [entry.epoch for entry in progress.history] != list(range(1, progress.epoch + 1)):
            raise ValueError(f"its history is not of the epochs 1 to {progress.epoch}")
        for entry in progress.history:
            entry.check()
        for name in ("batch", "seconds", "averaged"):
            if not 0 <= getattr(progress, name) < math.inf:
                raise ValueError(f"{name} is {getattr(progress, name)}")
        if (progress.batch > 0) != (progress.sums.samples > 0):
            raise ValueError(f"batch {progress.batch} after {progress.sums.samples} samples")
        return progress
