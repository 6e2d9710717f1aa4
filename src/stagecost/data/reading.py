"""Decoding the splits of a source, one format for all.

What a format leaves open is settled by the training images: channels, size, mean and standard deviation.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from stagecost.data.class_names import listed, shown
from stagecost.data.config import DataConfig
from stagecost.data.decoding import BACKGROUND, Pixels, peek_shape, read_pixels
from stagecost.data.encoded import ByteArray, Source
from stagecost.data.images import ImageFormat, ImageSplit
from stagecost.data.known import KNOWN
from stagecost.data.splits import Rows
from stagecost.errors import StageCostError
from stagecost.text import counted

SAME_STATISTICS = 5e-3  # within this, published means and deviations are those of the training images


class Reader:
    """Decodes splits one by one; what the format leaves open is settled by the training images."""

    def __init__(
        self, source: Source, rows: Mapping[str, Rows], config: DataConfig, like: ImageFormat | None
    ) -> None:
        """Take what is to be read; `like` is the format, if that is settled already."""
        if like is not None and config.image_size not in (None, like.size):
            raise StageCostError(
                f"--image-size {config.image_size} is not the {like.size} pixels that the network was "
                "trained on: leave it out"
            )
        self.source, self.rows, self.config = source, dict(rows), config
        self.known_format, self.judging = like, like is not None
        self.interpolation = config.interpolation or ImageFormat.interpolation
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
        images, which = counted(len(self.broken), "image"), listed(self.broken, 20)
        text = f"{images} cannot be decoded: {which}"
        empty = [split for split in self.splits if not len(self.splits[split])]
        if empty:
            raise StageCostError(f"{text}: replace them, as no {empty[0]} image is left")
        if not self.config.skip_broken:
            remedy = "" if self.judging else ", or leave such images out by --skip-broken"
            raise StageCostError(f"{text}: replace or remove it{remedy}")
        self.warnings.append(f"left out {images} that cannot be decoded: {which}")

    def _decode(self, splits: Sequence[str], image_format: ImageFormat | None) -> Pixels:
        """Decode splits that are in one part of the source, and keep their images."""
        part = self.rows[splits[0]].part
        index = np.sort(np.concatenate([self.rows[split].index for split in splits]))
        if image_format is None:
            channels = len(self.config.mean) if self.config.mean else None
            size, levels, way = self.config.image_size, None, self.interpolation
        else:
            channels, size = image_format.channels, image_format.size
            levels, way = image_format.levels, image_format.interpolation
        pixels = read_pixels(
            part.images, index, channels=channels, size=size, levels=levels, interpolation=way
        )
        if image_format is not None and levels is None and pixels.levels is not None:
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
        together = [
            split for split in ("train", "val") if split in self.rows and self.rows[split].part is part
        ]
        pixels = self._decode(together, None)
        if not len(pixels.kept):
            self.refuse_broken()
        channels, size = pixels.array.shape[1:3]
        statistics = _statistics(pixels.array)
        facts = KNOWN.get(resembling(self.source) or "")
        published = facts and facts.statistics
        if published and np.allclose(statistics, published, rtol=0, atol=SAME_STATISTICS):
            statistics = published
        if self.config.mean and self.config.std:
            statistics = self.config.mean, self.config.std
        names, way = self.source.class_names, self.interpolation
        return ImageFormat(channels, size, *statistics, names, pixels.levels, way)


def resembling(source: Source) -> str | None:
    """Name the well-known data set with the same class names and the same shape of the first image."""
    shape = peek_shape(next(iter(source.parts.values())).images, 0)
    alike = (name for name, known in KNOWN.items() if known.resembles(source.class_names))
    return next((n for n in alike if shape == (KNOWN[n].channels, KNOWN[n].size)), None)


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
