"""Pruning: first a plan that says what goes and what it costs, then its application.

In a homogeneous network the tail is cut off, and the plan's accuracy is exact: y_M of the full network
is the output of the first M blocks. In a staged network each stage loses its tail, the projections stay,
and the vector of depths is chosen on validation data; the plan's accuracy is then that of the network
whose other blocks are bypassed.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch.optim import Optimizer

from stagecost.errors import StageCostError
from stagecost.macs import count_parameters, macs_by_part
from stagecost.network import ResidualNetwork
from stagecost.objective import LossFunction
from stagecost.search import StageDepths, search_stage_depths
from stagecost.stages import first_blocks
from stagecost.surgery import copy_with_blocks
from stagecost.text import format_indices
from stagecost.trajectory import Loader, Trajectory


@dataclass(frozen=True)
class PruningPlan:
    """What goes, and what it will cost; nothing is changed before `apply`.

    Attributes:
        num_blocks: N, before.
        kept_blocks: the paper's indices k of the blocks that stay.
        accuracy_before: percent, of the whole network on the data that the plan was made from.
        accuracy_predicted: percent, of the network without the other blocks.
        loss_before: of the whole network.
        loss_predicted: of the network without the other blocks.
        parameters_before: trainable numbers.
        parameters_after: the same without the other blocks.
        macs_before: multiply-accumulate operations for one image.
        macs_after: the same without the other blocks.
    """

    num_blocks: int
    kept_blocks: tuple[int, ...]
    accuracy_before: float
    accuracy_predicted: float
    loss_before: float
    loss_predicted: float
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int

    @property
    def drop(self) -> float:
        """Points of accuracy that the plan expects to lose; negative if it gains."""
        return self.accuracy_before - self.accuracy_predicted

    def apply(self, network: ResidualNetwork) -> ResidualNetwork:
        """Return a copy of the network without the blocks that go; the network itself stays whole."""
        return copy_with_blocks(network, self.kept_blocks)

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {**asdict(self), "kept_blocks": list(self.kept_blocks)}

    def __str__(self) -> str:
        """Say in a few lines what goes and what it will cost."""
        kept = len(self.kept_blocks)
        return "\n".join(
            [
                f"keep {kept} of {self.num_blocks} blocks: {format_indices(self.kept_blocks)}",
                f"  accuracy    {self.accuracy_before:.2f} % → {self.accuracy_predicted:.2f} %",
                f"  parameters  {self.parameters_before:,} → {self.parameters_after:,}",
                f"  MACs        {self.macs_before:,} → {self.macs_after:,}",
            ]
        )


def plan_pruning(
    network: ResidualNetwork,
    trajectory: Trajectory,
    *,
    max_drop: float | None = None,
    keep_blocks: int | None = None,
    keep_per_stage: Sequence[int] | None = None,
    loader: Loader | None = None,
    loss: LossFunction = F.cross_entropy,
) -> PruningPlan:
    """Plan which blocks stay: the fewest within `max_drop`, or as many as asked for.

    Args:
        network: the whole network.
        trajectory: its `loss_trajectory` on validation data.
        max_drop: points of accuracy that may be lost. Alone it chooses the smallest network that
            loses no more; beside a wanted size it refuses a plan that loses more.
        keep_blocks: M, how many blocks stay; in a staged network the best vector of this sum.
        keep_per_stage: M_1, …, M_S, how many blocks stay in each stage.
        loader: validation data; needed for a staged network, whose cuts a trajectory does not tell.
        loss: that of the trajectory.

    Raises:
        StageCostError: an impossible depth, nothing to go by, or more lost than `max_drop` allows.
    """
    if max_drop is None and keep_blocks is None and keep_per_stage is None:
        raise StageCostError("say how much to prune: give max_drop, keep_blocks or keep_per_stage")
    if keep_blocks is not None and keep_per_stage is not None:
        raise StageCostError("keep_blocks and keep_per_stage exclude each other: give one of them")
    if max_drop is not None and not 0 <= max_drop < float("inf"):
        raise StageCostError(f"max_drop is {max_drop}: give points of accuracy, at least 0")
    candidates = _candidates(network, trajectory, keep_blocks, keep_per_stage, loader, loss)
    macs = macs_by_part(network, trajectory.image_shape)
    chosen = _choose(network, candidates, macs, trajectory.accuracies[-1], max_drop)
    if max_drop is not None and trajectory.accuracies[-1] - chosen.accuracy > max_drop + 1e-9:
        raise StageCostError(
            f"keeping {list(chosen.keep_per_stage)} blocks would lose "
            f"{trajectory.accuracies[-1] - chosen.accuracy:.2f} points, more than max_drop {max_drop}: "
            "keep more blocks or allow a larger drop"
        )
    return _plan(network, trajectory, chosen, macs)


def _candidates(
    network: ResidualNetwork,
    trajectory: Trajectory,
    keep_blocks: int | None,
    keep_per_stage: Sequence[int] | None,
    loader: Loader | None,
    loss: LossFunction,
) -> list[StageDepths]:
    """Return the cuts to choose from, each with its accuracy."""
    if keep_per_stage is not None:
        kept_indices(network, keep_per_stage)  # or say that it is impossible
    if keep_blocks is not None:
        least = len(network.stages)
        if isinstance(keep_blocks, bool) or not least <= keep_blocks <= network.num_blocks:
            raise StageCostError(
                f"keeping {keep_blocks} of {network.num_blocks} blocks is impossible: give a number "
                f"from {least} to {network.num_blocks}"
            )
    if len(network.stages) == 1:  # truncation: the trajectory tells the accuracy of every cut exactly
        cuts = [
            StageDepths((m,), trajectory.accuracies[m], trajectory.losses[m])
            for m in range(1, network.num_blocks + 1)
        ]
    elif loader is None:
        raise StageCostError("a staged network is cut by trial: give a loader of validation data")
    else:
        wanted = None if keep_per_stage is None else [[m] for m in keep_per_stage]
        cuts = search_stage_depths(network, loader, loss=loss, depths=wanted)
    if keep_per_stage is not None:
        cuts = [cut for cut in cuts if cut.keep_per_stage == tuple(keep_per_stage)]
    if keep_blocks is not None:
        cuts = [cut for cut in cuts if sum(cut.keep_per_stage) == keep_blocks]
    if not cuts:
        raise StageCostError(f"no cut to {keep_blocks} blocks was tried: say it with keep_per_stage")
    return cuts


def _choose(
    network: ResidualNetwork,
    cuts: Sequence[StageDepths],
    macs: Sequence[int],
    accuracy_before: float,
    max_drop: float | None,
) -> StageDepths:
    """Choose the cheapest cut within `max_drop`; failing that, the best one."""

    def cost(cut: StageDepths) -> int:
        return sum(
            macs[1 + network.block_indices.index(k)] for k in kept_indices(network, cut.keep_per_stage)
        )

    if max_drop is not None:
        within = [cut for cut in cuts if cut.accuracy >= accuracy_before - max_drop - 1e-9]
        if within:
            return min(within, key=lambda cut: (cost(cut), -cut.accuracy))
    return max(cuts, key=lambda cut: (cut.accuracy, -cut.loss))


def kept_indices(network: ResidualNetwork, keep_per_stage: Sequence[int]) -> tuple[int, ...]:
    """Return the paper's indices of the first M_s blocks of each stage (`stagecost.stages`)."""
    return first_blocks(network.stages, keep_per_stage)


def _plan(
    network: ResidualNetwork, trajectory: Trajectory, cut: StageDepths, macs: Sequence[int]
) -> PruningPlan:
    kept = kept_indices(network, cut.keep_per_stage)
    gone = [i for i, k in enumerate(network.block_indices) if k not in kept]
    lost = sum(count_parameters(network.blocks[str(network.block_indices[i])]) for i in gone)
    parameters = count_parameters(network)
    return PruningPlan(
        num_blocks=network.num_blocks,
        kept_blocks=kept,
        accuracy_before=trajectory.accuracies[-1],
        accuracy_predicted=cut.accuracy,
        loss_before=trajectory.losses[-1],
        loss_predicted=cut.loss,
        parameters_before=parameters,
        parameters_after=parameters - lost,
        macs_before=sum(macs),
        macs_after=sum(macs) - sum(macs[1 + i] for i in gone),
    )


def carry_optimizer(
    optimizer: Optimizer, network: ResidualNetwork, pruned: ResidualNetwork
) -> Optimizer:
    """Return an optimiser of the pruned network that goes on where the given one stopped.

    Hyper-parameters and groups stay as they are, and every parameter that survives keeps its state
    (momentum, moments, step count); what belonged to removed blocks is gone.

    Args:
        optimizer: of the whole network.
        network: the whole network.
        pruned: what `PruningPlan.apply` made of it.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    survivors = dict(pruned.named_parameters())
    groups = [
        {**group, "params": [survivors[n] for p in group["params"] if (n := names[id(p)]) in survivors]}
        for group in optimizer.param_groups
    ]
    carried = type(optimizer)(groups)  # type: ignore[call-arg]
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        if name in survivors:
            carried.state[survivors[name]] = copy.deepcopy(state)
    return carried
