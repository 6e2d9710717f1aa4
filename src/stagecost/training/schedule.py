"""Learning rate and stage weight as functions of the step alone, so that resuming needs no state."""

import math
from typing import Literal

GammaSchedule = Literal["constant", "warmup", "early", "late", "falling"]


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor of the highest learning rate: linear warm-up, then half a cosine to zero.

    Args:
        step: 0 … total_steps − 1.
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up; the highest rate is reached at its last one.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def gamma_factor(schedule: GammaSchedule, progress: float) -> float:
    """Return the factor of gamma after a part of the training.

    Args:
        schedule: "constant"; "warmup" rises over the first half; "early" is 0 until 20 % and rises until
            30 %, "late" is 0 until 40 % and rises until 70 %, so that features form before depth is
            pressed on; "falling" goes from 1 to 0 along a cosine.
        progress: part of the training that is done, from 0 to 1.
    """
    match schedule:
        case "constant":
            return 1.0
        case "warmup":
            return min(1.0, 2 * progress)
        case "early":
            return min(1.0, max(0.0, (progress - 0.2) / 0.1))
        case "late":
            return min(1.0, max(0.0, (progress - 0.4) / 0.3))
        case "falling":
            return 0.5 * (1 + math.cos(math.pi * progress))
