"""Small things that several test files share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecost.head import OutputBatchNorm2d
from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork
from stagecost.objective import ObjectiveTerms, StageCost

# One entry a builder, small enough for every contract test; a new builder is entered here.
BUILDERS: dict[str, dict[str, object]] = {
    "homogeneous": {"num_blocks": 4, "width": 6, "num_classes": 5, "in_channels": 3},
    "staged": {
        "blocks_per_stage": (2, 3, 2),
        "widths": (4, 6, 8),
        "num_classes": 5,
        "in_channels": 3,
    },
    "preact_resnet50": {"width": 4, "num_classes": 5, "in_channels": 3},
    "preact_resnet101": {"width": 4, "num_classes": 5, "in_channels": 3},
    "preact_resnet152": {"width": 4, "num_classes": 5, "in_channels": 3},
}


# Enough to learn something, little enough to take a fraction of a second.
DATA = ("--data", "digits", "--limit-train", 600, "--limit-test", 200, "--device", "cpu")
RECIPE = (*DATA, "--epochs", 2, "--batch-size", 32)


@dataclass(frozen=True)
class Runs:
    """Folders of trained runs, and of a saved network that was pruned from `three`."""

    three: Path
    two: Path
    staged: Path
    saved: Path


def build(name: str, seed: int = 0, **changes: object) -> ResidualNetwork:
    """Build a small network with running statistics that are not the initial ones."""
    torch.manual_seed(seed)
    network = create_model(name, **{**BUILDERS[name], **changes})
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | OutputBatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


def images(count: int = 4, size: int = 16, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 4, classes: int = 5, seed: int = 2) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def loader(batches: int = 3, count: int = 5, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Return batches whose last one is shorter."""
    sizes = [count] * (batches - 1) + [count - 2]
    return [(images(n, size, seed=i), labels(n, seed=i)) for i, n in enumerate(sizes)]


def objective(outputs: Tensor, targets: Tensor, gamma: float, **options: Any) -> ObjectiveTerms:
    """Return the terms of a uniform stage cost on y_0 … y_N; y_N alone bears none."""
    stage_cost = StageCost.uniform(len(outputs) - 1, gamma if len(outputs) > 1 else 0.0, **options)
    return stage_cost(outputs[-len(stage_cost.outputs) :], targets)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, to see whether something was touched."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
