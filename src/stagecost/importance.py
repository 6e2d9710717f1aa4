"""What J_N would lose without a block: to first order from the costates, and in truth by removal.

Scale each control by s_k, x_{k+1} = S_k(x_k) + s_k·F_k(x_k). With the costate p_k = ∂J/∂x_k,

    ∂J/∂s_k = ⟨p_{k+1}, F_k(x_k)⟩   at s = 1,

the Hamiltonian's control term. Going from s_k = 1 to 0 removes block k, so to first order J changes by
−⟨p_{k+1}, F_k(x_k)⟩: the Taylor criterion of pruning (Molchanov et al. 2017) and a term of Pontryagin's
principle are one and the same number. It costs one backward pass for all blocks; true removal costs a
forward pass for each.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import LossFunction, stage_cost_objective
from stagecost.outputs import intermediate_output
from stagecost.trajectory import Loader, device_of, evaluation_mode


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
        StageCostError: the loader gives no batch, or gamma is impossible.
    """
    sums = torch.zeros(network.num_blocks, dtype=torch.float64)
    num_samples = 0
    with evaluation_mode(network), torch.enable_grad():
        for images, targets in loader:
            scales = torch.ones(network.num_blocks, device=device_of(network), requires_grad=True)
            value = scaled_objective(network, images, targets, scales, gamma, loss)
            (grad,) = torch.autograd.grad(value, scales)
            sums -= grad.double().cpu() * len(images)
            num_samples += len(images)
    return _averages(sums, num_samples)


def removal_cost(
    network: ResidualNetwork, loader: Loader, gamma: float, *, loss: LossFunction = F.cross_entropy
) -> list[float]:
    """Measure by how much J_N rises without each block, one block removed at a time, in eval mode.

    The arguments are those of `block_importance`. The head's statistics stay those of the whole network.

    Returns:
        J_N without F_k minus J_N, for k = 0 … N-1.

    Raises:
        StageCostError: the loader gives no batch, or gamma is impossible.
    """
    sums = torch.zeros(network.num_blocks, dtype=torch.float64)
    num_samples = 0
    with evaluation_mode(network):
        for images, targets in loader:
            scales = torch.ones(network.num_blocks, device=device_of(network))
            whole = scaled_objective(network, images, targets, scales, gamma, loss)
            for k in range(network.num_blocks):
                without = scales.clone()
                without[k] = 0.0
                value = scaled_objective(network, images, targets, without, gamma, loss)
                sums[k] += float(value - whole) * len(images)
            num_samples += len(images)
    return _averages(sums, num_samples)


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
    device, skips, head = device_of(network), network.skips, network.head
    state: Tensor = network.stem(images.to(device))
    outputs = [intermediate_output(skips, head, state, 0)]
    for k, block in enumerate(network.blocks.values()):
        skipped: Tensor = skips[k](state)
        # The control is what the block adds to its skip path, whatever kind of block it is.
        state = skipped + scales[k] * (block(state) - skipped)
        outputs.append(intermediate_output(skips, head, state, k + 1))
    return stage_cost_objective(torch.stack(outputs), targets.to(device), gamma, loss=loss).total


def _averages(sums: Tensor, num_samples: int) -> list[float]:
    if num_samples == 0:
        raise StageCostError("the data set is empty: give at least one image")
    averages: Sequence[float] = (sums / num_samples).tolist()
    return list(averages)
