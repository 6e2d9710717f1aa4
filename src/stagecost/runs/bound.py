"""`stagecost bound`: Theorem 3.1 with the numbers of trained runs, on their training images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stagecost.bound import (
    objective,
    predicted_blocks,
    staged_right_hand_side,
    truncation_right_hand_sides,
)
from stagecost.data.fingerprint import trained_alike
from stagecost.errors import StageCostError
from stagecost.losses import LossFunction
from stagecost.network import ResidualNetwork
from stagecost.objective import squared_weight_norms
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Trained, open_trained
from stagecost.train.settings import StageCostSettings
from stagecost.trajectory import Loader, loss_trajectory

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "output_size")
"""Of convolutions and pooling, by the names that torch has for it."""
RECIPE = (
    *("optimizer", "peak_lr", "warmup_epochs", "epochs", "batch_size", "weight_decay"),
    *("label_smoothing", "layer_decay", "clip_norm", "ema_decay"),
)
"""Settings of a training that a shallower run should share."""


@dataclass(frozen=True)
class BoundRow:
    """The bound from one shallower run."""

    num_blocks: int  #: M
    blocks_per_stage: tuple[int, ...]  #: M_1, …, M_S
    right_hand_side: float  #: of Theorem 3.1
    holds: bool  #: whether J_N is at most that
    tightness: float  #: J_N / right-hand side; NaN where that is zero
    #: of J_N/(1 + gamma·N) without weight decay, by the corollary, for lambda = 0
    normalized_bound: float


@dataclass(frozen=True)
class Bound(Result):
    """J_N of a run beside what bounds it."""

    objective: float  #: J_N, the paper's, also where a variant was trained
    gamma: float  #: the stage weight
    weight_decay: float  #: lambda
    num_blocks: int  #: N
    trained_variant: bool  #: whether training minimised something else
    normalized_loss: float  #: J_N/(1 + gamma·N) without its weight decay
    bounds: tuple[BoundRow, ...]  #: from each shallower run
    predicted_blocks: int  #: the M with the least right-hand side among the shallower runs
    truncation_predicted_blocks: int  #: the same among the truncations of the run itself
    num_images: int  #: training images that all losses are of
    warnings: tuple[str, ...]  #: what has changed, and shallower runs by another recipe


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
        data: where the images of the training are now, if they moved.

    Raises:
        StageCostError: a run that is no SubResNet of the other, or a loss that is no finite number.
    """
    full = open_trained(run, checkpoint=checkpoint, device=device)
    gamma, weight_decay = full.run_checkpoint().gamma, full.settings.training.weight_decay
    others = [open_trained(sub, checkpoint=checkpoint, device=device) for sub in subs]
    for other in others:
        check_sub_network(other, full)
    images = full.judged("train", data)
    losses, norms = _measure(full, images.batches, full.loss)
    value, num_blocks = objective(losses, norms, gamma, weight_decay), full.network.num_blocks

    def row(sub: Trained) -> BoundRow:
        stages = sub.network.blocks_per_stage, full.network.blocks_per_stage
        measured = _measure(sub, images.batches, full.loss)
        side = staged_right_hand_side(*measured, gamma, weight_decay, *stages)
        # Without weight decay, and over the weight of all losses, it is the corollary's bound.
        of_losses = staged_right_hand_side(*measured, gamma, 0.0, *stages)
        return BoundRow(
            num_blocks=sub.network.num_blocks,
            blocks_per_stage=stages[0],
            right_hand_side=side,
            holds=value <= side,
            tightness=value / side if side else math.nan,
            normalized_bound=of_losses / (1 + gamma * num_blocks),
        )

    rows = sorted(map(row, others), key=lambda row: (row.num_blocks, row.blocks_per_stage))
    least = predicted_blocks(dict(enumerate(row.right_hand_side for row in rows)))
    truncations = truncation_right_hand_sides(losses, norms, gamma, weight_decay)
    return Bound(
        objective=value,
        gamma=gamma,
        weight_decay=weight_decay,
        num_blocks=num_blocks,
        trained_variant=_is_variant(full),
        normalized_loss=objective(losses, norms, gamma, 0.0) / (1 + gamma * num_blocks),
        bounds=tuple(rows),
        predicted_blocks=rows[least].num_blocks,
        truncation_predicted_blocks=predicted_blocks(truncations),
        num_images=images.num_images,
        warnings=(*images.warnings, *(note for sub in others for note in _other_recipe(sub, full))),
    )


def _measure(
    trained: Trained, batches: Loader, loss: LossFunction
) -> tuple[tuple[float, ...], list[float]]:
    """Return what the bound needs of a network: L_0 … L_N, and the squared norms of its weights.

    Raises:
        StageCostError: a loss is no finite number.
    """
    losses = loss_trajectory(trained.network, batches, loss=loss).losses
    wrong = [k for k, value in enumerate(losses) if not math.isfinite(value)]
    if wrong:
        raise StageCostError(
            f"the loss of {trained.path} at depth {wrong[0]} is {losses[wrong[0]]}, and bounds nothing: "
            "train it with a lower --lr"
        )
    return losses, squared_weight_norms(trained.network)


def _is_variant(trained: Trained) -> bool:
    """Tell whether training minimised something else than the paper's J_N of this network.

    Sampled depths do not: on average they are all depths. AdamW does: its decay is decoupled.
    """
    stage, plain, training = trained.settings.stage, StageCostSettings(), trained.settings.training
    decoupled = training.optimizer == "adamw" and training.weight_decay > 0
    checkpoint = trained.run_checkpoint()
    own_rule, kept = checkpoint.own_stage_cost, checkpoint.kept_blocks
    changed = any(getattr(stage, k) != v for k, v in vars(plain).items() if k != "sampled_depths")
    return own_rule or kept is not None or changed or decoupled


def check_sub_network(sub: Trained, full: Trained) -> None:
    """Refuse a pair that the theorem does not speak of.

    Raises:
        StageCostError: other images, or another network than the same one with fewer blocks.
    """
    one, other = sub.fingerprint, full.fingerprint
    alike = one is None or other is None or trained_alike(one, other)
    if sub.settings.data != full.settings.data or not alike:
        raise StageCostError(
            f"{sub.path} was trained on other images than {full.path}: use the same data settings and "
            "the same seed, which draws images and holds some of them out"
        )
    if sub.network.targets:
        raise StageCostError(
            f"{sub.path} has norms of its own for {sub.network.targets[0]}, which no ResNet-N of the "
            "theorem has: train it with --target-norms shared"
        )
    if _signature(sub.network) != _signature(full.network):
        raise StageCostError(f"{sub.path} is another kind of network than {full.path}: change only N")
    sizes = zip(sub.network.stages, full.network.stages, strict=True)
    if sub.network.num_blocks >= full.network.num_blocks or any(len(a) > len(b) for a, b in sizes):
        raise StageCostError(
            f"{sub.path} has {sub.network.num_blocks} blocks, {full.path} has "
            f"{full.network.num_blocks}: a SubResNet needs fewer"
        )


def _other_recipe(sub: Trained, full: Trained) -> list[str]:
    """Say in which settings a shallower run was trained otherwise."""
    one, other = sub.settings.training, full.settings.training
    values = {name: (getattr(one, name), getattr(other, name)) for name in RECIPE}
    apart = [f"{name} {a} and not {b}" for name, (a, b) in values.items() if a != b]
    return [f"{sub.path} was trained by another recipe: {', '.join(apart)}"] if apart else []


def _signature(network: ResidualNetwork) -> tuple[object, ...]:
    """Return what two networks of a family share: shapes of stem and head, and of each stage's start."""
    firsts = [network.blocks[str(stage[0])] for stage in network.stages]
    return tuple(_shapes(part) for part in (network.stem, *firsts, network.head))


def _shapes(part: nn.Module) -> tuple[object, ...]:
    """Return the shapes of its weights, and how it goes over places."""
    layers = [[str(getattr(m, name, "")) for name in GEOMETRY] for m in part.modules()]
    return ([tuple(p.shape) for p in part.parameters()], [layer for layer in layers if any(layer)])
