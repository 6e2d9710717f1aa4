"""Initial weights that depend on a place in the network, not on how many blocks there are.

ResNet-N and its SubResNet-M begin with the same stem, the same head and the same first blocks of each
stage, if the seed is the same. So what distinguishes two trainings is the training, and not the luck of
the first draw, which at equal seeds can be worth a point of accuracy.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from stagecost.network import ResidualNetwork
from stagecost.random_streams import Stream, torch_generator

_STEM, _HEAD, _STAGES = 0, 1, 2


def draw_seed() -> int | None:
    """Draw a seed for all weights from torch's own random numbers; call it before anything is built.

    Returns:
        None where weights are not to hold numbers (torch's device "meta"): nothing is drawn then.
    """
    if torch.get_default_device().type == "meta":
        return None
    return int(torch.randint(2**62, (), device="cpu"))


def initialise(network: ResidualNetwork, seed: int | None) -> None:
    """Draw the weights of convolutions (He et al. 2015, fan-out) and linear layers (torch's own way).

    Without a seed nothing is drawn.
    """
    if seed is None:
        return
    _initialise(network.stem, seed, _STEM)
    _initialise(network.head, seed, _HEAD)
    for stage, indices in enumerate(network.stages):
        for position, k in enumerate(indices):
            _initialise(network.blocks[str(k)], seed, _STAGES + stage, position)


def _initialise(part: nn.Module, seed: int, *place: int) -> None:
    for number, module in enumerate(part.modules()):
        generator = torch_generator(seed, Stream.WEIGHTS, *place, number)
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel() // module.groups
            _fill(module.weight, torch.Tensor.normal_, 0.0, math.sqrt(2 / fan_out), generator)
        elif isinstance(module, nn.Linear):
            limit = 1 / math.sqrt(module.in_features)
            for parameter in (module.weight, module.bias):
                _fill(parameter, torch.Tensor.uniform_, -limit, limit, generator)


def _fill(
    parameter: Tensor, draw: Callable[..., Tensor], first: float, second: float, generator: Generator
) -> None:
    """Draw on the CPU, wherever the parameter is: the same numbers on every device."""
    with torch.no_grad():
        drawn = draw(torch.empty(parameter.shape, device="cpu"), first, second, generator=generator)
        parameter.copy_(drawn)
