"""The head's pooling of a state that a projection lies before: pick pixels, multiply, normalise, pool.

Where C can be compiled, one loop over the images does it all (`stagecost.native.projected`); elsewhere
torch picks and multiplies, and the kernels of `stagecost.kernels` do the rest. Both give the same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecost.kernels import Kernels
from stagecost.native import projected

_aten = torch.ops.aten


class HeadNorm(NamedTuple):
    """Weight and bias of the head's norm, (C_N,), and its eps."""

    weight: Tensor
    bias: Tensor
    eps: float


class Found(NamedTuple):
    """What pooling finds besides its result, and its gradient needs.

    Attributes:
        num_open: (B, C_N), number of pixels where the ReLU is open.
        moment: (B, C_N), Σ x̂ over these.
        mean: (C_N,), of the batch.
        variance: (C_N,), of the batch, biased.
        centre: (C,), mean of the pixels before the matrix; None where torch did the work.
    """

    num_open: Tensor
    moment: Tensor
    mean: Tensor
    variance: Tensor
    centre: Tensor | None


def pool(picked: Tensor, matrix: Tensor, norm: HeadNorm, kernels: Kernels) -> tuple[Tensor, Found]:
    """Compute Σ_pixels relu(w·x̂ + b), (B, C_N), where x̂ is normalised behind the matrix.

    Args:
        picked: the pixels that arrive, (B, C, H, W); a view of x_k.
        matrix: (C_N, C, 1, 1).
        norm: of the head.
        kernels: for where C cannot be compiled.
    """
    if projected.fits(picked, matrix, norm.weight, norm.bias):
        summed, *found = projected.project_and_pool(picked, matrix, *norm)
        return summed, Found._make(found)
    summed, *found = kernels.pool(F.conv2d(_packed(picked), matrix.to(picked.dtype)), *norm)
    return summed, Found._make([*found, None])


def pool_gradient(
    picked: Tensor,
    matrix: Tensor,
    norm: HeadNorm,
    kernels: Kernels,
    grad: Tensor,
    found: Found,
    grad_picked: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate `pool`.

    Args:
        picked: as in `pool`, and so are `matrix`, `norm` and `kernels`.
        matrix: of the skip chain.
        norm: of the head.
        kernels: for where C cannot be compiled.
        grad: (B, C_N), the gradient with respect to the result.
        found: by `pool`.
        grad_picked: (B, C, H, W); the gradient with respect to the pixels is added to it.

    Returns:
        The gradients with respect to the matrix, and to the norm's weight and bias.
    """
    num_open, moment, mean, variance, centre = found
    if centre is not None:
        needed = (num_open, moment, variance, centre)
        return projected.project_and_pool_gradient(picked, matrix, *norm, grad, needed, grad_picked)
    packed, weights = _packed(picked), matrix.to(picked.dtype)
    reached = F.conv2d(packed, weights)
    grad_reached, *head_grads = kernels.pool_gradient(
        reached, mean, variance, *norm, grad, num_open, moment
    )
    part, grad_matrix, _ = _aten.convolution_backward(
        *(grad_reached, packed, weights, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        [True, True, False],
    )
    grad_picked.add_(part)
    return grad_matrix.to(matrix.dtype), head_grads[0], head_grads[1]


def _packed(picked: Tensor) -> Tensor:
    """Copy pixels: convolutions of a copy without a stride are several times faster backwards."""
    return picked.contiguous(memory_format=torch.channels_last)
