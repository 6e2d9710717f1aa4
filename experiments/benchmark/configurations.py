"""The networks and batches that the ratios are measured on; a table shows all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork

NUM_CLASSES = 10
SEED = 0


@dataclass(frozen=True)
class Configuration:
    """A network by name and arguments, and the size of the batches that it gets.

    Attributes:
        name: what the tables call it.
        model: a name of `stagecost.list_models()`.
        arguments: of the builder.
        image_size: side of the square colour images.
        batch_size: B.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    image_size: int
    batch_size: int

    def network(self, device: torch.device) -> ResidualNetwork:
        """Build the network as training holds it: from the seed, channels last, in training mode."""
        torch.manual_seed(SEED)
        network = create_model(self.model, num_classes=NUM_CLASSES, **self.arguments)
        network.to(memory_format=torch.channels_last)
        return network.to(device).train()

    def batch(self, device: torch.device, place: int = 0) -> tuple[Tensor, Tensor]:
        """Return normalised images (B, 3, H, W), channels last, and targets (B,), by place in a set."""
        generator = torch.Generator().manual_seed(SEED + place)
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        images = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        targets = torch.randint(NUM_CLASSES, (self.batch_size,), generator=generator)
        return images.to(device), targets.to(device)


def homogeneous(num_blocks: int, width: int, batch_size: int, image_size: int = 16) -> Configuration:
    """Return a homogeneous network of N blocks."""
    name = f"homogeneous-{num_blocks}-w{width}-b{batch_size}"
    arguments = {"num_blocks": num_blocks, "width": width}
    return Configuration(name, "homogeneous", arguments, image_size, batch_size)


def staged(blocks_a_stage: int, batch_size: int, image_size: int = 32) -> Configuration:
    """Return a network of three stages of 16, 32 and 64 channels."""
    arguments = {"blocks_per_stage": (blocks_a_stage,) * 3, "widths": (16, 32, 64)}
    name = f"staged-3x{blocks_a_stage}-b{batch_size}"
    return Configuration(name, "staged", arguments, image_size, batch_size)


CONFIGURATIONS: tuple[Configuration, ...] = tuple(
    configuration
    for batch_size in (64, 128)
    for configuration in (
        homogeneous(54, 16, batch_size),
        homogeneous(54, 32, batch_size),
        staged(9, batch_size),
    )
)
QUICK = CONFIGURATIONS[:2]
WHOLE, KEPT_BLOCKS = CONFIGURATIONS[0], 12
"""The network whose latency is measured, and the blocks that it is cut to."""
