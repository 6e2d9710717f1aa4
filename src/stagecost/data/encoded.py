"""Labelled images that are not decoded yet: the labels are known, the images are read on request."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stagecost.data.class_names import shown

if TYPE_CHECKING:
    from PIL.Image import Image

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

WITHHELD = -1  # the label of an image whose class is not told
LEFT_OUT = -2  # the label of an image whose class is not in use

# Pillow reads other formats, too, some of them by running other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
# Trying one format after the other takes a third of the time of a small image.
_BY_FIRST_BYTES = {b"\xff\xd8": ["JPEG"], b"\x89P": ["PNG"], b"RI": ["WEBP"]}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings of image files, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in FORMATS)


@dataclass(frozen=True)
class Images:
    """Encoded images, which are read when asked for."""

    read: Callable[[Sequence[int]], Sequence[Any]]  #: reads the images at some rows, see `open_record`
    name: Callable[[int], str]  #: names the image at a row, for messages
    #: tells, without decoding, whether the image at a row was changed: wherever its folder is, its file
    #: and the size of that, or a checksum
    mark: Callable[[int], str]
    #: all of them, as bytes of shape (n, height, width), where they are in memory already
    array: ByteArray | None = None


def open_record(record: Any) -> "Image":
    """Open what `Images.read` has read: a file, encoded or open already, an array, a row of a table."""
    from PIL import Image

    if isinstance(record, Image.Image):
        return record.copy()
    if isinstance(record, Mapping):
        content, path = record.get("bytes"), record.get("path")
        path = Path(path) if isinstance(path, str) else path
        record = path if content is None else content
    if record is None:
        raise ValueError("there is no image in this row")
    if isinstance(record, np.ndarray):
        return Image.fromarray(record.squeeze(2) if record.shape[2:] == (1,) else record)
    if not isinstance(record, Path | bytes):
        raise ValueError("it is no path, no picture of Pillow and no array (H, W, channels)")
    if isinstance(record, Path) and not record.is_file():  # a device or a pipe never ends
        raise ValueError("there is no such file")
    # Read at once: Pillow would keep the file open until it is decoded.
    content = record.read_bytes() if isinstance(record, Path) else record
    Image.init()
    usual = [name for name in FORMATS if name in Image.OPEN]
    return Image.open(BytesIO(content), formats=_BY_FIRST_BYTES.get(content[:2], usual))


def file_size(path: Path) -> int:
    """Return the size of a file in bytes; -1 if it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def array_images(array: ByteArray, origin: str) -> Images:
    """Return grey images that are in memory: bytes of shape (n, height, width)."""
    return Images(
        lambda rows: list(array[list(rows)]),
        lambda row: f"image {row} of {shown(origin)}",
        lambda row: str(zlib.crc32(array[row].tobytes())),
        array,
    )


def file_images(folder: Path, names: Sequence[str]) -> Images:
    """Return image files, by their paths from a folder on."""
    return Images(
        lambda rows: [folder / names[row] for row in rows],
        lambda row: shown(folder / names[row]),
        lambda row: f"{names[row]} {file_size(folder / names[row])}",
    )


@dataclass(frozen=True)
class Part:
    """Some labelled images: a split, or one file of it."""

    names: tuple[str, ...]  #: the names of the classes
    labels: IntArray  #: the place of each image's class among `names`, `WITHHELD` or `LEFT_OUT`; (n,)
    images: Images  #: the images, on request

    def used(self) -> dict[str, int]:
        """Return the number of images of each class that has any."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}


def joined(parts: Sequence[Part]) -> Part:
    """Return parts that have the same names as one, one after the other."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])

    def at(row: int) -> tuple[Images, int]:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[number].images, row - int(starts[number])

    def read(rows: Sequence[int]) -> list[Any]:
        return [record for row in rows for images, place in [at(row)] for record in images.read([place])]

    images = Images(
        read, lambda row: at(row)[0].name(at(row)[1]), lambda row: at(row)[0].mark(at(row)[1])
    )
    return Part(parts[0].names, np.concatenate([part.labels for part in parts]), images)


@dataclass(frozen=True)
class Source:
    """A labelled set of images whose labels have been read and whose images have not."""

    name: str  #: the data set's name
    class_names: tuple[str, ...]  #: of all parts
    #: by some of the names 'train', 'val' and 'test'; they share the class names
    parts: Mapping[str, Part]
    warnings: tuple[str, ...] = ()  #: what was left out, and what looks odd; a line each
