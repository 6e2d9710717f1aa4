"""Find a labelled set of images and read pixels from it.

`open_source` reads the labels and leaves the images encoded; `read_pixels` then decodes only the
images that were chosen. Hugging Face `datasets` does the loading, Pillow the decoding.
"""

import gzip
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from stagecost.errors import StageCostError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("stagecost")

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
KNOWN_NAMES = ("digits", *HUB_IDS)
DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Where Debian's package dataset-fashion-mnist puts its four files.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# The first training labels of the original IDX files, which carry no class names of their own.
IDX_FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    "fashion-mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}
IDX_CLASS_NAMES = {"mnist": DIGIT_NAMES, "fashion-mnist": FASHION_NAMES}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
LABEL_COLUMNS = ("label", "labels", "fine_label")

MIXED_SIZE = 64  # side, in pixels, for images that do not share one square size
GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
CHUNK = 256  # images that one thread decodes at a time
# Pillow lets other threads run while it decodes; below this many pixels that costs more than it
# brings (measured on 28×28 and 32×32 images).
THREADS_FROM = 128 * 128
# Pillow would try one format after the other, which for a small image takes a third of the time.
FORMATS = {b"\xff\xd8": ["JPEG"], b"\x89P": ["PNG"], b"RI": ["WEBP"]}
PROGRESS_FROM = 5_000


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
    published statistics, where the source itself tells (see `stagecost.data`).
    """

    name: str
    known: str | None
    class_names: tuple[str, ...]
    parts: Mapping[str, Part]


def open_source(data: str) -> Source:
    """Find the images that `data` names and read their labels.

    Args:
        data: one of `KNOWN_NAMES`, a local folder, or a Hugging Face dataset id.

    Raises:
        StageCostError: nothing usable is found there.
    """
    if data == "digits":
        return _digits()
    if data == "fashion-mnist" and _idx_files(FASHION_FOLDER):
        return _idx_folder(FASHION_FOLDER, "fashion-mnist")
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


def one_line(error: BaseException) -> str:
    """Return the message of `error`, squeezed into one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


# ---------------------------------------------------------------------------------------------
# digits and IDX files


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    array = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    part = Part(digits.target.astype(np.int64), ArrayImages(array, "digits"))
    return Source("digits", "digits", DIGIT_NAMES, {"train": part})


def _idx_files(folder: Path) -> dict[str, Path]:
    """Return the image file of each split in a folder of IDX files, unpacked ones first."""
    found: dict[str, Path] = {}
    try:
        names = sorted(path.name for path in folder.iterdir() if "images" in path.name)
    except OSError:
        return {}
    for name in names:
        if not name.endswith(("-ubyte", "-ubyte.gz")):
            continue
        split = "train" if "train" in name else "test"
        known = found.get(split)
        if known is not None and name != known.name + ".gz":
            raise StageCostError(
                f"{folder} has two sets of {split} images ({known.name}, {name}): "
                "put one of them into a folder of its own"
            )
        found.setdefault(split, folder / name)
    return found


def _idx_folder(folder: Path, known: str | None = None) -> Source:
    values: dict[str, npt.NDArray[Any]] = {}
    images: dict[str, Images] = {}
    for split, path in _idx_files(folder).items():
        array, labels = _read_idx(path, ndim=3), _read_idx(_idx_label_file(path), ndim=1)
        if len(array) != len(labels):
            raise StageCostError(
                f"{path} has {len(array)} images, but its label file has {len(labels)} labels: "
                "fetch both files again"
            )
        values[split], images[split] = labels, ArrayImages(array, str(path))
    if known is None:
        known = _known_by_first_labels(values)
    names, indexed = _index_labels(values)
    names = IDX_CLASS_NAMES[known] if known else names
    parts = {split: Part(indexed[split], images[split]) for split in values}
    return Source(known or folder.resolve().name, known, names, parts)


def _known_by_first_labels(values: Mapping[str, npt.NDArray[Any]]) -> str | None:
    first = tuple(values["train"][:10].tolist()) if "train" in values else ()
    return next((name for name, labels in IDX_FIRST_LABELS.items() if labels == first), None)


def _idx_label_file(images: Path) -> Path:
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for candidate in (images.with_name(name), images.with_name(name + ".gz")):
        if candidate.exists():
            return candidate
    raise StageCostError(f"{images} has no label file beside it: put {name} into the same folder")


def _read_idx(path: Path, ndim: int) -> ByteArray:
    """Read a file of unsigned bytes in the IDX format: magic number, sizes, data (big-endian)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StageCostError(
            f"{path} cannot be read ({one_line(error)}): fetch the file again"
        ) from error
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes((0, 0, 8, ndim)):
        raise StageCostError(
            f"{path} is not an IDX file of bytes with {ndim} dimension(s): fetch the file again"
        )
    shape = [int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4)]
    if len(content) - start != int(np.prod(shape, dtype=object)):
        raise StageCostError(
            f"{path} promises {'×'.join(map(str, shape))} bytes of data and has "
            f"{len(content) - start}: fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _index_labels(
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


# ---------------------------------------------------------------------------------------------
# Folders and the Hugging Face Hub, by way of `datasets`


def _from_folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise StageCostError(f"{folder} is a file: give the folder that holds the images")
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise StageCostError(
            f"data folder {folder} cannot be read ({error.strerror}): check its permissions"
        ) from error
    if _idx_files(folder):
        return _idx_folder(folder)
    suffixes = _suffixes(folder)
    if not suffixes:
        raise StageCostError(f"data folder {folder} is empty: give a folder that holds images")
    if ".parquet" not in suffixes and suffixes & IMAGE_SUFFIXES:
        return _from_class_directories(folder)
    try:
        found = _load(str(folder), bars=False)
    except Exception as error:
        raise StageCostError(
            f"no images can be loaded from {folder} ({one_line(error)}): give a folder of class "
            "directories, or of parquet or IDX files"
        ) from error
    return _from_dataset(found, folder.resolve().name, str(folder))


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
        found = _load(
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
    return _from_dataset(found, folder.resolve().name, str(folder))


def _split_directories(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        split = _canonical_split(path.name)
        if split and split not in found and path.is_dir() and _holds_classes(path):
            found[split] = path.name
    return found


def _holds_classes(directory: Path) -> bool:
    children = directory.iterdir()
    return any(child.is_dir() or child.name.startswith("metadata.") for child in children)


def _canonical_split(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _from_hub(dataset_id: str, name: str) -> Source:
    if sys.stderr.isatty():  # somebody is watching, and it may take a while
        logger.info("looking for %s on the Hugging Face Hub and in its local cache", dataset_id)
    try:
        found = _load(dataset_id, bars=sys.stderr.isatty())
    except Exception as error:
        raise StageCostError(
            f"data set '{dataset_id}' is not to be had from the Hugging Face Hub "
            f"({one_line(error)}): check the spelling and the network, or give a local folder "
            f"or one of {', '.join(KNOWN_NAMES)}"
        ) from error
    return _from_dataset(found, name, dataset_id)


def _load(path: str, *, bars: bool, **options: Any) -> Any:
    import datasets

    with _quiet(bars=bars):
        return datasets.load_dataset(path, **options)


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Keep `datasets` and `huggingface_hub` from writing on standard error within the block."""
    import datasets

    hub: Any = import_module("huggingface_hub.utils")  # its stubs hide the public functions
    restore: list[Callable[[], None]] = []
    for verbosity in (datasets.logging, hub.logging):
        level = verbosity.get_verbosity()
        restore.append(lambda set_level=verbosity.set_verbosity, level=level: set_level(level))  # type: ignore[misc]
        verbosity.set_verbosity(logging.CRITICAL)
    # Both libraries warn when told to change bars that the user has set by environment variable.
    if not bars and datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
        restore += [datasets.enable_progress_bars] if datasets.is_progress_bar_enabled() else []
        datasets.disable_progress_bars()
    if not bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        restore += [] if hub.are_progress_bars_disabled() else [hub.enable_progress_bars]
        hub.disable_progress_bars()
    try:
        yield
    finally:
        for undo in restore:
            undo()


def _from_dataset(found: Any, name: str, origin: str) -> Source:
    """Read the labels of a `datasets.DatasetDict`, whose origin is named in messages."""
    import datasets

    splits = _canonical_splits(found, origin)
    first = next(iter(splits.values()))
    image, label = _columns(first.features, origin)
    feature = first.features[label]
    values = {split: _label_values(part, label, origin) for split, part in splits.items()}
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(str(name) for name in feature.names)
        indexed = {split: labels.astype(np.int64) for split, labels in values.items()}
    else:
        names, indexed = _index_labels(values)
    parts = {}
    for split, part in splits.items():
        undecoded = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        parts[split] = Part(indexed[split], EncodedImages(undecoded, image, split))
    return Source(name, None, names, parts)


def _canonical_splits(found: Any, origin: str) -> dict[str, Any]:
    """Return the splits by the names 'train', 'val' and 'test'; a lone other one is 'train'."""
    splits: dict[str, Any] = {}
    for name, part in found.items():
        split = _canonical_split(name) or ("train" if len(found) == 1 else None)
        if split and len(part):
            splits.setdefault(split, part)
    if not splits:
        raise StageCostError(
            f"{origin} has no split of a known name with images in it (found: "
            f"{', '.join(found) or 'none'}): name its splits train, validation and test"
        )
    return splits


def _columns(features: Any, origin: str) -> tuple[str, str]:
    """Return the names of the image column and of the label column."""
    image = next((key for key in features if type(features[key]).__name__ == "Image"), None)
    kinds = {key: _label_kind(features[key]) for key in features}
    preferred = [key for key in LABEL_COLUMNS if kinds.get(key)]
    classes = [key for key in features if kinds[key] == "class"]
    numbers = [key for key in features if kinds[key] == "int"]
    labels = preferred + classes + numbers
    if image is None or not labels:
        raise StageCostError(
            f"{origin} has no column of {'images' if image is None else 'class labels'} (its "
            f"columns: {', '.join(features)}): it needs an image column and a label column"
        )
    return image, labels[0]


def _label_kind(feature: Any) -> str | None:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return "class"
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    if dtype in ("string", "large_string"):
        return "str"
    return "int" if dtype.startswith(("int", "uint")) else None


def _label_values(part: Any, column: str, origin: str) -> npt.NDArray[Any]:
    table = part.select_columns([column]).with_format("arrow")[:]
    values = table.column(column)
    if values.null_count:
        raise StageCostError(
            f"{origin} has {values.null_count} images without a '{column}': remove these rows"
        )
    return np.asarray(values.to_pylist())


# ---------------------------------------------------------------------------------------------
# Decoding


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
