"""The network of a training step compiled as a whole."""

import torch
from torch import nn

from stagecost.errors import StageCostError
from stagecost.kernels import can_compile


def compile_in_place(network: nn.Module, device: torch.device) -> None:
    """Have calls of the network compiled when they first meet a shape; its parameters keep their names.

    Raises:
        StageCostError: nothing can compile here.
    """
    if not can_compile(device.type):
        raise StageCostError(
            f"compile does not work on {device.type} here: it needs a C++ compiler and Python's headers "
            "(install g++ and python3-dev), or do without --compile"
        )
    network.compile(dynamic=False)
