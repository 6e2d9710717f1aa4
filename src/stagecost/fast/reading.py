"""How the head reads states at less cost: lean in training, its norm folded in evaluation.

In training the literal head keeps a tensor of the state's size for each output that it reads, and so
does a chain of projections. The lean head keeps nothing of that size: what the gradient needs is
computed again from x_k, which the next block keeps anyway. The linear map to the logits is done once
for all outputs.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stagecost.cut import Cut
from stagecost.dynamics import Tail
from stagecost.fast.chains import CollapsedChain, CollapsedTails, is_watched
from stagecost.head import OutputBatchNorm2d, OutputHead

NOTHING = 1e-30  # a scale below it would need an edge that no float has
STEEP = 100.0  # a shift of so many scales takes two of a float's seven digits in `_gradients_by_sums`


def reader_of(head: nn.Module, tail: Tail) -> nn.Module:
    """Return what reads states behind collapsed tails at less cost than this head, or the head itself.

    Another head is left to itself, one that a hook watches, and one that is traced to be compiled.
    """
    if is_watched(head) or torch.compiler.is_compiling() or not isinstance(tail, CollapsedTails):
        return head
    if type(head) is not OutputHead or not _is_plain(head):
        return head
    if head.norm.training:
        return LeanHead(head, tail.chains)
    return head if torch.is_grad_enabled() else FoldedHead(head)


def _is_plain(head: OutputHead) -> bool:
    """Tell whether norm and linear map are what they seem, with numbers of a wide enough range."""
    norm, linear = head.norm, head.linear
    if type(norm) is not OutputBatchNorm2d or type(linear) is not nn.Linear:
        return False
    affine = all(isinstance(tensor, Tensor) for tensor in (norm.weight, norm.bias, linear.bias))
    return affine and norm.weight.dtype in (torch.float32, torch.float64)


class FoldedHead(nn.Module):
    """Stands in for a head in eval mode: relu(w·x + b) = w·clamp(x) + b, so that w and b follow the sum.

    Equal up to rounding. It holds on to the weights as they are now.
    """

    def __init__(self, head: OutputHead) -> None:
        """Fold the norms of all depths."""
        super().__init__()
        norm, linear, self.row = head.norm, head.linear, head.norm.row
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            scale = torch.where(scale.abs() < NOTHING, 0.0, scale)
            edge = -shift / scale  # where the ReLU opens
            low = torch.where(scale > 0, edge, -math.inf)
            high = torch.where(scale < 0, edge, math.inf)
            shift = torch.where(scale == 0, shift.relu(), shift)
        self.scales, self.shifts = scale.unbind(), shift.unbind()
        self.lows, highs = (rows[:, :, None, None].unbind() for rows in (low, high))
        # One bound is cheaper than two, and all weights of a norm are seldom of both signs.
        self.highs = highs if bool((scale < 0).any()) else (None,) * len(highs)
        self.bias, self.matrix = linear.bias, linear.weight.t()

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Map a state that went through its skip chain, (B, C, H, W), to logits (B, classes)."""
        row = self.row(depth)
        summed = torch.clamp(state, self.lows[row], self.highs[row]).sum(dim=(2, 3))
        share = 1 / (state.shape[2] * state.shape[3])
        pooled = torch.addcmul(self.shifts[row], summed, self.scales[row], value=share)
        return torch.addmm(self.bias, pooled, self.matrix)  # what `linear` comes to


class LeanHead(nn.Module):
    """Stands in for tails and head in training. What it pools is what they pool, to the last bit."""

    def __init__(self, head: OutputHead, chains: Sequence[CollapsedChain]) -> None:
        """Take the parameters and the statistics of the head, and the chains of the N+1 states."""
        super().__init__()
        self.head, self.chains = head, chains
        norm = head.norm  # which is asked on a CPU alone: elsewhere every answer would be waited for
        self.by_sums = norm.weight.is_cpu and bool((norm.bias.abs() < STEEP * norm.weight).all())

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Read x_k, (B, C_k, H, W): what the head pools, (B, C).

        Of x_N these are the logits, by the head itself: those of a plain pass.
        """
        if self._is_terminal(depth):
            logits: Tensor = self.head(state, depth)
            return logits
        norm, chain = self.head.norm, self.chains[depth]
        running = (*norm.count_batch(depth), norm.eps)
        pooled: Tensor = _Reading.apply(
            state, chain.matrix, norm.weight, norm.bias, chain, running, self.by_sums
        )
        return pooled

    def outputs(self, read: Sequence[Tensor], cuts: Sequence[Cut]) -> list[Tensor]:
        """Return the logits (B, classes) of cuts from what was read of their last states."""
        early = [i for i, cut in enumerate(cuts) if not self._is_terminal(cut.depth)]
        if not early:
            return list(read)
        logits = self.head.linear(torch.stack([read[i] for i in early]))
        computed = dict(zip(early, logits.unbind(), strict=True))
        return [computed.get(i, read[i]) for i in range(len(cuts))]

    def _is_terminal(self, depth: int) -> bool:
        return depth == self.head.norm.num_outputs - 1


class _Reading(torch.autograd.Function):
    """Mean over the pixels of relu(norm(S_{N-1} ∘ … ∘ S_k (x_k))), normed by the batch: (B, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        matrix: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        chain: CollapsedChain,
        running: tuple[Tensor | None, Tensor | None, float, float],
        by_sums: bool,
    ) -> Tensor:
        seen = chain(state).to(weight.dtype)
        if seen.numel() == seen.shape[1]:  # of which torch's norm says the same, and this one nothing
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {seen.shape}"
            )
        running_mean, running_variance, factor, eps = running
        normed, mean, inverse = torch.native_batch_norm(
            seen, weight, bias, running_mean, running_variance, True, factor, eps
        )
        pooled = normed.relu_().mean(dim=(2, 3))
        ctx.save_for_backward(state, matrix, pooled, weight, bias, mean, inverse)
        ctx.chain, ctx.eps, ctx.by_sums = chain, eps, by_sums
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, matrix, pooled, weight, bias, mean, inverse = ctx.saved_tensors
        seen = state.to(weight.dtype)
        if matrix is not None:
            picked, matrix = (t.detach().requires_grad_() for t in (ctx.chain.pick(state), matrix))
            with torch.enable_grad():
                seen = ctx.chain.project(picked, matrix).to(weight.dtype)
        each = grad / (seen.shape[2] * seen.shape[3])
        if ctx.by_sums:
            weighted = (grad * pooled).sum(dim=0)
            of_seen, *of_affine = _gradients_by_sums(
                each, weighted, seen.detach(), weight, bias, mean, inverse
            )
        else:
            scale = weight * inverse
            shift = torch.addcmul(bias, mean, scale, value=-1)
            passing = torch.addcmul(shift.view(-1, 1, 1), seen.detach(), scale.view(-1, 1, 1)).gt_(0)
            of_normed = passing.mul_(each.view(*each.shape, 1, 1))
            of_seen, *of_affine = torch.ops.aten.native_batch_norm_backward(
                of_normed, seen.detach(), weight, None, None, mean, inverse, True, ctx.eps, [True] * 3
            )
        if matrix is None:
            return of_seen.to(state.dtype), None, *of_affine, None, None, None
        of_picked, of_matrix = torch.autograd.grad(seen, (picked, matrix), of_seen)
        return ctx.chain.put_back(of_picked, state), of_matrix, *of_affine, None, None, None


def _gradients_by_sums(
    each: Tensor,
    weighted: Tensor,
    seen: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in what is seen, (B, C, H, W), in weight and in bias, (C,).

    With δ = passing·each, the gradient of the norm's output w·x̂ + b, they are
    w·σ⁻¹·(δ - mean(δ) - x̂·mean(δ·x̂)), Σ δ·x̂ and Σ δ. `weighted` is Σ δ·(w·x̂ + b), known from the
    pooling: that saves the pass that would sum δ·x̂, where w is not small beside b. Where w is above 0,
    what passes the ReLU is above an edge, told in one pass, too.
    """
    scale = weight * inverse
    edge = torch.addcdiv(mean, bias, scale, value=-1)  # where the ReLU opens
    passing = torch.gt(seen, edge.view(-1, 1, 1), out=torch.empty_like(seen))
    of_bias = (each * passing.sum(dim=(2, 3))).sum(dim=0)
    of_weight = torch.addcmul(weighted, bias, of_bias, value=-1) / weight
    slope = of_weight * inverse
    share = scale / (-seen.numel() // seen.shape[1])
    level = torch.addcmul(of_bias, mean, slope, value=-1).mul_(share)
    of_seen = torch.addcmul(level.view(-1, 1, 1), seen, slope.mul_(share).view(-1, 1, 1))
    of_seen.addcmul_(passing, (each * scale).view(*each.shape, 1, 1))
    return of_seen, of_weight, of_bias
