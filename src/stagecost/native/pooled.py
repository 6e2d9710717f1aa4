"""The head's normalisation, ReLU and pooling of a state in eval mode, by `pool_affine.c`.

The torch twin is in `stagecost.head`: `affine`, and what `OutputHead.logits` does before the linear map.
"""

import ctypes

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from stagecost.native.shared_library import load, pointer, usable

_FILE = "pool_affine"


def fits(state: Tensor, scale: Tensor, shift: Tensor) -> bool:
    """Tell whether C fits a state, (B, C, H, W), and scale and shift, (C,).

    It does for plain tensors on a CPU with channels last, while no gradient is wanted and nobody
    (a compiler, an export, a transform of `torch.func`, autocast) has to see torch's operations.
    """
    if _is_watched(state, scale, shift) or not usable(state, scale, shift):
        return False
    if state.layout != torch.strided or state.dim() != 4 or state.shape[1] != len(scale):
        return False
    last = state.is_contiguous(memory_format=torch.channels_last)
    return last and load(_FILE, state.dtype) is not None


def _is_watched(*tensors: Tensor) -> bool:
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
    ):
        return True
    if torch.is_autocast_enabled("cpu") or is_in_torch_dispatch_mode():
        return True
    return any(
        type(values) is not Tensor
        or torch._C._functorch.is_functorch_wrapped_tensor(values)
        # Forward mode goes on where gradients are off.
        or unpack_dual(values).tangent is not None  # type: ignore[no-untyped-call]
        for values in tensors
    )


def pool_affine(state: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute the mean over the pixels of relu(scale·x + shift), (B, C), for what `fits`."""
    library = load(_FILE, state.dtype)
    assert library is not None
    batch, channels, height, width = state.shape
    pooled = state.new_empty((batch, channels))
    sizes = map(ctypes.c_long, (batch, height * width, channels))
    given = (state, scale.contiguous(), shift.contiguous())
    library.pool_affine(*sizes, torch.get_num_threads(), *map(pointer, (*given, pooled)))
    return pooled
