"""Labelled images in memory, and the format that a network takes them in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stagecost.errors import StageCostError


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
