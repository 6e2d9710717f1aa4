"""`stagecost bound`: Theorem 3.1 with the numbers of trained runs, on their training images."""

from typing import Any

from stagecost.bound import (
    objective,
    predicted_blocks,
    staged_right_hand_side,
    truncation_right_hand_sides,
)
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.norms import squared_weight_norms
from stagecost.objective import LossFunction
from stagecost.training.settings import VariantSettings
from stagecost.training.trained import CheckpointName, Trained, open_trained
from stagecost.trajectory import Loader, loss_trajectory


def bound_of_runs(
    run: str, subs: list[str], *, checkpoint: CheckpointName = "last", device: str = "auto"
) -> dict[str, Any]:
    """Compute J_N of a run and the right-hand side from each shallower run.

    All losses are those of the training images of `run` in eval mode, with its loss, gamma and lambda;
    J_N is the paper's objective, also where a variant was trained (`trained_variant` says so).

    Returns:
        The object that `stagecost bound --json` prints. `tightness` is objective / right-hand side;
        `predicted_blocks` the M with the least right-hand side among the shallower runs, and
        `truncation_predicted_blocks` the same among the truncations of the run itself. `normalized_loss`
        is J_N/(1 + gamma·N) without its weight decay; each `normalized_bound` is what bounds it by the
        corollary, which holds for lambda = 0.

    Raises:
        StageCostError: a run that is no SubResNet of the other.
    """
    full = open_trained(run, checkpoint=checkpoint, device=device)
    if full.checkpoint is None:
        raise StageCostError(f"{run} is a saved network: give the folder of its run")
    others = [open_trained(sub, checkpoint=checkpoint, device=device) for sub in subs]
    for other in others:
        check_sub_network(other, full)
    gamma = full.checkpoint.gamma
    weight_decay = full.settings.training.weight_decay
    batches = full.batches("train")
    losses, norms = _measure(full, batches, full.loss)
    value = objective(losses, norms, gamma, weight_decay)
    rows = [_row(other, full, batches, value, gamma, weight_decay) for other in others]
    rows.sort(key=lambda row: (row["num_blocks"], row["blocks_per_stage"]))
    truncations = truncation_right_hand_sides(losses, norms, gamma, weight_decay)
    return {
        "objective": value,
        "gamma": gamma,
        "weight_decay": weight_decay,
        "num_blocks": full.network.num_blocks,
        "trained_variant": _is_variant(full),
        "normalized_loss": objective(losses, norms, gamma, 0.0) / (1 + gamma * full.network.num_blocks),
        "bounds": rows,
        "predicted_blocks": min(rows, key=lambda row: row["right_hand_side"])["num_blocks"],
        "truncation_predicted_blocks": predicted_blocks(truncations),
    }


def _row(
    sub: Trained, full: Trained, batches: Loader, value: float, gamma: float, weight_decay: float
) -> dict[str, Any]:
    losses, norms = _measure(sub, batches, full.loss)
    stages = sub.network.blocks_per_stage, full.network.blocks_per_stage
    side = staged_right_hand_side(losses, norms, gamma, weight_decay, *stages)
    # Without weight decay, and over the weight of all losses, it is the corollary's bound.
    of_losses = staged_right_hand_side(losses, norms, gamma, 0.0, *stages)
    return {
        "num_blocks": sub.network.num_blocks,
        "blocks_per_stage": list(sub.network.blocks_per_stage),
        "right_hand_side": side,
        "holds": value <= side,
        "tightness": value / side,
        "normalized_bound": of_losses / (1 + gamma * full.network.num_blocks),
    }


def _is_variant(trained: Trained) -> bool:
    """Tell whether training minimised something else than the paper's J_N of this network."""
    cut = trained.checkpoint is not None and trained.checkpoint.kept_blocks is not None
    steered = trained.settings.training.gamma == "auto"
    return cut or steered or trained.settings.variant != VariantSettings()


def _measure(
    trained: Trained, batches: Loader, loss: LossFunction
) -> tuple[tuple[float, ...], list[float]]:
    trajectory = loss_trajectory(trained.network, batches, loss=loss)
    return trajectory.losses, squared_weight_norms(trained.network)


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
