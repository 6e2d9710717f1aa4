"""Parameters and multiply-accumulate operations (MACs), the one counter used everywhere.

MACs are half of the floating-point operations that `torch.utils.flop_counter` counts: convolutions
and matrix products, for one image. Normalisations and activations are not counted, as is the custom.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stagecost.cut import Cut
from stagecost.network import ResidualNetwork


def count_parameters(network: torch.nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


WHOLE = Cut.whole()


def count_macs(network: ResidualNetwork, image_shape: Sequence[int], cut: Cut = WHOLE) -> int:
    """Count the MACs of the terminal output of a cut, for one image of shape (C, H, W)."""
    twin = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(twin.sample(image_shape), cut)
    return int(counter.get_total_flops()) // 2


def macs_by_part(network: ResidualNetwork, image_shape: Sequence[int]) -> list[int]:
    """Count MACs for one image: of the stem, of each block k = 0 … N-1, and of the head (N+2 numbers).

    Computed on meta tensors: no memory, no arithmetic, and the network is left alone.
    """
    twin = copy.deepcopy(network).to("meta").eval()
    images = twin.sample(image_shape)
    counts: list[int] = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def note(k: int, state: Tensor, following: Tensor) -> None:
            counts.append(counter.get_total_flops())

        twin.stem.register_forward_hook(lambda *_: counts.append(counter.get_total_flops()))
        twin(images, observe=note)
        counts.append(counter.get_total_flops())
    parts = [counts[0], *(after - before for before, after in pairwise(counts))]
    return [flops // 2 for flops in parts]
