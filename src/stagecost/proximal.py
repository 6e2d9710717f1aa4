"""Block-wise proximal group lasso: branches reach exact zeros where weight decay only gets near."""

import torch

from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import residual_parameters


@torch.no_grad()
def shrink_branches(network: ResidualNetwork, threshold: float) -> list[int]:
    """Do the proximal step of threshold·Σ_k ‖w_F,k‖: w_F,k ← max(0, 1 − threshold/‖w_F,k‖)·w_F,k.

    Called after an optimiser's step, with learning rate times the weight of the penalty. A branch whose
    norm is at most the threshold becomes exactly zero, and so does F_k. (Proximal gradient, Yuan and
    Lin 2006 for the group lasso.)

    Args:
        network: its residual branches are changed in place.
        threshold: at least 0.

    Returns:
        Positions of the branches that are zero now.

    Raises:
        StageCostError: a negative threshold.
    """
    if not threshold >= 0:
        raise StageCostError(f"threshold is {threshold}: give a number of at least 0")
    zero = []
    for position, branch in enumerate(residual_parameters(network)):
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in branch]))
        factor = (1 - threshold / norm).clamp_min(0.0) if norm > 0 else torch.zeros_like(norm)
        for parameter in branch:
            parameter.mul_(factor)
        if factor == 0:
            zero.append(position)
    return zero
