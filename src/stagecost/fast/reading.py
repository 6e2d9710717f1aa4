"""The head's pooling of a state, compiled: Σ_pixels relu(w·x̂ + b), x̂ = (x − mean)/√(variance + eps).

In training the literal head keeps a tensor of the state's size for each output that it reads. Here
nothing of that size is kept: the gradient is computed from x_k, which the next block keeps anyway.
`torch.compile` makes a loop or two over the pixels of each formula, at the first call with a new shape.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stagecost.errors import StageCostError
from stagecost.head import OutputHead


def pool(state: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Compute Σ_pixels relu(w·x̂ + b) by the statistics of the batch.

    Args:
        state: x, (B, C, H, W).
        weight: w, (C,).
        bias: b, (C,).
        eps: of the norm.

    Returns:
        The sums, (B, C); over the pixels where the ReLU is open, their number and Σ x̂, (B, C); mean and
        biased variance, (C,).
    """
    state = state.float()
    samples = state.numel() // state.shape[1]
    mean = state.sum((2, 3)).sum(0) / samples
    variance = (state - _per_channel(mean)).square().sum((2, 3)).sum(0) / samples
    standardised = _standardised(state, mean, variance, eps)
    affine = standardised * _per_channel(weight) + _per_channel(bias)
    count = (affine > 0).sum((2, 3), dtype=torch.float32)
    moment = torch.where(affine > 0, standardised, 0.0).sum((2, 3))
    return weight * moment + bias * count, count, moment, mean, variance


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
    """Differentiate `pool`: the gradient is the same for all open pixels, so its sums are there already.

    Args:
        state: x, (B, C, H, W).
        mean: of the batch, (C,).
        variance: of the batch, biased, (C,).
        weight: w, (C,).
        bias: b, (C,).
        eps: of the norm.
        grad: (B, C), the gradient with respect to the sums.
        count: (B, C), number of open pixels.
        moment: (B, C), Σ x̂ over these.

    Returns:
        The gradients with respect to x, weight and bias.
    """
    dtype, state, grad = state.dtype, state.float(), grad.float()
    samples = state.numel() // state.shape[1]
    grad_bias, grad_weight = (grad * count).sum(0), (grad * moment).sum(0)
    standardised = _standardised(state, mean, variance, eps)
    affine = standardised * _per_channel(weight) + _per_channel(bias)
    spread = torch.where(affine > 0, (grad * weight)[:, :, None, None], 0.0)
    centred = spread - _per_channel(weight * grad_bias / samples)
    centred = centred - standardised * _per_channel(weight * grad_weight / samples)
    return (centred * _per_channel((variance + eps).rsqrt())).to(dtype), grad_weight, grad_bias


def _standardised(state: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    return (state - _per_channel(mean)) * _per_channel((variance + eps).rsqrt())


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]


@functools.cache
def compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return a formula compiled; it is built when it first meets a shape."""
    return torch.compile(formula, dynamic=False)


def check_compiler(device: str = "cpu") -> None:
    """Refuse to go on where torch.compile does not work on this kind of device.

    Raises:
        StageCostError: a small function cannot be compiled.
    """
    # Looking for a compiler is not enough: headers may be missing, or a folder to write to.
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # whatever the reason is, the answer is no
        raise StageCostError(
            f"nothing can be compiled for {device} here ({type(error).__name__}): install g++ and "
            "python3-dev, or leave --compile out"
        ) from None


class CompiledHead(nn.Module):
    """Stands in for a head in training: reads intermediate outputs without keeping anything for them."""

    def __init__(self, head: OutputHead) -> None:
        """Take the parameters and the statistics of the head."""
        super().__init__()
        self.head = head

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Map a state that went through its skip chain, (B, C, H, W), to logits (B, classes)."""
        norm = self.head.norm
        if depth == norm.num_outputs - 1 or not norm.training:
            whole: Tensor = self.head(state, depth)
            return whole
        summed, mean, variance = _Pool.apply(state, norm.weight, norm.bias, norm.eps)
        samples = state.numel() // state.shape[1]
        norm.track([depth], mean[None], variance[None] * (samples / max(1, samples - 1)))
        return self.head.logits(summed, state.shape[2] * state.shape[3])


def compiled_head(head: nn.Module) -> nn.Module:
    """Return the compiled stand-in of a head, or the head itself where another one, or a hook, is."""
    watched = any(part._forward_hooks or part._forward_pre_hooks for part in head.modules())
    return head if type(head) is not OutputHead or watched else CompiledHead(head)


class _Pool(torch.autograd.Function):
    """`pool` with its gradient: (sums, mean, variance) from state, weight, bias, eps."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Detached, as the compiler looks into the history of what it is given, and there is none here.
        given = (state.detach(), weight.detach(), bias.detach(), eps)
        summed, count, moment, mean, variance = compiled(pool)(*given)
        ctx.eps = eps
        ctx.save_for_backward(state, weight, bias, mean, variance, count, moment)
        ctx.mark_non_differentiable(mean, variance)
        return summed, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        state, weight, bias, mean, variance, count, moment = (t.detach() for t in ctx.saved_tensors)
        given = (state, mean, variance, weight, bias, ctx.eps, grad, count, moment)
        return *compiled(pool_gradient)(*given), None
