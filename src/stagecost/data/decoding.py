"""Pixels from encoded images: decoded by Pillow, made one size and one number of channels.

Pixels of more than 8 bits are scaled by the range of the values in the training images. Transparent
pixels are laid on white. Of a moving picture the first frame counts.
"""

import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stagecost.data.encoded import ByteArray, Images, IntArray, open_record
from stagecost.errors import StageCostError
from stagecost.text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("stagecost")

MIXED_SIZE = 64  # side, in pixels, for images that do not share one square size
BACKGROUND = "white"  # under transparent pixels
GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
ORIENTATION = 0x0112  # in a camera's notes: how it was held
PHOTOMETRIC = 0x0106  # in the notes of a TIFF file: what its zero means
DEEP = "more than 8 bits a colour"  # where it is noted in a picture's own notes
UNSIGNED = "32 bits without a sign"  # noted there, too: Pillow reads them as if they had one
CHUNK = 256  # images that one thread decodes at a time
# Pillow lets other threads run while it decodes; for smaller images that costs more than it brings
# (measured on 28×28 and 32×32 images).
THREADS_FROM = 128  # the longer side, in pixels
PROGRESS_FROM = 5_000

Levels = tuple[float, float]


@dataclass(frozen=True)
class Pixels:
    """Decoded images."""

    array: ByteArray  #: bytes of shape (n, channels, size, size)
    kept: IntArray  #: which of the images that were asked for these are, as places among them; (n,)
    #: the values of more than 8 bits that became 0 and 255; None if there were none
    levels: Levels | None
    broken: tuple[str, ...] = ()  #: the images that cannot be decoded, and why, a text for each
    clipped: bool = False  #: whether there were values beyond the levels


@dataclass(frozen=True)
class _Shape:
    """Channels, side and levels of decoded images; what is None is for the images to decide."""

    channels: int | None
    size: int | None
    levels: Levels | None
    interpolation: str

    def filled(self, seen: "_Seen") -> "_Shape":
        """Return it with what the images that were seen make necessary where it is None."""
        first = next(iter(seen.sizes), (1, 1))
        size = first[0] if seen.sizes <= {(first[0], first[0])} else MIXED_SIZE
        channels = 3 if seen.colour else 1
        levels = self.levels or seen.levels()
        return _Shape(self.channels or channels, self.size or size, levels, self.interpolation)

    def suits(self, picture: "Image", asked: "_Shape") -> bool:
        """Whether a picture may be decoded into this shape, which no further image changes."""
        return (
            (asked.channels is not None or self.channels == 3 or not _is_colour(picture))
            and (asked.size is not None or picture.size == (self.size, self.size))
            and (asked.levels is not None or not _is_deep(picture))
        )


@dataclass
class _Seen:
    """What images are like, all of those together that one thread has seen."""

    colour: bool = False
    sizes: set[tuple[int, int]] = field(default_factory=set)
    values: set[float] = field(default_factory=set)  # the ends of the ranges of more than 8 bits
    fractions: bool = False
    deep_colours: set[int] = field(default_factory=set)  # the highest bytes of colours of 16 bits
    broken: dict[int, str] = field(default_factory=dict)
    postponed: bool = False  # whether an image was not decoded, for want of a shape that suits it

    def note(self, picture: "Image") -> None:
        """Note what a picture is like."""
        self.colour |= _is_colour(picture)
        self.sizes.add(picture.size)
        if _is_deep(picture):
            values = np.asarray(picture)
            low, high = float(values.min()), float(values.max())
            if not math.isfinite(high - low):
                raise ValueError("it has values that are no numbers")
            if low < 0 and picture.info.get(UNSIGNED):
                raise ValueError("it has values from 2^31 on, which cannot be read: scale them down")
            self.values |= {low, high}
            self.fractions |= values.dtype.kind == "f" and bool((values != np.rint(values)).any())
        elif picture.info.get(DEEP):
            self.deep_colours.add(int(np.asarray(picture.convert("RGB")).max()))

    def add(self, other: "_Seen") -> None:
        """Add what another thread has seen."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) | value)

    def levels(self) -> Levels | None:
        """Return the range of values of more than 8 bits: from 0 to a power of two, if they allow it."""
        if not self.values:
            return None
        low, high = min(self.values), max(self.values)
        if low < 0 or high == 0:
            return low, high if high > low else low + 1
        if self.fractions:
            return 0.0, 2.0 ** math.ceil(math.log2(high))
        return 0.0, 2.0 ** max(8, int(high).bit_length()) - 1


def read_pixels(
    images: Images,
    rows: IntArray,
    *,
    channels: int | None = None,
    size: int | None = None,
    levels: Levels | None = None,
    interpolation: str = "bicubic",
) -> Pixels:
    """Decode the images at `rows`.

    Args:
        images: where to read.
        rows: which images, shape (n,), n ≥ 1.
        channels: 1 (grey) or 3 (red, green, blue); None: 1 if all these images are grey, else 3.
        size: side in pixels, to which images are resized by their short side and centre-cropped;
            None: their own, if all have the same square size, else `MIXED_SIZE`.
        levels: the values of more than 8 bits that become 0 and 255; None: by those of these images.
        interpolation: by which they are resized: bicubic or bilinear.

    Raises:
        StageCostError: the images take more memory than there is, or have colours of 16 bits of which
            Pillow leaves nothing.
    """
    if images.array is not None and (channels or 1) == 1:
        height, width = images.array.shape[1:]
        if height == width == (size or width):
            return Pixels(images.array[rows][:, None], np.arange(len(rows)), None)
    asked = _Shape(channels, size, levels, interpolation)
    with _quiet():
        first = _first(images, rows)
        large = any(max(sides) >= THREADS_FROM for sides in first.sizes)
        threads = min(8, os.cpu_count() or 1) if large else 1
        array, seen = _decode(images, rows, asked.filled(first), asked, threads)
        shape = asked.filled(seen)
        if seen.postponed:
            array, seen = _decode(images, rows, shape, shape, threads)
    if size is None and seen.sizes != {(shape.size, shape.size)}:
        text = "images are not of one square size: resized to %d×%d (change with --image-size)"
        logger.info(text, shape.size, shape.size)
    if levels is None and seen.deep_colours and max(seen.deep_colours) < 128:
        raise StageCostError(
            "the images have colours of 16 bits with values below 2^15, of which only the upper 8 bits "
            "can be read: convert them to colours of 8 bits"
        )
    kept = np.array([place for place in range(len(rows)) if place not in seen.broken], np.int64)
    low, high = shape.levels or (-math.inf, math.inf)
    clipped = bool(seen.values) and not low <= min(seen.values) <= max(seen.values) <= high
    broken = tuple(text for _, text in sorted(seen.broken.items()))
    return Pixels(array[kept] if broken else array, kept, shape.levels, broken, clipped)


def peek_shape(images: Images, row: int) -> tuple[int, int | None]:
    """Return the channels (1 or 3) of one image, and its side in pixels (None: not square)."""
    with _quiet():
        seen = _first(images, np.array([row]))
    width, height = next(iter(seen.sizes), (0, 1))
    return (3 if seen.colour else 1), (width if width == height else None)


def _first(images: Images, rows: IntArray) -> _Seen:
    """Return what the first image that can be opened is like."""
    seen = _Seen()
    for row in rows.tolist():
        with suppress(Exception):
            image = open_record(images.read([row])[0])
            turned = _upright(image)
            turned.load()  # what its header says may not be true
            seen.note(turned)
            break
    return seen


def _decode(
    images: Images, rows: IntArray, shape: _Shape, asked: _Shape, threads: int
) -> tuple[ByteArray, _Seen]:
    """Decode the images that `shape` suits, and look at all of them."""
    assert shape.channels is not None
    assert shape.size is not None
    try:
        pixels = np.empty((len(rows), shape.channels, shape.size, shape.size), np.uint8)
    except MemoryError as error:
        raise StageCostError(
            f"{len(rows)} images of {shape.size}×{shape.size} pixels take more memory than there is: "
            "give a smaller --image-size"
        ) from error
    seen = _Seen()
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        jobs = [
            pool.submit(_fill, pixels[at : at + CHUNK], images, rows[at : at + CHUNK], at, shape, asked)
            for at in range(0, len(rows), CHUNK)
        ]
        with progress("decoding images", len(rows), PROGRESS_FROM) as advance:
            for job in jobs:
                seen.add(job.result())
                advance(CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)
    return pixels, seen


def _fill(
    out: ByteArray, images: Images, rows: IntArray, start: int, shape: _Shape, asked: _Shape
) -> _Seen:
    seen = _Seen()
    for place, record in enumerate(images.read(rows.tolist())):
        try:
            picture = _upright(open_record(record))
            if 0 in picture.size:
                raise ValueError(f"it has no pixels, but a size of {picture.size}")
            seen.note(picture)
            if shape.suits(picture, asked):
                out[place] = _to_array(picture, out.shape[1], out.shape[2], shape)
            else:
                seen.postponed = True
        except Exception as error:
            # Pillow's message for unknown content shows the address of a buffer: of no use to anyone.
            reason = re.sub(r" ?<_io\.BytesIO.*?>", "", one_line(error))
            seen.broken[start + place] = f"{images.name(int(rows[place]))} ({reason})"
    return seen


def _upright(picture: "Image") -> "Image":
    """Turn the picture of a camera that was held sideways and noted it; it is not decoded before."""
    from PIL import ImageOps

    kinds = [str(tile[3]) for tile in getattr(picture, "tile", ())]
    picture.info[DEEP] = any(";16" in kind for kind in kinds)
    picture.info[UNSIGNED] = any("I;32N" in kind for kind in kinds)
    _widen_clear_value(picture, kinds)
    if _is_deep(picture) and getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise ValueError("its zero is white, which of more than 8 bits cannot be read: convert it")
    turned = picture.getexif().get(ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture


def _widen_clear_value(picture: "Image", kinds: Sequence[str]) -> None:
    """Bring the one clear value of a PNG to 8 bits, as Pillow does with its pixels alone."""
    clear = picture.info.get("transparency")
    if isinstance(clear, tuple) and picture.info[DEEP]:
        raise ValueError("its clear colour has 16 bits, of which only the upper 8 can be read")
    if isinstance(clear, int) and len(kinds) == 1:
        picture.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(kinds[0], 1)


def _is_colour(picture: "Image") -> bool:
    return picture.mode not in GREY_MODES and not picture.mode.startswith("I;16")


def _is_deep(picture: "Image") -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _to_array(picture: "Image", channels: int, size: int, shape: _Shape) -> ByteArray:
    """Return one picture as bytes of shape (channels, size, size)."""
    from PIL import Image, ImageOps

    side, mode = (size, size), "L" if channels == 1 else "RGB"
    if picture.size != side:
        # JPEG can be decoded at 1/2, 1/4, 1/8 of its size; twice the wanted size keeps it sharp.
        picture.draft(None, (2 * size, 2 * size))
    if _is_deep(picture):
        clear = picture.info.get("transparency")
        hidden = np.asarray(picture) == clear if isinstance(clear, int) else None
        picture = _eight_bits(picture, shape.levels)
        if hidden is not None:
            picture.paste(BACKGROUND, mask=Image.fromarray(hidden))
    elif picture.has_transparency_data:
        picture = _on_background(picture)
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != side:
        picture = ImageOps.fit(picture, side, method=Image.Resampling[shape.interpolation.upper()])
    array: ByteArray = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _eight_bits(picture: "Image", levels: Levels | None) -> "Image":
    from PIL import Image

    assert levels is not None
    low, high = levels
    scale = 255 / (high - low)
    values = np.array(picture, np.float32)
    values *= scale  # in place, as such pictures may be large
    values -= low * scale
    np.rint(np.clip(values, 0, 255, out=values), out=values)
    return Image.fromarray(values.astype(np.uint8))


def _on_background(picture: "Image") -> "Image":
    from PIL import Image

    solid = "L" if picture.mode in GREY_MODES else "RGB"
    picture = picture.convert("RGBA")
    ground = Image.new(solid, picture.size, BACKGROUND)
    ground.paste(picture.convert(solid), mask=picture.getchannel("A"))
    return ground


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's remarks to itself, and take an image for broken that is too large to be one."""
    from PIL import Image

    remarks = logging.getLogger("PIL")
    level = remarks.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        remarks.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            remarks.setLevel(level)


@contextmanager
def progress(text: str, total: int, least: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many of more than `least` images are done, if somebody is watching."""
    if total <= least or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)
