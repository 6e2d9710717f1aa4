"""The latency of a pruned network: whole and truncated side by side, in eval mode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.benchmark.configurations import Configuration, homogeneous
from stagecost.benchmark.timing import Arm, Ratio, clock_of, ratio, take_turns
from stagecost.network import ResidualNetwork
from stagecost.prune import plan_pruning
from stagecost.trajectory import loss_trajectory

WHOLE = homogeneous(54, 16, 64)
KEPT_BLOCKS = 12
BATCHES = (1, 64)
# A forward pass of one image takes a few milliseconds, too short to be timed by itself.
SMALL_BATCH, SMALL_BATCH_REPEATS = 8, 5


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the pruned network is, at one batch size."""

    blocks_before: int
    blocks_after: int
    batch: int
    ratio: Ratio

    def row(self) -> dict[str, Any]:
        """Return the row of the table."""
        return {
            "blocks_before": self.blocks_before,
            "blocks_after": self.blocks_after,
            "batch": self.batch,
            "speedup": round(self.ratio.median, 4),
        }

    def spread(self) -> dict[str, Any]:
        """Return the quartiles of the speed-up."""
        return {
            "configuration": f"{self.blocks_before} to {self.blocks_after} blocks, batch {self.batch}",
            "speedup": self.ratio.quartiles,
        }


def pruned_speedups(
    device: torch.device, rounds: int, whole: Configuration = WHOLE, kept_blocks: int = KEPT_BLOCKS
) -> list[Speedup]:
    """Truncate a network and time both, for a single image and for a batch."""
    network = whole.network(device).eval()
    pruned = truncated(network, whole, device, kept_blocks)
    found = []
    for batch in BATCHES:
        images, _ = whole.batch(device)
        models = {"whole": network, "pruned": pruned}
        seconds = forward_seconds(models, images[:batch], device, rounds)
        speedup = ratio(seconds["whole"], seconds["pruned"])
        found.append(Speedup(network.num_blocks, pruned.num_blocks, batch, speedup))
    return found


def truncated(
    network: ResidualNetwork, configuration: Configuration, device: torch.device, kept_blocks: int
) -> ResidualNetwork:
    """Return the network cut to its first blocks, by a plan as `stagecost prune` makes it."""
    trajectory = loss_trajectory(network, [configuration.batch(device)])
    pruned = plan_pruning(network, trajectory, keep_blocks=kept_blocks).apply(network)
    return pruned.eval()


def forward_seconds(
    models: Mapping[str, nn.Module | Callable[[Tensor], object]],
    images: Tensor,
    device: torch.device,
    rounds: int,
) -> dict[str, list[float]]:
    """Time a forward pass of each model by turns, in inference mode."""

    def arm(model: nn.Module | Callable[[Tensor], object]) -> Arm:
        def run() -> None:
            with torch.inference_mode():
                model(images)

        return run

    repeats = SMALL_BATCH_REPEATS if len(images) <= SMALL_BATCH else 1
    arms = {name: arm(model) for name, model in models.items()}
    return take_turns(arms, rounds, clock_of(device), repeats=repeats, warm=True)
