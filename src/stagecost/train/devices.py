"""Where and how precisely to compute: Lightning Fabric, set up from the settings.

Variables that a cluster or another launcher left in the environment change nothing. A process counts as
one of several only if this program started it.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from stagecost.errors import StageCostError

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

_PRECISIONS: Mapping[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_STARTED_BY = "STAGECOST_STARTED_BY"
_FOREIGN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FOREIGN_BEGIN = ("SLURM_", "JSM_", "LSB_", "OMPI_", "TORCHELASTIC_", "LT_", "LIGHTNING_", "PL_")


@cache  # whoever started it may have ended by now
def is_first_process() -> bool:
    """Tell whether this process is the one that the user started, not one that it started in turn.

    A further process whose first one has ended meanwhile ends here: it is no run of its own.
    """
    started_by = os.environ.get(_STARTED_BY)
    if started_by is None or started_by == str(os.getppid()):
        return started_by is None
    try:
        os.kill(int(started_by), 0)
    except ProcessLookupError:
        raise SystemExit(2) from None
    except PermissionError:  # somebody else's
        pass
    return True  # a program that a further process has started


def select_device(name: str = "auto") -> "torch.device":
    """Return the device of this name; "auto" takes an accelerator if there is one.

    Raises:
        StageCostError: the name is unknown, or this machine has no such device.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in ("cuda", "mps") if present[kind]), "cpu")
    if name not in present:
        raise StageCostError(f"--device {name!r} is unknown: choose auto, cpu, cuda or mps")
    if not present[name]:
        raise StageCostError(f"--device {name!r} is not on this machine: use --device auto or cpu")
    return torch.device(name)


def check_compiler(device: str = "cpu", asked: str = "--compile") -> None:
    """Refuse to go on where torch.compile does not work on this kind of device.

    Args:
        device: its kind.
        asked: what the user may leave out.

    Raises:
        StageCostError: a small function cannot be compiled.
    """
    import torch

    # Looking for a compiler is not enough: headers may be missing, or a folder to write to.
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # whatever the reason is, the answer is no
        raise StageCostError(
            f"nothing can be compiled for {device} here ({type(error).__name__}): install g++ and "
            f"python3-dev, or leave {asked} out"
        ) from None


def make_fabric(
    device: str, precision: str = "32", num_processes: int = 1, loggers: Sequence[Any] = ()
) -> "Fabric":
    """Set up Fabric: device, mixed precision, and as many processes as asked for.

    Raises:
        StageCostError: the device is not there, or cannot compute in this precision.
    """
    import torch

    kind = select_device(device).type
    if precision == "fp16" and kind == "cpu":
        raise StageCostError("--precision fp16 needs an accelerator: use --precision bf16 or 32")
    if kind == "cuda" and num_processes > torch.cuda.device_count():
        raise StageCostError(
            f"--num-processes is {num_processes}, but this machine has {torch.cuda.device_count()} "
            "GPUs: give at most one process a GPU"
        )
    with own_environment(), warnings.catch_warnings():
        # Fabric looks for a cluster's launcher and says so where one merely happens to be installed.
        warnings.filterwarnings("ignore", message=".*srun.*")
        fabric_class = _import_fabric()
        return fabric_class(
            accelerator=kind,
            devices=num_processes,
            strategy="ddp" if num_processes > 1 else "auto",
            precision=_PRECISIONS[precision],
            plugins=[_own_processes()],
            loggers=list(loggers),
        )


def launch(fabric: "Fabric") -> None:
    """Start the further processes, if any were asked for: they run this program's command again.

    Raises:
        StageCostError: there is no file to run again, as in a notebook.
    """
    if fabric.world_size > 1 and getattr(sys.modules["__main__"], "__file__", None) is None:
        raise StageCostError(
            f"--num-processes {fabric.world_size} run the program's file again, and there is none: "
            "train from a file or by `stagecost train`, or give 1"
        )
    with own_environment():
        if is_first_process():
            os.environ[_STARTED_BY] = str(os.getpid())
            # Else one whose first process was stopped prints torch's stack beside that one's line.
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        fabric.launch()


def _import_fabric() -> Any:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.rank_zero import rank_zero_only
    except ImportError:
        raise StageCostError("training needs an extra: pip install 'stagecost[train]'") from None
    if is_first_process():
        rank_zero_only.rank = 0
    return Fabric


def _own_processes() -> Any:
    """Return Fabric's environment of processes that it starts itself, deaf to foreign variables."""
    from lightning_fabric.plugins.environments import LightningEnvironment
    from torch.distributed import is_initialized

    class OwnProcesses(LightningEnvironment):  # type: ignore[misc]
        @property
        def creates_processes_externally(self) -> bool:
            return not is_first_process() or is_initialized()  # those of an earlier training go on

        def local_rank(self) -> int:
            return 0 if is_first_process() else int(os.environ["LOCAL_RANK"])

        def node_rank(self) -> int:
            return 0

    return OwnProcesses()


@contextmanager
def own_environment() -> Iterator[None]:
    """Hide the variables of foreign launchers; in a process that this program started there are none."""
    if not is_first_process():
        yield
        return
    hidden = {k: v for k, v in os.environ.items() if k in _FOREIGN or k.startswith(_FOREIGN_BEGIN)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        for name in [*_FOREIGN, _STARTED_BY]:
            os.environ.pop(name, None)
        os.environ.update(hidden)
