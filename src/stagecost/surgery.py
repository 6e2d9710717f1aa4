"""Removing blocks from a network: the mechanism behind pruning, loading and shrinking."""

import copy

from torch import nn

from stagecost.errors import StageCostError
from stagecost.network import NetworkDescription, ResidualNetwork


def keep_blocks(network: ResidualNetwork, kept: tuple[int, ...]) -> None:
    """Remove, in place, every block whose paper's index is not in `kept`.

    The state behind kept block k takes along the head statistics of output k+1, and x_0 those of
    output 0, so a truncated homogeneous network computes y_M of the full one, bit for bit.

    Raises:
        StageCostError: an index that the network does not have, none at all, or a projection lost.
    """
    present = network.block_indices
    if not kept or not set(kept) <= set(present) or tuple(sorted(set(kept))) != tuple(kept):
        raise StageCostError(
            f"blocks {list(kept)} cannot be kept: choose some of {_shorten(present)}, in order"
        )
    skips = zip(present, network.skips, strict=True)
    lost = [k for k, skip in skips if k not in kept and not isinstance(skip, nn.Identity)]
    if lost:
        raise StageCostError(f"block {lost[0]} holds a projection: keep it, it begins a stage")
    depths = [0] + [present.index(k) + 1 for k in kept]
    for k in set(present) - set(kept):
        del network.blocks[str(k)]
    network.head.select_outputs(depths)  # type: ignore[operator]
    if network.description is not None:
        description = network.description
        network.description = NetworkDescription(description.name, description.arguments, kept)


def copy_with_blocks(network: ResidualNetwork, kept: tuple[int, ...]) -> ResidualNetwork:
    """Return a copy without the other blocks, see `keep_blocks`; the network itself stays whole."""
    smaller = copy.deepcopy(network)
    keep_blocks(smaller, kept)
    return smaller


def _shorten(indices: tuple[int, ...]) -> str:
    contiguous = indices == tuple(range(indices[0], indices[-1] + 1))
    return f"{indices[0]} … {indices[-1]}" if contiguous else str(list(indices))
