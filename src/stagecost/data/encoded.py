"""Labelled images that are not decoded yet: the labels are known, the images are read on request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

# Pillow would try one format after the other, which for a small image takes a third of the time.
FORMATS = {b"\xff\xd8": ["JPEG"], b"\x89P": ["PNG"], b"RI": ["WEBP"]}


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
        return f"image {row} of {self.origin}"


@dataclass(frozen=True)
class EncodedImages:
    """The image column of a Hugging Face data set, cast so that it is not decoded by itself."""

    dataset: Any
    column: str
    split: str

    def records(self, rows: IntArray) -> Sequence[Any]:
        """Read the images at `rows`, still encoded."""
        records: list[Any] = self.dataset[rows.tolist()][self.column]
        return records

    def open(self, record: Any) -> "Image":
        """Open one record as a picture."""
        from PIL import Image

        if record is None:
            raise ValueError("there is no image in this row")
        content = record["bytes"]
        if content is None:  # read at once: Pillow would keep the file open until it is decoded
            content = Path(record["path"]).read_bytes()
        return Image.open(BytesIO(content), formats=FORMATS.get(content[:2]))

    def describe(self, row: int) -> str:
        """Name the image at `row` for an error message."""
        record = self.dataset[row][self.column]
        path = record and record["path"]
        return f"image {row} of split '{self.split}'" + (f" ({path})" if path else "")


@dataclass(frozen=True)
class Part:
    """One split of a source: its labels (int64, shape (n,)), and its images on request."""

    labels: IntArray
    images: Images


@dataclass(frozen=True)
class Source:
    """A labelled set of images whose labels have been read and whose images have not.

    `parts` has some of the keys 'train', 'val' and 'test'. `known` is the name of a data set with
    published statistics, where the source itself tells (see `stagecost.data.known`).
    """

    name: str
    known: str | None
    class_names: tuple[str, ...]
    parts: Mapping[str, Part]


def index_labels(
    values: Mapping[str, npt.NDArray[Any]],
) -> tuple[tuple[str, ...], dict[str, IntArray]]:
    """Number the labels of all splits 0, 1, … in sorted order; numbers are named 'class 7'."""
    every = np.unique(np.concatenate(list(values.values()))) if values else np.empty(0)
    numeric = every.dtype.kind != "U"
    names = tuple(f"class {value}" if numeric else str(value) for value in every)
    indexed = {
        split: np.searchsorted(every, labels).astype(np.int64) for split, labels in values.items()
    }
    return names, indexed
