"""What J_N would lose without a block: to first order from the costates, and in truth by removal.

Scale each control by s_k, x_{k+1} = S_k(x_k) + s_k·F_k(x_k). With the costate p_k = ∂J/∂x_k,

    ∂J/∂s_k = ⟨p_{k+1}, F_k(x_k)⟩   at s = 1,

the Hamiltonian's control term. Going from s_k = 1 to 0 removes block k, so to first order J changes by
−⟨p_{k+1}, F_k(x_k)⟩: the Taylor criterion of pruning (Molchanov et al. 2017) and a term of Pontryagin's
principle are one and the same number. It costs one backward pass for all blocks; true removal costs a
forward pass for each.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.losses import LossFunction, counted_samples
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost
from stagecost.trajectory import (
    NOTHING,
    Loader,
    check_gradients,
    device_of,
    evaluation_mode,
    naming_shapes,
    pair,
    to_device,
)


def block_importance(
    network: ResidualNetwork, loader: Loader, gamma: float, *, loss: LossFunction = F.cross_entropy
) -> list[float]:
    """Estimate from the costates by how much J_N would rise without each block, in eval mode.

    Args:
        network: is left in the mode it was in, and without gradients.
        loader: batches of (images, targets).
        gamma: the stage weight of J_N; the weight-decay term is left out.
        loss: maps (output, target) to a mean loss or one loss a sample.

    Returns:
        −⟨p_{k+1}, F_k(x_k)⟩, averaged over the samples, for k = 0 … N-1; negative where J_N would fall.

    Raises:
        StageCostError: the loader gives no batch, gamma is impossible, or `torch.inference_mode` is on.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> len(sc.block_importance(net, loader, gamma=0.1))
        4
    """
    check_gradients()

    def estimate(objective: Callable[[Tensor], Tensor]) -> Tensor:
        scales = torch.ones(network.num_blocks, device=device_of(network), requires_grad=True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(objective(scales), scales)
        return -grad

    return _average_over(network, loader, gamma, loss, estimate)


def removal_cost(
    network: ResidualNetwork, loader: Loader, gamma: float, *, loss: LossFunction = F.cross_entropy
) -> list[float]:
    """Measure by how much J_N rises without each block, one block removed at a time, in eval mode.

    The arguments are those of `block_importance`. The head's statistics stay those of the whole network.

    Returns:
        J_N without F_k minus J_N, for k = 0 … N-1.

    Raises:
        StageCostError: the loader gives no batch, or gamma is impossible.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> len(sc.removal_cost(net, loader, gamma=0.1))
        4
    """

    def measure(objective: Callable[[Tensor], Tensor]) -> Tensor:
        whole = torch.ones(network.num_blocks, device=device_of(network))
        without = whole - torch.eye(network.num_blocks, device=whole.device)
        return torch.stack([objective(scales) for scales in without]) - objective(whole)

    return _average_over(network, loader, gamma, loss, measure)


def scaled_objective(
    network: ResidualNetwork,
    images: Tensor,
    targets: Tensor,
    scales: Tensor,
    gamma: float,
    loss: LossFunction = F.cross_entropy,
) -> Tensor:
    """Compute gamma·Σ_{k<N} L_k + L_N of a batch for the dynamics x_{k+1} = S_k(x_k) + s_k·F_k(x_k).

    Args:
        network: in the mode it is in.
        images: (B, C, H, W).
        targets: (B, …).
        scales: (N,), s_k.
        gamma: the stage weight.
        loss: maps (output, target) to a mean loss or one loss a sample.
    """
    stage_cost, device = StageCost.uniform(network.num_blocks, gamma, loss=loss), device_of(network)
    outputs = network(to_device(images, device), stage_cost.outputs, scales=scales)
    with naming_shapes(outputs, targets):
        return stage_cost(outputs, targets.to(device)).total


def _average_over(
    network: ResidualNetwork,
    loader: Loader,
    gamma: float,
    loss: LossFunction,
    measure: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> list[float]:
    sums, counted = torch.zeros(network.num_blocks, dtype=torch.float64), 0.0
    with evaluation_mode(network):
        for images, targets in map(pair, loader):

            def objective(scales: Tensor, images: Tensor = images, targets: Tensor = targets) -> Tensor:
                return scaled_objective(network, images, targets, scales, gamma, loss)

            if weight := counted_samples(targets, loss):
                sums += measure(objective).detach().double().cpu() * weight
            counted += weight
    if not counted:
        raise StageCostError(NOTHING)
    averages: Sequence[float] = (sums / counted).tolist()
    return list(averages)
