"""Torch-Pruning and earlyon, each used as its own examples use it."""

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from experiments.peers.twins import module_macs, output_layer

M = TypeVar("M", bound=nn.Module)

# A uniform step removes at most one channel of 16 or 32; among all layers a step can be finer.
STEPS = {"uniform": 64, "global": 128}


def is_installed(package: str) -> bool:
    """Tell whether a distribution is there; its module has the same name, with underscores."""
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def with_version(package: str) -> str:
    """Return a distribution's name with its version."""
    return f"{package} {importlib.metadata.version(package)}"


def prune_channels(
    model: M, images: Tensor, target_macs: int, ranking: str, kept: Sequence[nn.Module]
) -> M:
    """Remove channels by Torch-Pruning until at most `target_macs` are left, in place.

    Args:
        model: anything that it can trace.
        images: one batch.
        target_macs: for one image.
        ranking: "uniform", its default, or "global".
        kept: layers that keep all their outputs.
    """
    pruner = _pruner(model, images, kept, ranking == "global", ratio=1.0, steps=STEPS[ranking])
    for _ in range(STEPS[ranking]):
        if module_macs(model, images) <= target_macs:
            break
        pruner.step()
    return model.to(memory_format=torch.channels_last)


def halve_channels(model: nn.Sequential, images: Tensor) -> nn.Sequential:
    """Remove half the channels of every layer by Torch-Pruning, in place."""
    _pruner(model, images, [output_layer(model)], False, ratio=0.5, steps=1).step()
    return model.to(memory_format=torch.channels_last)


def _pruner(
    model: nn.Module,
    images: Tensor,
    kept: Sequence[nn.Module],
    global_pruning: bool,
    *,
    ratio: float,
    steps: int,
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
            ignored_layers=[*kept],
        )


def with_exits(
    backbone: nn.Sequential, exits: Sequence[int], images: Tensor, width: int, num_classes: int
) -> Any:
    """Wrap a plain twin with earlyon's exits behind these blocks, as its `custom_ee` does."""
    from earlyon import EarlyExitConfig, EarlyExitHead, EarlyExitWrapper, ExitPoint

    points = [ExitPoint(f"e{i}", str(block), width) for i, block in enumerate(exits)]
    heads = {point.name: EarlyExitHead(width, num_classes) for point in points}
    settings = EarlyExitConfig(backbone="custom", num_classes=num_classes, exit_points=points)
    shape = (1, *images.shape[1:])
    wrapper = EarlyExitWrapper(backbone, heads, nn.Identity(), settings, input_shape=shape)
    return wrapper.to(images.device)
