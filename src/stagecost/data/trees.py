"""Folders of pictures: which directories are splits, which are classes, and what is left out.

Directories at one level are the classes. That level is the only one with several directories, or the
one with the names that the user or a trained network knows; else the folder is refused.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from stagecost.data.class_names import class_name, classes_flag, listed, places, shown
from stagecost.data.encoded import Part, file_images, image_suffixes
from stagecost.data.folders import Listing
from stagecost.data.split_names import split_of
from stagecost.errors import StageCostError
from stagecost.text import counted

_Path = tuple[str, ...]  # the directories, and the name of the file or directory itself


def read_tree(listing: Listing, known: Sequence[str]) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Read classes and splits off the directories in which pictures are.

    Args:
        listing: a folder with pictures in it.
        known: names of classes that are expected, or none.

    Returns:
        The splits, and a line for each thing that was left out.

    Raises:
        StageCostError: the directories can be read in more than one way, or in none.
    """
    pictures = [tuple(name.split("/")) for name in listing.ending_in(image_suffixes())]
    others = sorted({*listing.files} - {*map("/".join, pictures)})
    directories = [tuple(name.split("/")) for name in listing.directories]
    base = _wrapping(pictures, directories)
    inside = _within(pictures, base)
    heads = _split_directories(listing, inside, known)
    roots = {split: (*base, head) for head, split in heads.items()} or {"train": base}
    first = roots.get("train") or next(iter(roots.values()))
    level = _class_level(listing, _within(pictures, first), _within(directories, first), known)
    parts, warnings, kept = dict[str, Part](), list[str](), set[_Path]()
    for split, root in roots.items():
        labelled = [path for path in _within(pictures, root) if len(path) > level + 1]
        unreadable = _within([tuple(name.split("/")) for name in others], root)
        warnings += _unreadable(root, level, labelled, unreadable, _within(directories, root))
        if labelled:
            parts[split] = _part(listing, root, labelled, level)
            kept |= {(*root, *path) for path in labelled}
    loose = ["/".join(path) for path in pictures if path not in kept]
    if loose:
        warnings.append(
            f"left out {counted(len(loose), 'image')} in no class directory: {listed(loose, 3)}"
        )
    if not parts:
        raise StageCostError(
            f"{shown(listing.folder)} has {len(pictures)} images and no directory for each class: give "
            "a folder with one directory of images for each class"
        )
    return parts, tuple(warnings)


def _within(paths: Iterable[_Path], root: _Path) -> list[_Path]:
    return [path[len(root) :] for path in paths if path[: len(root)] == root and len(path) > len(root)]


def _wrapping(pictures: Sequence[_Path], directories: Sequence[_Path]) -> _Path:
    """Return the directories that stand alone above everything else."""
    base: _Path = ()
    while True:
        inside = _within(pictures, base)
        heads = {path[0] for path in _within(directories, base)}
        if len(heads) != 1 or any(len(path) < 3 for path in inside) or split_of(*heads):
            return base
        base = (*base, *heads)


def _split_directories(listing: Listing, paths: Sequence[_Path], known: Sequence[str]) -> dict[str, str]:
    """Return the directories that are splits: those so called, if class directories are in them."""
    heads = {path[0] for path in paths if len(path) > 1}
    holding = {path[0] for path in paths if len(path) > 2}
    named = {head: split for head in sorted(heads) if (split := split_of(head))}
    splits = {head: split for head, split in named.items() if head in holding}
    matches = _matches(paths, known)
    if matches and matches[0] == max(matches) > 0:
        return {}
    if not splits and heads == named.keys() != set():
        raise StageCostError(
            f"{shown(listing.folder)} has {listed([*named])}, which are names of splits, and no "
            "directory for each class in them: make one, or name the classes by --classes"
        )
    twice = [head for head, split in splits.items() if list(splits.values()).count(split) > 1]
    if twice:
        raise StageCostError(
            f"{shown(listing.folder)} has {len(twice)} directories for one split ({listed(twice)}): "
            "keep one of them there"
        )
    rest = sorted(heads - named.keys())
    if splits and len(named) == 1 and rest and not known:
        raise StageCostError(
            f"{shown(listing.folder)} has {listed([*named])}, which may be a split or a class, beside "
            f"{listed(rest)}: say which classes there are by --classes, or give a folder further down"
        )
    return splits


def _names(paths: Sequence[_Path]) -> list[set[str]]:
    """Return the names of the directories at each level that pictures are in."""
    levels = range(max((len(path) for path in paths), default=2) - 1)
    return [{path[level] for path in paths if len(path) > level + 1} for level in levels]


def _matches(paths: Sequence[_Path], known: Sequence[str]) -> list[int]:
    """Return how many directories of each level are called as a known class."""
    found = (places(map(class_name, names), known) for names in _names(paths))
    return [sum(place is not None for place in level) for level in found]


def _class_level(
    listing: Listing, paths: Sequence[_Path], directories: Sequence[_Path], known: Sequence[str]
) -> int:
    """Return which directory of a path is its class, counted from 0."""
    names, matches, several = _names(paths), _matches(paths, known), list[int]()
    for level, used in enumerate(names):
        every = used | {path[level] for path in directories if len(path) == level + 1}
        partial = any(1 < len(path) <= level + 1 for path in paths)
        several += [level] if len(every) + partial > 1 else []
    best = [level for level, count in enumerate(matches) if count == max(matches) > 0]
    candidates = best or several
    if len(candidates) < 2:
        return candidates[0] if candidates else max(len(names) - 1, 0)
    readings = ", or ".join(listed(sorted(names[level]), 4) for level in candidates)
    raise StageCostError(
        f"{shown(listing.folder)} has several levels of directories; the classes may be {readings}: say "
        f"which they are by {classes_flag(sorted(names[candidates[0]]))}"
    )


def _part(listing: Listing, root: _Path, paths: Sequence[_Path], level: int) -> Part:
    labels = [class_name(path[level]) for path in paths]
    names, numbers = np.unique(np.array(labels, object), return_inverse=True)
    files = ["/".join((*root, *path)) for path in paths]
    return Part(tuple(names), numbers.astype(np.int64), file_images(listing.folder, files))


def _unreadable(
    root: _Path,
    level: int,
    pictures: Sequence[_Path],
    others: Sequence[_Path],
    directories: Sequence[_Path],
) -> list[str]:
    """Say which class directories hold no pictures, and which of their files are none."""
    used = {path[: level + 1] for path in pictures}
    endings: dict[_Path, Counter[str]] = {}
    for path in others:
        if len(path) > level + 1:
            ending = os.path.splitext(path[-1])[1] or "without an ending"  # noqa: PTH122
            endings.setdefault(path[: level + 1], Counter())[ending] += 1
    lines = []
    for directory in [path for path in directories if len(path) == level + 1]:
        counts = endings.get(directory, Counter())
        files = listed([f"{count} {ending}" for ending, count in counts.items()])
        name = shown("/".join((*root, *directory)))
        if directory not in used:
            lines.append(f"{name} has no image that can be read ({files or 'it is empty'}): no class")
        elif counts:
            lines.append(
                f"left out {counted(counts.total(), 'file')} in {name} with other endings ({files})"
            )
    return lines
