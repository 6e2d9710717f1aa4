"""Where and how precisely to compute: Lightning Fabric, set up from the settings."""

import warnings
from typing import Any

import torch
from lightning_fabric import Fabric

from stagecost.errors import StageCostError

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def select_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" takes an accelerator if there is one.

    Raises:
        StageCostError: the name is unknown, or this machine has no such device.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in ("cuda", "mps") if present[kind]), "cpu")
    if name not in present:
        raise StageCostError(f"device {name!r} is unknown: choose auto, cpu, cuda or mps")
    if not present[name]:
        raise StageCostError(f"device {name!r} is not on this machine: use --device auto or cpu")
    return torch.device(name)


def make_fabric(
    device: str, precision: str = "32", num_processes: int = 1, loggers: list[Any] | None = None
) -> Fabric:
    """Set up Fabric: device, mixed precision, and as many processes as asked for.

    Raises:
        StageCostError: the device is not there, or cannot compute in this precision.
    """
    kind = select_device(device).type
    if precision == "fp16" and kind == "cpu":
        raise StageCostError("precision fp16 needs an accelerator: use --precision bf16 or 32")
    if kind == "cuda" and num_processes > torch.cuda.device_count():
        raise StageCostError(
            f"num_processes is {num_processes}, but this machine has {torch.cuda.device_count()} GPUs: "
            "give at most one process a GPU"
        )
    with warnings.catch_warnings():
        # Fabric looks for a cluster's launcher and says so where one merely happens to be installed.
        warnings.filterwarnings("ignore", message=".*srun.*")
        return Fabric(
            accelerator=kind,
            devices=num_processes,
            strategy="ddp" if num_processes > 1 else "auto",
            precision=_PRECISIONS[precision],
            loggers=loggers or [],
        )
