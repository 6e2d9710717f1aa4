"""Sampled stage cost: a few depths a step, whose weighted losses have the stage cost as their mean.

The depths are cut into as many runs of neighbours as depths are wanted, and one is drawn from each run
with a weight of the run's length. Every depth is then drawn with probability 1/length, so the weighted
sum is unbiased; and as neighbouring outputs have similar losses, it varies less than by free drawing.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from stagecost.errors import StageCostError


def strata(depths: Sequence[int], samples: int) -> list[Sequence[int]]:
    """Cut depths into `samples` runs of neighbours whose lengths differ by at most one.

    Raises:
        StageCostError: fewer than one sample.
    """
    if samples < 1:
        raise StageCostError(f"{samples} sampled depths: give a number of at least 1")
    samples = min(samples, len(depths))
    edges = [round(i * len(depths) / samples) for i in range(samples + 1)] if samples else [0]
    return [depths[a:b] for a, b in pairwise(edges)]


def sample_depths(
    weights: Sequence[float], samples: int, generator: torch.Generator
) -> list[tuple[int, float]]:
    """Draw depths and the weights of their losses, an unbiased estimate of Σ_k c_k·L_k.

    Args:
        weights: c_k, k = 0 … N-1; depths of weight 0 are never drawn.
        samples: how many depths; all of them if there are no more.
        generator: where the randomness comes from.

    Returns:
        (k, c_k times the length of its run) for each depth drawn, in ascending order.
    """
    drawn = []
    for run in strata([k for k, weight in enumerate(weights) if weight], samples):
        k = run[int(torch.randint(len(run), (), generator=generator))]
        drawn.append((k, weights[k] * len(run)))
    return drawn
