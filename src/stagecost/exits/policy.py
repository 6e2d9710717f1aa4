"""When an image may leave: a criterion, the depths at which it is asked, and thresholds.

An image that leaves at depth k is answered by y_k: x_k through the skip connections that are left, and
the head. No further head is trained. `Votes` is the one place where answers and scores are made of
outputs, for thresholds that are tried on outputs at hand and for the engine that computes them alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from stagecost.cut import whole_number
from stagecost.errors import StageCostError, refusing
from stagecost.records import JsonObject, read_record, writable
from stagecost.storage import read_json, write_json

Criterion = Literal["max-probability", "margin", "patience"]
"""How sure an answer is: its probability; how far that is above the second one; how many of the depths
asked in a row gave the same answer."""
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
POLICY_FILE = "exit_policy.json"


@dataclass(frozen=True)
class ExitPolicy:
    """Where an image may leave a network.

    Example:
        >>> policy = sc.ExitPolicy(depths=(2, 4), thresholds=(0.9,))  # at 2 if it is sure, or at 4
        >>> policy.criterion
        'max-probability'
    """

    #: k_1 < … < k_m, at which the head is asked; whoever is left at k_m leaves there. One depth alone is
    #: a fixed cut
    depths: tuple[int, ...]
    #: t_1, …, t_{m-1}: an image leaves at k_i if its score there is at least t_i
    thresholds: tuple[float, ...] = ()
    criterion: Criterion = "max-probability"  #: what the score is
    combine: bool = False  #: answer by all depths asked so far: the mean of their log-probabilities

    def __post_init__(self) -> None:
        """Take numbers of NumPy and torch as Python's own, and refuse what is no policy."""
        given = f"exits at depths {self.depths} with thresholds {self.thresholds}"
        with refusing(given, "give lists of numbers", OverflowError, TypeError, ValueError):
            found, thresholds = tuple(map(whole_number, self.depths)), tuple(map(float, self.thresholds))
        depths = tuple(k for k in found if k is not None and k >= 0)
        if not depths or len(depths) < len(found) or list(depths) != sorted(set(depths)):
            raise StageCostError(
                f"exits at depths {list(self.depths)}: give ascending numbers of at least 0"
            )
        if self.criterion not in CRITERIA:
            raise StageCostError(
                f"criterion {self.criterion!r} is unknown: choose from {', '.join(CRITERIA)}"
            )
        if len(thresholds) != len(depths) - 1 or not all(map(math.isfinite, thresholds)):
            raise StageCostError(
                f"thresholds {list(thresholds)} for exits at depths {list(depths)}: give a number for "
                "each depth but the last"
            )
        object.__setattr__(self, "depths", depths)
        object.__setattr__(self, "thresholds", thresholds)

    def check(self, num_blocks: int) -> None:
        """Refuse a network that is not as deep, by a StageCostError."""
        if self.depths[-1] > num_blocks:
            raise StageCostError(
                f"exit at depth {self.depths[-1]} is impossible with {num_blocks} blocks: choose "
                "thresholds anew with `stagecost exit`"
            )

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        return dict(writable(self))

    def save(self, folder: str | Path) -> None:
        """Write the policy beside a network, atomically."""
        write_json(Path(folder) / POLICY_FILE, self.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> "ExitPolicy":
        """Read the policy that was saved beside a network.

        Raises:
            StageCostError: there is none, or it is damaged.
        """
        file = Path(folder) / POLICY_FILE
        if not file.is_file():
            raise StageCostError(f"{folder} has no exit policy: make one with `stagecost exit`")
        with refusing(f"{file} is no exit policy", "make it anew with `stagecost exit`", ValueError):
            return read_record(cls, read_json(file))


class Votes:
    """What the depths asked so far say of some images, row by row."""

    def __init__(self, criterion: Criterion, *, combine: bool = False) -> None:
        """Begin before the first depth."""
        self.criterion, self.combine = criterion, combine
        self.asked = 0
        self.total = self.labels = self.agreeing = torch.empty(0)

    def add(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Take what one more depth says, and return answers and scores.

        Args:
            outputs: (B, classes), logits of the rows that are left.

        Returns:
            The answers, (B,), int64, and how sure they are, (B,).

        Raises:
            StageCostError: the outputs are no logits of at least two classes.
        """
        if outputs.dim() != 2 or outputs.shape[1] < 2:
            raise StageCostError(
                f"exits need outputs (B, classes) of at least two classes, not {tuple(outputs.shape)}: "
                "use the network without exits"
            )
        if outputs.dtype in (torch.float16, torch.bfloat16):  # thresholds are of finer numbers
            outputs = outputs.float()
        self.asked += 1
        if self.criterion == "max-probability" and not self.combine:
            best, labels = outputs.softmax(dim=1).max(dim=1)
            return labels, best
        logs = outputs.log_softmax(dim=1)
        if self.combine:
            self.total = logs if self.asked == 1 else self.total + logs
            logs = (self.total / self.asked).log_softmax(dim=1)
        if self.criterion == "margin":
            (best, labels), second = logs.max(dim=1), logs.topk(2, dim=1).values[:, 1]
            return labels, best.exp() - second.exp()
        best, labels = logs.max(dim=1)
        if self.criterion == "max-probability":
            return labels, best.exp()
        if self.asked == 1:
            self.agreeing = torch.ones_like(best)
        else:
            self.agreeing = torch.where(labels == self.labels, self.agreeing + 1, 1.0)
        self.labels = labels
        return labels, self.agreeing

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        if self.combine:
            self.total = self.total[rows]
        if self.criterion == "patience":
            self.labels, self.agreeing = self.labels[rows], self.agreeing[rows]


def votes_at(
    outputs: Tensor, depths: Sequence[int], criterion: Criterion, *, combine: bool = False
) -> tuple[Tensor, Tensor]:
    """Return answers and scores, (m, B) each, at some depths, as if nobody left.

    Args:
        outputs: (N+1, B, classes), y_0 … y_N.
        depths: k_1 < … < k_m.
        criterion: what the score is.
        combine: see `ExitPolicy`.
    """
    votes = Votes(criterion, combine=combine)
    pairs = [votes.add(outputs[k]) for k in depths]
    return torch.stack([labels for labels, _ in pairs]), torch.stack([score for _, score in pairs])
