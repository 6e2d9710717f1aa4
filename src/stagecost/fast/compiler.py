"""Whether torch.compile works here, asked before a long run relies on it."""

import torch

from stagecost.errors import StageCostError


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
