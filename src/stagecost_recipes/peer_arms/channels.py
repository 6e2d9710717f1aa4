"""Torch-Pruning's arms: as many MACs as M blocks have, but all blocks, with fewer channels.

Channels are removed by its own pipeline (`stagecost.benchmark.peer_channels`): group magnitude, by
uniform or by global ranking, in small steps until at most the MACs of the first M blocks are left. The
network is then trained on as every other one is.
"""

import torch

from stagecost.benchmark.peer_channels import prune_channels
from stagecost.benchmark.plain_twin import network_of_twin, plain_twin
from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork
from stagecost_recipes.cuts import first_blocks
from stagecost_recipes.peer_arms.cuts import finetuned
from stagecost_recipes.peer_arms.outcome import Cost, Outcome
from stagecost_recipes.peer_arms.protocol import Protocol
from stagecost_recipes.runs import Run


def uniform_channels(protocol: Protocol, run: Run) -> list[Outcome]:
    """Prune every layer alike, Torch-Pruning's default, and train on."""
    return _pruned(protocol, run, "uniform")


def global_channels(protocol: Protocol, run: Run) -> list[Outcome]:
    """Prune the weakest channels of all layers together, and train on."""
    return _pruned(protocol, run, "global")


def _pruned(protocol: Protocol, run: Run, ranking: str) -> list[Outcome]:
    trained = run.open()
    image = trained.image_format
    shape = (image.channels, image.size, image.size)
    small = with_fewer_channels(trained.network, shape, protocol.sub_blocks, ranking)
    return [finetuned(trained, small, protocol, Cost.of(run))]


def with_fewer_channels(
    network: ResidualNetwork, image_shape: tuple[int, int, int], sub_blocks: int, ranking: str
) -> ResidualNetwork:
    """Return a copy with at most the MACs of the first `sub_blocks` blocks.

    Args:
        network: a homogeneous network; stays as it is.
        image_shape: (C, H, W).
        sub_blocks: M.
        ranking: "uniform" or "global".
    """
    target = count_macs(first_blocks(network, sub_blocks), image_shape)
    images = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    return network_of_twin(prune_channels(plain_twin(network), images, target, ranking))
