"""Images in memory, as a `DataConfig` describes them.

`load_data` returns a `DataBundle`: bytes for the splits asked for, the format that a network for them
has, and the augmentation that is usual for them.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from stagecost.data.augmentation import NO_AUGMENTATION, Augmentation
from stagecost.data.class_names import counted, listed, name_key, parse_classes, shown
from stagecost.data.classes import for_network
from stagecost.data.config import DataConfig
from stagecost.data.decoding import BACKGROUND, Pixels, peek_shape, read_pixels
from stagecost.data.encoded import WITHHELD, ByteArray, Source
from stagecost.data.images import LARGEST, ImageFormat, ImageSplit
from stagecost.data.known import KNOWN, KNOWN_NAMES
from stagecost.data.sources import open_source
from stagecost.data.split_names import SPLITS
from stagecost.data.splits import Rows, check_present, choose_rows
from stagecost.errors import StageCostError

logger = logging.getLogger("stagecost")

ALL = "all"  # the images of all splits together


@dataclass(frozen=True)
class DataBundle:
    """Everything that training and evaluation need to know about the images.

    Attributes:
        format: what the network takes.
        splits: the splits that were asked for, by the names 'train', 'val' and 'test', or 'all'.
        augmentation: what is usual for training on these images, or none if that was asked for.
        name: the data set's name.
        chosen: which images make each split, those included that were not asked for.
        warnings: what was left out, and what looks odd; a line each.
    """

    format: ImageFormat
    splits: dict[str, ImageSplit]
    augmentation: Augmentation
    name: str
    chosen: Mapping[str, Rows] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.format.class_names)

    def to(self, device: torch.device) -> "DataBundle":
        """Return it with all images and targets on a device."""
        return replace(self, splits={name: split.to(device) for name, split in self.splits.items()})

    def summary(self) -> str:
        """Say in a few lines which classes there are, and how many images of each every split has."""
        kind, size = "grey" if self.format.channels == 1 else "colour", self.format.size
        names = listed(self.format.class_names, 10)
        lines = [
            f"{shown(self.name)}: {self.num_classes} classes ({names}), {kind} images of {size}×{size}"
        ]
        for split, rows in self.chosen.items():
            counts = _counts(rows, self.num_classes)
            each = f"{min(counts)} to {max(counts)} of each class"
            if len(counts) <= 10:
                each = ", ".join(
                    f"{shown(name)} {count}"
                    for name, count in zip(self.format.class_names, counts, strict=True)
                )
            lines.append(f"  {split}: {counted(len(rows.index), 'image')} ({each})")
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])


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
    validation split. Classes, images of each split and warnings go to the logger "stagecost".

    Args:
        config: which images.
        seed: for `limit_train` and for the validation split, ≥ 0.
        splits: any of 'train', 'val', 'test' and 'all'; None: the first three, as far as they are there.
        like: the format of a trained network. Images are converted to its size and channels,
            and targets are numbered in the order of its class names.

    Raises:
        StageCostError: the images cannot be had, or not as asked for.
    """
    _check(config, seed, splits)
    source = open_source(config, () if like is None else like.class_names)
    if like is not None:
        source = for_network(source, like.class_names, parse_classes(config.classes))
    elif len(source.class_names) < 2:
        raise StageCostError(
            f"{shown(config.data)} has images of {'one' if source.class_names else 'no'} class only "
            f"({listed(source.class_names)}): it takes two or more, each in a directory of its own or with its own label{_beside(source)}"
        )
    rows = choose_rows(source, config, seed)
    wanted = _wanted(splits, rows, config)
    reader = _Reader(source, rows, config, like)
    for split in wanted:
        reader.read(split)
    reader.refuse_broken()
    loaded = {split: reader.splits[split] for split in wanted}
    if splits is not None and ALL in splits:
        every = ImageSplit(
            *(torch.cat([getattr(s, part) for s in loaded.values()]) for part in ("images", "targets"))
        )
        loaded = {split: loaded[split] for split in splits if split != ALL} | {ALL: every}
    image_format = reader.format
    bundle = DataBundle(
        image_format,
        loaded,
        _augmentation(_resembling(source), image_format.size, config.augment),
        source.name,
        reader.rows,
        (*source.warnings, *_lacking(reader.rows, image_format.class_names), *reader.warnings),
    )
    logger.info(bundle.summary().split("\n  warning: ")[0])
    for text in bundle.warnings:
        logger.warning(text)
    return bundle


class _Reader:
    """Decodes splits one by one; what the format leaves open is settled by the training images."""

    def __init__(
        self, source: Source, rows: Mapping[str, Rows], config: DataConfig, like: ImageFormat | None
    ) -> None:
        if like is not None and config.image_size not in (None, like.size):
            raise StageCostError(
                f"--image-size {config.image_size} is not the {like.size} pixels that the network was "
                "trained on: leave it out"
            )
        self.source, self.rows, self.config = source, dict(rows), config
        self.known_format = like or _published_format(source, config.image_size)
        self.splits: dict[str, ImageSplit] = {}
        self.broken: list[str] = []
        self.warnings: list[str] = []

    @property
    def format(self) -> ImageFormat:
        """The format of a network for the images."""
        if self.known_format is None:
            self.known_format = self._measured_format()
        return self.known_format

    def read(self, split: str) -> None:
        """Decode a split, unless that is done."""
        image_format = self.format
        if split not in self.splits:
            self._decode([split], image_format)

    def refuse_broken(self) -> None:
        """Refuse images that cannot be decoded, all of them at once, or note that they are left out."""
        if not self.broken:
            return
        text = f"{counted(len(self.broken), 'image')} cannot be decoded: {listed(self.broken, 20)}"
        empty = [split for split in self.splits if not len(self.splits[split])]
        if empty:
            raise StageCostError(f"{text}: replace them, as no {empty[0]} image is left")
        if not self.config.skip_broken:
            raise StageCostError(
                f"{text}: replace or remove it, or leave such images out by --skip-broken"
            )
        self.warnings.append(f"left out {text}")

    def _decode(self, splits: Sequence[str], image_format: ImageFormat | None) -> Pixels:
        """Decode splits that are in one part of the source, and keep their images."""
        part = self.rows[splits[0]].part
        index = np.sort(np.concatenate([self.rows[split].index for split in splits]))
        if image_format is None:
            pixels = read_pixels(part.images, index, size=self.config.image_size)
        else:
            channels, size, levels = image_format.channels, image_format.size, image_format.levels
            pixels = read_pixels(part.images, index, channels=channels, size=size, levels=levels)
            if levels is None and pixels.levels is not None:
                self.warnings.append(
                    f"{splits[0]} has images of more than 8 bits, and the training images had none: "
                    f"scaled from {pixels.levels[0]:g} … {pixels.levels[1]:g}"
                )
        if pixels.clipped:
            self.warnings.append(
                f"{splits[0]} has brighter or darker pixels than the training images: cut off"
            )
        self.broken += pixels.broken
        kept = index[pixels.kept]
        for split in splits:
            rows = self.rows[split].index
            self.rows[split] = Rows(part, rows[np.isin(rows, kept)])
            places = np.searchsorted(kept, self.rows[split].index)
            array = pixels.array if len(places) == len(kept) else pixels.array[places]
            targets = torch.from_numpy(self.rows[split].labels)
            self.splits[split] = ImageSplit(torch.from_numpy(array), targets)
        if _all_alike(pixels.array) and (self.config.skip_broken or not pixels.broken):
            self._judge_alike(splits)
        return pixels

    def _judge_alike(self, splits: Sequence[str]) -> None:
        count = len(self.splits[splits[0]])
        text = f"all {count} {splits[0]} images of {shown(self.source.name)} are alike"
        if "train" in splits:
            raise StageCostError(
                f"{text}, once decoded (transparent pixels are laid on {BACKGROUND}): there is nothing "
                "to learn from them, so look at the files"
            )
        if count > 1:
            self.warnings.append(text)

    def _measured_format(self) -> ImageFormat:
        """Decode the training images, and take the format from them.

        Images held out of them for validation count, so that the format does not depend on how many
        are.
        """
        if "train" not in self.rows:
            raise StageCostError(
                f"{shown(self.source.name)} has no training images to take mean and size from: give a "
                "folder with a train directory"
            )
        part = self.rows["train"].part
        own = [
            split for split in ("train", "val") if split in self.rows and self.rows[split].part is part
        ]
        pixels = self._decode(own, None)
        if not len(pixels.kept):
            self.refuse_broken()
        channels, size = pixels.array.shape[1:3]
        mean, std = _statistics(pixels.array)
        return ImageFormat(channels, size, mean, std, self.source.class_names, pixels.levels)


def _beside(source: Source) -> str:
    return f" ({'; '.join(source.warnings)})" if source.warnings else ""


def _check(config: DataConfig, seed: int, splits: Collection[str] | None) -> None:
    if config.data is None or not config.data.strip():
        raise StageCostError(
            f"say which images to use: --data {', '.join(KNOWN_NAMES)}, a Hugging Face dataset id "
            "or a local folder"
        )
    if not 0 <= config.val_fraction < 1:
        raise StageCostError(
            f"--val-fraction {config.val_fraction} is not in [0, 1): give --val-fraction 0.1"
        )
    for name in ("limit_train", "limit_test", "image_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            flag = f"--{name.replace('_', '-')}"
            raise StageCostError(f"{flag} {value} is less than 1: give at least 1, or leave it out")
    if (config.image_size or 1) > LARGEST:
        raise StageCostError(f"--image-size {config.image_size} is above {LARGEST}: give fewer pixels")
    if config.augment not in ("auto", "none"):
        raise StageCostError(f"--augment '{config.augment}' is unknown: give 'auto' or 'none'")
    if seed < 0:
        raise StageCostError(f"--seed {seed} is negative: give 0 or more")
    unknown = sorted(set(splits or ()) - {*SPLITS, ALL})
    if unknown:
        raise StageCostError(f"split '{unknown[0]}' is unknown: ask for {', '.join(SPLITS)} or {ALL}")


def _wanted(splits: Collection[str] | None, rows: Mapping[str, Rows], config: DataConfig) -> list[str]:
    """Return the splits to read, in order; each is there, and its labels are told."""
    everything = splits is None or ALL in splits
    wanted = [split for split in SPLITS if split in (rows if everything else splits or ())]
    for split in wanted:
        check_present(split, rows, config)
        labels = rows[split].labels
        withheld = int(np.count_nonzero(labels == WITHHELD))
        if withheld:
            raise StageCostError(
                f"{shown(config.data)} has {withheld} {split} images whose labels are withheld (label "
                "-1): give data with labels for the splits in use"
            )
    return wanted


def _counts(rows: Rows, num_classes: int) -> list[int]:
    labels = rows.labels
    counts: list[int] = np.bincount(labels[labels >= 0], minlength=num_classes).tolist()
    return counts


def _lacking(chosen: Mapping[str, Rows], names: Sequence[str]) -> list[str]:
    """Say which classes have no images in a split, and which splits have no labels."""
    warnings = []
    for split, rows in chosen.items():
        lacking = [
            name for name, count in zip(names, _counts(rows, len(names)), strict=True) if not count
        ]
        withheld = int(np.count_nonzero(rows.labels == WITHHELD))
        if withheld:
            warnings.append(f"{counted(withheld, f'{split} image')} without a label")
        elif lacking and (split != "val" or rows.part is not chosen["train"].part):
            warnings.append(
                f"{counted(len(lacking), 'class')} without {split} images: {listed(lacking, 5)}"
            )
    return warnings


def _resembling(source: Source) -> str | None:
    """Name the well-known data set with the same class names and the same shape of the first image."""
    names = frozenset(map(name_key, source.class_names))
    shape = peek_shape(next(iter(source.parts.values())).images, 0)
    for name, known in KNOWN.items():
        if known.num_classes != len(source.class_names) or not known.some_names <= names:
            continue
        if shape == (known.channels, known.size):
            return name
    return None


def _published_format(source: Source, image_size: int | None) -> ImageFormat | None:
    """Return the published format, if this certainly is the data set that it was published of."""
    facts = KNOWN.get(source.known or "")
    if facts is None or facts.statistics is None or source.known != _resembling(source):
        return None
    return ImageFormat(facts.channels, image_size or facts.size, *facts.statistics, source.class_names)


def _all_alike(pixels: ByteArray) -> bool:
    """Whether all pixels have one value, or several images are one and the same."""
    same = all((chunk == pixels[:1]).all() for chunk in np.array_split(pixels, 1 + len(pixels) // 64))
    return len(pixels) > 0 and same and (len(pixels) > 1 or bool(pixels.min() == pixels.max()))


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


def _augmentation(known: str | None, size: int, augment: str) -> Augmentation:
    if augment == "none":
        return NO_AUGMENTATION
    if known is None:
        return Augmentation(pad=size // 8, flip=True)
    usual = KNOWN[known].augmentation
    return Augmentation(round(usual.pad * size / KNOWN[known].size), usual.flip)
