"""`stagecost bound`: Theorem 3.1 with the numbers of trained runs, on their training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecost.bound import (
    objective,
    predicted_blocks,
    staged_right_hand_side,
    truncation_right_hand_sides,
)
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import LossFunction, squared_weight_norms
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Trained, open_trained
from stagecost.train.settings import StageCostSettings
from stagecost.trajectory import Loader, loss_trajectory


@dataclass(frozen=True)
class BoundRow:
    """The bound from one shallower run.

    Attributes:
        num_blocks: M.
        blocks_per_stage: M_1, …, M_S.
        right_hand_side: of Theorem 3.1.
        holds: whether J_N is at most that.
        tightness: J_N / right-hand side.
        normalized_bound: of J_N/(1 + gamma·N) without weight decay, by the corollary, for lambda = 0.
    """

    num_blocks: int
    blocks_per_stage: tuple[int, ...]
    right_hand_side: float
    holds: bool
    tightness: float
    normalized_bound: float


@dataclass(frozen=True)
class Bound(Result):
    """J_N of a run beside what bounds it.

    Attributes:
        objective: J_N, the paper's, also where a variant was trained.
        gamma: the stage weight.
        weight_decay: lambda.
        num_blocks: N.
        trained_variant: whether training minimised something else.
        normalized_loss: J_N/(1 + gamma·N) without its weight decay.
        bounds: from each shallower run.
        predicted_blocks: the M with the least right-hand side among the shallower runs.
        truncation_predicted_blocks: the same among the truncations of the run itself.
        num_images: training images that all losses are of.
    """

    objective: float
    gamma: float
    weight_decay: float
    num_blocks: int
    trained_variant: bool
    normalized_loss: float
    bounds: tuple[BoundRow, ...]
    predicted_blocks: int
    truncation_predicted_blocks: int
    num_images: int


@dataclass(frozen=True)
class _Measured:
    """What the bound needs of a network."""

    losses: tuple[float, ...]
    norms: list[float]


def bound(
    run: str | Path,
    subs: Sequence[str | Path],
    *,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    data: str | None = None,
) -> Bound:
    """Compute J_N of a run and the right-hand side from each shallower run.

    All losses are those of the training images of `run` in eval mode, with its loss, gamma and lambda.

    Args:
        run: folder of the run of ResNet-N.
        subs: folders of runs of fewer blocks, trained alone by the same recipe.
        checkpoint: of the runs.
        device: where to compute.
        data: where the images of the training are now, if they moved.

    Raises:
        StageCostError: a run that is no SubResNet of the other.
    """
    full = open_trained(run, checkpoint=checkpoint, device=device)
    if full.checkpoint is None:
        raise StageCostError(f"{run} is a saved network: give the folder of its run")
    others = [open_trained(sub, checkpoint=checkpoint, device=device) for sub in subs]
    for other in others:
        check_sub_network(other, full)
    gamma, weight_decay = full.checkpoint.gamma, full.settings.training.weight_decay
    images = full.judged("train", data)
    whole = _measure(full.network, images.batches, full.loss)
    value = objective(whole.losses, whole.norms, gamma, weight_decay)
    num_blocks = full.network.num_blocks
    rows = [_row(other, full, images.batches, value) for other in others]
    rows.sort(key=lambda row: (row.num_blocks, row.blocks_per_stage))
    return Bound(
        objective=value,
        gamma=gamma,
        weight_decay=weight_decay,
        num_blocks=num_blocks,
        trained_variant=_is_variant(full),
        normalized_loss=objective(whole.losses, whole.norms, gamma, 0.0) / (1 + gamma * num_blocks),
        bounds=tuple(rows),
        predicted_blocks=min(rows, key=lambda row: row.right_hand_side).num_blocks,
        truncation_predicted_blocks=predicted_blocks(
            truncation_right_hand_sides(whole.losses, whole.norms, gamma, weight_decay)
        ),
        num_images=images.num_images,
    )


def _row(sub: Trained, full: Trained, batches: Loader, value: float) -> BoundRow:
    assert full.checkpoint is not None
    gamma, weight_decay = full.checkpoint.gamma, full.settings.training.weight_decay
    found = _measure(sub.network, batches, full.loss)
    stages = sub.network.blocks_per_stage, full.network.blocks_per_stage
    side = staged_right_hand_side(found.losses, found.norms, gamma, weight_decay, *stages)
    # Without weight decay, and over the weight of all losses, it is the corollary's bound.
    of_losses = staged_right_hand_side(found.losses, found.norms, gamma, 0.0, *stages)
    return BoundRow(
        num_blocks=sub.network.num_blocks,
        blocks_per_stage=sub.network.blocks_per_stage,
        right_hand_side=side,
        holds=value <= side,
        tightness=value / side,
        normalized_bound=of_losses / (1 + gamma * full.network.num_blocks),
    )


def _is_variant(trained: Trained) -> bool:
    """Tell whether training minimised something else than the paper's J_N of this network.

    Sampled depths do not: on average they are all depths.
    """
    stage, plain = trained.settings.stage, StageCostSettings()
    assert trained.checkpoint is not None
    own_rule, kept = trained.checkpoint.own_stage_cost, trained.checkpoint.kept_blocks
    changed = any(getattr(stage, k) != v for k, v in vars(plain).items() if k != "sampled_depths")
    return own_rule or kept is not None or changed


def _measure(network: ResidualNetwork, batches: Loader, loss: LossFunction) -> _Measured:
    trajectory = loss_trajectory(network, batches, loss=loss)
    return _Measured(trajectory.losses, squared_weight_norms(network))


def check_sub_network(sub: Trained, full: Trained) -> None:
    """Refuse a pair that the theorem does not speak of.

    Raises:
        StageCostError: other images, or another network than the same one with fewer blocks.
    """
    if sub.settings.data != full.settings.data:
        raise StageCostError(
            f"{sub.path} was trained on other images than {full.path}: use the same data settings"
        )
    if _signature(sub.network) != _signature(full.network):
        raise StageCostError(f"{sub.path} is another kind of network than {full.path}: change only N")
    sizes = zip(sub.network.stages, full.network.stages, strict=True)
    if sub.network.num_blocks >= full.network.num_blocks or any(len(a) > len(b) for a, b in sizes):
        raise StageCostError(
            f"{sub.path} has {sub.network.num_blocks} blocks, {full.path} has "
            f"{full.network.num_blocks}: a SubResNet needs fewer"
        )


def _signature(network: ResidualNetwork) -> tuple[object, ...]:
    """Return what two networks of a family share: shapes of stem and head, and of each stage's start."""
    stem = tuple(tuple(p.shape) for p in network.stem.parameters())
    head = tuple(tuple(p.shape) for p in network.head.parameters())
    firsts = tuple(
        tuple(tuple(p.shape) for p in network.blocks[str(stage[0])].parameters())
        for stage in network.stages
    )
    return (stem, firsts, head)
