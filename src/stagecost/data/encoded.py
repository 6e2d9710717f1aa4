"""Labelled images that are not decoded yet: the labels are known, the images are read on request."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
# Trying one format after the other takes a third of the time of a small image.
_BY_FIRST_BYTES = {b"\xff\xd8": ["JPEG"], b"\x89P": ["PNG"], b"RI": ["WEBP"]}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings of image files, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in _FORMATS)


def open_picture(content: bytes) -> "Image":
    """Open an encoded image; its pixels are decoded when asked for."""
    from PIL import Image

    Image.init()
    usual = [name for name in _FORMATS if name in Image.OPEN]
    return Image.open(BytesIO(content), formats=_BY_FIRST_BYTES.get(content[:2], usual))


def open_row(row: Any, folder: Path = Path()) -> "Image":
    """Open the image in a row of a table: its bytes, or where they are, from a folder on."""
    content = row.get("bytes") if isinstance(row, Mapping) else row
    if content is None and row is not None and row.get("path"):
        content = (folder / row["path"]).read_bytes()
    if content is None:
        raise ValueError("there is no image in this row")
    return open_picture(content)


class Images(Protocol):
    """Encoded images that are decoded when asked for."""

    def records(self, rows: IntArray) -> Sequence[Any]:
        """Read the images at `rows`, still encoded."""
        ...

    def open(self, record: Any) -> "Image":
        """Open one record as a picture."""
        ...

    def describe(self, row: int) -> str:
        """Name the image at `row` for an error message."""
        ...

    def mark(self, row: int) -> str:
        """Return what tells whether the image at `row` is still the same one, without reading it."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Grey images that are in memory already: bytes of shape (n, height, width)."""

    array: ByteArray
    origin: str

    def records(self, rows: IntArray) -> Sequence[ByteArray]:
        """Read the images at `rows`."""
        return list(self.array[rows])

    def open(self, record: ByteArray) -> "Image":
        """Open one record as a picture."""
        from PIL import Image

        return Image.fromarray(record)

    def describe(self, row: int) -> str:
        """Name the image at `row` for an error message."""
        return f"image {row} of {shown(self.origin)}"

    def mark(self, row: int) -> str:
        """Return a checksum of the image."""
        return f"{row} {zlib.crc32(self.array[row].tobytes())}"


@dataclass(frozen=True)
class FileImages:
    """Image files, by their paths below a folder."""

    folder: Path
    names: Sequence[str]

    def records(self, rows: IntArray) -> Sequence[str]:
        """Return the names of the files; they are read one by one."""
        return [self.names[row] for row in rows.tolist()]

    def open(self, record: str) -> "Image":
        """Open one record as a picture."""
        # Read at once: Pillow would keep the file open until it is decoded.
        return open_picture((self.folder / record).read_bytes())

    def describe(self, row: int) -> str:
        """Name the image at `row` for an error message."""
        return shown(self.folder / self.names[row])

    def mark(self, row: int) -> str:
        """Return path and size of the file."""
        try:
            return f"{self.names[row]} {(self.folder / self.names[row]).stat().st_size}"
        except OSError:
            return f"{self.names[row]} -"


@dataclass(frozen=True)
class JoinedImages:
    """The images of several files of a split, one after the other; `starts` has n + 1 row numbers."""

    images: Sequence[Images]
    starts: IntArray

    def records(self, rows: IntArray) -> Sequence[Any]:
        """Read the images at `rows`, still encoded, each with the number of its file."""
        result: dict[int, Any] = {}
        file_of = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(file_of).tolist():
            local = rows[file_of == number]
            records = self.images[number].records(local - self.starts[number])
            result |= {row: (number, record) for row, record in zip(local.tolist(), records, strict=True)}
        return [result[row] for row in rows.tolist()]

    def open(self, record: tuple[int, Any]) -> "Image":
        """Open one record as a picture."""
        return self.images[record[0]].open(record[1])

    def describe(self, row: int) -> str:
        """Name the image at `row` for an error message."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.images[number].describe(row - int(self.starts[number]))

    def mark(self, row: int) -> str:
        """Return what its file says."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.images[number].mark(row - int(self.starts[number]))


@dataclass(frozen=True)
class Part:
    """Some labelled images: a split, or one file of it.

    Attributes:
        names: the names of the classes.
        labels: the place of each image's class among `names`, `WITHHELD` or `LEFT_OUT`; (n,).
        images: the images, on request.
    """

    names: tuple[str, ...]
    labels: IntArray
    images: Images

    def used(self) -> dict[str, int]:
        """Return the number of images of each class that has any."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}


@dataclass(frozen=True)
class Source:
    """A labelled set of images whose labels have been read and whose images have not.

    Attributes:
        name: the data set's name.
        known: the name of a data set with published statistics, where it is certain to be that one.
        class_names: of all parts.
        parts: by some of the names 'train', 'val' and 'test'; they share the class names.
        warnings: what was left out, and what looks odd; a line each.
    """

    name: str
    known: str | None
    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    warnings: tuple[str, ...] = ()
