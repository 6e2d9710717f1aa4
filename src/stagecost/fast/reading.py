"""The head's pooling of states, compiled: Σ_pixels relu(w·x̂ + b), x̂ = (x − mean)/√(variance + eps).

In training the literal head keeps a tensor of the state's size for each output that it reads. Here
nothing of that size is kept: the gradient is computed from x_k, which the next block keeps anyway. Of
each state a few numbers a channel are read; what the head makes of them is done once for all outputs.
`torch.compile` makes a loop or two over the pixels of each formula, at the first call with a new shape.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.head import OutputHead


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance, (C,), of (B, P, C)."""
    origin = pixels[0].mean(0)  # near the mean, so that no digits cancel
    centred, samples = pixels - origin, pixels.shape[0] * pixels.shape[1]
    mean = centred.sum((0, 1)) / samples
    return origin + mean, (centred * centred).sum((0, 1)) / samples - mean * mean


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
    """Stands in for a head in training: reads outputs without keeping anything for them."""

    def __init__(self, head: OutputHead) -> None:
        """Take the parameters and the statistics of the head."""
        super().__init__()
        self.head = head

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Read a state that went through its skip chain, (B, C, H, W): see `_Reading`.

        The terminal one is mapped to logits at once, by the head itself: it is that of a plain pass.
        """
        if self._is_terminal(depth):
            logits: Tensor = self.head(state, depth)
            return logits
        norm = self.head.norm
        reading: Tensor = _Reading.apply(state, norm.weight.detach(), norm.bias.detach(), norm.eps)
        self.num_samples, self.num_pixels = len(state), state.shape[2] * state.shape[3]
        return reading

    def outputs(self, read: Sequence[Tensor], cuts: Sequence[Cut]) -> list[Tensor]:
        """Return the logits (B, classes) of cuts from what was read of their last states."""
        early = [i for i, cut in enumerate(cuts) if not self._is_terminal(cut.depth)]
        if not early:
            return list(read)
        logits = self._logits(torch.stack([read[i] for i in early]), [cuts[i] for i in early])
        computed = dict(zip(early, logits, strict=True))
        return [computed.get(i, read[i]) for i in range(len(cuts))]

    def _is_terminal(self, depth: int) -> bool:
        return depth == self.head.norm.num_outputs - 1

    def _logits(self, readings: Tensor, cuts: Sequence[Cut]) -> Tensor:
        """Map readings (K, 2 + 2B, C) to logits (K, B, classes); running statistics follow the y_k."""
        norm, samples = self.head.norm, self.num_samples * self.num_pixels
        mean, variance = readings[:, 0], readings[:, 1]
        count, total = readings[:, 2:].chunk(2, dim=1)
        scale = norm.weight * (variance + norm.eps).rsqrt()
        shift = norm.bias - mean * scale
        tracked = [i for i, cut in enumerate(cuts) if cut.is_prefix]
        depths = [cuts[i].depth for i in tracked]
        unbiased = variance * (samples / max(1, samples - 1))
        norm.track(depths, mean[tracked].detach(), unbiased[tracked].detach())
        return self.head.logits(scale[:, None] * total + shift[:, None] * count, self.num_pixels)


def compiled_head(head: nn.Module) -> CompiledHead | None:
    """Return the compiled stand-in of a head, or None where it is another one, or a hook watches it."""
    watched = any(part._forward_hooks or part._forward_pre_hooks for part in head.modules())
    return None if type(head) is not OutputHead or watched else CompiledHead(head)


class _Reading(torch.autograd.Function):
    """What the head must know of a state (B, C, H, W): (2 + 2B, C).

    Its rows are mean and biased variance, then of each sample the number of its open pixels (where
    w·x̂ + b > 0), then the sum of these. The gradient with respect to the numbers is none.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        # Detached, as the compiler looks into the history of what it is given, and there is none here.
        pixels = _pixels(state.detach())
        mean, variance = compiled(moments)(pixels)
        scale = weight * (variance + eps).rsqrt()
        shift = torch.addcmul(bias, mean, scale, value=-1)
        count, total = compiled(open_pixels)(pixels, scale, shift)
        ctx.save_for_backward(state, scale, shift, mean)
        return torch.cat((mean[None], variance[None], count, total))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, scale, shift, mean = ctx.saved_tensors
        pixels = _pixels(state.detach())
        samples = pixels.shape[0] * pixels.shape[1]
        slope = grad[1] * (2 / samples)
        constant = torch.addcmul(grad[0] / samples, mean, slope, value=-1)
        of_pixels = compiled(spread)(pixels, scale, shift, grad[2 + len(pixels) :], constant, slope)
        of_state = of_pixels.to(state.dtype).unflatten(1, state.shape[2:]).permute(0, 3, 1, 2)
        return of_state, None, None, None


def _pixels(state: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H·W, C) in single precision: no copy where channels come last."""
    return state.float().permute(0, 2, 3, 1).flatten(1, 2).contiguous()
