"""The peers beside us: those that are installed are run, the others are named with the remedy."""

import importlib.util
from collections.abc import Callable, Sequence

import torch

from stagecost.benchmark.configurations import Configuration
from stagecost.benchmark.peer_channels import compare_channels
from stagecost.benchmark.peer_exits import compare_exits
from stagecost.benchmark.quantities import Quantity
from stagecost.benchmark.training_ratios import TrainingRatios

Comparison = Callable[
    [Sequence[Configuration], torch.device, int, Callable[[str], None]], list[Quantity]
]
_PACKAGES: dict[str, tuple[str, Comparison]] = {
    "torch-pruning": ("torch_pruning", compare_channels),
    "earlyon": ("earlyon", compare_exits),
}


def separate_heads(measured: TrainingRatios) -> list[Quantity]:
    """Return the figures of separate heads by hooks, which were measured with the other steps."""
    step = measured.ratios["separate_heads_step_ratio"]
    memory = round(measured.memory_ratio("separate_heads"), 4)
    peer, name = "separate heads by hooks", measured.configuration
    return [
        Quantity.of_ratio(peer, name, "training step / plain step", step),
        Quantity(peer, name, "memory / plain step", memory),
    ]


def compare_packages(
    configurations: Sequence[Configuration],
    device: torch.device,
    rounds: int,
    report: Callable[[str], None],
) -> list[Quantity]:
    """Run the packages that are installed on the homogeneous networks, with batches of 1 and 64.

    A package that is missing gets one row that says so.
    """
    found = []
    for package, (module, compare) in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            note = "not installed: pip install 'stagecost[peers]'"
            found.append(Quantity(package, "", "all", None, note=note))
        else:
            found += compare(_networks(configurations), device, rounds, report)
    return found


def _networks(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the first configuration of every homogeneous network."""
    chosen: list[Configuration] = []
    for configuration in configurations:
        known = [other.arguments for other in chosen]
        if configuration.model == "homogeneous" and configuration.arguments not in known:
            chosen.append(configuration)
    return chosen
