"""The names of classes, and how those of two data sets correspond."""

import re
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from stagecost.errors import StageCostError


def name_keys(names: Collection[str]) -> frozenset[str]:
    """Reduce class names to what copies of a data set agree on: letters and digits."""
    return frozenset(map(_key, names))


def check_classes(source: str, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Refuse the classes `ours` of a source for a network that was trained on `theirs`."""
    if len(ours) != len(theirs):
        raise StageCostError(
            f"{source} has {len(ours)} classes and the network tells {len(theirs)} apart: "
            "give data with the classes that it was trained on"
        )
    if _are_names(ours) and _are_names(theirs) and _distinct(ours) != _distinct(theirs):
        other = sorted(set(ours) - set(theirs))
        raise StageCostError(
            f"{source} has classes that the network was not trained on ({other[0]}, …; it "
            f"knows {theirs[0]}, …): give data with the same classes"
        )


def class_order(ours: tuple[str, ...], theirs: tuple[str, ...]) -> npt.NDArray[np.int64] | None:
    """Return the network's number of each of our classes; None where names do not tell."""
    if not (_are_names(ours) and _are_names(theirs)) or ours == theirs:
        return None
    reduced = len(name_keys(theirs)) == len(theirs)
    place = {_key(name) if reduced else name: number for number, name in enumerate(theirs)}
    return np.array([place[_key(name) if reduced else name] for name in ours])


def _are_names(names: tuple[str, ...]) -> bool:
    """Whether these are names, not the numbers that stand in for them ('class 7')."""
    return not all(re.fullmatch(r"class -?\d+", name) for name in names)


def _distinct(names: tuple[str, ...]) -> frozenset[str]:
    """Return the names reduced by `_key`, unless that makes two of them equal."""
    keys = name_keys(names)
    return keys if len(keys) == len(names) else frozenset(names)


def _key(name: str) -> str:
    """Reduce a class name to letters and digits: some copies write 'T - shirt / top'."""
    return "".join(filter(str.isalnum, name.lower()))
