"""Torch-Pruning beside truncation: channels removed until as many MACs are left as our cut leaves.

Its pipeline is used as its own examples use it: group magnitude, uniform (its default) or global
ranking, in small steps until the target is met, the classifier left alone. What is compared is what a
user of the small network pays: latency, and the time of a fine-tuning step. Accuracies are not: the
weights here are the initial ones.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from stagecost.benchmark.configurations import Configuration
from stagecost.benchmark.latency import BATCHES, KEPT_BLOCKS, forward_seconds, truncated
from stagecost.benchmark.plain_twin import module_macs, plain_twin
from stagecost.benchmark.quantities import Quantity, refusals
from stagecost.benchmark.steps import LAMBDA, LEARNING_RATE, Step, step
from stagecost.benchmark.timing import clock_of, ratio, take_turns

OURS = "stagecost truncation"
WHOLE = "whole"
# A uniform step removes at most one channel of 16 or 32; among all layers a step can be finer.
STEPS = {"uniform": 64, "global": 128}
# Where 8 channels or 16 are left: more MACs than the target, but a width that processors like.
HALF = "uniform, half the channels"


LIMITS = {
    "blocks removed": "channels only: all blocks stay, however few channels they have",
    "latency by its own helper": "it times by CUDA events and fails on a CPU; ours times both here",
}


def compare_channels(
    configurations: Sequence[Configuration],
    device: torch.device,
    rounds: int,
    report: Callable[[str], None],
) -> list[Quantity]:
    """Compare truncation with Torch-Pruning for homogeneous configurations."""
    found = []
    for configuration in configurations:
        report(f"Torch-Pruning on {configuration.name}")
        models = _models(configuration, device)
        found += _sizes(configuration, models)
        found += _latencies(configuration, models, device, rounds)
        found += _finetuning(configuration, models, device, rounds)
        found += refusals(_peer(), configuration, LIMITS)
    return found


def _peer() -> str:
    return f"torch-pruning {importlib.metadata.version('torch-pruning')}"


def _models(configuration: Configuration, device: torch.device) -> dict[str, nn.Sequential]:
    """Return the whole network and what each way of pruning makes of it, by name."""
    images, _ = configuration.batch(device)
    network = configuration.network(device).eval()
    models = {
        WHOLE: plain_twin(network),
        OURS: plain_twin(truncated(network, configuration, device, KEPT_BLOCKS)),
    }
    target = module_macs(models[OURS], images)
    peer = _peer()
    for ranking in STEPS:
        models[f"{peer}, {ranking}"] = prune_channels(plain_twin(network), images, target, ranking)
    models[f"{peer}, {HALF}"] = halve_channels(plain_twin(network), images)
    return models


def prune_channels(
    model: nn.Sequential, images: Tensor, target_macs: int, ranking: str
) -> nn.Sequential:
    """Remove channels by Torch-Pruning until at most `target_macs` are left, in place."""
    pruner = _pruner(model, images, ranking == "global", ratio=1.0, steps=STEPS[ranking])
    for _ in range(STEPS[ranking]):
        if module_macs(model, images) <= target_macs:
            break
        pruner.step()
    return model.to(memory_format=torch.channels_last)


def halve_channels(model: nn.Sequential, images: Tensor) -> nn.Sequential:
    """Remove half the channels of every layer by Torch-Pruning, in place."""
    _pruner(model, images, False, ratio=0.5, steps=1).step()
    return model.to(memory_format=torch.channels_last)


def _pruner(
    model: nn.Sequential, images: Tensor, global_pruning: bool, *, ratio: float, steps: int
) -> Any:
    import torch_pruning as tp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.pruner.MagnitudePruner(
            model.eval(),
            images[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=global_pruning,
            pruning_ratio=ratio,
            iterative_steps=steps,
            ignored_layers=[model[-1].linear],
        )


def _sizes(configuration: Configuration, models: Mapping[str, nn.Sequential]) -> list[Quantity]:
    images, _ = configuration.batch(torch.device("cpu"))
    before, found = module_macs(models[WHOLE], images), []
    for name, model in models.items():
        if name != WHOLE:
            kept = round(module_macs(model, images) / before, 4)
            note = f"{len(model) - 2} blocks, {_widths(model)} channels"
            found.append(Quantity(name, configuration.name, "MACs kept", kept, note=note))
    return found


def _widths(model: nn.Module) -> str:
    widths = {module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)}
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def _latencies(
    configuration: Configuration,
    models: Mapping[str, nn.Sequential],
    device: torch.device,
    rounds: int,
) -> list[Quantity]:
    images, _ = configuration.batch(device)
    evaluated = {name: model.eval() for name, model in models.items()}
    found = []
    for batch in BATCHES:
        seconds = forward_seconds(evaluated, images[:batch], device, rounds)
        of_ratio = partial(
            Quantity.of_ratio,
            configuration=configuration.name,
            quantity=f"speed-up of inference, batch {batch}",
        )
        names = [name for name in models if name != WHOLE]
        found += [of_ratio(name, ratio=ratio(seconds[WHOLE], seconds[name])) for name in names]
    return found


def _finetuning(
    configuration: Configuration,
    models: Mapping[str, nn.Sequential],
    device: torch.device,
    rounds: int,
) -> list[Quantity]:
    batch = configuration.batch(device)
    arms = {name: plain_module_step(model, *batch) for name, model in models.items()}
    seconds = take_turns(arms, rounds, clock_of(device))
    of_ratio = partial(
        Quantity.of_ratio,
        configuration=configuration.name,
        quantity="fine-tuning step / step of the whole network",
    )
    names = [name for name in models if name != WHOLE]
    return [of_ratio(name, ratio=ratio(seconds[name], seconds[WHOLE])) for name in names]


def plain_module_step(model: nn.Module, images: Tensor, targets: Tensor) -> Step:
    """Return a plain training step of any module, with decay on all parameters."""
    optimizer = SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=LAMBDA
    )
    model.train()
    return step(lambda: F.cross_entropy(model(images), targets), optimizer)
