"""The training loop. It knows no file, no rule for cuts and none for gamma: callers bring them.

A training is a pure function of its recipe: order of the images, augmentation and what is drawn follow
from the seed, the epoch and the batch. So one that is stopped anywhere and goes on from its state ends
in the same weights, bit for bit, as one that was left alone (on a CPU with the same number of threads).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stagecost.cut import Cut
from stagecost.dynamics import Pass
from stagecost.errors import StageCostError
from stagecost.objective import ObjectiveTerms, StageCost, equilibrate
from stagecost.random_streams import Stream, torch_generator
from stagecost.train.drop_path import draw_branch_scales, drop_rates
from stagecost.train.history import Sums
from stagecost.train.recipe import Batches, Moment, Recipe
from stagecost.train.stage_cost import StageCostRule, acting_gamma, after_cuts
from stagecost.train.state import State, freeze


@dataclass(frozen=True)
class Step:
    """A step that was done."""

    moment: Moment  #: of it
    stage_cost: StageCost  #: what was minimised, before depths were sampled; of the network as it is
    terms: ObjectiveTerms  #: of the objective
    correct: int  #: images that the whole network got right
    samples: int  #: images


@dataclass(frozen=True)
class Epoch:
    """An epoch that was done."""

    number: int  #: counted from 1
    sums: Sums  #: over its images
    moment: Moment  #: of its last step
    visited: frozenset[Cut]  #: the cuts that bore the stage cost in every step
    gamma: float  #: the stage weight of its last step
    learning_rate: float  #: of its last step


OnStep = Callable[[State, Step], None]
OnEpoch = Callable[[State, Epoch], None]


def fit(
    state: State,
    batches: Batches,
    stage_cost: StageCost | StageCostRule,
    recipe: Recipe,
    *,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Train from where the state is to the end of the last epoch.

    Args:
        state: is moved on.
        batches: the training data.
        stage_cost: what is minimised; or a function of the moment. Its cuts are those of the network at
            the start: blocks that have left count as ones that do nothing.
        recipe: how.
        on_step: is told each step; it may save, stop by an exception, or change what the next steps do.
        on_epoch: is told each epoch, after it is counted; it may also cut the network.

    Raises:
        StageCostError: the objective, or a weight after an epoch, is no finite number.
    """
    rule = (lambda _: stage_cost) if isinstance(stage_cost, StageCost) else stage_cost
    progress = state.progress
    state.start_clock()
    while progress.epoch < recipe.epochs:
        state.network.train()
        freeze(state.network, stem=recipe.freeze_stem, norms=recipe.freeze_norms)
        for images, targets in batches.epoch(progress.epoch, progress.batch):
            moment = Moment(progress.epoch, progress.batch, len(batches), recipe.epochs)
            step = train_step(state, batches, rule, recipe, moment, images, targets)
            count_step(state, step)
            if on_step is not None:
                on_step(state, step)
        epoch = end_epoch(state, rule, recipe, len(batches))
        if on_epoch is not None:
            on_epoch(state, epoch)
        state.count_time()


def train_step(
    state: State,
    batches: Batches,
    rule: StageCostRule,
    recipe: Recipe,
    moment: Moment,
    images: Tensor,
    targets: Tensor,
) -> Step:
    """Do one step.

    With gamma = 0 the intermediate outputs are not even computed: plain training, to the last bit.

    Raises:
        StageCostError: the objective is not finite; the weights are those before the step.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate(moment) * group.get("lr_scale", 1.0)
    stage_cost = after_cuts(rule(moment), state.stages, state.left)
    visited = _sampled(stage_cost, recipe, moment)
    scales = _branch_scales(state, recipe, moment, batches.batch_size)
    how = _gated(recipe, stage_cost)
    outputs = state.outputs(images, visited.outputs, how, scales)
    terms = visited(outputs, targets)
    # Of all processes: if one of them left alone, the others could not say why.
    (total,) = _over_processes(state, [float(terms.total.detach())])
    if not math.isfinite(total):
        raise StageCostError(
            f"the objective is {total} in epoch {moment.epoch + 1}, batch {moment.batch + 1}: lower "
            "--lr or --gamma, or use --clip-norm; the last good checkpoint is kept"
        )
    state.fabric.backward(_weighed(state, terms.total, len(images), batches.batch_size))
    if recipe.equilibrium:
        equilibrate(state.network, stage_cost, how)
    if recipe.clip_norm:
        _clip(state, recipe, moment)
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update_parameters(state.network)
    correct = int((outputs[-1].argmax(dim=1) == targets).sum())
    return Step(moment, stage_cost, terms, correct, len(images))


def _clip(state: State, recipe: Recipe, moment: Moment) -> None:
    """Shorten the gradient to the largest norm; one that has none is refused, or skipped in fp16."""
    norm = state.fabric.clip_gradients(
        state.model, state.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
    )
    skips = state.scaler is not None
    if norm is not None and not torch.isfinite(norm) and not skips:
        raise StageCostError(
            f"the norm of the gradient is {norm.item()} in epoch {moment.epoch + 1}, batch "
            f"{moment.batch + 1}: lower --lr or --gamma; the last good checkpoint is kept"
        )


def _weighed(state: State, total: Tensor, images: int, batch_size: int) -> Tensor:
    """Weigh the objective by this process's share of the images: gradients are averaged as equals."""
    share = images * state.fabric.world_size / batch_size
    return total if state.fabric.world_size == 1 or share == 1 else share * total


def count_step(state: State, step: Step) -> None:
    """Enter a step into the progress."""
    progress, terms = state.progress, step.terms
    progress.batch += 1
    if state.average is not None:
        progress.averaged = int(state.average.n_averaged)
    objective, loss = float(terms.total.detach()), float(terms.losses[-1])
    mine = [objective * step.samples, loss * step.samples, step.correct, step.samples]
    progress.sums.add(*_over_processes(state, mine))
    state.count_time()


def _over_processes(state: State, numbers: list[float]) -> list[float]:
    """Sum up numbers over all processes."""
    if state.fabric.world_size == 1:
        return numbers
    mine = torch.tensor(numbers, dtype=torch.float64, device=state.fabric.device)
    everyone: Tensor = state.fabric.all_reduce(mine, reduce_op="sum")
    return list(map(float, everyone.tolist()))


def end_epoch(state: State, rule: StageCostRule, recipe: Recipe, steps: int) -> Epoch:
    """Count the epoch under way as complete.

    Raises:
        StageCostError: a weight is no finite number.
    """
    progress = state.progress
    check_weights(state)
    # Not what the optimiser holds: one that goes on behind the last step has not stepped yet.
    last = Moment(progress.epoch, steps - 1, steps, recipe.epochs)
    visited = _always_visited(state, rule, recipe, last)
    sums, progress.sums = progress.sums, Sums()
    progress.epoch, progress.batch = progress.epoch + 1, 0
    rate = recipe.learning_rate(last)
    return Epoch(progress.epoch, sums, last, visited, acting_gamma(rule(last)), rate)


def check_weights(state: State) -> None:
    """Refuse weights, or running statistics, that are no finite numbers."""
    for network in state.networks:
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise StageCostError(
                    f"{name} is no finite number in epoch {state.progress.epoch + 1}: lower --lr; the "
                    "last good checkpoint is kept"
                )


def _sampled(stage_cost: StageCost, recipe: Recipe, moment: Moment) -> StageCost:
    """Draw the cuts that bear the stage cost in a step; all where there are no more."""
    if not (recipe.sandwich or 0 < recipe.sampled_depths < len(stage_cost.cuts)):
        return stage_cost
    generator = torch_generator(recipe.seed, Stream.DEPTHS, moment.epoch, moment.batch)
    if recipe.sandwich:
        return stage_cost.sandwiched(generator)
    return stage_cost.sampled(recipe.sampled_depths, generator)


def _always_visited(state: State, rule: StageCostRule, recipe: Recipe, last: Moment) -> frozenset[Cut]:
    """Return the cuts that bear the stage cost in every step of an epoch, up to its last one.

    They follow from the steps, so that a run which went on within the epoch knows those before, too.
    """
    given = left = seen = None
    always: set[Cut] = set()
    for batch in range(last.steps_per_epoch):
        moment = replace(last, batch=batch)
        if (stage_cost := rule(moment)) is not given or left is None:
            given, left = stage_cost, after_cuts(stage_cost, state.stages, state.left)
        drawn = _sampled(left, recipe, moment)
        if drawn is not seen:
            always = set(drawn.cuts) if seen is None else always & set(drawn.cuts)
            seen = drawn
        if not always:
            break
    return frozenset(always)


def _gated(recipe: Recipe, stage_cost: StageCost) -> Pass:
    """Return how a pass is done, with every target a gate."""
    if recipe.gate == 1:
        return recipe.how
    return replace(recipe.how, gates=stage_cost.cuts, beta=recipe.gate)


def _branch_scales(state: State, recipe: Recipe, moment: Moment, batch_size: int) -> Tensor | None:
    """Return s_k of each block for this process's images of a step, (N, B); None for 1."""
    if not recipe.drop_path:
        return None
    rates = drop_rates(recipe.drop_path, len(state.indices))
    generator = torch_generator(recipe.seed, Stream.BRANCHES, moment.epoch, moment.batch)
    # Drawn for the whole batch, so that the processes together see what one would see.
    scales = draw_branch_scales([rates[k] for k in state.left], batch_size, generator)
    fabric = state.fabric
    return scales[:, fabric.global_rank :: fabric.world_size].to(fabric.device)
