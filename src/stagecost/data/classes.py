"""One list of classes for all images of a source, and for those of a trained network."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stagecost.data.class_names import class_number, listed, name_keys, places, shown
from stagecost.data.encoded import LEFT_OUT, JoinedImages, Part, Source
from stagecost.errors import StageCostError


def one_source(
    source: str,
    known: str | None,
    files: Mapping[str, Sequence[Part]],
    classes: tuple[str, ...],
    *,
    complete: bool,
) -> Source:
    """Join the files of each split, and number their classes by one list.

    Args:
        source: the name of the source, for messages too.
        known: the data set that it certainly is, or None.
        files: of each split, its images by files, whose lists of classes may differ.
        classes: the list, as the user gave it; empty: that of the training images decides.
        complete: whether each class of the user's list has to be there.

    Raises:
        StageCostError: the classes of the files do not correspond.
    """
    everything = [part for parts in files.values() for part in parts]
    if classes:
        numbered, warnings = _by_list(source, everything, classes, complete)
    else:
        classes = _union(source, files.get("train") or everything)
        for split, parts in files.items():
            _check_lacking(source, split, parts, classes)
        numbered, warnings = [_numbered(part, classes, _exact(part, classes)) for part in everything], ()
    order = iter(numbered)
    joined = {split: _joined([next(order) for _ in parts]) for split, parts in files.items()}
    return Source(source, known, classes, joined, warnings + _alike(joined))


def for_network(source: Source, known: tuple[str, ...], classes: tuple[str, ...]) -> Source:
    """Number the classes of a source as a network does that knows the classes `known`.

    Args:
        source: what the network is to see.
        known: the names of the network's classes.
        classes: the user's list, by which the classes of a network can be told that only have numbers.

    Raises:
        StageCostError: there are images of other classes.
    """
    ours = places(source.class_names, known)
    if classes and not any(place is not None for place in ours):
        numbers = {class_number(name): place for place, name in enumerate(known)}
        ours = [numbers.get(number) for number in range(len(source.class_names))]
    used = {name for part in source.parts.values() for name in part.used()}
    place_of = dict(zip(source.class_names, ours, strict=True))
    unknown = [name for name in source.class_names if name in used and place_of[name] is None]
    if unknown:
        numbers_only = any(class_number(name) is not None for name in (*unknown, *known))
        remedy = "say by --classes which classes the numbers mean" if numbers_only else "rename them"
        raise StageCostError(
            f"{shown(source.name)} has {len(used)} classes, and the network tells {len(known)} apart "
            f"({listed(known, 3)}): it was not trained on {listed(unknown, 3)}: give data with the same "
            f"classes, or {remedy}"
        )
    parts = {split: _numbered(part, known, ours) for split, part in source.parts.items()}
    return replace(source, class_names=known, parts=parts)


def _by_list(
    source: str, parts: Sequence[Part], classes: tuple[str, ...], complete: bool
) -> tuple[list[Part], tuple[str, ...]]:
    """Number the classes by the user's list; what is not in it is left out."""
    numbered, left_out = [], dict[str, int]()
    seen: set[int | None] = set()
    for part in parts:
        ours = places(part.names, classes)
        if all(place is None for place in ours):
            ours = [_numbered_class(source, name, part, classes) for name in part.names]
            complete = complete and all(place is None for place in ours)
        left_out |= {
            name: left_out.get(name, 0) + count
            for name, count in part.used().items()
            if ours[part.names.index(name)] is None
        }
        seen |= set(ours)
        numbered.append(_numbered(part, classes, ours))
    missing = [name for place, name in enumerate(classes) if place not in seen]
    if complete and missing:
        names = dict.fromkeys(name for part in parts for name in part.used())
        raise StageCostError(
            f"--classes names {listed(missing, 3)}, and {shown(source)} has no such class (it has "
            f"{listed(names)}): check the spelling"
        )
    counts = [f"{name} ({count})" for name, count in left_out.items()]
    total = sum(left_out.values())
    text = f"left out {total} images of classes that --classes does not name: {listed(counts)}"
    return numbered, (text,) if total else ()


def _numbered_class(source: str, name: str, part: Part, classes: tuple[str, ...]) -> int | None:
    """Return the place in `classes` that the number of a class without a name means."""
    number = class_number(name)
    if number is None or 0 <= number < len(classes):
        return number
    if name in part.used():
        raise StageCostError(
            f"{shown(source)} has the label {number}, which is beyond the {len(classes)} names of "
            f"--classes ({listed(classes)}): name all classes, from that of number 0 on"
        )
    return None


def _union(source: str, parts: Sequence[Part]) -> tuple[str, ...]:
    if len({frozenset(part.names) for part in parts}) == 1:
        return parts[0].names
    names = {name for part in parts for name in part.names}
    numbers = [name for name in names if class_number(name) is not None]
    if 0 < len(numbers) < len(names):
        raise StageCostError(
            f"{shown(source)} has files that name their classes and files that number them "
            f"({listed(sorted(names))}): say by --classes which classes the numbers mean"
        )
    return tuple(sorted(names, key=lambda name: (class_number(name) or 0, name)))


def _check_lacking(source: str, split: str, parts: Sequence[Part], classes: tuple[str, ...]) -> None:
    """Refuse images of classes that no training image has."""
    lacking = list(dict.fromkeys(name for part in parts for name in part.used() if name not in classes))
    if lacking:
        spelling = all(place is not None for place in places(lacking, classes))
        raise StageCostError(
            f"{shown(source)} has {split} images of classes that its training images lack "
            f"({listed(lacking, 4)}{', which differ in spelling only' if spelling else ''}; those have "
            f"{listed(classes, 4)}): rename them, or say which classes there are by "
            f"--classes {listed(classes, 2).replace(', ', ',')}"
        )


def _exact(part: Part, classes: tuple[str, ...]) -> list[int | None]:
    place_of = {name: place for place, name in enumerate(classes)}
    return [place_of.get(name) for name in part.names]


def _numbered(part: Part, classes: tuple[str, ...], ours: Sequence[int | None]) -> Part:
    """Return the part with its labels as places in `classes`, where its own are `ours`."""
    table = np.array([*(LEFT_OUT if place is None else place for place in ours), LEFT_OUT], np.int64)
    labels = np.where(part.labels < 0, part.labels, table[part.labels])
    return replace(part, names=classes, labels=labels)


def _joined(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    images = JoinedImages([part.images for part in parts], starts)
    return Part(parts[0].names, np.concatenate([part.labels for part in parts]), images)


def _alike(parts: Mapping[str, Part]) -> tuple[str, ...]:
    used = sorted({name for part in parts.values() for name in part.used()})
    keys = Counter(key for name in used for key in name_keys([name]) if key)
    alike = [name for name in used if any(keys[key] > 1 for key in name_keys([name]))]
    return (f"classes whose names differ in spelling only: {listed(alike)}",) if alike else ()
