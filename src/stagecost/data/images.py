"""Labelled images in memory, and the format that a network takes them in."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.records import JsonObject, read_typed

LARGEST = 4096  # side of images, in pixels
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class ImageFormat:
    """The images that a network takes, and the classes that it tells apart.

    Attributes:
        channels: 1 (grey) or 3 (red, green, blue).
        size: side of the square images, in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        class_names: the name of each class, in the order of the targets.
        levels: the values of pixels of more than 8 bits that became 0 and 255 in the training images;
            None if there were none.
        interpolation: by which images are resized: bicubic or bilinear.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    levels: tuple[float, float] | None = None
    interpolation: str = "bicubic"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    def to_json(self) -> JsonObject:
        """Return the format as a dictionary of plain numbers, strings and lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ImageFormat":
        """Rebuild a format from `to_json`'s dictionary.

        Raises:
            StageCostError: an entry is missing, has the wrong length or an impossible value.
        """
        try:
            hints = get_type_hints(cls)
            given = {name: content[name] for name in hints if name not in ("levels", "interpolation")}
            given["levels"] = content.get("levels")
            given["interpolation"] = content.get("interpolation", cls.interpolation)
            result = cls(**{name: read_typed(hints[name], v, name) for name, v in given.items()})
        except KeyError as error:
            raise StageCostError(
                f"the stored image format has no entry {error}: save the network again"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            raise StageCostError(
                f"the stored image format is damaged ({error}): save the network again"
            ) from error
        if not len(result.mean) == len(result.std) == result.channels:
            raise StageCostError(
                f"the stored image format has {result.channels} channels, {len(result.mean)} means "
                f"and {len(result.std)} standard deviations: save the network again"
            )
        for what, wrong in (
            (f"{result.channels} channels", result.channels not in (1, 3)),
            (f"a size of {result.size} pixels", not 1 <= result.size <= LARGEST),
            (
                "no class names, or one twice",
                not len(result.class_names) == len({*result.class_names}) > 0,
            ),
            (f"the means {result.mean}", not all(map(math.isfinite, result.mean))),
            (f"the standard deviations {result.std}", not all(0 < s < math.inf for s in result.std)),
            (
                f"the interpolation {result.interpolation!r}",
                result.interpolation not in INTERPOLATIONS,
            ),
            (f"the levels {result.levels}", result.levels is not None and not _is_range(*result.levels)),
        ):
            if wrong:
                raise StageCostError(f"the stored image format has {what}: save the network again")
        return result


def _is_range(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low < high


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
