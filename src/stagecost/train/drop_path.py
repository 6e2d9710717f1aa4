"""Stochastic depth: in training, branches are left out at random, sample by sample.

    x_{k+1} = S_k(x_k) + s_k·F_k(x_k),   s_k = 0 with probability p_k, else 1/(1 − p_k)

so E[s_k] = 1, and the network that is used has all branches, unscaled. The rates grow linearly with
depth, p_k = rate·(k+1)/N. Sources: Huang et al., "Deep Networks with Stochastic Depth" (2016), for the
rates; the scale in training instead of in use, and samples instead of batches, as in timm's `drop_path`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def drop_rates(rate: float, num_blocks: int) -> list[float]:
    """Return p_k = rate·(k+1)/N for k = 0 … N-1."""
    return [rate * (k + 1) / num_blocks for k in range(num_blocks)]


def draw_branch_scales(rates: Sequence[float], samples: int, generator: torch.Generator) -> Tensor:
    """Draw s_k for every block and sample, (N, samples), by the rates p_k, each from 0 to below 1."""
    dropped = torch.tensor(rates)[:, None]
    kept = torch.rand(len(rates), samples, generator=generator) >= dropped
    return torch.where(kept, 1 / (1 - dropped), 0.0)  # also for a rate that is 1 in single precision
