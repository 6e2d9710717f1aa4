"""Find a labelled set of images by name, in a folder, or on the Hugging Face Hub.

`open_source` reads the labels and leaves the images encoded, see `stagecost.data.decoding`.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagecost.data.class_names import listed, parse_classes, shown
from stagecost.data.classes import one_source
from stagecost.data.config import DataConfig
from stagecost.data.encoded import Part, Source, array_images, image_suffixes
from stagecost.data.folders import Listing, list_folder
from stagecost.data.hub import load_quietly, tables_of
from stagecost.data.idx import idx_files, read_idx_folder
from stagecost.data.known import DIGIT_NAMES, HUB_IDS, KNOWN_NAMES
from stagecost.data.table_files import open_metadata, open_tables
from stagecost.data.tables import read_tables
from stagecost.data.trees import read_tree
from stagecost.errors import StageCostError
from stagecost.text import one_line

logger = logging.getLogger("stagecost")

METADATA = ("metadata.csv", "metadata.jsonl")  # tables beside pictures
# Where Debian's package dataset-fashion-mnist puts its four files.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def open_source(config: DataConfig, network: Sequence[str] = ()) -> Source:
    """Find the images that `config.data` names and read their labels.

    Args:
        config: names one of `KNOWN_NAMES`, a local folder, or a Hugging Face dataset id, and may say
            what is a class or a column.
        network: the class names of a trained network that is to see the images.

    Raises:
        StageCostError: nothing usable is found there, or it can be understood in several ways.
    """
    data = config.data or ""
    classes = parse_classes(config.classes)
    name, files, warnings = _open(data, config, classes or network)
    source = one_source(name, files, classes, complete=not network)
    return Source(name, source.class_names, source.parts, (*warnings, *source.warnings))


_Opened = tuple[str, Mapping[str, Sequence[Part]], tuple[str, ...]]


def _open(data: str, config: DataConfig, expected: Sequence[str]) -> _Opened:
    if data == "digits":
        _refuse_columns("digits is no table", config)
        return _digits()
    if data == "fashion-mnist" and idx_files(FASHION_FOLDER):
        _refuse_columns("fashion-mnist is no table", config)
        return _from_idx(FASHION_FOLDER, data)
    if data in HUB_IDS:
        return _from_hub(HUB_IDS[data], config)
    folder = local_folder(data)
    if folder is not None:
        return _from_folder(folder, config, expected)
    if re.fullmatch(r"(?=.{1,96}$)[\w-][\w.-]*(/[\w-][\w.-]*)?", data):
        return _from_hub(data, config)
    raise StageCostError(
        f"data folder {shown(data)} does not exist: check the spelling, or name a data set "
        f"({', '.join(KNOWN_NAMES)}, or a Hugging Face dataset id)"
    )


def local_folder(data: str) -> Path | None:
    """Return the folder or file whose path `data` is; None if there is none, or it is a known name.

    The path is taken as it is; only where there is no such folder does ~ mean the user's home.
    """
    path = Path(data if os.path.lexists(data) else os.path.expanduser(data))  # noqa: PTH111
    there = data not in KNOWN_NAMES and os.path.exists(path)  # noqa: PTH110 (no error for a long name)
    return path if there else None


@cache
def _digit_table() -> NDArray[np.float64]:
    """Read the table of `sklearn.datasets.load_digits`, whose import takes longer than most verbs."""
    home = find_spec("sklearn")
    if home is None or home.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return np.loadtxt(Path(home.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


def _digits() -> _Opened:
    table = _digit_table()
    array = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    part = Part(DIGIT_NAMES, table[:, -1].astype(np.int64), array_images(array, "digits"))
    return "digits", {"train": [part]}, ()


def _refuse_columns(what: str, config: DataConfig) -> None:
    for column in ("label_column", "image_column"):
        if getattr(config, column):
            raise StageCostError(f"{what}: leave --{column.replace('_', '-')} out")


def at(config: DataConfig, data: str) -> DataConfig:
    """Return the same for other images: their columns are named only where there is a table."""
    folder = Path(data).expanduser()
    config = replace(config, data=data)
    if not folder.is_dir() or any(map(_is_table, list_folder(folder).files)):
        return config
    return replace(config, label_column=None, image_column=None)


def _is_table(file: str) -> bool:
    return file.endswith(".parquet") or file.rsplit("/", maxsplit=1)[-1] in METADATA


def _from_idx(folder: Path, name: str) -> _Opened:
    parts = read_idx_folder(folder)
    return name, {split: [parts[split]] for split in parts}, ()


def _from_folder(folder: Path, config: DataConfig, expected: Sequence[str]) -> _Opened:
    if not folder.is_dir():
        raise StageCostError(f"{shown(folder)} is a file: give the folder that holds the images")
    listing = list_folder(folder)
    name = folder.resolve().name
    pictures = listing.ending_in(image_suffixes())
    tables = listing.ending_in(frozenset({".parquet"}))
    kinds = {"IDX files": [*idx_files(folder)], "parquet files": tables, "pictures": pictures}
    if tables and (config.label_column or config.image_column):
        kinds["pictures"] = []
    counts = [f"{len(names)} {kind}" for kind, names in kinds.items() if names]
    if len(counts) > 1:
        raise StageCostError(
            f"data folder {shown(folder)} holds {' and '.join(counts)}, any of which may be the data: "
            "give a folder that holds one kind of them, or say by --label-column that a table is meant"
        )
    if kinds["IDX files"]:
        _refuse_columns(f"data folder {shown(folder)} holds IDX files and no table", config)
        return _from_idx(folder, name)
    if tables:
        opened, warnings = open_tables(folder, tables)
        if not opened:
            raise StageCostError(f"the parquet files of {shown(folder)} have no rows: fetch them again")
        return name, read_tables(opened, config), warnings
    if pictures:
        return _from_pictures(listing, name, config, expected)
    if not listing.files:
        raise StageCostError(f"data folder {shown(folder)} is empty: give a folder that holds images")
    endings = sorted({os.path.splitext(file)[1] or "without an ending" for file in listing.files})  # noqa: PTH122
    raise StageCostError(
        f"data folder {shown(folder)} has {len(listing.files)} files and no images that can be read "
        f"({listed(endings)}): give a folder of class directories, or of parquet or IDX files"
    )


def _from_pictures(listing: Listing, name: str, config: DataConfig, expected: Sequence[str]) -> _Opened:
    """Read pictures whose classes are their directories, or stand in a table beside them."""
    beside = [file for file in listing.files if file.split("/")[-1] in METADATA]
    folders = {file.rpartition("/")[0] for file in beside}
    pictures = listing.ending_in(image_suffixes())
    flat = all(file.rpartition("/")[0] in folders for file in pictures)
    if beside and (config.label_column or (flat and not config.classes)):
        tables, warnings = open_metadata(listing.folder, beside, pictures)
        return name, read_tables(tables, config), warnings
    if config.label_column or not beside:
        _refuse_columns(f"data folder {shown(listing.folder)} holds pictures and no table", config)
    parts, warnings = read_tree(listing, expected)
    text = "the classes are the directories, not what metadata tables say (--label-column takes these)"
    return name, {k: [part] for k, part in parts.items()}, warnings + ((text,) if beside else ())


def _from_hub(dataset_id: str, config: DataConfig) -> _Opened:
    if sys.stderr.isatty():  # somebody is watching, and it may take a while
        logger.info("looking for %s on the Hugging Face Hub and in its local cache", dataset_id)
    try:
        dataset = load_quietly(dataset_id, bars=sys.stderr.isatty())
    except Exception as error:
        remedy = "check the spelling and the network"
        if isinstance(error, OSError) and isinstance(error.errno, int) and error.filename:
            remedy = "make its cache writable, or name another by the variable HF_HOME"
        raise StageCostError(
            f"data set '{dataset_id}' is not to be had from the Hugging Face Hub "
            f"({one_line(error)}): {remedy}, or give a local folder or one of {', '.join(KNOWN_NAMES)}"
        ) from error
    name = next((name for name, hub_id in HUB_IDS.items() if hub_id == dataset_id), dataset_id)
    tables, warnings = tables_of(dataset, dataset_id)
    return name, read_tables(tables, config), warnings
