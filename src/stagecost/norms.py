"""How large the control is: ‖F_k(x_k)‖/‖x_k‖ of the branches, and ‖w_F,k‖ of their weights.

Weight norms alone mislead: a convolution that feeds a BatchNorm can be scaled down a hundredfold and
change the block by a tenth. So both are always reported side by side.
"""

import torch
from torch import Tensor

from stagecost.network import ResidualNetwork
from stagecost.objective import residual_parameters


def residual_ratio(state: Tensor, skipped: Tensor, following: Tensor) -> Tensor:
    """Compute ‖F_k(x_k)‖ / ‖x_k‖ for each sample, where F_k(x_k) = x_{k+1} − S_k(x_k).

    Args:
        state: x_k, (B, …).
        skipped: S_k(x_k), (B, …), of the shape of x_{k+1}.
        following: x_{k+1}, (B, …).

    Returns:
        (B,), exactly 0 where the branch adds nothing.
    """
    control: Tensor = (following - skipped).flatten(1).norm(dim=1)
    scale: Tensor = state.flatten(1).norm(dim=1).clamp_min(torch.finfo(state.dtype).tiny)
    return control / scale


def squared_weight_norms(network: ResidualNetwork) -> list[float]:
    """Compute ‖w_F,k‖² for k = 0 … N-1, over all parameters of the branch, norms included.

    These are the parameters that `parameter_groups` gives to lambda. Summed in double precision.
    """
    return [
        sum(float(p.detach().double().square().sum()) for p in branch)
        for branch in residual_parameters(network)
    ]


def weight_norms(network: ResidualNetwork) -> list[float]:
    """Compute ‖w_F,k‖ for k = 0 … N-1."""
    return [float(square**0.5) for square in squared_weight_norms(network)]
