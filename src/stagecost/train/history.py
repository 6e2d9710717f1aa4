"""What a training has brought: one entry an epoch, and how far it has come."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class CutRecord:
    """A cut during the training.

    Attributes:
        epoch: after which it was made.
        num_blocks_before: blocks that there were.
        kept_blocks: the paper's indices k of those that stay.
        val_loss_before: of the network before it; None without validation images.
        val_loss_after: of the network after it.
        val_accuracy_before: percent.
        val_accuracy_after: percent.
    """

    epoch: int
    num_blocks_before: int
    kept_blocks: tuple[int, ...]
    val_loss_before: float | None
    val_loss_after: float | None
    val_accuracy_before: float | None
    val_accuracy_after: float | None


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch brought.

    Attributes:
        epoch: counted from 1.
        num_blocks: of the network in this epoch.
        seconds: since the training began, over all sessions.
        learning_rate: of its last step.
        train_objective: mean over its images, as they were trained on.
        train_loss: L_N, likewise.
        train_accuracy: percent, likewise.
        gamma: the stage weight of its last step.
        val_loss: L_N; None without validation images.
        val_accuracy: percent.
        val_losses: L_0 … L_N.
        val_accuracies: percent, of y_0 … y_N.
        cut: that was made after it.
    """

    epoch: int
    num_blocks: int
    seconds: float
    learning_rate: float
    train_objective: float
    train_loss: float
    train_accuracy: float
    gamma: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_losses: tuple[float, ...] | None = None
    val_accuracies: tuple[float, ...] | None = None
    cut: CutRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "EpochRecord":
        """Rebuild it from `to_json`'s mapping, with lists for tuples.

        Raises:
            TypeError: an entry is missing or unknown.
        """
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in content.items()
        }
        if values.get("cut") is not None:
            cut = dict(values["cut"])
            values["cut"] = CutRecord(**{**cut, "kept_blocks": tuple(cut["kept_blocks"])})
        return cls(**values)


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

    def add(self, objective: float, loss: float, correct: int, samples: int) -> None:
        """Add the means of a batch."""
        self.objective += objective * samples
        self.loss += loss * samples
        self.correct += correct
        self.samples += samples


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: complete epochs.
        batch: steps done in the epoch under way.
        sums: of the epoch under way.
        seconds: spent, over all sessions.
        averaged: how often the moving average was updated.
        history: one entry an epoch.
        notes: what callers of the loop want to have back when the training goes on, as JSON values.
    """

    epoch: int = 0
    batch: int = 0
    sums: Sums = field(default_factory=Sums)
    seconds: float = 0.0
    averaged: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Progress":
        """Rebuild it from `to_json`'s mapping, with lists for tuples.

        Raises:
            TypeError: an entry is missing or unknown.
        """
        if missing := {f.name for f in fields(cls)} - set(content):
            raise TypeError(f"{min(missing)} is missing")
        history = [EpochRecord.from_json(entry) for entry in content["history"]]
        return cls(**{**content, "sums": Sums(**content["sums"]), "history": history})
