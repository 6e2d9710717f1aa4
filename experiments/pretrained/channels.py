"""Channels instead of blocks: Torch-Pruning to the MACs of the cut, fine-tuned as the other arms are.

Between blocks the channels stay, since a skip without weights hands them on; those within blocks go, in
every block alike, weakest first, as the package does it by default.
"""

import copy
import warnings
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import stagecost as sc
from experiments.peers.packages import STEPS
from experiments.peers.twins import module_macs
from experiments.pretrained.case import Case
from experiments.trainings import digest
from stagecost.cut import Cut
from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork
from stagecost.runs.pruning import train_in_memory
from stagecost.train.parsing import parse_settings
from stagecost.train.setup import prepare

Shape = tuple[int, int, int]


def with_fewer_channels(network: ResidualNetwork, shape: Shape, cut: Cut) -> ResidualNetwork:
    """Return a copy with at most the MACs that a cut leaves.

    Args:
        network: a `cifar_resnet`.
        shape: of an image.
        cut: of the network.
    """
    import torch_pruning as tp

    most, example = count_macs(network, shape, cut), torch.zeros(1, *shape)
    small = (
        copy.deepcopy(network.get_submodule("model")).to(memory_format=torch.contiguous_format).eval()
    )
    kept = [
        module
        for name, module in small.named_modules()
        if name in ("conv1", "linear") or name.endswith(".conv2")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner: Any = tp.pruner.MagnitudePruner(
            small,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=STEPS["uniform"],
            ignored_layers=kept,
        )
    for _ in range(STEPS["uniform"]):
        if module_macs(small, example) <= most:
            break
        pruner.step()
    return sc.adapt(small, example).to(memory_format=torch.channels_last)


def with_channels_pruned(case: Case, seed: int) -> ResidualNetwork:
    """Return the pretrained network with fewer channels, fine-tuned; its weights are kept in a file."""
    bundle, given = case.bundle(seed), {**case.training("whole", seed).settings, "seed": seed}
    small = with_fewer_channels(case.network(case.fitted(seed)), bundle.format.shape, case.cut)
    file = case.context.work / f"torch-pruning-{digest(given)}-seed{seed}.safetensors"
    if file.is_file():
        small.load_state_dict(load_file(file))
        return small.eval()
    setup = prepare(parse_settings({**given, "data": case.data}), bundle, network=small)
    label = f"{case.context.dataset} torch-pruning {seed}"
    trained = train_in_memory(setup, setup.start(), label)
    save_file({k: t.contiguous() for k, t in trained.state_dict().items()}, file)
    return trained
