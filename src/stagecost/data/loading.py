"""Images in memory, as a `DataConfig` describes them.

`load_data` returns a `DataBundle`: bytes for the splits asked for, the format that a network for them
has, and the augmentation that is usual for them.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from stagecost.data.augmentation import NO_AUGMENTATION, Augmentation
from stagecost.data.class_names import listed, parse_classes, shown
from stagecost.data.classes import for_network
from stagecost.data.config import DataConfig
from stagecost.data.encoded import WITHHELD
from stagecost.data.images import LARGEST, ImageFormat, ImageSplit
from stagecost.data.known import KNOWN, KNOWN_NAMES
from stagecost.data.reading import Reader, resembling
from stagecost.data.sources import open_source
from stagecost.data.split_names import SPLITS
from stagecost.data.splits import Rows, check_present, choose_rows
from stagecost.errors import StageCostError
from stagecost.text import counted

logger = logging.getLogger("stagecost")

ALL = "all"  # the images of all splits together


@dataclass(frozen=True)
class DataBundle:
    """Everything that training and evaluation need to know about the images."""

    format: ImageFormat  #: what the network takes
    #: the splits that were asked for, by the names 'train', 'val' and 'test', or 'all'
    splits: dict[str, ImageSplit]
    #: what is usual for training on these images, or none if that was asked for
    augmentation: Augmentation
    name: str  #: the data set's name
    #: which images make each split, those included that were not asked for
    chosen: Mapping[str, Rows] = field(default_factory=dict)
    #: of these, all that were not left out as broken; a split that was not read has them all
    kept: Mapping[str, Rows] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  #: what was left out, and what looks odd; a line each

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
        for split, rows in self.kept.items():
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

    Only the images of the splits asked for are decoded, and, without `like`, the training images, from
    which the format is then taken. No limit applies to a data set's own validation split. The warnings
    go to the logger "stagecost", too; `DataBundle.summary` counts the images of each class.

    Args:
        config: which images.
        seed: for `limit_train` and for the validation split, ≥ 0.
        splits: any of 'train', 'val', 'test' and 'all'; None: the first three, as far as they are there.
            For 'all' alone nothing is held out, and no limit applies.
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
        beside = f" ({'; '.join(source.warnings)})" if source.warnings else ""
        one = f"images of one class only ({listed(source.class_names)})"
        found = one if source.class_names else "no images"
        raise StageCostError(
            f"{shown(config.data)} has {found}: it takes two classes or more, each in a directory of "
            f"its own or with its own label{beside}"
        )
    rows = choose_rows(source, config, seed, hold_out=splits is None or {*splits} != {ALL})
    wanted = _wanted(splits, rows, config)
    reader = Reader(source, rows, config, like)
    for split in wanted:
        reader.read(split)
    reader.refuse_broken()
    loaded = {split: reader.splits[split] for split in wanted}
    if splits is not None and ALL in splits:
        every = [*loaded.values()]
        images, targets = torch.cat([s.images for s in every]), torch.cat([s.targets for s in every])
        loaded = {ALL: ImageSplit(images, targets)} | {s: loaded[s] for s in splits if s != ALL}
    image_format = reader.format
    bundle = DataBundle(
        image_format,
        loaded,
        _augmentation(resembling(source), image_format.size, config.augment),
        source.name,
        rows,
        reader.rows,
        (*source.warnings, *_lacking(reader.rows, image_format.class_names), *reader.warnings),
    )
    for text in bundle.warnings:
        logger.warning(text)
    return bundle


def has_validation(config: DataConfig, known: Sequence[str] = ()) -> bool:
    """Tell whether there are validation images: held out ones, or a data set's own.

    Args:
        config: which images.
        known: class names of a trained network.

    Raises:
        StageCostError: the data cannot be had.
    """
    return config.val_fraction > 0 or "val" in choose_rows(open_source(config, known), config, 0)


def _check(config: DataConfig, seed: int, splits: Collection[str] | None) -> None:
    if not config.data:
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
    _check_statistics(config.mean, config.std)
    if config.augment not in ("auto", "none"):
        raise StageCostError(f"--augment '{config.augment}' is unknown: give 'auto' or 'none'")
    if seed < 0:
        raise StageCostError(f"--seed {seed} is negative: give 0 or more")
    unknown = sorted(set(splits or ()) - {*SPLITS, ALL})
    if unknown:
        raise StageCostError(f"split '{unknown[0]}' is unknown: ask for {', '.join(SPLITS)} or {ALL}")


def _check_statistics(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    if mean is None and std is None:
        return
    good = mean and std and len(mean) == len(std) in (1, 3)
    if not (good and all(map(math.isfinite, mean or ())) and all(0 < s < math.inf for s in std or ())):
        raise StageCostError(
            f"--mean {mean} and --std {std} do not go together: give both, one number each for grey "
            "images or three for colours, deviations above 0"
        )


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


def _augmentation(known: str | None, size: int, augment: str) -> Augmentation:
    if augment == "none":
        return NO_AUGMENTATION
    if known is None:
        return Augmentation(pad=size // 8, flip=True)
    usual = KNOWN[known].augmentation
    return Augmentation(round(usual.pad * size / KNOWN[known].size), usual.flip)
