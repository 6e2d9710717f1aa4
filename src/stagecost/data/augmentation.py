"""Random shifts and mirror images, drawn apart from where they are applied."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Random shifts and mirror images, for a whole batch at once."""

    #: the largest shift, in pixels: images are padded with zeros by so much on every side and cropped to
    #: their size at a random place
    pad: int
    flip: bool  #: whether half of the images, drawn at random, are mirrored left to right

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw for `count` images: row, column (0 … 2·pad) and mirrored (0, 1), int64 (count, 3).

        The generator is on the CPU, so that they are the same for every device.
        """
        draws = torch.zeros(count, 3, dtype=torch.int64)
        if self.pad:
            draws[:, :2] = torch.randint(2 * self.pad + 1, (count, 2), generator=generator)
        if self.flip:
            draws[:, 2] = torch.randint(2, (count,), generator=generator)
        return draws

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Shift and mirror a batch (n, channels, height, width) of any type as was drawn, (n, 3)."""
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
