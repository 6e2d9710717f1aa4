"""`--gamma auto`: a rule that presses for depth while the terminal loss keeps up with plain training's.

The rule is a pure function of what the training has brought, so a run that is resumed goes on as one
that was left alone. It steers c, the weight of the whole stage cost against the terminal loss (gamma·N
where all depths weigh alike), because c is what can be carried from one depth to another. The plain run
that it compares with is found in `stagecost.training.gamma_reference`. Nothing heavy is imported here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stagecost.errors import StageCostError

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


@dataclass(frozen=True)
class GammaSettings:
    """How `gamma: auto` is steered; see docs/gamma.md.

    Args:
        gamma_reference: folder of a plain run (gamma 0) of the same settings to compare with; if not
            given, one is trained first, in the folder plain of the run.
        gamma_epsilon: by how much the terminal training loss may exceed that of the plain run, as a part
            of what the plain run has taken off the loss of a guess.
    """

    gamma_reference: str | None = None
    gamma_epsilon: float = 0.01

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            StageCostError: names the value and what is possible.
        """
        if not 0 < self.gamma_epsilon < 1:
            raise StageCostError(
                f"gamma_epsilon is {self.gamma_epsilon}: give a number between 0 and 1, such as 0.01"
            )


def gap(loss: float, reference: float, guess: float) -> float:
    """Return by how much a loss exceeds the reference, as a part of what that has gained on a guess.

    Args:
        loss: the terminal loss.
        reference: that of plain training at the same moment.
        guess: the loss of knowing nothing: the logarithm of the number of classes.
    """
    return (loss - reference) / max(guess - reference, LEAST_GAIN * guess)


def next_strength(strength: float, excess: float, epsilon: float, share: float) -> float:
    """Return c for the next piece: larger while the gap is below epsilon, smaller above it.

    log c moves in proportion to how far the gap is from epsilon, by no more than the piece's share of
    `RISE` or `FALL`; at epsilon it stays. c never leaves `LEAST` … `MOST`.

    Args:
        strength: c until now.
        excess: the smoothed gap.
        epsilon: the gap that is allowed.
        share: of the piece in the whole training.
    """
    push = min(1.0, max(-1.0, 1.0 - excess / epsilon))
    step = share * push * (RISE if push > 0 else FALL)
    return min(MOST, max(LEAST, strength * math.exp(step)))


def strength_after(
    losses: Sequence[float], reference: Sequence[float], guess: float, epsilon: float, pieces: int
) -> float:
    """Return c after the pieces that are done; `START` in the first part of the training, `QUIET`.

    Args:
        losses: mean terminal training loss of each piece until now.
        reference: those of the plain run, from its first piece on; at least as many.
        guess: the logarithm of the number of classes.
        epsilon: see `GammaSettings`.
        pieces: of the whole training.
    """
    strength, smoothed = START, 0.0
    for place, loss in enumerate(losses):
        now = gap(loss, reference[place], guess)
        smoothed = now if place == 0 else MEMORY * smoothed + (1 - MEMORY) * now
        if place + 1 > QUIET * pieces:
            strength = next_strength(strength, smoothed, epsilon, 1 / pieces)
    return strength


def pieces_of(num_batches: int) -> int:
    """Return into how many pieces an epoch of so many steps is divided."""
    return min(PIECES, num_batches)


def first_step(piece: int, num_batches: int) -> int:
    """Return the step of an epoch with which a piece begins; that of one beyond the last is the end."""
    return -(-piece * num_batches // pieces_of(num_batches))


def complete_pieces(done: int, num_batches: int) -> int:
    """Return how many pieces of an epoch are complete after so many steps of it."""
    return done * pieces_of(num_batches) // num_batches


def add_to_pieces(pieces: list[float], loss: float, batch: int, num_batches: int) -> None:
    """Enter the loss of a step of an epoch; a piece that is complete holds the mean of its steps.

    Args:
        pieces: those of the epoch until now, changed in place; the last one may be incomplete.
        loss: of the step.
        batch: the step, counted from 0.
        num_batches: steps of the epoch.
    """
    piece = complete_pieces(batch, num_batches)
    first, end = (first_step(p, num_batches) for p in (piece, piece + 1))
    pieces += [0.0] * (piece + 1 - len(pieces))
    pieces[piece] += loss / (end - first)
