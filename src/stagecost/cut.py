"""`Cut`: which controls act.

Block k computes x_{k+1} = S_k(x_k) + s_k·F_k(x_k). A cut is the vector s of zeros and ones, written as
the positions of the blocks that act. Everything that is asked of a residual network is the terminal
output of a cut:

- the paper's y_k, which skips all blocks from k on, is `Cut.first(k)`;
- the whole network, y_N, is `Cut.whole()`;
- the first M_s blocks of each stage are `Cut.stages(M_1, …, M_S)`;
- the network without block k is `Cut.without(k)`.

Theorem 3.1 is one sentence about cuts: the trained SubResNet-M, extended by zeros, is the cut
`Cut.first(M)` of a ResNet-N.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import ClassVar, Literal, SupportsIndex

from stagecost.errors import StageCostError
from stagecost.text import format_indices

Stages = Sequence[Sequence[int]]
"""Positions of the blocks, grouped by stage: ((0, 1, 2), (3, 4)) are stages of three and two blocks."""

NUMBER = r"\d{1,4}"
"""Of a block, or of blocks, as cuts are written."""

Depths = Literal["all"] | int | Sequence[int] | None
"""The grammar of the paper's outputs: `None` is the terminal output, an int k one output y_k, a sequence
several, `"all"` is y_0 … y_N. Negative numbers count from the end: -1 is the terminal output."""


@dataclass(frozen=True)
class Cut:
    """Which blocks of a network act; all others are their skip connections.

    `Cut((0, 1, 4))` names the acting blocks by position. Two kinds of cut are named before a network is
    known, and `among` turns them into positions: `whole` and `without` list what does *not* act,
    `stages` counts blocks.

    Example:
        >>> sc.Cut.first(3).blocks
        (0, 1, 2)
        >>> stages = ((0, 1, 2), (3, 4, 5))
        >>> sc.Cut.stages(1, 2).among(stages) == sc.Cut.without(1, 2, 5).among(stages)
        True
    """

    #: positions, ascending; of the blocks that act, or, with `complement`, of those that do not
    blocks: tuple[int, ...] = ()
    complement: bool = False  #: whether `blocks` are those that do not act
    per_stage: tuple[int, ...] = ()  #: M_1, …, M_S, instead of positions; empty otherwise
    _positions: ClassVar[frozenset[int]]

    def __post_init__(self) -> None:
        """Put the positions in order.

        Raises:
            StageCostError: a position is no whole number of at least 0.
        """
        object.__setattr__(self, "blocks", tuple(sorted(set(_whole_numbers(self.blocks)))))
        object.__setattr__(self, "per_stage", _whole_numbers(self.per_stage))
        # Not a cached property: that takes a lock, and a network that is being compiled cannot.
        object.__setattr__(self, "_positions", frozenset(self.blocks))

    @classmethod
    def first(cls, count: int) -> "Cut":
        """Return the paper's y_k, k = `count`: the first blocks act, the rest is skipped.

        Raises:
            StageCostError: it is no whole number of at least 0.
        """
        return cls(tuple(range(*_whole_numbers((count,)))))

    @classmethod
    def whole(cls) -> "Cut":
        """Return the whole network, y_N."""
        return cls(complement=True)

    @classmethod
    def without(cls, *blocks: int) -> "Cut":
        """Return all blocks but these."""
        return cls(blocks, complement=True)

    @classmethod
    def stages(cls, *counts: int) -> "Cut":
        """Return the first M_s blocks of each stage.

        Raises:
            StageCostError: no count, or one that is no whole number of at least 0.
        """
        if not counts:
            raise StageCostError("a cut by stages needs counts: give one of each, as Cut.stages(3, 2)")
        return cls(per_stage=counts)

    @classmethod
    def parse(cls, text: str) -> "Cut":
        """Read the printed form: "whole", "4" (the first four blocks) or "3+3+4" (of each stage).

        Any blocks stand in brackets, by their positions: "[0-2 5 7]".

        Raises:
            StageCostError: it is something else.
        """
        if not isinstance(text, str):
            raise StageCostError(f"{text!r} is no text: give one such as '4', or a Cut")
        if text.strip().startswith("["):
            return cls(_listed(text.strip()))
        parts = [part.strip() for part in text.split("+")]
        if text.strip() == "whole":
            return cls.whole()
        if not all(re.fullmatch(NUMBER, part, re.ASCII) for part in parts):
            raise StageCostError(f"{text!r} is not a cut: give a number of blocks, such as 4, or 3+3+4")
        counts = [int(part) for part in parts]
        return cls.first(counts[0]) if len(counts) == 1 else cls.stages(*counts)

    @property
    def is_resolved(self) -> bool:
        """Whether `blocks` are the positions of the blocks that act."""
        return not (self.complement or self.per_stage)

    def among(self, stages: Stages) -> "Cut":
        """Return the same cut by the positions of the blocks that act.

        Args:
            stages: of the network.

        Raises:
            StageCostError: the network has no such blocks.
        """
        positions = [k for stage in stages for k in stage]
        if self.per_stage:
            return Cut(_first_of_each_stage(stages, self.per_stage))
        if self.blocks and self.blocks[-1] >= len(positions):
            raise StageCostError(
                f"block {self.blocks[-1]} is impossible in a network of {len(positions)} blocks: give "
                f"positions from 0 to {len(positions) - 1}"
            )
        if not self.complement:
            return self
        return Cut(tuple(k for k in positions if k not in self.blocks))

    @property
    def depth(self) -> int:
        """The position behind the last acting block: k of y_k, and the row of head statistics."""
        positions = self._resolved()
        return positions[-1] + 1 if positions else 0

    @property
    def is_prefix(self) -> bool:
        """Whether this is one of the paper's y_k: the first blocks and no others act."""
        return self.is_resolved and len(self.blocks) == self.depth

    def acts(self, k: int) -> bool:
        """Tell whether the block at a position acts."""
        self._resolved()
        return k in self._positions

    def __le__(self, other: "Cut") -> bool:
        """Tell whether all blocks of this cut act in the other one, too: the nested order."""
        return set(self._resolved()) <= set(other._resolved())

    def __lt__(self, other: "Cut") -> bool:
        """Tell whether all blocks of this cut, and not they alone, act in the other one."""
        return set(self._resolved()) < set(other._resolved())

    def __or__(self, other: "Cut") -> "Cut":
        """Return the cut in which the blocks of both act."""
        return Cut(self._resolved() + other._resolved())

    def remaining(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Return what remains of the paper's indices k of a network's blocks."""
        return tuple(indices[k] for k in self._resolved())

    def among_left(self, left: Sequence[int]) -> "Cut":
        """Return the same cut of the network of which only the blocks at these positions are left."""
        places = {k: place for place, k in enumerate(left)}
        return Cut(tuple(places[k] for k in self._resolved() if k in places))

    def to_json(self) -> list[int]:
        """Return the positions of the acting blocks."""
        return list(self._resolved())

    def _resolved(self) -> tuple[int, ...]:
        if not self.is_resolved:
            raise StageCostError(f"cut {self} does not name its blocks: give network.resolve(cut)")
        return self.blocks

    def __str__(self) -> str:
        """Write the cut shortly: "whole", "4" for y_4, "3+3+4" by stages, else "[0-2 5]"."""
        if self.per_stage:
            return "+".join(map(str, self.per_stage))
        if self.complement:
            return f"whole without {format_indices(self.blocks)}" if self.blocks else "whole"
        return str(self.depth) if self.is_prefix else f"[{format_indices(self.blocks).replace(',', '')}]"


def _whole_numbers(numbers: Iterable[int]) -> tuple[int, ...]:
    """Return whole numbers of at least 0, also those of NumPy and torch, as Python's own.

    Raises:
        StageCostError: as described.
    """
    try:
        given = tuple(numbers)
    except TypeError:
        raise StageCostError(f"{numbers!r} is no list of blocks: give one, as in Cut((0, 2))") from None
    found = tuple(map(whole_number, given))
    for number, value in zip(given, found, strict=True):
        if value is None or value < 0:
            raise StageCostError(f"{number!r} in a cut is not a whole number of at least 0")
    return tuple(value for value in found if value is not None)


def whole_number(number: object) -> int | None:
    """Return a whole number, also one of NumPy or torch, as Python's own; None of anything else.

    Truth values are none, of whichever library: a list of them would be a mask.
    """
    if type(number) is int:
        return number
    if not isinstance(number, SupportsIndex) or "bool" in str(getattr(number, "dtype", type(number))):
        return None
    try:
        return index(number)
    except TypeError:  # a tensor of a fraction, or of several numbers
        return None


def _listed(text: str) -> tuple[int, ...]:
    """Read positions in brackets, parted by spaces or commas, ranges with a dash.

    Raises:
        StageCostError: they are none.
    """
    parts = re.split("[ ,]+", text[1:-1].strip(" ,"))
    if text[-1] != "]" or not all(re.fullmatch(rf"{NUMBER}(-{NUMBER})?", p, re.ASCII) for p in parts):
        raise StageCostError(f"{text!r} is not a cut: give positions of blocks, such as [0-2 5 7]")
    ends = [part.split("-") for part in parts]
    if turned := ["-".join(end) for end in ends if int(end[0]) > int(end[-1])]:
        raise StageCostError(f"{text!r} is not a cut: {turned[0]} goes backwards")
    return tuple(k for end in ends for k in range(int(end[0]), int(end[-1]) + 1))


def _first_of_each_stage(stages: Stages, counts: Sequence[int]) -> tuple[int, ...]:
    """Return the first M_s positions of each stage, which has as many and keeps one at least."""
    sizes = [len(stage) for stage in stages]
    possible = len(counts) == len(sizes) and all(
        1 <= count <= size for count, size in zip(counts, sizes, strict=True)
    )
    if not possible:
        raise StageCostError(
            f"keeping {list(counts)} blocks is impossible in stages of {sizes}: give "
            f"{len(sizes)} numbers, each from 1 to the size of its stage"
        )
    pairs = zip(stages, counts, strict=True)
    return tuple(k for stage, count in pairs for k in stage[:count])


def stage_counts(cut: Cut, stages: Stages) -> tuple[int, ...] | None:
    """Return M_1, …, M_S of a cut of the first blocks of each stage, one at least; None of another."""
    counts = tuple(sum(cut.acts(k) for k in stage) for stage in stages)
    heads = all(
        set(stage[:count]) <= set(cut.blocks) for stage, count in zip(stages, counts, strict=True)
    )
    return counts if heads and all(counts) else None


def resolve_depths(depths: Depths, num_blocks: int) -> tuple[int, ...]:
    """Return the depths asked for as numbers 0 … N, in the order asked for.

    Raises:
        StageCostError: a depth is not an integer, or outside of -(N+1) … N, or none is given.
    """
    if depths is None:
        return (num_blocks,)
    if isinstance(depths, str):
        if depths != "all":
            raise StageCostError(
                f"depths={depths!r} is unknown: give 'all', one depth, several depths, or None"
            )
        return tuple(range(num_blocks + 1))
    wanted = tuple(depths) if are_several(depths) else (depths,)  # type: ignore[arg-type]
    if not wanted:
        raise StageCostError("depths is empty: give at least one depth, or None for the last")
    return tuple(_resolve_depth(depth, num_blocks) for depth in wanted)


def are_several(depths: Depths) -> bool:
    """Tell whether depths are a list, even of one; a tensor without dimensions is one number."""
    return isinstance(depths, Iterable) and getattr(depths, "shape", None) != ()


def _resolve_depth(depth: object, num_blocks: int) -> int:
    k = whole_number(depth)
    if k is None:
        raise StageCostError(f"depth {depth!r} is not an integer: give numbers from 0 to {num_blocks}")
    if not -num_blocks - 1 <= k <= num_blocks:
        raise StageCostError(
            f"depth {depth} is impossible with {num_blocks} blocks: give a number from 0 to {num_blocks}"
        )
    return k % (num_blocks + 1)


def resolve_cuts(cuts: "Cut | Iterable[Cut]", stages: Stages) -> tuple[Cut, ...]:
    """Return cuts by the positions of their acting blocks.

    Raises:
        StageCostError: there is none, one is no cut, or one names blocks that the network does not have.
    """
    one = isinstance(cuts, Cut) or not isinstance(cuts, Iterable)
    wanted: tuple[Cut, ...] = (cuts,) if one else tuple(cuts)  # type: ignore[arg-type, assignment]
    if other := [cut for cut in wanted if not isinstance(cut, Cut)]:
        raise StageCostError(f"{other[0]!r} is no cut: give one such as Cut.first(3) or Cut((0, 2))")
    if not wanted:
        raise StageCostError("cuts is empty: give at least one, or none at all for the whole network")
    return tuple(cut.among(stages) for cut in wanted)
