"""Find a labelled set of images by name, in a folder, or on the Hugging Face Hub.

`open_source` reads the labels and leaves the images encoded, see `stagecost.data.decoding`.
"""

import logging
import os
import re
import sys
from pathlib import Path

import numpy as np

from stagecost.data.encoded import ArrayImages, Part, Source
from stagecost.data.hub import canonical_split, load_quietly, source_from_dataset
from stagecost.data.idx import idx_files, read_idx_folder
from stagecost.data.known import DIGIT_NAMES, HUB_IDS, KNOWN_NAMES
from stagecost.errors import StageCostError
from stagecost.text import one_line

logger = logging.getLogger("stagecost")

# Where Debian's package dataset-fashion-mnist puts its four files.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def open_source(data: str) -> Source:
    """Find the images that `data` names and read their labels.

    Args:
        data: one of `KNOWN_NAMES`, a local folder, or a Hugging Face dataset id.

    Raises:
        StageCostError: nothing usable is found there.
    """
    if data == "digits":
        return _digits()
    if data == "fashion-mnist" and idx_files(FASHION_FOLDER):
        return read_idx_folder(FASHION_FOLDER, "fashion-mnist")
    if data in HUB_IDS:
        return _from_hub(HUB_IDS[data], name=data)
    folder = Path(data).expanduser()
    if folder.exists():
        return _from_folder(folder)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", data):
        return _from_hub(data, name=data)
    raise StageCostError(
        f"data folder {data} does not exist: check the spelling, or name a data set "
        f"({', '.join(KNOWN_NAMES)}, or a Hugging Face dataset id)"
    )


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    array = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    part = Part(digits.target.astype(np.int64), ArrayImages(array, "digits"))
    return Source("digits", "digits", DIGIT_NAMES, {"train": part})


def _from_folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise StageCostError(f"{folder} is a file: give the folder that holds the images")
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise StageCostError(
            f"data folder {folder} cannot be read ({error.strerror}): check its permissions"
        ) from error
    if idx_files(folder):
        return read_idx_folder(folder)
    suffixes = _suffixes(folder)
    if not suffixes:
        raise StageCostError(f"data folder {folder} is empty: give a folder that holds images")
    if ".parquet" not in suffixes and suffixes & IMAGE_SUFFIXES:
        return _from_class_directories(folder)
    try:
        found = load_quietly(str(folder), bars=False)
    except Exception as error:
        raise StageCostError(
            f"no images can be loaded from {folder} ({one_line(error)}): give a folder of class "
            "directories, or of parquet or IDX files"
        ) from error
    return source_from_dataset(found, folder.resolve().name, str(folder))


def _suffixes(folder: Path) -> set[str]:
    """Return the file name endings below `folder`, hidden files and metadata tables left out."""
    return {
        os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each of a million files is slow)
        for _, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and not name.startswith("metadata.")
    }


def _from_class_directories(folder: Path) -> Source:
    # `datasets` guesses splits from any part of a file's name ("test_01.jpg", a class called
    # "train"); here only top directories count, and only those that hold class directories.
    patterns = {split: f"{name}/**" for split, name in _split_directories(folder).items()}
    try:
        found = load_quietly(
            "imagefolder",
            bars=False,
            data_dir=str(folder),
            data_files=patterns or {"train": "**"},
            drop_labels=False,
        )
    except Exception as error:
        raise StageCostError(
            f"the images below {folder} cannot be listed ({one_line(error)}): give a folder with "
            "one directory of images for each class"
        ) from error
    return source_from_dataset(found, folder.resolve().name, str(folder))


def _split_directories(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        split = canonical_split(path.name)
        if split and split not in found and path.is_dir() and _holds_classes(path):
            found[split] = path.name
    return found


def _holds_classes(directory: Path) -> bool:
    children = directory.iterdir()
    return any(child.is_dir() or child.name.startswith("metadata.") for child in children)


def _from_hub(dataset_id: str, name: str) -> Source:
    if sys.stderr.isatty():  # somebody is watching, and it may take a while
        logger.info("looking for %s on the Hugging Face Hub and in its local cache", dataset_id)
    try:
        found = load_quietly(dataset_id, bars=sys.stderr.isatty())
    except Exception as error:
        raise StageCostError(
            f"data set '{dataset_id}' is not to be had from the Hugging Face Hub "
            f"({one_line(error)}): check the spelling and the network, or give a local folder "
            f"or one of {', '.join(KNOWN_NAMES)}"
        ) from error
    return source_from_dataset(found, name, dataset_id)
