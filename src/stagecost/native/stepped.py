"""One step of the dynamics with the norms that the analysis wants, by `add_and_measure.c`."""

import ctypes

import torch
from torch import Tensor

from stagecost.native.shared_library import load, pointer, usable

_FILE = "add_and_measure"


def fits(control: Tensor, skipped: Tensor) -> bool:
    """Tell whether C fits F_k(x_k) and S_k(x_k), (B, …): without holes, in the same order in memory."""
    if not usable(control, skipped) or control.shape != skipped.shape:
        return False
    same = (
        control.stride() == skipped.stride()
        and control.untyped_storage() is not skipped.untyped_storage()
    )
    dense = control.is_contiguous() or (
        control.dim() == 4 and control.is_contiguous(memory_format=torch.channels_last)
    )
    return same and dense and load(_FILE, control.dtype) is not None


def add_and_measure(control: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """Add S_k(x_k) to F_k(x_k), (B, …), in place.

    Returns:
        ‖F_k(x_k)‖ and ‖x_{k+1}‖ of each sample, (B,).
    """
    library = load(_FILE, control.dtype)
    assert library is not None
    batch, threads = len(control), torch.get_num_threads()
    of_control, of_following = control.new_empty((2, batch)).unbind()
    sizes = (ctypes.c_long(batch), ctypes.c_long(control.numel() // max(1, batch)), threads)
    tensors = (skipped, control, of_control, of_following)
    library.add_and_measure(*sizes, *map(pointer, tensors))
    return of_control, of_following
