"""gamma that steers itself: it presses for depth while the terminal loss keeps up with plain training's.

A constant c = gamma·N = 0.1 does as well (`python -m experiments show gamma`), so it is not recommended.
The rule steers c, the weight of the whole stage cost against the terminal loss, from the losses of
pieces of an epoch: where the loss exceeds plain training's by more than epsilon, c falls, else it rises;
see docs/gamma.md. Both trainings see the same images in the same order::

    plain = Pieces()
    train({**settings, "gamma": 0.0}, "runs/plain", on_step=plain)
    rule = Steered(plain.losses, num_blocks=12, num_classes=10, weight_decay=5e-4)
    train(settings, "runs/steered", stage_cost=rule, on_step=rule.on_step)

It remembers more than a run's folder does, so a training by it is not resumed.
"""

import math
import statistics
from collections.abc import Sequence

from stagecost.objective import StageCost
from stagecost.train.loop import Step
from stagecost.train.recipe import Moment
from stagecost.train.state import State

PIECES = 10
"""Parts of an epoch after each of which c is set anew."""
START, LEAST, MOST = 0.1, 0.03, 0.3
"""Values of c: the first, and the limits."""
QUIET = 0.2
"""Part of the training in which c stays at its start: early gaps are a lag that a run makes up."""
RISE = math.log(MOST / START) / (1 - QUIET)
"""How fast log c rises at most, a whole training: an early imprint of the stage cost stays."""
FALL = 3 * RISE
"""How fast log c falls at most, a whole training."""
MEMORY = 0.9
"""What a piece leaves of the smoothed gap before it."""
LEAST_GAIN = 0.1
"""The least that plain training's gain counts, as a part of the loss of a guess: it begins with 0."""
EPSILON = 0.01
"""The gap that is allowed."""


def gap(loss: float, reference: float, guess: float) -> float:
    """Return by how much a loss exceeds the reference, as a part of what that has gained on a guess."""
    return (loss - reference) / max(guess - reference, LEAST_GAIN * guess)


def next_strength(strength: float, excess: float, share: float) -> float:
    """Return c for the next piece, from the smoothed gap and the piece's share of the training.

    log c moves in proportion to how far the gap is from epsilon, by no more than the piece's share of
    `RISE` or `FALL`; at epsilon it stays. c never leaves `LEAST` … `MOST`.
    """
    push = min(1.0, max(-1.0, 1.0 - excess / EPSILON))
    step = share * push * (RISE if push > 0 else FALL)
    return min(MOST, max(LEAST, strength * math.exp(step)))


def strength_after(losses: Sequence[float], reference: Sequence[float], guess: float) -> float:
    """Return c after the pieces that are done; `START` in the first part of the training, `QUIET`.

    Args:
        losses: mean terminal training loss of each piece until now.
        reference: those of all pieces of the plain run.
        guess: the loss of knowing nothing: the logarithm of the number of classes.
    """
    strength, smoothed, pieces = START, 0.0, len(reference)
    for place, loss in enumerate(losses):
        now = gap(loss, reference[place], guess)
        smoothed = now if place == 0 else MEMORY * smoothed + (1 - MEMORY) * now
        if place + 1 > QUIET * pieces:
            strength = next_strength(strength, smoothed, 1 / pieces)
    return strength


class Pieces:
    """Watches a training: the mean terminal loss of each complete piece of its epochs."""

    def __init__(self) -> None:
        """Begin with none."""
        self.losses: list[float] = []
        self._under_way: list[float] = []

    def __call__(self, state: State, step: Step) -> None:
        """Take a step."""
        self._under_way.append(float(step.terms.losses[-1]))
        done, steps = step.moment.batch + 1, step.moment.steps_per_epoch
        pieces = min(PIECES, steps)
        if done * pieces // steps > (done - 1) * pieces // steps:
            self.losses.append(statistics.mean(self._under_way))
            self._under_way = []


class Steered:
    """The rule: a stage cost as a function of the moment, and what it learns from each step."""

    def __init__(
        self, reference: Sequence[float], num_blocks: int, num_classes: int, weight_decay: float
    ) -> None:
        """Begin with c = `START`; `reference` has the losses of the pieces of the plain run."""
        self.reference, self.num_blocks, self.guess = reference, num_blocks, math.log(num_classes)
        self.weight_decay, self.pieces, self.strength = weight_decay, Pieces(), START

    def __call__(self, moment: Moment) -> StageCost:
        """Return the stage cost of the moment: uniform, normalised."""
        return StageCost.uniform(self.num_blocks, self.strength / self.num_blocks, normalized=True)

    def on_step(self, state: State, step: Step) -> None:
        """Set c anew after a complete piece; lambda is divided by 1 + c, as the objective is."""
        self.pieces(state, step)
        self.strength = strength_after(self.pieces.losses, self.reference, self.guess)
        for group in state.optimizer.param_groups:
            if group["name"] == "residual":
                group["weight_decay"] = self.weight_decay / (1 + self.strength)
