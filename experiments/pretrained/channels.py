"""Channels instead of blocks: Torch-Pruning to the MACs of the cut, fine-tuned as the other arms are.

Between blocks the channels stay, since a skip without weights hands them on; those within blocks go, in
every block alike, weakest first, as the package does it by default.
"""

import copy

import torch

import stagecost as sc
from experiments.peers.packages import prune_channels
from experiments.pretrained.case import Case
from stagecost.cut import Cut
from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork

Shape = tuple[int, int, int]


def with_fewer_channels(network: ResidualNetwork, shape: Shape, cut: Cut) -> ResidualNetwork:
    """Return a copy with at most the MACs that a cut leaves.

    Args:
        network: a `cifar_resnet`.
        shape: of an image.
        cut: of the network.
    """
    most, example = count_macs(network, shape, cut), torch.zeros(1, *shape)
    model = copy.deepcopy(network.get_submodule("model")).to(memory_format=torch.contiguous_format)
    kept = [
        module
        for name, module in model.named_modules()
        if name in ("conv1", "linear") or name.endswith(".conv2")
    ]
    return sc.adapt(prune_channels(model, example, most, "uniform", kept), example)


def with_channels_pruned(case: Case, seed: int) -> ResidualNetwork:
    """Return the pretrained network with fewer channels, fine-tuned; its weights are kept in a file."""
    shape = case.bundle(seed).format.shape
    small = with_fewer_channels(case.network(case.fitted(seed)).cpu(), shape, case.cut)
    return case.trained_in_memory("torch-pruning", seed, small)
