"""Pixels from encoded images: decoded by Pillow, made one size and one number of channels."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecost.data.encoded import ArrayImages, ByteArray, Images, IntArray
from stagecost.errors import StageCostError
from stagecost.text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("stagecost")

MIXED_SIZE = 64  # side, in pixels, for images that do not share one square size
GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
CHUNK = 256  # images that one thread decodes at a time
# Pillow lets other threads run while it decodes; below this many pixels that costs more than it
# brings (measured on 28×28 and 32×32 images).
THREADS_FROM = 128 * 128
PROGRESS_FROM = 5_000


@dataclass(frozen=True)
class _Shape:
    """Channels and side of the decoded images: settled, or a guess until an image contradicts."""

    channels: int
    size: int
    settled_channels: bool
    settled_size: bool

    def after(self, picture: "Image") -> "_Shape":
        """Return this shape, or the one that `picture` makes necessary."""
        shape = self
        if not self.settled_channels and _is_colour(picture):
            shape = replace(shape, channels=3, settled_channels=True)
        if not self.settled_size and picture.size != (self.size, self.size):
            shape = replace(shape, size=MIXED_SIZE, settled_size=True)
        return shape


def read_pixels(
    images: Images, rows: IntArray, *, channels: int | None = None, size: int | None = None
) -> ByteArray:
    """Decode the images at `rows`.

    Args:
        images: where to read.
        rows: which images, shape (n,), n ≥ 1.
        channels: 1 (grey) or 3 (red, green, blue); None: 1 if all these images are grey, else 3.
        size: side in pixels, to which images are resized by their short side and centre-cropped;
            None: their own, if all have the same square size, else `MIXED_SIZE`.

    Returns:
        Bytes of shape (n, channels, size, size).

    Raises:
        StageCostError: an image is damaged; the message names it.
    """
    if isinstance(images, ArrayImages) and (channels or 1) == 1:
        height, width = images.array.shape[1:]
        if height == width == (size or width):
            return images.array[rows][:, None]
    first = _open(images, images.records(rows[:1])[0], int(rows[0]))
    threads = (os.cpu_count() or 1) if first.width * first.height >= THREADS_FROM else 1
    shape = _Shape(channels or 1, size or first.width, channels is not None, size is not None)
    while True:
        pixels, needed = _decode(images, rows, shape, threads)
        if needed == shape:
            break
        shape = needed
    if size is None and shape.settled_size:
        logger.info(
            "images are not of one square size: resized to %d×%d (change with --image-size)",
            MIXED_SIZE,
            MIXED_SIZE,
        )
    return pixels


def peek_shape(images: Images, row: int) -> tuple[int, int | None]:
    """Return the channels (1 or 3) of one image, and its side in pixels (None: not square)."""
    picture = _open(images, images.records(np.array([row]))[0], row)
    square = picture.width == picture.height
    return (3 if _is_colour(picture) else 1), (picture.width if square else None)


def _decode(images: Images, rows: IntArray, shape: _Shape, threads: int) -> tuple[ByteArray, _Shape]:
    """Decode into `shape`, or stop and return the shape that an image makes necessary."""
    pixels = np.empty((len(rows), shape.channels, shape.size, shape.size), np.uint8)
    pool = ThreadPoolExecutor(max_workers=min(8, threads))
    try:
        jobs = [
            pool.submit(_fill, pixels[at : at + CHUNK], images, rows[at : at + CHUNK], shape)
            for at in range(0, len(rows), CHUNK)
        ]
        with _progress(len(rows)) as advance:
            for job in jobs:
                needed = job.result()
                if needed != shape:
                    return pixels, needed
                advance(CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)
    return pixels, shape


def _fill(out: ByteArray, images: Images, rows: IntArray, shape: _Shape) -> _Shape:
    for slot, record, row in zip(out, images.records(rows), rows.tolist(), strict=True):
        picture = _open(images, record, row)
        needed = shape.after(picture)
        if needed != shape:
            return needed
        try:
            slot[...] = _to_array(picture, shape)
        except Exception as error:
            raise _damaged(images, row, error) from error
    return shape


def _open(images: Images, record: Any, row: int) -> "Image":
    from PIL import ImageOps

    try:
        picture = images.open(record)
        # A camera held sideways notes it here; the pixels themselves are not turned.
        return ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
    except Exception as error:
        raise _damaged(images, row, error) from error


def _damaged(images: Images, row: int, error: Exception) -> StageCostError:
    # Pillow's message for unknown content shows the address of a buffer: of no use to anyone.
    reason = re.sub(r" ?<_io\.BytesIO.*?>", "", one_line(error))
    return StageCostError(f"{images.describe(row)} cannot be decoded ({reason}): replace or remove it")


def _is_colour(picture: "Image") -> bool:
    return picture.mode not in GREY_MODES and not picture.mode.startswith("I;16")


def _to_array(picture: "Image", shape: _Shape) -> ByteArray:
    """Return one picture as bytes of shape (channels, size, size)."""
    from PIL import Image, ImageOps

    side = (shape.size, shape.size)
    if picture.size != side:
        # JPEG can be decoded at 1/2, 1/4, 1/8 of its size; twice the wanted size keeps it sharp.
        picture.draft(None, (2 * shape.size, 2 * shape.size))
    picture, mode = _eight_bits(picture), "L" if shape.channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != side:
        picture = ImageOps.fit(picture, side, method=Image.Resampling.BICUBIC)
    array: ByteArray = np.asarray(picture)
    return array[None] if shape.channels == 1 else array.transpose(2, 0, 1)


def _eight_bits(picture: "Image") -> "Image":
    from PIL import Image

    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow would cut 16-bit values off at 255 instead of scaling them.
        return Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    if "transparency" in picture.info:  # a palette with alpha: Pillow wants this step in between
        return picture.convert("RGBA")
    return picture


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error for a long read, if somebody is watching."""
    if total <= PROGRESS_FROM or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding images", total=total)
        yield lambda count: bar.advance(task, count)
