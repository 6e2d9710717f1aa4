"""Labelled images in memory, and the format that a network takes them in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.records import JsonObject, read_typed, writable

LARGEST = 4096  # side of images, in pixels
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class ImageFormat:
    """The images that a network takes, and the classes that it tells apart."""

    channels: int  #: 1 (grey) or 3 (red, green, blue)
    size: int  #: side of the square images, in pixels
    mean: tuple[float, ...]  #: mean of each channel, for pixels in [0, 1]
    std: tuple[float, ...]  #: standard deviation of each channel, for pixels in [0, 1]
    class_names: tuple[str, ...]  #: the name of each class, in the order of the targets
    #: the values of pixels of more than 8 bits that became 0 and 255 in the training images; None if
    #: there were none
    levels: tuple[float, float] | None = None
    interpolation: str = "bicubic"  #: by which images are resized: bicubic or bilinear

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    def to_json(self) -> JsonObject:
        """Return the format as a dictionary of plain numbers, strings and lists."""
        return dict(writable(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ImageFormat":
        """Rebuild a format from `to_json`'s dictionary.

        Raises:
            StageCostError: an entry is missing, has the wrong length or an impossible value.
        """
        try:
            hints = get_type_hints(cls)
            given = {"levels": None, "interpolation": cls.interpolation, **content}
            result = cls(**{name: read_typed(hints[name], given[name], name) for name in hints})
        except KeyError as error:
            raise StageCostError(
                f"the stored image format has no entry {error}: save the network again"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            raise StageCostError(
                f"the stored image format is damaged ({error}): save the network again"
            ) from error
        if wrong := result._impossible():
            raise StageCostError(f"the stored image format has {wrong}: save the network again")
        return result

    def _impossible(self) -> str:
        """Name what no network can take; "" if there is nothing."""
        mean, std, names = self.mean, self.std, self.class_names
        low, high = self.levels or (0, 1)
        numbers = f"{self.channels} channels, {len(mean)} means and {len(std)} standard deviations"
        checks = {
            numbers: not len(mean) == len(std) == self.channels,
            f"{self.channels} channels": self.channels not in (1, 3),
            f"a size of {self.size} pixels": not 1 <= self.size <= LARGEST,
            "no class names, or one twice": not len(names) == len({*names}) > 0,
            f"the means {mean}": not all(map(math.isfinite, mean)),
            f"the standard deviations {std}": not all(0 < s < math.inf for s in std),
            f"the interpolation {self.interpolation!r}": self.interpolation not in INTERPOLATIONS,
            f"the levels {self.levels}": not -math.inf < low < high < math.inf,
        }
        return next((what for what, wrong in checks.items() if wrong), "")


@dataclass(frozen=True)
class ImageSplit:
    """Labelled images in memory."""

    images: Tensor  #: bytes (uint8) of shape (n, channels, height, width)
    targets: Tensor  #: class numbers (int64) of shape (n,)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    def first(self, count: int) -> "ImageSplit":
        """Return the first images only, or all if there are no more."""
        return ImageSplit(self.images[:count], self.targets[:count])

    def to(self, device: torch.device | str) -> "ImageSplit":
        """Return the split on a device."""
        return ImageSplit(self.images.to(device), self.targets.to(device))


def normalise(images: Tensor, image_format: ImageFormat) -> Tensor:
    """Return bytes (n, channels, height, width) as float32, of mean 0 and variance 1 per channel.

    "Mean 0 and variance 1" hold over the training images: a pixel becomes
    (pixel / 255 - mean) / std, with the format's mean and std.
    """
    mean = torch.tensor(image_format.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(image_format.std, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - mean) / std
