"""Tables in files: parquet, read without a cache, and the metadata.csv or .jsonl of a folder of pictures."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecost.data.class_names import listed, shown
from stagecost.data.encoded import FileImages, IntArray, open_row
from stagecost.data.folders import Listing
from stagecost.data.split_names import splits_in
from stagecost.data.tables import Table
from stagecost.errors import StageCostError
from stagecost.text import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image


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
    if [*files] == [""]:
        files = defaultdict(list, train=files[""])
    nameless = files.pop("", [])
    for split in files:
        _check_one_set(folder, split, files[split])
    text = f"left out {len(nameless)} files whose names tell no split: {listed(nameless, 3)}"
    opened = {split: [_open(folder, name) for name in names] for split, names in files.items()}
    tables = {split: [table for table in opened[split] if table is not None] for split in opened}
    return {k: v for k, v in tables.items() if v}, (text,) if nameless else ()


def _split_of_file(folder: Path, name: str) -> str:
    """Return the split that the last telling part of a path names; '' if none does."""
    for part in reversed(name.removesuffix(".parquet").split("/")):
        splits = splits_in(part)
        if len(splits) > 1:
            raise StageCostError(
                f"{shown(folder / name)} may hold {' or '.join(sorted(splits))} images by its name: rename it"
            )
        if splits:
            return splits.pop()
    return ""


_SERIES = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)", re.DOTALL)


def _check_series(folder: Path, names: Sequence[str]) -> None:
    """Refuse a series such as a-00000-of-00002.parquet that is incomplete."""
    series = defaultdict[tuple[str, str], set[int]](set)
    for name in names:
        if match := _SERIES.fullmatch(name):
            series[match[1], match[3]].add(int(match[2]))
    for (start, total), numbers in series.items():
        if len(numbers) < int(total):
            lost = (number for number in range(int(total)) if number not in numbers)
            first = [f"{start}-{number:05d}-of-{total}" for number in islice(lost, 3)]
            raise StageCostError(
                f"data folder {shown(folder)} lacks {int(total) - len(numbers)} of the {int(total)} files of a "
                f"series ({listed(first)}, …): fetch them, too"
            )


def _check_one_set(folder: Path, split: str, names: Sequence[str]) -> None:
    """Refuse several sets of files for one split, such as two versions of a data set."""
    sets = set[tuple[str, ...]]()
    for name in names:
        match = _SERIES.fullmatch(name)
        sets.add((match[1], match[3]) if match else (name.rpartition("/")[0],))
    if len(sets) > 1:
        kinds = [f"{start}-…-of-{total[0]}" if total else f"{start or '.'}/*" for start, *total in sorted(sets)]
        raise StageCostError(
            f"data folder {shown(folder)} has several sets of files for its {split or 'training'} images "
            f"({listed(kinds)}): give a folder that holds one of them"
        )


def _open(folder: Path, name: str) -> Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / name
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            schema, sizes = table.schema_arrow, [
                table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)
            ]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    starts = np.cumsum([0, *sizes])
    if not starts[-1]:
        return None

    def column(column: str) -> "pa.ChunkedArray":
        return _read(path, [*range(len(sizes))], column)

    return Table(shown(path), schema, column, lambda column: ParquetImages(folder, name, column, starts))


def _read(path: Path, groups: list[int], column: str) -> "pa.ChunkedArray":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            return table.read_row_groups(groups, columns=[column], use_threads=False).column(column)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> StageCostError:
    return StageCostError(f"{shown(path)} cannot be read ({one_line(error)}): fetch the file again")


@dataclass(frozen=True)
class ParquetImages:
    """The images in a column of a parquet file, read by groups of rows, whose first rows are `starts`."""

    folder: Path
    name: str
    column: str
    starts: IntArray
    _groups: dict[int, "pa.ChunkedArray"] = field(default_factory=dict, compare=False, repr=False)
    _lock: Lock = field(default_factory=Lock, compare=False, repr=False)

    def records(self, rows: IntArray) -> Sequence[Any]:
        """Read the images at `rows`, still encoded."""
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            self._group(group)[row - int(self.starts[group])].as_py()
            for group, row in zip(groups.tolist(), rows.tolist(), strict=True)
        ]

    def _group(self, group: int) -> "pa.ChunkedArray":
        """Read a group of rows; the last two are kept, as rows are mostly read in order."""
        with self._lock:
            if group not in self._groups:
                for old in [*self._groups][:-1]:
                    del self._groups[old]
                self._groups[group] = _read(self.folder / self.name, [group], self.column)
            return self._groups[group]

    def open(self, record: Any) -> "Image":
        """Open one record as a picture."""
        return open_row(record, self.folder)

    def describe(self, row: int) -> str:
        """Name the image at `row` for an error message."""
        return f"image {row} of {shown(self.folder / self.name)}"

    def mark(self, row: int) -> str:
        """Return the row, with name and size of the file."""
        return f"{self.name} {(self.folder / self.name).stat().st_size} {row}"


def open_metadata(listing: Listing, names: Sequence[str]) -> dict[str, list[Table]]:
    """Open tables that stand beside the pictures which their column file_name tells.

    Raises:
        StageCostError: a table is damaged, or has no such column.
    """
    tables = defaultdict[str, list[Table]](list)
    for name in names:
        tables[_split_of_file(listing.folder, name.rpartition("/")[0]) or "train"].append(
            _metadata(listing.folder, name)
        )
    return dict(tables)


def _metadata(folder: Path, name: str) -> Table:
    import pyarrow as pa
    from pyarrow import csv, json

    path = folder / name
    try:
        with path.open("rb") as file:
            table = csv.read_csv(file) if path.suffix == ".csv" else json.read_json(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if "file_name" not in table.column_names:
        raise StageCostError(
            f"{shown(path)} has no column file_name (its columns: {listed(table.column_names)}): add it, or "
            "remove the file"
        )
    above = name.rpartition("/")[0]
    files = [f"{above}/{file}".removeprefix("/") for file in table["file_name"].to_pylist()]
    noted = b'{"info": {"features": {"file_name": {"_type": "Image"}}}}'
    schema = table.schema.with_metadata({b"huggingface": noted})
    return Table(shown(path), schema, table.column, lambda column: FileImages(folder, files))
