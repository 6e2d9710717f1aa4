"""How large the control is: ‖F_k(x_k)‖/‖x_k‖ of the branches, and ‖w_F,k‖ of their weights.

Weight norms alone mislead: a convolution that feeds a BatchNorm can be scaled down a hundredfold and
change the block by a tenth. So both are always reported side by side.
"""

import torch
from torch import Tensor, nn

from stagecost.block import ResidualBlock
from stagecost.chains import hooked
from stagecost.native import stepped
from stagecost.network import ResidualNetwork
from stagecost.objective import residual_parameters


def step(block: nn.Module, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of the dynamics and measure the control.

    Args:
        block: block k.
        state: x_k, (B, C, H, W).

    Returns:
        x_{k+1}; and ‖F_k(x_k)‖ and ‖x_{k+1}‖ of each sample, (B,), where F_k(x_k) = x_{k+1} − S_k(x_k).
    """
    skip = block.get_submodule("skip")
    if type(block) is not ResidualBlock or hooked(block):
        following: Tensor = block(state)
        return following, sample_norms(following - skip(state)), sample_norms(following)
    control: Tensor = block.residual(state)
    skipped: Tensor = skip(state)
    own = not torch.is_grad_enabled() and _makes_its_own(block.residual)
    if own and stepped.fits(control, skipped):
        return control, *stepped.add_and_measure(control, skipped)
    size = sample_norms(control)
    # Where it can be, in the branch's memory, which nobody needs any more.
    following = control.add_(skipped) if own else skipped + control
    return following, size, sample_norms(following)


def _makes_its_own(residual: nn.Module) -> bool:
    """Tell whether the output of a branch is memory of its own."""
    return type(residual) is nn.Sequential and len(residual) > 0 and type(residual[-1]) is nn.Conv2d


def sample_norms(values: Tensor) -> Tensor:
    """Compute the Euclidean norm of each sample, (B, …) → (B,)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.dim())))
    return norms


def squared_weight_norms(network: ResidualNetwork) -> list[float]:
    """Compute ‖w_F,k‖² for k = 0 … N-1, over all parameters of the branch, norms included.

    These are the parameters that `parameter_groups` gives to lambda. Summed in double precision.
    """
    branches = residual_parameters(network)
    parameters = [p.detach() for branch in branches for p in branch]
    norms = list(torch._foreach_norm(parameters, 2, dtype=torch.float64)) if parameters else []
    squares = iter(torch.stack(norms).square().tolist() if norms else [])
    return [sum(next(squares) for _ in branch) for branch in branches]


def weight_norms(network: ResidualNetwork) -> list[float]:
    """Compute ‖w_F,k‖ for k = 0 … N-1."""
    return [float(square**0.5) for square in squared_weight_norms(network)]
