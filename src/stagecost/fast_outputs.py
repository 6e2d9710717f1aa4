"""Intermediate outputs almost for free: the fast twin of `stagecost.outputs`.

The literal definition sends each state through every later projection and through a head of its own
normalisation. The same numbers come cheaper:

- a skip chain is collapsed to a stride and one matrix (`stagecost.chains`);
- block k begins with normalising x_k, and so does the head: in training one fused kernel does both, with
  the same statistics of the batch where no projection lies between (`stagecost.kernels`);
- of the head's work nothing of a state's size is kept for the gradient: it is computed again from x_k,
  which block k's normalisation keeps anyway, and is added where the gradients of x_k meet anyway;
- the linear map is applied to all depths at once.

Every depth is normalised by itself, as in the literal loop. The terminal output, and every output in
eval mode, is computed by the head's own modules, so truncation stays exact to the last bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stagecost.block import ResidualBlock
from stagecost.chains import CollapsedChain, collapse, has_hooks, hooked
from stagecost.head import OutputBatchNorm2d, OutputHead
from stagecost.kernels import Kernels, compiled_kernels
from stagecost.native.normalised import with_native
from stagecost.outputs import with_constants
from stagecost.projected_pooling import Found, HeadNorm, pool, pool_gradient


@dataclass
class FastOutputs:
    """Reads the intermediate outputs of one forward pass from its states.

    Attributes:
        head: H.
        chains: S_{N-1} ∘ … ∘ S_k, collapsed, for k = 0 … N.
        constant_head: intermediate outputs send no gradient to head and projections.
        kernels: what normalises and pools; compiled when they are first needed.
    """

    head: OutputHead
    chains: Sequence[CollapsedChain]
    constant_head: bool = False
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        """Begin with nothing read."""
        self._whole: dict[int, Tensor] = {}
        self._pooled: dict[int, _Pooled] = {}
        self._running: tuple[Tensor, Tensor] | None = None

    def step(self, block: nn.Module, state: Tensor, depth: int) -> Tensor:
        """Read y_k from x_k, (B, C, H, W), and return x_{k+1} of the block."""
        chain = self.chains[depth]
        first = None if chain.pools or not self.head.norm.training else first_norm(block)
        if first is None:
            self.read(state, depth)
            following: Tensor = block(state)
            return following
        branch, same_state = self._begin(first, chain, state, depth)
        _, _, *rest = block.residual  # type: ignore[misc]
        for module in rest:
            branch = module(branch)
        return block.skip(same_state) + branch  # type: ignore[no-any-return,operator]

    def read(self, state: Tensor, depth: int) -> Tensor:
        """Return y_k from x_k, (B, C, H, W), by the head's own modules."""
        reached, norm = self.chains[depth](state), self.head.norm
        if self.constant_head:
            output = with_constants(self.head, reached, depth)
        elif norm.training or reached.dtype != norm.weight.dtype:
            output = self.head(reached, depth)
        else:
            if self._running is None:  # once for all depths
                self._running = norm.running_affine()
            scale, shift = (values[norm.row(depth)] for values in self._running)
            output = self.head.evaluate(reached, scale, shift)
        self._whole[depth] = output
        return output

    def outputs(self) -> dict[int, Tensor]:
        """Return y_k, (B, classes), of the depths that were read, and move the running statistics."""
        if not self._pooled:
            return self._whole
        pooled = list(self._pooled.values())
        track([(p.first, p.statistics[0], p.statistics[1], p.samples) for p in pooled])
        means = torch.stack([p.head_statistics[0] for p in pooled])
        variances = torch.stack([p.head_statistics[1] for p in pooled])
        features = torch.stack([p.summed for p in pooled]) / pooled[0].num_pixels
        samples = features.shape[1] * pooled[0].num_pixels
        self.head.norm.track(list(self._pooled), means, variances * _bessel(samples))
        linear = self.head.linear
        logits = with_constants(linear, features) if self.constant_head else linear(features)
        return {**self._whole, **dict(zip(self._pooled, logits, strict=True))}

    def _begin(
        self, first: nn.BatchNorm2d, chain: CollapsedChain, state: Tensor, depth: int
    ) -> tuple[Tensor, Tensor]:
        """Begin block k and pool x_k for the head; return where the branch goes on, and x_k itself."""
        if self.kernels is None:
            self.kernels = with_native(compiled_kernels())
        norm = self.head.norm
        pair: tuple[Tensor, Tensor] = (norm.weight, norm.bias)
        weight, bias = (p.detach() for p in pair) if self.constant_head else pair
        plan = _Plan(self.kernels, chain, first.eps, norm.eps)
        normalised, same_state, summed, *statistics = _BeginBlock.apply(
            state, first.weight, first.bias, chain.matrix, weight, bias, plan
        )
        batch, _, height, width = state.shape
        num_pixels = math.ceil(height / chain.stride[0]) * math.ceil(width / chain.stride[1])
        samples = batch * height * width
        self._pooled[depth] = _Pooled(
            summed, num_pixels, first, samples, statistics[:2], statistics[-2:]
        )
        return normalised, same_state


class _Pooled(NamedTuple):
    """What a fused kernel found at one depth.

    Attributes:
        summed: (B, C_N), the sums over the pixels.
        num_pixels: how many pixels arrive at the head.
        first: the norm of the block.
        samples: how many values of a channel it saw.
        statistics: their mean and biased variance, (C,).
        head_statistics: those of the head's norm, (C_N,).
    """

    summed: Tensor
    num_pixels: int
    first: nn.BatchNorm2d
    samples: int
    statistics: list[Tensor]
    head_statistics: list[Tensor]


def fast_outputs(
    head: nn.Module, skips: Sequence[nn.Module], *, constant_head: bool = False
) -> FastOutputs | None:
    """Prepare the fast path through a network, or return None where only the literal one fits.

    It fits the head of this project and skips that are identities or projections without bias: every
    native builder. It gives first derivatives only.

    Args:
        head: H.
        skips: S_0, …, S_{N-1}.
        constant_head: intermediate outputs send no gradient to head and projections.
    """
    if type(head) is not OutputHead or type(head.norm) is not OutputBatchNorm2d or has_hooks(head):
        return None
    if torch.compiler.is_compiling():
        return None  # a compiler that sees the literal path fuses it by itself
    chains = collapse(skips, constant=constant_head)
    return None if chains is None else FastOutputs(head, chains, constant_head)


def first_norm(block: nn.Module) -> nn.BatchNorm2d | None:
    """Return the norm that F_k begins with, if it is an ordinary BatchNorm in training before a ReLU."""
    if type(block) is not ResidualBlock or type(block.residual) is not nn.Sequential:
        return None
    if len(block.residual) < 2:
        return None
    first, second = block.residual[0], block.residual[1]
    if type(first) is not nn.BatchNorm2d or type(second) is not nn.ReLU:
        return None
    usual = first.training and first.affine and first.track_running_stats and first.momentum is not None
    # A hook wants to see its module being called; only the parts behind these are called by `step`.
    called = (block, block.residual, first, second)
    return first if usual and not any(hooked(module) for module in called) else None


@torch.no_grad()
def track(batches: Sequence[tuple[nn.BatchNorm2d, Tensor, Tensor, int]]) -> None:
    """Count a batch in each of several norms and move their running statistics, as `forward` would.

    Args:
        batches: norm, mean (C,), biased variance (C,), and number of values of a channel.
    """
    # All norms in a few calls: one by one, the calls would take longer than the arithmetic.
    counts: list[Any] = [norm.num_batches_tracked for norm, *_ in batches]
    torch._foreach_add_(counts, 1)
    for momentum in {float(norm.momentum or 0.0) for norm, *_ in batches}:
        norms, means, variances, samples = zip(
            *(b for b in batches if b[0].momentum == momentum), strict=True
        )
        unbiased = torch._foreach_mul(variances, [_bessel(count) for count in samples])
        torch._foreach_lerp_([norm.running_mean for norm in norms], means, momentum)
        torch._foreach_lerp_([norm.running_var for norm in norms], unbiased, momentum)


def _bessel(samples: int) -> float:
    return samples / max(1, samples - 1)


@dataclass(frozen=True)
class _Plan:
    """What `_BeginBlock` needs besides tensors to differentiate."""

    kernels: Kernels
    chain: CollapsedChain
    eps: float
    head_eps: float


class _BeginBlock(torch.autograd.Function):
    """The beginning of block k, relu(norm(x_k)), and the head's pooling of x_k, in training mode.

    Inputs: state (B, C, H, W); weight and bias of the block's norm, (C,); matrix of the skip chain,
    (C_N, C, 1, 1), or None; weight and bias of the head's norm, (C_N,). Outputs: relu(norm(x_k)); x_k
    itself; Σ relu(…) over the pixels, (B, C_N); then, without gradients, mean and biased variance of
    the block's norm, (C,), and, where they are others, of the head's, (C_N,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        weight: Tensor,
        bias: Tensor,
        matrix: Tensor | None,
        head_weight: Tensor,
        head_bias: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        """Normalise, and pool what arrives at the head."""
        kernels = plan.kernels
        # Detached, as the compiler looks into the history of what it is given, and there is none here.
        x, own = state.detach(), (weight.detach(), bias.detach(), plan.eps)
        of_head = HeadNorm(head_weight.detach(), head_bias.detach(), plan.head_eps)
        first: list[Tensor] = []
        if matrix is None:
            normalised, summed, *found = kernels.normalise_and_pool(x, *own, *of_head)
            pooled = Found._make([*found, None])
        else:
            normalised, *first = kernels.normalise(x, *own)
            summed, pooled = pool(plan.chain.pick(x), matrix.detach(), of_head, kernels)
        ctx.plan = plan
        ctx.save_for_backward(state, weight, bias, matrix, head_weight, head_bias, *first, *pooled)
        second = (pooled.mean, pooled.variance)
        ctx.mark_non_differentiable(*first, *second)
        return normalised, state, summed, *first, *second

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_normalised: Tensor, grad_same: Tensor, grad_summed: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Bring the three gradients of x_k together: of the branch, of the skip, of the output."""
        plan: _Plan = ctx.plan
        saved: Any = (tensor if tensor is None else tensor.detach() for tensor in ctx.saved_tensors)
        state, weight, bias, matrix, head_weight, head_bias, *rest = saved
        found = Found._make(rest[-5:])
        mean, variance = rest[:2] if len(rest) > 5 else (found.mean, found.variance)
        own = (state, grad_normalised, grad_same, mean, variance, weight, bias, plan.eps)
        of_head = HeadNorm(head_weight, head_bias, plan.head_eps)
        if matrix is None:
            grad, *grads = plan.kernels.normalise_and_pool_gradient(
                *own, *of_head, grad_summed, found.num_open, found.moment
            )
            return grad, *grads[:2], None, *grads[2:], None
        grad, *grads = plan.kernels.normalise_gradient(*own)
        pick = plan.chain.pick
        given = (pick(state), matrix, of_head, plan.kernels, grad_summed, found, pick(grad))
        return grad, *grads, *pool_gradient(*given), None
