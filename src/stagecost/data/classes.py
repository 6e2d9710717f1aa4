"""One list of classes for all images of a source, and for those of a trained network."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stagecost.data.class_names import (
    class_number,
    classes_flag,
    listed,
    name_key,
    places,
    shown,
)
from stagecost.data.encoded import LEFT_OUT, Part, Source, joined
from stagecost.errors import StageCostError
from stagecost.text import counted

_Places = Sequence[int | None]


def one_source(
    name: str,
    files: Mapping[str, Sequence[Part]],
    classes: tuple[str, ...],
    *,
    complete: bool,
) -> Source:
    """Join the files of each split, and number their classes by one list.

    Args:
        name: of the source.
        files: of each split, its images by files, whose lists of classes may differ.
        classes: the list, as the user gave it; empty: that of the training images decides.
        complete: whether each class of the user's list has to be there.

    Raises:
        StageCostError: the classes of the files do not correspond.
    """
    every = [part for parts in files.values() for part in parts]
    warnings: list[str] = []
    if classes:
        numbered, warnings = _by_list(name, every, classes, complete)
    else:
        training = files.get("train") or every
        classes, learned = _union(name, training), {n for part in training for n in part.used()}
        for split, parts in files.items():
            _check_lacking(name, split, parts, tuple(n for n in classes if n in learned))
        place_of = {name: place for place, name in enumerate(classes)}
        numbered = [_numbered(part, classes, [place_of.get(n) for n in part.names]) for part in every]
    order = iter(numbered)
    splits = {split: joined([next(order) for _ in parts]) for split, parts in files.items()}
    used = sorted({name for part in splits.values() for name in part.used()})
    keys = Counter(map(name_key, used))
    alike = [name for name in used if name_key(name) and keys[name_key(name)] > 1]
    if alike:
        warnings.append(f"classes whose names differ in spelling only: {listed(alike)}")
    return Source(name, classes, splits, tuple(warnings))


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
    unknown = [
        n for n, place in zip(source.class_names, ours, strict=True) if place is None and n in used
    ]
    if unknown:
        numbered = any(class_number(name) is not None for name in (*unknown, *known))
        raise StageCostError(
            f"{shown(source.name)} has {len(used)} classes, and the network tells {len(known)} apart "
            f"({listed(known, 3)}): it was not trained on {listed(unknown, 3)}: give data with "
            f"its classes, or {'say by --classes what the numbers mean' if numbered else 'rename them'}"
        )
    parts = {split: _numbered(part, known, ours) for split, part in source.parts.items()}
    return replace(source, class_names=known, parts=parts)


def _by_list(
    source: str, parts: Sequence[Part], classes: tuple[str, ...], complete: bool
) -> tuple[list[Part], list[str]]:
    """Number the classes by the user's list; what is not in it is left out."""
    numbered, left_out, seen = [], Counter[str](), set[int | None]()
    for part in parts:
        ours = places(part.names, classes)
        if all(place is None for place in ours):
            ours = [*_by_number(source, part, classes)]
            complete = complete and all(place is None for place in ours)
        place_of = dict(zip(part.names, ours, strict=True))
        left_out.update({name: count for name, count in part.used().items() if place_of[name] is None})
        seen |= set(ours)
        numbered.append(_numbered(part, classes, ours))
    missing = [name for place, name in enumerate(classes) if place not in seen]
    if complete and missing:
        names = dict.fromkeys(name for part in parts for name in part.used())
        raise StageCostError(
            f"--classes names {listed(missing, 3)}, and {shown(source)} has no such class (it has "
            f"{listed(names)}): check the spelling"
        )
    counts = listed([f"{name} ({count})" for name, count in left_out.items()])
    text = f"left out {counted(left_out.total(), 'image')} of classes not in --classes: {counts}"
    return numbered, [text] if left_out else []


def _by_number(source: str, part: Part, classes: tuple[str, ...]) -> _Places:
    """Return the places in `classes` that classes without names mean by their numbers."""
    numbers = [class_number(name) for name in part.names]
    for name, number in zip(part.names, numbers, strict=True):
        if number is not None and number >= len(classes) and name in part.used():
            raise StageCostError(
                f"{shown(source)} has the label {number}, which is beyond the {len(classes)} names of "
                f"--classes ({listed(classes)}): name all classes, from that of number 0 on"
            )
    return [None if number is None or number >= len(classes) else number for number in numbers]


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
    lacking = sorted({name for part in parts for name in part.used()} - {*classes})
    if lacking:
        spelling = all(place is not None for place in places(lacking, classes))
        raise StageCostError(
            f"{shown(source)} has {split} images of classes that its training images lack "
            f"({listed(lacking, 4)}{', which differ in spelling only' if spelling else ''}; those have "
            f"{listed(classes, 4)}): rename them, or say which classes there are by "
            f"{classes_flag(classes)}"
        )


def _numbered(part: Part, classes: tuple[str, ...], ours: _Places) -> Part:
    """Return the part with its labels as places in `classes`, where its own are `ours`."""
    table = np.array([*(LEFT_OUT if place is None else place for place in ours), LEFT_OUT], np.int64)
    return replace(
        part, names=classes, labels=np.where(part.labels < 0, part.labels, table[part.labels])
    )
