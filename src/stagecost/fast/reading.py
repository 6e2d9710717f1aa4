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


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance, (C,), of (B, P, C)."""
    variance, mean = torch.var_mean(pixels, (0, 1), correction=0)
    return mean, variance


def open_pixels(pixels: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Compute number and sum, (B, C), of the pixels (B, P, C) where scale·x + shift > 0."""
    opens = pixels * scale + shift > 0
    return opens.sum(1, dtype=torch.float32), torch.where(opens, pixels, 0.0).sum(1)


def spread(
    pixels: Tensor, scale: Tensor, shift: Tensor, grad: Tensor, constant: Tensor, slope: Tensor
) -> Tensor:
    """Compute grad (B, C) on the open pixels (B, P, C), plus constant + slope·x, (C,), on all."""
    opens = pixels * scale + shift > 0
    return torch.where(opens, grad[:, None], 0.0) + constant + slope * pixels


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
    """Σ_pixels relu(w·x̂ + b) by the statistics of the batch, which are returned as well.

    Inputs: state (B, C, H, W), weight and bias (C,), eps. Outputs: the sums, (B, C); mean and biased
    variance, (C,), without gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Detached, as the compiler looks into the history of what it is given, and there is none here.
        pixels, weight, bias = _pixels(state.detach()), weight.detach(), bias.detach()
        mean, variance = compiled(moments)(pixels)
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        shift = bias - mean * scale
        count, total = compiled(open_pixels)(pixels, scale, shift)
        ctx.save_for_backward(state, scale, shift, mean, inverse, count, total)
        ctx.mark_non_differentiable(mean, variance)
        return scale * total + shift * count, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        state, scale, shift, mean, inverse, count, total = ctx.saved_tensors
        pixels, grad = _pixels(state.detach()), grad.float()
        # The gradient is the same for all open pixels, so sums over them are there already.
        grad_bias = (grad * count).sum(0)
        grad_weight = (grad * (total - mean * count)).sum(0) * inverse
        samples = pixels.shape[0] * pixels.shape[1]
        slope = -scale * inverse * grad_weight / samples
        constant = -scale * grad_bias / samples - mean * slope
        of_pixels = compiled(spread)(pixels, scale, shift, grad * scale, constant, slope)
        of_state = of_pixels.to(state.dtype).unflatten(1, state.shape[2:]).permute(0, 3, 1, 2)
        return of_state, grad_weight, grad_bias, None


def _pixels(state: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H·W, C) in single precision: no copy where channels come last."""
    return state.float().permute(0, 2, 3, 1).flatten(1, 2).contiguous()
