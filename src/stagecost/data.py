"""Images in memory, and the batches that are made of them.

`load_data` turns a `DataConfig` into a `DataBundle`: bytes for the splits asked for, the format
that a network for them has, and the augmentation that is usual for them. `epoch_batches` and
`eval_batches` turn bytes into normalised batches.

Splits. A data set's own test split is the test split; where there is none, a fixed stratified 20 %
of the training images is held out as one, the same whatever the seed. A data set's own validation
split is the validation split, and `val_fraction` is then unused; where there is none, that part
of the training images is held out, drawn with the seed.

Randomness. Everything random is a function of the seed, of the epoch and of the batch's place in
it. The global random state is neither read nor changed.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stagecost.data_config import DataConfig
from stagecost.data_sources import (
    DIGIT_NAMES,
    FASHION_NAMES,
    KNOWN_NAMES,
    ByteArray,
    IntArray,
    Part,
    Source,
    open_source,
    peek_shape,
    read_pixels,
)
from stagecost.errors import StageCostError

__all__ = [
    "Augmentation",
    "DataBundle",
    "DataConfig",
    "EvalBatches",
    "ImageFormat",
    "ImageSplit",
    "epoch_batches",
    "eval_batches",
    "load_data",
    "normalise",
    "num_batches",
]

SPLITS = ("train", "val", "test")
TEST_FRACTION = 0.2  # held out where a data set has no test split
FIXED_SEED = 0  # for what must not depend on the user's seed

# One stream of random numbers for each purpose, so that none depends on what another has drawn.
_LIMIT, _VALIDATION, _ORDER, _AUGMENT = range(4)


# ---------------------------------------------------------------------------------------------
# What is handed to the user


@dataclass(frozen=True)
class ImageFormat:
    """The images that a network takes, and the classes that it tells apart.

    Attributes:
        channels: 1 (grey) or 3 (red, green, blue).
        size: side of the square images, in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        class_names: the name of each class, in the order of the targets.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the format as a dictionary of plain numbers, strings and lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ImageFormat":
        """Rebuild a format from `to_json`'s dictionary.

        Raises:
            StageCostError: an entry is missing or has the wrong length.
        """
        try:
            result = cls(
                channels=int(content["channels"]),
                size=int(content["size"]),
                mean=tuple(float(value) for value in content["mean"]),
                std=tuple(float(value) for value in content["std"]),
                class_names=tuple(str(name) for name in content["class_names"]),
            )
        except KeyError as error:
            raise StageCostError(
                f"the stored image format has no entry {error}: save the network again"
            ) from error
        except (TypeError, ValueError) as error:
            raise StageCostError(
                f"the stored image format is damaged ({error}): save the network again"
            ) from error
        if not len(result.mean) == len(result.std) == result.channels:
            raise StageCostError(
                f"the stored image format has {result.channels} channels, {len(result.mean)} means "
                f"and {len(result.std)} standard deviations: save the network again"
            )
        return result


@dataclass(frozen=True)
class ImageSplit:
    """Labelled images in memory.

    Attributes:
        images: bytes (uint8) of shape (n, channels, height, width).
        targets: class numbers (int64) of shape (n,).
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)


@dataclass(frozen=True)
class Augmentation:
    """Random shifts and mirror images, for a whole batch at once.

    Attributes:
        pad: the largest shift, in pixels: images are padded with zeros by so much on every side
            and cropped to their size at a random place.
        flip: whether half of the images, drawn at random, are mirrored left to right.
    """

    pad: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shift and mirror each image of a batch (n, channels, height, width) by itself.

        With `pad` 0 and no `flip` the batch is returned as it is and nothing is drawn.

        Args:
            images: bytes or floats, on any device.
            generator: a generator on the CPU; the result is the same on every device.
        """
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw for `count` images: row, column (0 … 2·pad) and mirrored (0, 1), int64 (count, 3)."""
        draws = torch.zeros(count, 3, dtype=torch.int64)
        if self.pad:
            draws[:, :2] = torch.randint(2 * self.pad + 1, (count, 2), generator=generator)
        if self.flip:
            draws[:, 2] = torch.randint(2, (count,), generator=generator)
        return draws

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Shift and mirror a batch (n, channels, height, width) as `draw` has drawn (n, 3)."""
        draws = draws.to(images.device)
        if self.pad:
            height, width = images.shape[-2:]
            padded = F.pad(images, (self.pad,) * 4)
            # A view of every place where a crop can lie: (n, channels, 2 pad + 1, 2 pad + 1, H, W).
            crops = padded.unfold(2, height, 1).unfold(3, width, 1)
            each = torch.arange(len(images), device=images.device)
            images = crops[each, :, draws[:, 0], draws[:, 1]]
        if self.flip:
            mirrored = draws[:, 2, None, None, None] == 1
            images = torch.where(mirrored, images.flip(-1), images)
        return images


NO_AUGMENTATION = Augmentation(pad=0, flip=False)


@dataclass(frozen=True)
class DataBundle:
    """Everything that training and evaluation need to know about the images.

    Attributes:
        format: what the network takes.
        splits: the splits that were asked for, by the names 'train', 'val' and 'test'.
        augmentation: what is usual for training on these images, or none if that was asked for.
        name: the data set's name.
    """

    format: ImageFormat
    splits: dict[str, ImageSplit]
    augmentation: Augmentation
    name: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.format.class_names)


# ---------------------------------------------------------------------------------------------
# Data sets with published statistics


@dataclass(frozen=True)
class _Known:
    """How a well-known data set is recognised, normalised and augmented."""

    channels: int
    size: int
    num_classes: int
    some_names: frozenset[str]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    augmentation: Augmentation


def _key(name: str) -> str:
    """Reduce a class name to letters and digits: some copies write 'T - shirt / top'."""
    return "".join(filter(str.isalnum, name.lower()))


def _keys(names: Collection[str]) -> frozenset[str]:
    return frozenset(map(_key, names))


_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_CIFAR100 = ["apple", "aquarium_fish", "lawn_mower", "sweet_pepper", "wardrobe", "willow_tree", "worm"]
KNOWN = {
    "digits": _Known(1, 8, 10, _keys(DIGIT_NAMES), None, NO_AUGMENTATION),
    "mnist": _Known(1, 28, 10, _keys(DIGIT_NAMES), ((0.1307,), (0.3081,)), Augmentation(2, flip=False)),
    "fashion-mnist": _Known(
        1, 28, 10, _keys(FASHION_NAMES), ((0.2860,), (0.3530,)), Augmentation(2, flip=True)
    ),
    "cifar10": _Known(
        3,
        32,
        10,
        _keys(_CIFAR10),
        ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
        Augmentation(4, flip=True),
    ),
    "cifar100": _Known(
        3,
        32,
        100,
        _keys(_CIFAR100),
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        Augmentation(4, flip=True),
    ),
}


def _recognise(source: Source) -> str | None:
    """Name the well-known data set that this is, by its class names and its first image."""
    if source.known is not None:
        return source.known
    names = _keys(source.class_names)
    alike = [
        name
        for name, known in KNOWN.items()
        if known.num_classes == len(source.class_names) and known.some_names <= names
    ]
    if not alike:
        return None
    shape = peek_shape(next(iter(source.parts.values())).images, 0)
    return next((n for n in alike if shape == (KNOWN[n].channels, KNOWN[n].size)), None)


# ---------------------------------------------------------------------------------------------
# Loading


def load_data(
    config: DataConfig,
    *,
    seed: int,
    splits: Collection[str] | None = None,
    like: ImageFormat | None = None,
) -> DataBundle:
    """Load the images that `config` describes.

    Only the images of the splits asked for are decoded, and, where no statistics are published,
    the training images, from which the format is then taken. No limit applies to a data set's own
    validation split.

    Args:
        config: which images.
        seed: for `limit_train` and for the validation split, ≥ 0.
        splits: any of 'train', 'val' and 'test'; None: all that there are.
        like: the format of a trained network. Images are converted to its size and channels,
            and targets are numbered in the order of its class names.

    Raises:
        StageCostError: the images cannot be had, or not as asked for.
    """
    _check(config, seed, splits)
    assert config.data is not None
    source = open_source(config.data)
    if len(source.class_names) < 2:
        raise StageCostError(
            f"{config.data} has images of one class only ({', '.join(source.class_names)}): "
            "it takes two or more, each in a directory of its own or with its own label"
        )
    if like is not None:
        _check_classes(source, like)
    rows = _choose_rows(source, config, seed)
    wanted = [split for split in SPLITS if split in (rows if splits is None else splits)]
    for split in wanted:
        _check_present(split, rows, config)
    known = _recognise(source)
    image_format, pixels = _read(
        source, rows, wanted=wanted, known=known, image_size=config.image_size, like=like
    )
    order = None if like is None else _class_order(source.class_names, like.class_names)
    loaded = {
        split: ImageSplit(torch.from_numpy(pixels[split]), _targets(rows[split], order, config))
        for split in wanted
    }
    augmentation = _augmentation(known, image_format.size, config.augment)
    return DataBundle(image_format, loaded, augmentation, known or source.name)


@dataclass(frozen=True)
class _Rows:
    """The chosen rows (int64, sorted) of one part of a source."""

    part: Part
    index: IntArray

    @property
    def labels(self) -> IntArray:
        return self.part.labels[self.index]


def _check(config: DataConfig, seed: int, splits: Collection[str] | None) -> None:
    if config.data is None or not config.data.strip():
        raise StageCostError(
            f"say which images to use: --data {', '.join(KNOWN_NAMES)}, a Hugging Face dataset id "
            "or a local folder"
        )
    if not 0 <= config.val_fraction < 1:
        raise StageCostError(
            f"val_fraction {config.val_fraction} is not in [0, 1): give a part such as "
            "--val-fraction 0.1"
        )
    for name in ("image_size", "limit_train", "limit_test"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise StageCostError(f"{name} {value} is less than 1: give at least 1, or leave it out")
    if config.augment not in ("auto", "none"):
        raise StageCostError(f"augment '{config.augment}' is unknown: give 'auto' or 'none'")
    if seed < 0:
        raise StageCostError(f"seed {seed} is negative: give 0 or more")
    unknown = sorted(set(splits or ()) - set(SPLITS))
    if unknown:
        raise StageCostError(f"split '{unknown[0]}' is unknown: ask for {', '.join(SPLITS)}")


def _check_present(split: str, rows: Mapping[str, _Rows], config: DataConfig) -> None:
    if split in rows:
        return
    if split == "val" and "train" in rows:
        count = len(rows["train"].index)
        raise StageCostError(
            f"val_fraction {config.val_fraction} of {count} training images leaves none for "
            "validation: hold out more of them (--val-fraction 0.1)"
        )
    raise StageCostError(
        f"{config.data} has no {split} split (only {', '.join(rows)}): give data with training images"
    )


def _choose_rows(source: Source, config: DataConfig, seed: int) -> dict[str, _Rows]:
    """Choose the images of each split from the labels alone; no image is read."""
    rows = {split: _Rows(part, np.arange(len(part.labels))) for split, part in source.parts.items()}
    if "train" in rows and "test" not in rows:
        rows["train"], rows["test"] = _hold_out(rows["train"], TEST_FRACTION, FIXED_SEED)
    if "train" in rows:
        rows["train"] = _limit(rows["train"], config.limit_train, seed)
    if "test" in rows:
        rows["test"] = _limit(rows["test"], config.limit_test, FIXED_SEED)
    if "train" in rows and "val" not in rows:
        count = len(rows["train"].index)
        held_out = round(config.val_fraction * count)
        if held_out == count:
            raise StageCostError(
                f"val_fraction {config.val_fraction} of {count} images leaves none for training: "
                "give a smaller --val-fraction or more images"
            )
        if held_out:
            split_seed = int(_seeds(seed, _VALIDATION).generate_state(1)[0])
            rows["train"], rows["val"] = _hold_out(rows["train"], held_out, split_seed)
    return rows


def _hold_out(rows: _Rows, size: float, seed: int) -> tuple[_Rows, _Rows]:
    """Split off `size` (a count or a fraction) of the rows; stratified where the classes allow."""
    from sklearn.model_selection import train_test_split

    total = len(rows.index)
    held_out = size if isinstance(size, int) else int(np.ceil(size * total))
    if held_out >= total:
        raise StageCostError(
            f"{total} training image(s) leave nothing to train on once the test images are held "
            "out: give more images"
        )
    _, members = np.unique(rows.labels, return_counts=True)
    stratified = members.min() >= 2 and len(members) <= min(held_out, total - held_out)
    rest, held = train_test_split(
        rows.index,
        test_size=held_out,
        random_state=seed,
        stratify=rows.labels if stratified else None,
    )
    return _Rows(rows.part, np.sort(rest)), _Rows(rows.part, np.sort(held))


def _limit(rows: _Rows, limit: int | None, seed: int) -> _Rows:
    if limit is None or limit >= len(rows.index):
        return rows
    drawn = np.random.default_rng(_seeds(seed, _LIMIT)).permutation(rows.index)[:limit]
    return _Rows(rows.part, np.sort(drawn))


def _read(
    source: Source,
    rows: Mapping[str, _Rows],
    *,
    wanted: Collection[str],
    known: str | None,
    image_size: int | None,
    like: ImageFormat | None,
) -> tuple[ImageFormat, dict[str, ByteArray]]:
    """Decode the splits `wanted`; the format is `like`, or published, or that of the images."""
    image_format = like or _published_format(known, image_size, source.class_names)
    if like is not None and image_size not in (None, like.size):
        raise StageCostError(
            f"image_size {image_size} is not the {like.size} pixels that the network was trained "
            "on: leave --image-size out"
        )
    pixels: dict[str, ByteArray] = {}
    if image_format is None:
        image_format, pixels = _measured_format(source, rows, image_size)
    for split in wanted:
        if split not in pixels:
            pixels[split] = read_pixels(
                rows[split].part.images,
                rows[split].index,
                channels=image_format.channels,
                size=image_format.size,
            )
    return image_format, pixels


def _published_format(
    known: str | None, image_size: int | None, class_names: tuple[str, ...]
) -> ImageFormat | None:
    if known is None or KNOWN[known].statistics is None:
        return None
    facts = KNOWN[known]
    assert facts.statistics is not None
    return ImageFormat(facts.channels, image_size or facts.size, *facts.statistics, class_names)


def _measured_format(
    source: Source, rows: Mapping[str, _Rows], image_size: int | None
) -> tuple[ImageFormat, dict[str, ByteArray]]:
    """Decode the training images, and take the format from them.

    Images held out of them for validation count, so that the format does not depend on how many
    are.
    """
    if "train" not in rows:
        raise StageCostError(
            f"{source.name} has no training images to take mean and size from: give a folder with "
            "a train directory"
        )
    train = rows["train"]
    own = [split for split in ("train", "val") if split in rows and rows[split].part is train.part]
    index = np.sort(np.concatenate([rows[split].index for split in own]))
    everything = read_pixels(train.part.images, index, size=image_size)
    mean, std = _statistics(everything)
    channels, size = everything.shape[1:3]
    places = {split: np.searchsorted(index, rows[split].index) for split in own}
    pixels = {
        split: everything if len(own) == 1 else everything[place] for split, place in places.items()
    }
    return ImageFormat(channels, size, mean, std, source.class_names), pixels


def _statistics(pixels: ByteArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, exactly, by counting byte values."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(pixels.shape[1]):
        counts = sum(
            np.bincount(chunk[:, channel].reshape(-1), minlength=256)
            for chunk in np.array_split(pixels, 1 + len(pixels) // 4096)
        )
        share = counts / np.sum(counts)
        mean = float(share @ levels)
        deviation = float(np.sqrt(share @ (levels - mean) ** 2))
        means.append(mean)
        stds.append(deviation if deviation > 1e-6 else 1.0)  # one flat colour: leave the scale
    return tuple(means), tuple(stds)


def _targets(rows: _Rows, order: IntArray | None, config: DataConfig) -> Tensor:
    labels = rows.labels
    if len(labels) and labels.min() < 0:
        raise StageCostError(
            f"{config.data} has a split whose labels are withheld (label {labels.min()}): "
            "give data with labels for the splits in use"
        )
    return torch.from_numpy(labels if order is None else order[labels])


def _augmentation(known: str | None, size: int, augment: str) -> Augmentation:
    if augment == "none":
        return NO_AUGMENTATION
    if known is None:
        return Augmentation(pad=size // 8, flip=True)
    usual = KNOWN[known].augmentation
    return Augmentation(round(usual.pad * size / KNOWN[known].size), usual.flip)


def _check_classes(source: Source, like: ImageFormat) -> None:
    ours, theirs = source.class_names, like.class_names
    if len(ours) != len(theirs):
        raise StageCostError(
            f"{source.name} has {len(ours)} classes and the network tells {len(theirs)} apart: "
            "give data with the classes that it was trained on"
        )
    if _are_names(ours) and _are_names(theirs) and _distinct(ours) != _distinct(theirs):
        other = sorted(set(ours) - set(theirs))
        raise StageCostError(
            f"{source.name} has classes that the network was not trained on ({other[0]}, …; it "
            f"knows {theirs[0]}, …): give data with the same classes"
        )


def _are_names(names: tuple[str, ...]) -> bool:
    """Whether these are names, not the numbers that stand in for them ('class 7')."""
    return not all(re.fullmatch(r"class -?\d+", name) for name in names)


def _distinct(names: tuple[str, ...]) -> frozenset[str]:
    """Return the names reduced by `_key`, unless that makes two of them equal."""
    keys = _keys(names)
    return keys if len(keys) == len(names) else frozenset(names)


def _class_order(ours: tuple[str, ...], theirs: tuple[str, ...]) -> IntArray | None:
    """Return the network's number of each of our classes; None where names do not tell."""
    if not (_are_names(ours) and _are_names(theirs)) or ours == theirs:
        return None
    reduced = len(_keys(theirs)) == len(theirs)
    place = {_key(name) if reduced else name: number for number, name in enumerate(theirs)}
    return np.array([place[_key(name) if reduced else name] for name in ours])


# ---------------------------------------------------------------------------------------------
# Batches


def _seeds(seed: int, *stream: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=stream)


def _generator(seed: int, *stream: int) -> torch.Generator:
    state = int(_seeds(seed, *stream).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def normalise(images: Tensor, image_format: ImageFormat) -> Tensor:
    """Return bytes (n, channels, height, width) as float32, of mean 0 and variance 1 per channel.

    "Mean 0 and variance 1" hold over the training images: a pixel becomes
    (pixel / 255 - mean) / std, with the format's mean and std.
    """
    mean = torch.tensor(image_format.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(image_format.std, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - mean) / std


def num_batches(split_len: int, batch_size: int) -> int:
    """Return the number of training batches in an epoch; only whole ones, but at least one.

    Raises:
        StageCostError: `batch_size` is less than 1, or there are no images.
    """
    if batch_size < 1:
        raise StageCostError(f"batch size {batch_size} is less than 1: give at least 1")
    if split_len < 1:
        raise StageCostError(f"a split of {split_len} images has no batches: give more images")
    return max(1, split_len // batch_size)


def check_shares(split_len: int, batch_size: int, world_size: int) -> None:
    """Refuse batches that have fewer images than there are processes.

    Raises:
        StageCostError: as described.
    """
    size = min(batch_size, split_len)
    if size < world_size:
        raise StageCostError(
            f"a batch of {size} image(s) cannot be shared by {world_size} processes: "
            "raise the batch size or use fewer processes"
        )


def epoch_batches(
    split: ImageSplit,
    image_format: ImageFormat,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return an iterator over one epoch's shuffled training batches.

    A batch depends on `seed`, `epoch` and its place in the epoch only: a run that is resumed at
    `first_batch` sees what it would have seen. The images left over after the last whole batch
    are dropped (others in each epoch); a split smaller than one batch is one batch.

    Args:
        split: the training images.
        image_format: how to normalise them.
        batch_size: images in a batch, over all processes together.
        seed: ≥ 0; with `epoch`, decides the order; with the batch's place too, the augmentation.
        epoch: counted from 0.
        augmentation: applied to the bytes, before they are normalised.
        first_batch: the first batch to yield, counted from 0.
        rank: this process, which gets every `world_size`-th image of a batch from number `rank`.
        world_size: the number of processes.
        device: where the batches are to be; None: where the split is.

    Yields:
        Normalised float32 images (n, channels, height, width) and int64 targets (n,).

    Raises:
        StageCostError: the batch size is less than 1, or a batch has fewer images than there are
            processes.
    """
    count = num_batches(len(split), batch_size)
    check_shares(len(split), batch_size, world_size)
    size = min(batch_size, len(split))
    order = torch.randperm(len(split), generator=_generator(seed, _ORDER, epoch))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(first_batch, count):
            rows = order[batch * size : (batch + 1) * size]
            # Drawn for the whole batch, so that the processes together see what one would see.
            draws = augmentation.draw(size, _generator(seed, _AUGMENT, epoch, batch))
            images, targets = _take(split, rows[rank::world_size], device)
            images = augmentation.apply(images, draws[rank::world_size])
            yield normalise(images, image_format), targets

    return batches()


def _take(split: ImageSplit, rows: Tensor, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    rows = rows.to(split.images.device)
    images, targets = split.images[rows], split.targets[rows]
    return (images, targets) if device is None else (images.to(device), targets.to(device))


@dataclass(frozen=True)
class EvalBatches:
    """The batches of a split in order, including a short last one; may be iterated repeatedly.

    Yields normalised float32 images (n, channels, height, width) and int64 targets (n,).
    """

    split: ImageSplit
    image_format: ImageFormat
    batch_size: int
    device: torch.device | str | None

    def __len__(self) -> int:
        """Return the number of batches."""
        return (len(self.split) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches."""
        for at in range(0, len(self.split), self.batch_size):
            images = self.split.images[at : at + self.batch_size]
            targets = self.split.targets[at : at + self.batch_size]
            if self.device is not None:
                images, targets = images.to(self.device), targets.to(self.device)
            yield normalise(images, self.image_format), targets


def eval_batches(
    split: ImageSplit,
    image_format: ImageFormat,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> EvalBatches:
    """Return the batches of `split` in order, without augmentation, the short last one included.

    Raises:
        StageCostError: `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise StageCostError(f"batch size {batch_size} is less than 1: give at least 1")
    return EvalBatches(split, image_format, batch_size, device)
