"""The head's pooling of an early state behind a projection, by `project_and_pool.c`.

The torch twin is in `stagecost.projected_pooling`: pick pixels, multiply, normalise, pool. Here a
product stays in a cache between these.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from stagecost.native.shared_library import load, pointer, usable

_FILE = "project_and_pool"


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("batch", "height", "width", "channels", "outputs")]


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("image", "channel", "row", "column")]


def fits(picked: Tensor, *others: Tensor) -> bool:
    """Tell whether the C file can be used for these pixels, matrix, weight and bias."""
    return usable(picked, *others) and load(_FILE, picked.dtype) is not None


def project_and_pool(
    picked: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, ...]:
    """Compute Σ_pixels relu(w·x̂ + b), where x̂ is W·p, normalised by its batch.

    Args:
        picked: p, (B, C, H, W), with any strides.
        matrix: W, (C_N, C, 1, 1).
        weight: w, (C_N,).
        bias: b, (C_N,).
        eps: of the norm.

    Returns:
        What `stagecost.kernels.pool` returns: sums, (B, C_N); number and Σ x̂ of the open pixels,
        (B, C_N); mean and biased variance of W·p, (C_N,). Then the mean of p, (C,), for the gradient.
    """
    channels, outputs = len(matrix[0]), len(matrix)
    sums = picked.new_empty((3, len(picked), outputs)).unbind()
    results = (*sums, *picked.new_empty((2, outputs)).unbind(), picked.new_empty(channels))
    _call("project_and_pool", picked, (matrix, weight, bias), eps, *results)
    return results


def project_and_pool_gradient(
    picked: Tensor,
    matrix: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    grad: Tensor,
    found: tuple[Tensor, Tensor, Tensor, Tensor],
    grad_picked: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate `project_and_pool`.

    Args:
        picked: as in `project_and_pool`, and so are `matrix`, `weight`, `bias` and `eps`.
        matrix: W.
        weight: w.
        bias: b.
        eps: of the norm.
        grad: (B, C_N), the gradient with respect to the sums.
        found: what `project_and_pool` found: count, moment, variance, mean of p.
        grad_picked: (B, C, H, W), with any strides; the gradient with respect to p is added to it.

    Returns:
        The gradients with respect to matrix, weight and bias.
    """
    grads = (torch.empty_like(matrix), torch.empty_like(weight), torch.empty_like(bias))
    given = (grad.contiguous(), *found, _Strides(*grad_picked.stride()), grad_picked, *grads)
    _call("project_and_pool_gradient", picked, (matrix, weight, bias), eps, *given)
    return grads


def _call(
    name: str,
    picked: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    eps: float,
    *more: Tensor | _Strides,
) -> None:
    """Call a function of the file, with scratch memory for as many threads as torch has."""
    library = load(_FILE, picked.dtype)
    assert library is not None
    batch, channels, height, width = picked.shape
    shape = ctypes.byref(_Shape(batch, height, width, channels, len(parameters[0])))
    threads = torch.get_num_threads()
    library.scratch_size.restype = ctypes.c_long
    scratch = picked.new_empty(library.scratch_size(shape, threads))
    given = (picked, *(p.contiguous() for p in parameters))
    getattr(library, name)(
        *(shape, ctypes.byref(_Strides(*picked.stride())), *map(_argument, given)),
        *(ctypes.c_double(eps), threads, pointer(scratch), *map(_argument, more)),
    )


def _argument(value: Tensor | _Strides) -> Any:
    return pointer(value) if isinstance(value, Tensor) else ctypes.byref(value)
