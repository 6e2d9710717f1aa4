"""Norms of their own for target cuts: the same convolutions and linear maps, other scales and shifts.

A cut meets other states than the whole network: in a staged network from the second stage on, and at
the head always. Scales, shifts and statistics of its own are a hundredth of the weights, and need a pass
of its own. At the cut they take the places of the whole network's, so the small network is an ordinary
one. Sources: Yu et al., "Slimmable Neural Networks" (2019), for one set of norms each; Kang et al.,
"Adaptive Depth Networks with Skippable Sub-Paths" (2024), for depths.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
M = TypeVar("M", bound=nn.Module)


def copies_of_norms(network: nn.Module, parts: Iterable[nn.Module]) -> nn.Module:
    """Return copies of all norms of some parts of a network, in a tree of modules of the same names."""
    used = {module for part in parts for module in part.modules()}
    tree = nn.Module().train(network.training)
    for path, module in network.named_modules():
        if isinstance(module, NORMS) and module in used:
            *above, last = path.split(".")
            place = tree
            for step in above:
                if step not in dict(place.named_children()):
                    place.add_module(step, nn.Module().train(network.training))
                place = place.get_submodule(step)
            place.add_module(last, copy.deepcopy(module))
    return tree


def norms_in(tree: nn.Module) -> dict[str, nn.Module]:
    """Return the norms of a tree by their paths."""
    return {path: module for path, module in tree.named_modules() if isinstance(module, NORMS)}


def with_norms(module: M, replaced: Mapping[nn.Module, nn.Module]) -> M:
    """Return a module that has other norms in the places of some; it shares the rest, hooks as well.

    Args:
        module: stays as it is.
        replaced: norm → what is in its place.
    """
    if not replaced or not any(part in replaced for part in module.modules()):
        return module
    memo: dict[int, object] = {id(norm): other for norm, other in replaced.items()}
    for part in module.modules():
        if not any(inner in replaced for inner in part.modules()):
            memo[id(part)] = part
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo | shared | hooks_of(module))


def hooks_of(module: nn.Module) -> dict[int, object]:
    """Return the hooks of a module and its parts, by their ids: copies that know them share them."""
    parts = (vars(part).items() for part in module.modules())
    return {id(value): value for items in parts for name, value in items if "hooks" in name}
