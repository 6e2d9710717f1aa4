"""Tables of labelled images: which column is the image, which is the label, and what labels mean.

A column is taken unasked only where there is no doubt; else the columns are listed for the user.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecost.data.class_names import (
    class_name,
    listed,
    number_name,
    parse_classes,
    shown,
)
from stagecost.data.config import DataConfig
from stagecost.data.encoded import WITHHELD, Images, Part
from stagecost.data.split_names import splits_in
from stagecost.errors import StageCostError, refusing
from stagecost.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

_LABELS = ("label", "labels", "fine_label", "class", "classes", "category", "target")
_IMAGES = ("image", "images", "img")
_SPLITS = ("split", "subset", "partition", "is_train", "is_test")
_PERHAPS_SPLITS = ("set", "phase", "usage", "dataset", "mode")
_UNSET = ("", "nan", "<na>", "n/a", "null")
_EXACT = 2**53  # from here on several whole numbers are one floating-point number
_WORDS = {
    "class": "classes",
    "text": "text",
    "whole": "whole numbers",
    "float": "floating-point numbers",
    "bool": "true or false",
}


@dataclass(frozen=True)
class Table:
    """A table that is read column by column."""

    origin: str  #: its file or split, for messages
    schema: "pa.Schema"  #: the columns, with what Hugging Face `datasets` notes of them
    column: Callable[[str], "pa.ChunkedArray"]  #: reads a column
    images: Callable[[str], Images]  #: returns the images of a column, on request


def reading(origin: str) -> AbstractContextManager[None]:
    """Say of a file or split that is damaged that it is, whatever the reader below says."""
    import pyarrow as pa

    errors = pa.ArrowException, IndexError, OSError, OverflowError, UnicodeDecodeError
    return refusing(f"{origin} cannot be read", "correct the file, or fetch it again", *errors)


def refuse_doubled(origin: str, columns: Sequence[str]) -> None:
    """Refuse a table with two columns of one name."""
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise StageCostError(f"{origin} has two columns {listed(doubled)}: rename one of them")


def read_tables(tables: Mapping[str, Sequence[Table]], config: DataConfig) -> dict[str, list[Part]]:
    """Read the labels of the tables of each split; `config` may name the columns.

    Raises:
        StageCostError: the columns cannot be told, or the labels mean nothing.
    """
    parts: dict[str, list[Part]] = {}
    for split, several in tables.items():
        parts[split] = []
        for table in several:
            refuse_doubled(table.origin, table.schema.names)
            with reading(table.origin):
                parts[split].append(_read(table, config))
    if "train" in parts:
        _refuse_ids(tables["train"][0], config, parts["train"])
    return parts


def _read(table: Table, config: DataConfig) -> Part:
    kinds = _kinds(table)
    may_part = ("text", "whole", "bool", "class")
    columns = [name for name, kind in kinds.items() if kind in may_part and name != config.label_column]
    _refuse_splits(table, columns)
    images = [name for name, kind in kinds.items() if kind == "image"]
    image = _choose(table, "image", config.image_column, images, _IMAGES, images)
    label = _label_column(table, config)
    if config.label_column is None and kinds[label] in ("float", "bool"):
        raise StageCostError(
            f"{table.origin} has {_WORDS[kinds[label]]} in its column {shown(label)}: name the column "
            f"of classes by --label-column, or this one if it is that ({_columns(table, labels=True)})"
        )
    return _part(table, image, label, kinds[label], parse_classes(config.classes))


def _refuse_splits(table: Table, columns: Sequence[str]) -> None:
    """Refuse a column that parts the rows into splits: they would be mixed."""
    for name in columns:
        if name.casefold() not in (*_SPLITS, *_PERHAPS_SPLITS):
            continue
        values = {*table.column(name).to_pylist()}  # a row may say nothing
        told = sorted(str(value) for value in values if value is not None)
        numbers = name.casefold() in _SPLITS and not any(isinstance(value, str) for value in values)
        if len(values) > 1 and (numbers or any(map(splits_in, told))):
            raise StageCostError(
                f"{table.origin} says in its column {shown(name)} which rows are "
                f"{listed(told)}{' or nothing' if None in values else ''}: put each into a table in a "
                "directory of that name, or remove the column"
            )


def _label_column(table: Table, config: DataConfig) -> str:
    kinds = _kinds(table)
    labels = [name for name, kind in kinds.items() if kind in _WORDS]
    sole = [name for name in labels if kinds[name] == "class"]
    return _choose(table, "label", config.label_column, labels, _LABELS, sole)


def _refuse_ids(table: Table, config: DataConfig, parts: Sequence[Part]) -> None:
    """Refuse a column that differs in every training image."""
    label, rows = _label_column(table, config), sum(len(part.labels) for part in parts)
    names = {name for part in parts for name in part.names}
    if len(names) == rows > 2 and not _class_names(table, label):
        raise StageCostError(
            f"{table.origin} has another value in each of the {rows} rows of its column {shown(label)}, "
            f"as ids have: name the column of classes by --label-column ({_columns(table, labels=True)})"
        )


def _kinds(table: Table) -> dict[str, str]:
    """Return what each column holds: 'image', one of `_WORDS`, or the type of what is neither."""
    import pyarrow as pa

    kinds: dict[str, str] = {}
    for field in table.schema:
        kind, feature = field.type, _feature(table, field.name)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        content = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if feature.get("_type") == "Image" or content or (binary and field.name.casefold() in _IMAGES):
            kinds[field.name] = "image"
        elif pa.types.is_integer(kind):
            kinds[field.name] = "class" if _class_names(table, field.name) else "whole"
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            kinds[field.name] = "text"
        else:
            flag = "bool" if pa.types.is_boolean(kind) else str(kind)
            kinds[field.name] = "float" if pa.types.is_floating(kind) else flag
    return kinds


def _feature(table: Table, column: str) -> Mapping[str, Any]:
    """Return what `datasets` notes of a column."""
    try:
        noted = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, RecursionError, TypeError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _class_names(table: Table, column: str) -> tuple[str, ...]:
    names = _feature(table, column).get("names")
    return tuple(map(class_name, names)) if isinstance(names, list) else ()


def _choose(
    table: Table,
    what: str,
    asked: str | None,
    fit: Sequence[str],
    usual: Sequence[str],
    sole: Sequence[str],
) -> str:
    """Return the column asked for, the one with a usual name, or the only one of its kind."""
    if asked is not None and asked not in fit:
        kinds = "text or numbers" if what == "label" else "images"
        raise StageCostError(
            f"{table.origin} has no column {shown(asked)} of {what}s, as --{what}-column says (its "
            f"columns: {_columns(table)}): name one of {kinds}"
        )
    if not fit:
        raise StageCostError(
            f"{table.origin} has no column of {'class labels' if what == 'label' else 'images'} (its "
            f"columns: {_columns(table)}): it needs an image column and a label column"
        )
    named = [asked] if asked is not None else [name for name in fit if name.casefold() in usual]
    chosen = named or sole
    if len(chosen) != 1:
        raise StageCostError(
            f"{table.origin} has no column that is certainly the {what} "
            f"({_columns(table, what == 'label')}): name it by --{what}-column {shown(fit[0])}"
        )
    return chosen[0]


def _columns(table: Table, labels: bool = False) -> str:
    """List columns with what they hold."""
    kinds = {name: kind for name, kind in _kinds(table).items() if kind in _WORDS or not labels}
    return listed([f"{name}: {_WORDS.get(kind, kind)}" for name, kind in kinds.items()], 12)


def _refuse_unset(table: Table, label: str, values: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse texts by which tables say that there is no value, unless --classes names them."""
    unset = [v for v in values if v.strip().casefold() in _UNSET and class_name(v) not in classes]
    if unset:
        raise StageCostError(
            f"{table.origin} has {counted(len(unset), 'image')} with the label {shown(unset[0])!r} in "
            f"its column {shown(label)}, which may mean none: remove these rows, or name all classes by "
            "--classes if it is one"
        )


def _part(table: Table, image: str, label: str, kind: str, classes: Sequence[str]) -> Part:
    values = table.column(label).to_pylist()
    missing = sum(
        value is None or value == "" or (kind == "float" and math.isnan(value)) for value in values
    )
    if missing:
        raise StageCostError(
            f"{table.origin} has {counted(missing, 'image')} without a value in its column "
            f"{shown(label)}: remove these rows"
        )
    names = _class_names(table, label)
    numeric = kind in ("class", "whole", "float")
    wrong = [
        value for value in values if numeric and not (value == -1 or (value >= 0 and value % 1 == 0))
    ]
    wrong += [value for value in values if kind == "class" and value >= len(names)]
    wrong += [value for value in values if kind == "float" and value >= _EXACT]
    if wrong:
        whole = f"takes whole numbers from 0 on{', below 2^53' * (kind == 'float')}"
        last = f"has names for 0 to {len(names) - 1} ({listed(names, 4)})"
        raise StageCostError(
            f"{table.origin} has the label {wrong[0]} in its column {shown(label)}, which "
            f"{last if names else whole}: correct "
            f"{counted(len(wrong), 'row')}, or name another column by --label-column"
        )
    texts: list[str | None]
    if kind == "class":
        texts = [names[value] if value >= 0 else None for value in values]
        names = tuple(dict.fromkeys(names))
    elif numeric:
        texts = [number_name(int(value)) if value >= 0 else None for value in values]
        names = tuple(number_name(number) for number in sorted({int(value) for value in values} - {-1}))
    else:
        _refuse_unset(table, label, [str(value) for value in values], classes)
        texts = [class_name(value) for value in values]
        names = tuple(sorted({*map(class_name, values)}))
    place_of: dict[str | None, int] = {name: place for place, name in enumerate(names)}
    labels = np.array([place_of.get(text, WITHHELD) for text in texts], np.int64)
    return Part(names, labels, table.images(image))
