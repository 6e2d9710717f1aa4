"""Which outputs y_0 … y_N are asked for, and how a state reaches the head: the literal definition.

    y_k = H(S_{N-1} ∘ … ∘ S_k (x_k)),   k = 0 … N

The terminal output y_N is the head applied to x_N; every other output is intermediate. Nothing here
knows about training: the functions take blocks and a head and return tensors.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call

from stagecost.errors import StageCostError

Depths = Literal["all"] | int | Sequence[int] | None
"""The grammar of depths: `None` is the terminal output, an int one output, a sequence several, and
`"all"` every output y_0 … y_N. Negative numbers count from the end: -1 is the terminal output."""


def resolve_depths(depths: Depths, num_blocks: int) -> tuple[int, ...]:
    """Return the depths asked for as numbers 0 … N, in the order asked for.

    Raises:
        StageCostError: a depth is not an integer, or outside of -(N+1) … N, or none is given.
    """
    if depths is None:
        return (num_blocks,)
    if isinstance(depths, str):
        if depths != "all":
            raise StageCostError(
                f"depths={depths!r} is unknown: give 'all', one depth, several depths, or None"
            )
        return tuple(range(num_blocks + 1))
    wanted = (depths,) if isinstance(depths, int) else tuple(depths)
    if not wanted:
        raise StageCostError("depths is empty: give at least one depth, or None for the last")
    return tuple(_resolve_depth(depth, num_blocks) for depth in wanted)


def _resolve_depth(depth: int, num_blocks: int) -> int:
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise StageCostError(f"depth {depth!r} is not an integer: give numbers from 0 to {num_blocks}")
    if not -num_blocks - 1 <= depth <= num_blocks:
        raise StageCostError(
            f"depth {depth} is impossible with {num_blocks} blocks: give a number from 0 to {num_blocks}"
        )
    return depth % (num_blocks + 1)


def skip_chain(skips: Iterable[nn.Module], state: Tensor) -> Tensor:
    """Send a state through skip connections only: S_{N-1} ∘ … ∘ S_k (x_k).

    Args:
        skips: S_k, …, S_{N-1}, in this order.
        state: x_k, of shape (B, C, H, W).

    Returns:
        The state as the head expects it; `state` itself where every skip is an identity.
    """
    for skip in skips:
        state = skip(state)
    return state


def intermediate_output(
    skips: Sequence[nn.Module],
    head: nn.Module,
    state: Tensor,
    depth: int,
    *,
    constant_head: bool = False,
) -> Tensor:
    """Compute y_k from x_k, literally as the paper defines it.

    Args:
        skips: all skip connections S_0, …, S_{N-1} of the network.
        head: H, called as `head(state, depth)`: a head may keep statistics for each depth.
        state: x_k, of shape (B, C, H, W).
        depth: k, from 0 to N.
        constant_head: treat the parameters of head and skip connections as constants: the gradient
            moves the state alone, so states align to the head and not the reverse.

    Returns:
        y_k, of shape (B, …); (B, classes) for a classifier.
    """
    if not constant_head:
        output: Tensor = head(skip_chain(skips[depth:], state), depth)
        return output
    for skip in skips[depth:]:
        state = with_constants(skip, state)
    return with_constants(head, state, depth)


def with_constants(module: nn.Module, *arguments: object) -> Tensor:
    """Call a module whose parameters get no gradient; its buffers are updated as ever."""
    constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
    output: Tensor = functional_call(module, constants, arguments)
    return output
