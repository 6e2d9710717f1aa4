"""Images in memory, as a `DataConfig` describes them.

`load_data` returns a `DataBundle`: bytes for the splits asked for, the format that a network for them
has, and the augmentation that is usual for them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stagecost.data.augmentation import NO_AUGMENTATION, Augmentation
from stagecost.data.class_names import check_classes, class_order, name_keys
from stagecost.data.config import DataConfig
from stagecost.data.decoding import peek_shape, read_pixels
from stagecost.data.encoded import ByteArray, IntArray, Source
from stagecost.data.images import ImageFormat, ImageSplit
from stagecost.data.known import KNOWN, KNOWN_NAMES
from stagecost.data.sources import open_source
from stagecost.data.splits import SPLITS, Rows, check_present, choose_rows
from stagecost.errors import StageCostError


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

    def to(self, device: torch.device) -> "DataBundle":
        """Return it with all images and targets on a device."""
        return replace(self, splits={name: split.to(device) for name, split in self.splits.items()})


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
        check_classes(source.name, source.class_names, like.class_names)
    rows = choose_rows(source, config, seed)
    wanted = [split for split in SPLITS if split in (rows if splits is None else splits)]
    for split in wanted:
        check_present(split, rows, config)
    known = _recognise(source)
    image_format, pixels = _read(
        source, rows, wanted=wanted, known=known, image_size=config.image_size, like=like
    )
    order = None if like is None else class_order(source.class_names, like.class_names)
    loaded = {
        split: ImageSplit(torch.from_numpy(pixels[split]), _targets(rows[split], order, config))
        for split in wanted
    }
    augmentation = _augmentation(known, image_format.size, config.augment)
    return DataBundle(image_format, loaded, augmentation, known or source.name)


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


def _recognise(source: Source) -> str | None:
    """Name the well-known data set that this is, by its class names and its first image."""
    if source.known is not None:
        return source.known
    names = name_keys(source.class_names)
    alike = [
        name
        for name, known in KNOWN.items()
        if known.num_classes == len(source.class_names) and known.some_names <= names
    ]
    if not alike:
        return None
    shape = peek_shape(next(iter(source.parts.values())).images, 0)
    return next((n for n in alike if shape == (KNOWN[n].channels, KNOWN[n].size)), None)


def _read(
    source: Source,
    rows: Mapping[str, Rows],
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
    source: Source, rows: Mapping[str, Rows], image_size: int | None
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


def _targets(rows: Rows, order: IntArray | None, config: DataConfig) -> Tensor:
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
