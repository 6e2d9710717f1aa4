"""The kernels of a block's beginning by `normalise.c`, where it fits; `stagecost.kernels` are the twins.

They spare what `torch.compile` makes of the formulas one reading of every state, and more where
channels are few.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stagecost.kernels import Kernels
from stagecost.native.shared_library import load, pointer, usable

_FILE = "normalise"
_UNROLL = 4  # of normalise.c


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("batch", "pixels", "channels")),
        *((name, ctypes.c_double) for name in ("eps", "head_eps")),
        *((name, ctypes.c_int) for name in ("pools", "threads")),
    ]


def with_native(kernels: Kernels) -> Kernels:
    """Return kernels that use C for the states that it fits, and the given ones for all others."""
    return replace(
        kernels,
        normalise=_first_choice(normalise, kernels.normalise),
        normalise_and_pool=_first_choice(normalise, kernels.normalise_and_pool),
        normalise_gradient=_first_choice(normalise_gradient, kernels.normalise_gradient),
        normalise_and_pool_gradient=_first_choice(
            normalise_gradient, kernels.normalise_and_pool_gradient
        ),
    )


def _first_choice(native: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def choose(state: Tensor, *rest: Any) -> Any:
        return native(state, *rest) if fits(state, *rest) else otherwise(state, *rest)

    return choose


def fits(state: Tensor, *rest: Any) -> bool:
    """Tell whether C fits a state, (B, C, H, W): channels last, in whole vectors, all of one type."""
    if not usable(state, *(value for value in rest if isinstance(value, Tensor))):
        return False
    library = load(_FILE, state.dtype)
    _, channels, height, width = state.shape
    whole = library is not None and channels % library.lanes() == 0 and height * width % _UNROLL == 0
    return whole and state.is_contiguous(memory_format=torch.channels_last)


def normalise(state: Tensor, weight: Tensor, bias: Tensor, eps: float, *head: Any) -> tuple[Tensor, ...]:
    """Compute `kernels.normalise`; with weight, bias and eps of a head, `kernels.normalise_and_pool`."""
    head_weight, head_bias, head_eps = head or (weight, bias, eps)
    channels = len(weight)
    result = torch.empty_like(state)
    mean, variance = weight.new_empty((2, channels)).unbind()
    sums = weight.new_empty((3, len(state), channels)).unbind() if head else ()
    scratch = weight.new_empty((2 * len(state) + 2, channels))
    given = (state, weight, bias, head_weight, head_bias, scratch)
    # Where the head does not pool, C does not look at its three results.
    targets = (result, mean, variance, *(sums or (mean, mean, mean)))
    _call("normalise", state, eps, head_eps, bool(head), (*given, *targets))
    return result, *sums, mean, variance


def normalise_gradient(
    state: Tensor,
    grad: Tensor,
    other: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *head: Any,
) -> tuple[Tensor, ...]:
    """Differentiate it: `kernels.normalise_gradient`, or `kernels.normalise_and_pool_gradient`."""
    head_weight, head_bias, head_eps, *of_sums = head or (weight, bias, eps, mean, mean, mean)
    result, scratch = torch.empty_like(state), weight.new_empty((3 * len(state) + 6, len(weight)))
    grads = weight.new_empty((4, len(weight))).unbind()
    arriving = (g.contiguous(memory_format=torch.channels_last) for g in (grad, other))
    found = (mean, variance, *(values.contiguous() for values in of_sums))
    given = (state, weight, bias, head_weight, head_bias, scratch, *arriving, *found)
    _call("normalise_gradient", state, eps, head_eps, bool(head), (*given, result, *grads))
    return result, *grads[: 4 if head else 2]


def _call(
    name: str, state: Tensor, eps: float, head_eps: float, pools: bool, tensors: tuple[Tensor, ...]
) -> None:
    library = load(_FILE, state.dtype)
    assert library is not None
    batch, channels, height, width = state.shape
    task = _Task(batch, height * width, channels, eps, head_eps, pools, torch.get_num_threads())
    getattr(library, name)(ctypes.byref(task), *map(pointer, tensors))
