"""The stage cost of a training: what the settings say, over time, and as blocks leave."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch.nn.functional as F

from stagecost.cut import Cut, Stages
from stagecost.errors import StageCostError, refusing
from stagecost.losses import LossFunction, distilled
from stagecost.models.catalogue import cut_to
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost
from stagecost.train.recipe import Moment
from stagecost.train.settings import RunSettings

StageCostRule = Callable[[Moment], StageCost]
"""What is minimised at a moment; its cuts are those of the network as it was at the start."""


def loss_of(label_smoothing: float) -> LossFunction:
    """Return the cross-entropy."""
    if label_smoothing == 0:
        return F.cross_entropy
    return partial(F.cross_entropy, label_smoothing=label_smoothing)


def stage_cost_of(settings: RunSettings, network: ResidualNetwork) -> StageCost:
    """Return the stage cost that settings describe for a network at the start of its training.

    Raises:
        StageCostError: it names outputs that the network does not have.
    """
    stage, num_blocks = settings.stage, network.num_blocks
    gamma, loss = settings.gamma(num_blocks), loss_of(settings.training.label_smoothing)
    options = {
        "loss": loss,
        "stage_loss": distilled(loss) if stage.stage_loss == "distilled" else None,
        "normalized": settings.training.normalize_objective,
    }
    if stage.first_depth >= num_blocks:
        raise StageCostError(
            f"--first-depth is {stage.first_depth}, but there are {num_blocks} blocks: give a smaller "
            "number"
        )
    if not stage.targets:
        return StageCost.uniform(num_blocks, gamma, first=stage.first_depth, **options)
    targets = []
    for text in stage.targets:
        with refusing(f"--targets {text} is impossible", "give other ones", StageCostError):
            targets.append(target_of(text, network))
    for text, cut in zip(stage.targets, targets, strict=True):
        if len(cut.blocks) == num_blocks:
            raise StageCostError(f"--targets {text} is the whole network: give fewer blocks")
    if len({*targets}) < len(targets):
        raise StageCostError(f"--targets {','.join(stage.targets)} names a cut twice: give each once")
    if stage.gate != 1 and not all(a <= b or b <= a for a, b in combinations(targets, 2)):
        raise StageCostError(
            f"--gate {stage.gate} is for targets of which one holds the blocks of the other, and "
            f"--targets {','.join(stage.targets)} do not: leave one of them out"
        )
    return StageCost.targets(targets if gamma else (), gamma, **options)


def target_of(text: str, network: ResidualNetwork) -> Cut:
    """Return a target of `--targets` by the positions of its acting blocks.

    Raises:
        StageCostError: the network does not have them.
    """
    cut = Cut.parse(text)
    listed = text.strip().startswith("[")  # by the paper's k, as all verbs name blocks
    return cut_to(network, cut.blocks) if listed else network.resolve(cut)


def after_cuts(stage_cost: StageCost, stages: Stages, left: Sequence[int]) -> StageCost:
    """Return a stage cost as it is when only some blocks are left.

    A block that left counts as one that does nothing: this is the zero extension of Theorem 3.1. Then
    outputs coincide; they bear the sum of their weights, and the objective is what it was. So the
    terminal loss takes the weights of all cuts that keep every block that is left, unless the stage loss
    is another one: then these stay a cut. Blocks are told by their positions in the network as it was,
    in `stages` all of them, in `left` those that are left.
    """
    if len(left) == sum(map(len, stages)):
        resolved = all(cut.is_resolved for cut in stage_cost.cuts)
        return stage_cost if resolved else stage_cost.among(stages)
    weights: dict[Cut, float] = {}
    for cut, weight in zip(stage_cost.cuts, stage_cost.weights, strict=True):
        acting = cut.among(stages).among_left(left)
        weights[acting] = weights.get(acting, 0.0) + weight
    terminal = stage_cost.terminal_weight
    if stage_cost.stage_loss is None:
        terminal += weights.pop(Cut.first(len(left)), 0.0)
    return replace(
        stage_cost, cuts=tuple(weights), weights=tuple(weights.values()), terminal_weight=terminal
    )


def terminal_only(stage_cost: StageCost) -> StageCost:
    """Return it without its cuts; the weight of the terminal loss stays, which is 1 if normalised."""
    return replace(stage_cost, cuts=(), weights=())


def acting_gamma(stage_cost: StageCost) -> float:
    """Return the stage weight: that of each cut, or their mean where they differ; 0 without a cut."""
    weights = stage_cost.weights
    if len(set(weights)) <= 1:
        return weights[0] if weights else 0.0
    return sum(weights) / len(weights)
