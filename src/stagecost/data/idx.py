"""Folders of IDX files, the format in which MNIST and Fashion-MNIST are published."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from stagecost.data.class_names import number_name, shown
from stagecost.data.encoded import ByteArray, Images, Part, array_images
from stagecost.data.known import DIGIT_NAMES, FASHION_NAMES
from stagecost.data.split_names import splits_in
from stagecost.errors import StageCostError, refusing
from stagecost.text import counted

# The first training labels of the original IDX files, which carry no class names of their own.
FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    "fashion-mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}
_THOUSANDS = re.compile(r"(.*-)?t\d+k-")  # as in t10k-images, the original test images
LARGEST_FILE = 2**33  # bytes that are read at most
CLASS_NAMES = {"mnist": DIGIT_NAMES, "fashion-mnist": FASHION_NAMES}


def idx_files(folder: Path) -> dict[str, Path]:
    """Return the image file of each split in a folder of IDX files, unpacked ones first.

    Raises:
        StageCostError: a file tells no split by its name, or two tell the same.
    """
    files: dict[str, Path] = {}
    try:
        names = sorted(path.name for path in folder.iterdir() if "images" in path.name)
    except OSError:
        return {}
    for name in names:
        if not name.endswith(("-ubyte", "-ubyte.gz")):
            continue
        told = splits_in(name) | ({"test"} if _THOUSANDS.match(name.casefold()) else set())
        if len(told) != 1:
            file, what = shown(name), "several splits" if told else "no split"
            raise StageCostError(
                f"{shown(folder / name)} tells {what} by its name: rename it to train-{file}, "
                f"val-{file} or test-{file}, and its labels alike"
            )
        (split,) = told
        known = files.get(split)
        if known is not None and name != known.name + ".gz":
            raise StageCostError(
                f"{shown(folder)} has two sets of {split} images ({known.name}, {name}): "
                "put one of them into a folder of its own"
            )
        files.setdefault(split, folder / name)
    return files


def read_idx_folder(folder: Path) -> dict[str, Part]:
    """Read the splits of a folder of IDX files."""
    images: dict[str, Images] = {}
    labels: dict[str, ByteArray] = {}
    for split, path in idx_files(folder).items():
        array, labels[split] = _read_idx(path, ndim=3), _read_idx(_label_file(path), ndim=1)
        images[split] = array_images(array, str(path))
        if len(array) != len(labels[split]):
            raise StageCostError(
                f"{shown(path)} has {len(array)} images, but its label file has {len(labels[split])} "
                "labels: fetch both files again"
            )
    first = tuple(labels["train"][:10].tolist()) if "train" in labels else ()
    like = next((name for name, start in FIRST_LABELS.items() if start == first), None)
    every = np.unique(np.concatenate([*labels.values()]))
    if like and every[-1] < len(CLASS_NAMES[like]):
        return {k: Part(CLASS_NAMES[like], labels[k].astype(np.int64), images[k]) for k in labels}
    names = tuple(number_name(int(label)) for label in every)
    return {k: Part(names, np.searchsorted(every, labels[k]), images[k]) for k in labels}


def _label_file(images: Path) -> Path:
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for candidate in (images.with_name(name), images.with_name(name + ".gz")):
        if candidate.exists():
            return candidate
    raise StageCostError(f"{shown(images)} has no label file beside it: put {name} into the same folder")


def _first_bytes(file: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """Read so many bytes, or what there is; memory is taken for no more."""
    content = bytearray()
    while len(content) < most and (part := file.read(min(2**20, most - len(content)))):
        content += part
    return bytes(content)


def _read_idx(path: Path, ndim: int) -> ByteArray:
    """Read a file of unsigned bytes in the IDX format: magic number, sizes, data (big-endian)."""
    if path.is_dir():
        raise StageCostError(f"{shown(path)} is a directory: put the file of this name in its place")
    start = 4 + 4 * ndim
    errors = OSError, EOFError, zlib.error
    with (
        refusing(f"{shown(path)} cannot be read", "fetch the file again", *errors),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        head = file.read(start)
        if head[:3] == bytes((0, 0, 8)) and len(head) > 3 and head[3] != ndim:
            what = "grey images, one after the other" if ndim == 3 else "labels, one after the other"
            raise StageCostError(
                f"{shown(path)} has {counted(head[3], 'dimension')}, where {ndim} are read ({what}): "
                "give pictures in class directories, or parquet files"
            )
        if len(head) < start or head[:4] != bytes((0, 0, 8, ndim)):
            raise StageCostError(
                f"{shown(path)} is not an IDX file of bytes with {counted(ndim, 'dimension')}: "
                "fetch it again"
            )
        shape = [int(size) for size in np.frombuffer(head, ">u4", ndim, offset=4)]
        promised = math.prod(shape)
        content = _first_bytes(file, min(promised, LARGEST_FILE) + 1)
    if len(content) != promised:
        raise StageCostError(
            f"{shown(path)} promises {'×'.join(map(str, shape))} bytes of data and has another "
            "number of them: fetch the file again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
