"""Skip chains collapsed: S_{N-1} ∘ … ∘ S_k as one reduction of the pixels and one matrix.

Projections are linear. A strided 1×1 convolution picks pixels and then applies a matrix; an average
pooling averages pixels, channel by channel. Both ways of treating pixels commute with the matrices, so
a whole chain is: reduce the pixels, then apply the product of the matrices. An early state of 32×32
pixels, two projections away from the head, needs 64 of its 1024 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.dynamics import StridedProjection, is_identity, skip_of


@dataclass(frozen=True)
class CollapsedChain:
    """A chain of projections: pixels are picked with a stride, or pooled, then meet one matrix.

    Attributes:
        stride: (vertical, horizontal), of the picking that comes first.
        pools: average poolings that come next, in order.
        matrix: (C_N, C_k, 1, 1), the product of the projections; None is the identity.
    """

    stride: tuple[int, int] = (1, 1)
    pools: tuple[nn.AvgPool2d, ...] = ()
    matrix: Tensor | None = None

    def __call__(self, state: Tensor) -> Tensor:
        """Send x_k, (B, C, H, W), through the chain."""
        return self.project(self.pick(state), self.matrix)

    def pick(self, state: Tensor) -> Tensor:
        """Return the pixels that the stride picks; the state itself where there is no stride."""
        vertical, horizontal = self.stride
        return state if self.stride == (1, 1) else state[:, :, ::vertical, ::horizontal]

    def put_back(self, picked: Tensor, state: Tensor) -> Tensor:
        """Return a tensor like the state that has these picked pixels, and zeros elsewhere."""
        if self.stride == (1, 1):
            return picked
        vertical, horizontal = self.stride
        whole = torch.zeros_like(state)
        whole[:, :, ::vertical, ::horizontal] = picked
        return whole

    def project(self, picked: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Pool picked pixels, and apply this matrix, which is the chain's."""
        for pooling in self.pools:
            picked = pooling(picked)
        return picked if matrix is None else F.conv2d(picked, matrix.to(picked.dtype))


class CollapsedTails:
    """The tails of a network by collapsed chains; those of one stage share one matrix."""

    def __init__(self, chains: Sequence[CollapsedChain]) -> None:
        """Take N+1 chains."""
        self.chains = chains

    def __call__(self, state: Tensor, k: int) -> Tensor:
        """Map x_k to the state that the head expects."""
        return self.chains[k](state)


def collapsed_tails(blocks: Sequence[nn.Module]) -> CollapsedTails | None:
    """Collapse the chains S_{N-1} ∘ … ∘ S_k for k = 0 … N.

    Returns:
        None where a skip is something else than an identity or a 1×1 projection without bias, possibly
        after an average pooling, or where a hook wants to see it called.
    """
    chains = [CollapsedChain()]
    for block in reversed(blocks):
        longer = _precede(chains[-1], skip_of(block))
        if longer is None:
            return None
        chains.append(longer)
    return CollapsedTails(chains[::-1])


def is_watched(module: nn.Module) -> bool:
    """Tell whether a hook wants to see a module or a part of it called, or its gradient."""
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in module.modules()
    )


def _precede(chain: CollapsedChain, skip: nn.Module) -> CollapsedChain | None:
    """Put one more skip before a chain."""
    if is_watched(skip):
        return None
    if is_identity(skip):
        return chain
    if type(skip) is nn.Sequential and len(skip) == 2 and type(skip[0]) is nn.AvgPool2d:
        projected = _precede(chain, skip[1])
        if projected is None or projected.stride != (1, 1):
            return None
        return replace(projected, pools=(skip[0], *projected.pools))
    if not _is_projection(skip):
        return None
    stride = (chain.stride[0] * skip.stride[0], chain.stride[1] * skip.stride[1])
    return replace(chain, stride=stride, matrix=_product(chain.matrix, skip.weight))


def _is_projection(skip: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(skip, nn.Conv2d) or type(skip) not in (nn.Conv2d, StridedProjection):
        return False
    return (
        skip.kernel_size == (1, 1) and skip.padding == (0, 0) and skip.groups == 1 and skip.bias is None
    )


def _product(later: Tensor | None, earlier: Tensor) -> Tensor:
    """Multiply two 1×1 kernels (C_out, C, 1, 1) and (C, C_in, 1, 1)."""
    if later is None:
        return earlier
    # In full precision also under autocast: the product is small and is used for every depth.
    with torch.autocast(earlier.device.type, enabled=False):
        return (later.flatten(1) @ earlier.flatten(1))[:, :, None, None]
