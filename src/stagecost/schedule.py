"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math


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
