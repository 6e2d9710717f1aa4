"""The ways of several cuts through the blocks: cuts that begin alike share their states."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from stagecost.cut import Cut


@dataclass(frozen=True)
class Path:
    """The way of some cuts through the blocks; where ways part, a later path leaves an earlier one.

    Attributes:
        start: k of its first state.
        acts: whether block k acts, for k = 0, 1, …; before its start it goes with earlier paths.
        ends: k → the cuts (by number) none of whose blocks from k on acts.
        leaves: k → the number of the path that leaves x_k by bypassing block k.
        whole: up to which k it is the way of the whole network, or of its y_k alone.
    """

    start: int
    acts: tuple[bool, ...]
    ends: Mapping[int, tuple[int, ...]]
    leaves: Mapping[int, int]
    whole: int

    @property
    def stop(self) -> int:
        """K of its last state."""
        return len(self.acts)

    def leaves_behind(self, cut: Cut) -> int:
        """Return k of the first block that acts here and not in a cut; -1 if there is none."""
        return next((k for k, acts in enumerate(self.acts) if acts and not cut.acts(k)), -1)


def plan_paths(cuts: tuple[Cut, ...]) -> tuple[Path, ...]:
    """Return the fewest paths that reach every cut: cuts that begin alike share their states."""
    # The compiler traces the function itself, and warns of a cache in front of it.
    return _planned(cuts) if torch.compiler.is_compiling() else _remembered(cuts)


def _planned(cuts: tuple[Cut, ...]) -> tuple[Path, ...]:
    opened: list[Branch] = [(0, tuple(range(len(cuts))))]
    paths: list[Path] = []
    for branch in opened:  # grows on the way
        path, others = _follow(cuts, branch, len(opened))
        opened += others
        paths.append(path)
    return tuple(paths)


_remembered = lru_cache(maxsize=256)(_planned)

Branch = tuple[int, tuple[int, ...]]
"""k, and the numbers of the cuts that go on together from x_k."""


def _follow(cuts: tuple[Cut, ...], branch: Branch, next_path: int) -> tuple[Path, list[Branch]]:
    """Go with the cuts in which the next block acts; return the branches of the others as well."""
    k, members = branch
    acts = [cuts[members[0]].acts(earlier) for earlier in range(k)]  # all members came the same way
    ends: dict[int, tuple[int, ...]] = {}
    leaves: dict[int, int] = {}
    others: list[Branch] = []
    while members:
        ended = tuple(i for i in members if cuts[i].depth <= k)
        if ended:
            ends[k] = ended
            members = tuple(i for i in members if cuts[i].depth > k)
        acting = tuple(i for i in members if cuts[i].acts(k))
        if acting and len(acting) < len(members):
            leaves[k] = next_path + len(others)
            others.append((k, tuple(i for i in members if not cuts[i].acts(k))))
        if members:
            acts.append(bool(acting))
        members = acting or members
        k += 1
    whole = max((end for end in ends if all(acts[:end])), default=0)
    return Path(branch[0], tuple(acts), ends, leaves, whole), others
