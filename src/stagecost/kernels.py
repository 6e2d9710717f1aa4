"""A block's first normalisation and the head's pooling of the same state, as formulas to be fused.

Block k begins with relu(w1·x̂ + b1), the head with p = Σ_pixels relu(w·x̂ + b), where
x̂ = (x − mean)/√(variance + eps) in both: most of the work on x_k is the same. Each function here is
the formula, forwards or backwards; `torch.compile` makes of each a loop or two over the pixels, so
that a state is read two or three times in all and nothing of its size is kept. Run uncompiled they
are right but slow. They serve `stagecost.fast_outputs`; `stagecost.outputs` reads like the paper.

Shapes: states (B, C, H, W); weights, biases, means and variances (C,); sums (B, C).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagecost.errors import StageCostError


def per_channel(values: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over (B, C, H, W)."""
    return values[None, :, None, None]


def batch_statistics(state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance of each channel, in two passes: it is that of centred values."""
    samples = state.numel() // state.shape[1]
    mean = state.sum((2, 3)).sum(0) / samples
    return mean, (state - per_channel(mean)).square().sum((2, 3)).sum(0) / samples


def normalise(state: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute relu(w1·x̂ + b1), mean and variance: how a pre-activation block begins."""
    dtype, state = state.dtype, _accurate(state)
    mean, variance = batch_statistics(state)
    normalised = _affine(_standardised(state, mean, variance, eps), weight, bias)
    return normalised.relu().to(dtype), mean, variance


def pool(state: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Compute how the head begins, Σ_pixels relu(w·x̂ + b).

    Returns:
        The sums, (B, C); over the pixels where the ReLU is open, their number and Σ x̂, (B, C), which
        the gradient needs; mean and variance.
    """
    state = _accurate(state)
    mean, variance = batch_statistics(state)
    return *_pooled(state, mean, variance, weight, bias, eps), mean, variance


def normalise_and_pool(
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    head_weight: Tensor,
    head_bias: Tensor,
    head_eps: float,
) -> tuple[Tensor, ...]:
    """Compute what `normalise` and `pool` do, of one state, sharing its statistics.

    Returns:
        relu(w1·x̂ + b1); then what `pool` returns.
    """
    dtype, state = state.dtype, _accurate(state)
    mean, variance = batch_statistics(state)
    normalised = _affine(_standardised(state, mean, variance, eps), weight, bias).relu()
    pooled = _pooled(state, mean, variance, head_weight, head_bias, head_eps)
    return normalised.to(dtype), *pooled, mean, variance


def normalise_gradient(
    state: Tensor,
    grad: Tensor,
    other: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate `normalise`, and add another gradient of the state.

    Args:
        state: x. Where the ReLU is open is computed again: reading the result would take longer.
        grad: the gradient with respect to the result.
        other: one more gradient with respect to x, such as that of the skip connection.
        mean: of the batch.
        variance: of the batch, biased.
        weight: w1.
        bias: b1.
        eps: as in `normalise`.

    Returns:
        The gradients with respect to x, weight and bias.
    """
    dtype, state = state.dtype, _accurate(state)
    part, *grads = _block_backwards(state, grad, mean, variance, weight, bias, eps)
    return (_accurate(other) + part).to(dtype), *grads  # type: ignore[return-value]


def pool_gradient(
    state: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    grad: Tensor,
    count: Tensor,
    moment: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate `pool`.

    Args:
        state: x.
        mean: of the batch.
        variance: of the batch, biased.
        weight: w.
        bias: b.
        eps: as in `pool`.
        grad: (B, C), the gradient with respect to the sums.
        count: (B, C), number of open pixels, from `pool`.
        moment: (B, C), Σ x̂ over these, from `pool`.

    Returns:
        The gradients with respect to x, weight and bias.
    """
    dtype, state = state.dtype, _accurate(state)
    part, *grads = _head_backwards(state, mean, variance, weight, bias, eps, grad, count, moment)
    return part.to(dtype), *grads  # type: ignore[return-value]


def normalise_and_pool_gradient(
    state: Tensor,
    grad: Tensor,
    other: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    head_weight: Tensor,
    head_bias: Tensor,
    head_eps: float,
    pooled_grad: Tensor,
    count: Tensor,
    moment: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate `normalise_and_pool`, and add another gradient of the state.

    The arguments are those of `normalise_gradient` and `pool_gradient`.

    Returns:
        The gradients with respect to x, the block's weight and bias, the head's weight and bias.
    """
    dtype, state = state.dtype, _accurate(state)
    part, *grads = _block_backwards(state, grad, mean, variance, weight, bias, eps)
    head = (mean, variance, head_weight, head_bias, head_eps, pooled_grad, count, moment)
    head_part, *head_grads = _head_backwards(state, *head)
    return (_accurate(other) + part + head_part).to(dtype), *grads, *head_grads  # type: ignore[return-value]


def _accurate(values: Tensor) -> Tensor:
    """Go over to single precision or better, as BatchNorm does inside."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _standardised(state: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    return (state - per_channel(mean)) * per_channel((variance + eps).rsqrt())


def _affine(standardised: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return standardised * per_channel(weight) + per_channel(bias)


def _pooled(
    state: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ relu(w·x̂ + b), and number and Σ x̂ of the open pixels."""
    standardised = _standardised(state, mean, variance, eps)
    affine = _affine(standardised, weight, bias)
    is_open = (affine > 0).to(affine.dtype)
    return affine.relu().sum((2, 3)), is_open.sum((2, 3)), (is_open * standardised).sum((2, 3))


def _block_backwards(
    state: Tensor, grad: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate relu(w1·x̂ + b1)."""
    standardised = _standardised(state, mean, variance, eps)
    grad = torch.where(_affine(standardised, weight, bias) > 0, _accurate(grad), 0.0)
    grad_bias = grad.sum((2, 3)).sum(0)
    grad_weight = (grad * standardised).sum((2, 3)).sum(0)
    return _through_norm(state, grad, mean, variance, weight, eps, grad_weight, grad_bias)


def _head_backwards(
    state: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    grad: Tensor,
    count: Tensor,
    moment: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate Σ relu(w·x̂ + b): the same for all open pixels, so the sums are there already."""
    grad = _accurate(grad)
    grad_bias, grad_weight = (grad * count).sum(0), (grad * moment).sum(0)
    affine = _affine(_standardised(state, mean, variance, eps), weight, bias)
    spread = torch.where(affine > 0, grad[:, :, None, None], 0.0)
    return _through_norm(state, spread, mean, variance, weight, eps, grad_weight, grad_bias)


def _through_norm(
    state: Tensor,
    grad: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    eps: float,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate w·x̂ + b, whose mean and variance are those of the batch (Ioffe and Szegedy 2015)."""
    samples = state.numel() // state.shape[1]
    standardised = _standardised(state, mean, variance, eps)
    centred = grad - per_channel(grad_bias / samples) - standardised * per_channel(grad_weight / samples)
    return centred * per_channel(weight * (variance + eps).rsqrt()), grad_weight, grad_bias


@dataclass(frozen=True)
class Kernels:
    """The six formulas, compiled."""

    normalise: Callable[..., Any]
    pool: Callable[..., Any]
    normalise_and_pool: Callable[..., Any]
    normalise_gradient: Callable[..., Any]
    pool_gradient: Callable[..., Any]
    normalise_and_pool_gradient: Callable[..., Any]


FORMULAS = Kernels(
    *(normalise, pool, normalise_and_pool),
    *(normalise_gradient, pool_gradient, normalise_and_pool_gradient),
)


@functools.cache
def compiled_kernels() -> Kernels:
    """Return the formulas compiled; each is built when it first meets a shape.

    Raises:
        StageCostError: nothing can compile here.
    """
    if not can_compile():
        raise StageCostError(
            "fused kernels need a C++ compiler and Python's headers, and cannot be compiled here: "
            "install g++ and python3-dev, or do without fused (--fused no)"
        )
    formulas = (getattr(FORMULAS, name) for name in Kernels.__dataclass_fields__)
    return Kernels(*(torch.compile(formula, dynamic=False) for formula in formulas))


@functools.cache
def can_compile(device: str = "cpu") -> bool:
    """Tell whether torch.compile works on this kind of device, by compiling something small.

    Looking for a compiler is not enough: headers may be missing, or a folder to write to.
    """
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=device))
    except Exception:  # whatever the reason is, the answer is no
        return False
    return True
