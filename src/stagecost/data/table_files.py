"""Tables in files: parquet, read without a cache, and the metadata.csv or .jsonl beside pictures."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from stagecost.data.class_names import listed, shown
from stagecost.data.encoded import Images, IntArray, file_images, file_size
from stagecost.data.split_names import split_of, splits_in
from stagecost.data.tables import Table, reading, refuse_doubled
from stagecost.errors import StageCostError
from stagecost.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

_SERIES = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)", re.DOTALL)


def open_tables(folder: Path, names: Sequence[str]) -> tuple[dict[str, list[Table]], tuple[str, ...]]:
    """Open parquet files, by the splits that their names tell ('train-00000-of-00001', 'test/part-0').

    Returns:
        The tables of each split, and a line for what was left out.

    Raises:
        StageCostError: a file is damaged, or it is not certain which files belong to a split.
    """
    _check_series(folder, names)
    files = defaultdict[str, list[str]](list)
    for name in names:
        files[_split_of_file(folder, name)].append(name)
    nameless = files.pop("", []) if len(files) > 1 else []
    tables, rowless = dict[str, list[Table]](), list[str]()
    for split in files:
        _check_one_set(folder, split, files[split])
        opened = [(name, _open(folder / name)) for name in files[split]]
        rowless += [name for name, table in opened if table is None]
        if full := [table for _, table in opened if table is not None]:
            tables[split or "train"] = full
    left_out = {"whose names tell no split": nameless, "without a row": rowless}
    return tables, tuple(
        f"left out {counted(len(some), 'file')} {why}: {listed(some, 3)}"
        for why, some in left_out.items()
        if some
    )


def _split_of_file(folder: Path, name: str) -> str:
    """Return the split that the last telling part of a path names; '' if none does."""
    told = (_told(folder / name, part) for part in reversed(name.removesuffix(".parquet").split("/")))
    return next(filter(None, told), "")


def _told(path: Path, part: str) -> str:
    """Return the split that a word in a part of a path names; '' if none does."""
    splits = splits_in(part)
    if len(splits) > 1:
        raise StageCostError(
            f"{shown(path)} may hold {' or '.join(sorted(splits))} images by its name: rename it"
        )
    return "".join(splits)


def _check_series(folder: Path, names: Sequence[str]) -> None:
    """Refuse a series such as a-00000-of-00002.parquet that is not whole, or more than that."""
    series = defaultdict[tuple[str, str], set[int]](set)
    for name in names:
        if match := _SERIES.fullmatch(name):
            series[match[1], match[3]].add(int(match[2]))
    for (start, total), numbers in series.items():
        count = int(total)
        if (min(numbers), max(numbers), len(numbers)) == (1, count, count):  # counted from 1 on
            continue
        lost = (number for number in range(count) if number not in numbers)
        if first := [f"{start}-{number:05d}-of-{total}" for number in islice(lost, 3)]:
            missing = count - sum(number < count for number in numbers)
            raise StageCostError(
                f"data folder {shown(folder)} lacks {missing} of the {count} files of a series (the "
                f"first: {listed(first)}): fetch them, too"
            )
        if beyond := sorted(number for number in numbers if number >= count):
            raise StageCostError(
                f"data folder {shown(folder)} has {start}-{beyond[0]:05d}-of-{total} beyond the "
                f"{count} files of a series: keep the files of one version"
            )


def _check_one_set(folder: Path, split: str, names: Sequence[str]) -> None:
    """Refuse several sets of files for one split, such as two versions of a data set."""
    sets = set[tuple[str, ...]]()
    for name in names:
        match = _SERIES.fullmatch(name)
        sets.add((match[1], match[3]) if match else (name.rpartition("/")[0],))
    if len(sets) > 1:
        kinds = [
            f"{start}-…-of-{total[0]}" if total else f"{start or '.'}/*"
            for start, *total in sorted(sets)
        ]
        raise StageCostError(
            f"data folder {shown(folder)} has several sets of files for its {split or 'training'} "
            f"images ({listed(kinds)}): give a folder that holds one of them"
        )


def _open(path: Path) -> Table | None:
    """Open a parquet file; None if it has no rows."""
    import pyarrow.parquet as pq

    with reading(shown(path)), path.open("rb") as file, pq.ParquetFile(file) as table:
        schema, groups = table.schema_arrow, range(table.num_row_groups)
        starts = np.cumsum([0, *(table.metadata.row_group(group).num_rows for group in groups)])
    if starts[-1] == 0:
        return None
    return Table(
        shown(path),
        schema,
        lambda name: _read(path, groups, name),
        lambda name: _images(path, name, starts),
    )


def _read(path: Path, groups: Sequence[int], column: str) -> "pa.ChunkedArray":
    import pyarrow.parquet as pq

    with reading(shown(path)), path.open("rb") as file, pq.ParquetFile(file) as table:
        content = table.read_row_groups([*groups], columns=[column], use_threads=False).column(column)
        promised = sum(table.metadata.row_group(group).num_rows for group in groups)
    if len(content) != promised:
        raise StageCostError(
            f"{shown(path)} promises {promised} rows and has {len(content)} in its column "
            f"{shown(column)}: fetch the file again"
        )
    return content


def _images(path: Path, column: str, starts: IntArray) -> Images:
    """Return the images in a column, read by groups of rows, whose first rows are `starts`."""
    lock, read_group = Lock(), lru_cache(2)(lambda number: _read(path, [number], column))

    def group_of(row: int) -> int:
        return int(np.searchsorted(starts, row, side="right")) - 1

    def group(number: int) -> "pa.ChunkedArray":
        with lock:  # the last two groups are kept, as rows are mostly read in order
            return read_group(number)

    def read(rows: Sequence[int]) -> list[Any]:
        records = [
            group(number)[row - int(starts[number])].as_py()
            for row in rows
            for number in [group_of(row)]
        ]
        return [_with_folder(record, path.parent) for record in records]

    return Images(
        read,
        lambda row: f"image {row} of {shown(path)}",
        lambda row: f"{path.name} {file_size(path)} {row}",
    )


def _with_folder(record: Any, folder: Path) -> Any:
    """Find an image that a table holds the path of, from the folder of the table on."""
    path = record.get("path") if isinstance(record, Mapping) and record.get("bytes") is None else None
    return folder / path if path and isinstance(path, str) else record


def open_metadata(
    folder: Path, names: Sequence[str], pictures: Sequence[str]
) -> tuple[dict[str, list[Table]], tuple[str, ...]]:
    """Open tables that stand beside the pictures which their column file_name tells.

    Args:
        folder: holds all of them.
        names: of the tables in it.
        pictures: in it; those that no table lists are left out.

    Returns:
        The tables of each split, by the directories of the pictures, and what is odd about them.

    Raises:
        StageCostError: a table is damaged, or has no such column.
    """
    tables, told = defaultdict[str, list[Table]](list), Counter[str]()
    for name in names:
        content, files = _metadata(folder / name)
        beside = (folder / name).parent
        paths = [os.path.relpath(beside / file, folder) if file else "" for file in files]
        for split, rows in _rows_of_splits(folder, paths).items():
            tables[split].append(
                _table_beside(folder / name, content.take(rows), [files[r] for r in rows])
            )
        told.update(path for path in paths if path)
    if twice := [file for file, count in told.items() if count > 1]:
        which = shown(folder / names[0]) if len(names) == 1 else f"tables in {shown(folder)}"
        verb = "has" if len(names) == 1 else "have"
        raise StageCostError(
            f"{which} {verb} several rows for {listed(twice, 3)}: keep one row for each image"
        )
    left_out = [picture for picture in pictures if os.path.normpath(picture) not in told]
    text = f"left out {counted(len(left_out), 'picture')} that no table lists: {listed(left_out, 3)}"
    return dict(tables), (text,) if left_out else ()


def _rows_of_splits(folder: Path, paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each split: the first directory of their pictures that is called as one."""
    rows = defaultdict[str, list[int]](list)
    for row, path in enumerate(paths):
        place, parts = (folder / path).parent, path.split("/")[:-1]
        told = (split_of(part) for part in parts if _told(place, part))
        rows[next(filter(None, told), "train")].append(row)
    return dict(rows)


def _metadata(path: Path) -> tuple["pa.Table", list[str]]:
    """Return a table, and the names of its pictures, from its folder on; "" where there is none."""
    from pyarrow import json

    with reading(shown(path)), path.open("rb") as file:
        table = _read_csv(file) if path.suffix == ".csv" else json.read_json(file)
        columns = table.column_names
        refuse_doubled(shown(path), columns)
        files = table["file_name"].to_pylist() if "file_name" in columns else None
    if files is None:
        raise StageCostError(
            f"{shown(path)} has no column file_name (its columns: {listed(columns)}): add it, or "
            "remove the file"
        )
    return table, [name if isinstance(name, str) else "" for name in files]


def _table_beside(path: Path, table: "pa.Table", names: Sequence[str]) -> Table:
    """Return a table of a file beside pictures, of which it has these rows."""
    noted = b'{"info": {"features": {"file_name": {"_type": "Image"}}}}'
    return Table(
        shown(path),
        table.schema.with_metadata({b"huggingface": noted}),
        table.column,
        lambda _: file_images(path.parent, names),
    )


def _read_csv(file: BinaryIO) -> "pa.Table":
    """Read a table; times stay text, and numbers that would not say what is written, as 01 beside 1."""
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(file)
    file.seek(0)
    as_text = csv.ConvertOptions(column_types=dict.fromkeys(table.column_names, pa.string()))
    texts = csv.read_csv(file, convert_options=as_text)
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        time = pa.types.is_temporal(column.type)
        if time or not _as_written(column.to_pylist(), texts.column(place).to_pylist()):
            table = table.set_column(place, name, texts.column(place))
    return table


def _as_written(values: Sequence[Any], texts: Sequence[str]) -> bool:
    """Tell whether values are what a CSV has written: no two texts are one, and no figure is lost."""
    pairs = {pair for pair in zip(values, texts, strict=True) if pair[0] is not None}
    whole = all(str(value) == text for value, text in pairs if type(value) is int)
    exact = not any(text.isdigit() for value, text in pairs if type(value) is float)
    return whole and exact and len({value for value, _ in pairs}) == len(pairs)
