"""Which depth each stage needs: every vector (M_1, …, M_S) judged on validation data in one pass.

A staged network is cut at the tail of each stage: a bypassed block is its skip, an identity there, so
the vector (M_1, …, M_S) is evaluated by running the first M_s blocks of each stage. The vectors form a
tree (all that share M_1 share the state behind stage 1), so all of them together cost a few dozen passes
instead of one pass each. Only one batch, and one state a stage, is ever held.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import LossFunction
from stagecost.trajectory import Loader, device_of, evaluation_mode

MAX_VECTORS = 4096


@dataclass(frozen=True)
class StageDepths:
    """How a network does when only the first blocks of each stage are run.

    Attributes:
        keep_per_stage: (M_1, …, M_S).
        accuracy: percent.
        loss: mean over the samples.
    """

    keep_per_stage: tuple[int, ...]
    accuracy: float
    loss: float


def candidate_depths(network: ResidualNetwork, limit: int = MAX_VECTORS) -> list[list[int]]:
    """Return the depths to try for each stage: 1 … all, thinned if there are too many vectors.

    Thinning drops every other depth of the longest list, the ends excepted.
    """
    depths = [list(range(1, len(stage) + 1)) for stage in network.stages]
    while math.prod(len(options) for options in depths) > limit:
        longest = max(depths, key=len)
        if len(longest) <= 2:
            break
        longest[:] = [*longest[:-1][::2], longest[-1]]
    return depths


def search_stage_depths(
    network: ResidualNetwork,
    loader: Loader,
    *,
    loss: LossFunction = F.cross_entropy,
    depths: Sequence[Sequence[int]] | None = None,
) -> list[StageDepths]:
    """Evaluate the network cut to every vector of stage depths, in eval mode.

    Args:
        network: of any number of stages.
        loader: batches of (images, class labels) of the validation split.
        loss: maps (output, target) to a mean loss or one loss a sample.
        depths: which depths to try for each stage; `candidate_depths(network)` if None.

    Raises:
        StageCostError: the loader gives no batch.
    """
    depths = candidate_depths(network) if depths is None else depths
    sums = {vector: [0.0, 0.0] for vector in product(*depths)}
    num_samples = 0
    with evaluation_mode(network):
        device = device_of(network)
        for images, on_host in loader:
            labels = on_host.to(device)
            for vector, output in _visit(network, network.stem(images.to(device)), depths):
                sums[vector][0] += float((output.argmax(dim=1) == labels).sum())
                sums[vector][1] += float(loss(output, labels).mean()) * len(images)
            num_samples += len(images)
    if num_samples == 0:
        raise StageCostError("the validation data is empty: give at least one image")
    return [
        StageDepths(vector, 100 * correct / num_samples, total / num_samples)
        for vector, (correct, total) in sums.items()
    ]


def _visit(
    network: ResidualNetwork, state: Tensor, depths: Sequence[Sequence[int]], stage: int = 0
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield (M_s, …, M_S) and its output, for all vectors that share the state before stage s."""
    for position, k in enumerate(network.stages[stage], start=1):
        state = network.blocks[str(k)](state)
        if position not in depths[stage]:
            continue
        if stage + 1 < len(network.stages):
            for rest, output in _visit(network, state, depths, stage + 1):
                yield (position, *rest), output
        else:
            yield (position,), _output(network.head, state, network.block_indices.index(k) + 1)


def _output(head: nn.Module, state: Tensor, depth: int) -> Tensor:
    output: Tensor = head(state, depth)
    return output
