"""What a report is made of: typed values, and the one place where JSON becomes them.

A measurement that is missing is NaN, which the page writes as a dash and the figures as a gap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import MappingProxyType, NoneType
from typing import Any, SupportsFloat, TypeVar, get_args, get_origin, get_type_hints

from stagecost.errors import StageCostError

SPLIT_WORDS = {"val": "validation", "train": "training"}
THUMBNAIL = "data:image/"

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class MadeCut:
    """A cut that can be made."""

    cut: str  #: as printed: 4, or 3+3+4 by stages
    kept_blocks: tuple[int, ...]  #: the paper's k of the blocks that stay
    accuracy: float = math.nan  #: percent
    macs: float = math.nan  #: multiply-accumulates of one image


@dataclass(frozen=True)
class Analysis:
    """What a pass over a split tells of every depth k = 0 … N."""

    num_blocks: int  #: N
    split: str  #: of the images, such as `val`
    losses: tuple[float, ...]  #: of y_0 … y_N
    accuracies: tuple[float, ...]  #: percent, of y_0 … y_N
    residual_ratios: tuple[float, ...]  #: mean of ‖F_k(x_k)‖ / ‖x_k‖, k = 0 … N-1
    weight_norms: tuple[float, ...]  #: ‖w_F,k‖, k = 0 … N-1
    tolerance: float  #: points of accuracy that may be missing to the full depth
    needed_blocks: int  #: M, blocks of the cheapest cut within the tolerance
    needed_cut: str = ""  #: this cut, as printed; that of the first M blocks if empty
    cuts: tuple[MadeCut, ...] = ()  #: all that can be made and were measured, the whole among them
    warnings: tuple[str, ...] = ()  #: what makes the needed blocks doubtful
    stage_starts: tuple[int, ...] = (0,)  #: positions of the blocks that begin a stage
    #: multiply-accumulates of one image, with the first 0 … N blocks; empty if unknown
    macs: tuple[float, ...] = ()
    #: trainable numbers of the network cut after 0 … N blocks; empty if unknown
    parameters: tuple[float, ...] = ()
    latencies: tuple[float, ...] = ()  #: seconds for one image at depth 0 … N; empty if unknown
    measured: str = ""  #: where and how these were measured

    @property
    def split_word(self) -> str:
        """The split as prose names it."""
        return SPLIT_WORDS.get(self.split, self.split)

    @property
    def terminal_accuracy(self) -> float:
        """Percent, of y_N."""
        return value_at(self.accuracies, self.num_blocks)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The paper's k of all blocks, by their places."""
        every = tuple(range(self.num_blocks))
        return max((cut.kept_blocks for cut in self.cuts), key=len, default=every)

    @property
    def needed(self) -> MadeCut:
        """The cheapest cut within the tolerance."""
        m = self.needed_blocks
        first = MadeCut(str(m), self.blocks[:m], value_at(self.accuracies, m), value_at(self.macs, m))
        return next((cut for cut in self.cuts if cut.cut == self.needed_cut), first)

    @property
    def needed_depth(self) -> int | None:
        """M where the needed cut is that of the first M blocks; None if it is none of the depths."""
        first = self.needed.kept_blocks == self.blocks[: self.needed_blocks]
        return self.needed_blocks if first else None

    @property
    def accuracy_floor(self) -> float:
        """Where the accuracy axis ends at the bottom: minus infinity if nothing is cut off.

        With an axis down to chance level, a tolerance of half a point would be as thin as a hair. What
        lies below the floor is far from good enough, and the loss figure shows all of it.
        """
        floor = self.terminal_accuracy - max(20 * self.tolerance, 4.0)
        return floor if any(value < floor for value in self.accuracies) else -math.inf


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought; `seconds` count from the start of the training, not of the epoch."""

    epoch: int
    seconds: float = math.nan
    learning_rate: float = math.nan
    train_objective: float = math.nan
    train_loss: float = math.nan
    val_loss: float = math.nan
    val_accuracy: float = math.nan
    val_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Pruning:
    """The latest pruning of the run."""

    kept_blocks: tuple[int, ...]  #: the paper's k of the blocks that stayed
    network: str  #: folder of the small network
    accuracy_before: float = math.nan  #: percent, of the whole network
    accuracy_predicted: float = math.nan  #: percent, from the outputs over depth
    accuracy_after: float = math.nan  #: percent, of the small network as it was saved
    accuracy_before_finetuning: float = math.nan  #: percent, of the small network right after the cut
    finetune_epochs: int = 0  #: epochs of training after the cut
    parameters_before: float = math.nan  #: trainable numbers; `parameters_after` of the small network
    parameters_after: float = math.nan
    #: multiply-accumulates of one image; `macs_after` of the small network
    macs_before: float = math.nan
    macs_after: float = math.nan
    #: median milliseconds of one image; `latency_ms_after` of the small network
    latency_ms_before: float = math.nan
    latency_ms_after: float = math.nan
    num_blocks_before: int = 0  #: of the whole network; 0 in earlier versions


@dataclass(frozen=True)
class Result:
    """What a network reaches on the test split."""

    name: str
    num_blocks: float = math.nan
    accuracy: float = math.nan
    loss: float = math.nan
    parameters: float = math.nan
    macs: float = math.nan


@dataclass(frozen=True)
class Point:
    """A network, or a way of running one, as accuracy (percent) against MACs an image."""

    series: str  #: what it belongs to, such as `cuts`, `early exits` or `trained at this depth`
    name: str  #: what hovering shows, such as `4 blocks`
    accuracy: float  #: percent
    macs: float  #: multiply-accumulates of one image, on average


@dataclass(frozen=True)
class Timing:
    """Milliseconds for an image in batches of a size: by the whole network, and with exits."""

    batch_size: int
    latency_ms_full: float
    latency_ms_exit: float
    ratio: float


@dataclass(frozen=True)
class Exits:
    """The latest early exit of the run, measured on test images."""

    criterion: str  #: how an image is found to be sure
    depths: tuple[int, ...]  #: at which the head is asked
    leaving: tuple[float, ...]  #: part of the images that leaves at each of them
    accuracy_full: float  #: percent, of the whole network; `accuracy_exit` with exits
    accuracy_exit: float
    mean_blocks: float  #: that an image goes through
    mean_macs_ratio: float  #: of the whole network's MACs
    thresholds: tuple[float, ...] = ()  #: at which an image leaves at each depth but the last
    val_accuracy_full: float = math.nan  #: percent of the validation images, of the whole network
    timings: tuple[Timing, ...] = ()  #: for each batch size


@dataclass(frozen=True)
class Confusion:
    """How often the cut network calls an image of one class (row) by the name of another (column)."""

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class WrongImage:
    """An image that the whole network names rightly, and the cut network wrongly."""

    thumbnail: str  #: a small image as a `data:image/…;base64,…` address
    label: str  #: name of its class
    answer: str  #: name that the cut network gives

    def __post_init__(self) -> None:
        """Refuse addresses that would make the page load something."""
        if not self.thumbnail.startswith(THUMBNAIL):
            raise StageCostError(
                f"thumbnail {self.thumbnail[:40]!r} is no image in place: begin it with {THUMBNAIL}"
            )


@dataclass(frozen=True)
class ReportData:
    """What a report is made of."""

    run: str  #: the name or path of the run, as shown
    analysis: Analysis  #: loss and accuracy over depth
    #: the merged configuration of the run; names, and values or further mappings
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    history: tuple[Epoch, ...] = ()  #: the epochs of the training
    pruning: Pruning | None = None  #: the latest one; None if nothing was pruned yet
    test: tuple[Result, ...] = ()  #: networks on the test split
    points: tuple[Point, ...] = ()  #: accuracy against MACs of cuts, exits and controls, on test images
    exits: Exits | None = None  #: the latest early exit; None if there was none
    #: of the cut network (the pruned one, or else the needed cut)
    confusion: Confusion | None = None
    #: images that the cut gets newly wrong, as many as the page is to show
    newly_wrong: tuple[WrongImage, ...] = ()
    newly_wrong_count: int = 0  #: how many there are in all; 0 for just those given
    version: str = ""  #: the version of stagecost that made the report
    options: str = ""  #: flags by which commands take the same checkpoint and images as the page

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ReportData":
        """Read the attributes from JSON: what verbs print, and what run folders hold.

        Raises:
            StageCostError: a value without which there is no report is missing.
        """
        return _read_fields(cls, content, "report")

    @property
    def kept_places(self) -> tuple[int, ...]:
        """The places of the blocks that the figures colour: of those kept, or else those needed."""
        kept = (self.analysis.needed if self.pruning is None else self.pruning).kept_blocks
        return tuple(place for place, k in enumerate(self.analysis.blocks) if k in kept)

    @property
    def seconds(self) -> float:
        """Duration of the training: the last of the epochs' seconds, which count from its start."""
        return self.history[-1].seconds if self.history else math.nan


def value_at(values: Sequence[float], index: int) -> float:
    """Return one of the values, or NaN beyond their end."""
    return values[index] if index < len(values) else math.nan


def _read_fields(kind: type[Kind], content: Mapping[str, Any], place: str) -> Kind:
    hints, known = get_type_hints(kind), fields(kind)  # type: ignore[arg-type]
    needed = (f.name for f in known if f.default is MISSING and f.default_factory is MISSING)
    if lacking := [name for name in needed if name not in content]:
        raise StageCostError(f"{place} lacks {', '.join(lacking)}: make it anew with `stagecost report`")
    given = {f.name: content[f.name] for f in known if f.name in content}
    return kind(**{name: _read(hints[name], value, name) for name, value in given.items()})


def _read(kind: Any, value: Any, place: str) -> Any:
    arguments = get_args(kind)
    if NoneType in arguments:
        return None if value is None else _read(arguments[0], value, place)
    if get_origin(kind) is tuple:
        return tuple(_read(arguments[0], item, place) for item in value or ())
    if is_dataclass(kind):
        return _read_fields(kind, value, place)  # type: ignore[arg-type]
    if kind is int:
        return int(value)
    if kind is float:  # whatever is no number is missing
        return float(value) if isinstance(value, SupportsFloat) else math.nan
    return value
