"""Measured time: how long networks take for a batch, in turns, as the machine may do other things.

Counts of operations say little of time: small layers wait for the processor, wide ones for memory.
"""

import math
import os
import platform
import re
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagecost.errors import StageCostError
from stagecost.trajectory import evaluation_mode

WARM_UP = 3  # calls of each network that are not counted
LEAST_CALLS = 20
MOST_THREADS = 2**15

Inputs = Tensor | tuple[Tensor, ...]
Forward = Callable[[Inputs], object]
"""Maps images (B, C, H, W), or a view's inputs, to anything: a network, or a function that calls one."""


@dataclass(frozen=True)
class Latency:
    """How long calls with one batch took, on the clock on the wall.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> latency = sc.measure_latency({"net": net}, torch.rand(1, 3, 8, 8), seconds=0.01)["net"]
        >>> 0 < latency.p50_ms <= latency.p99_ms
        True
    """

    p50_ms: float  #: median time of a call, in milliseconds
    p90_ms: float  #: nine of ten calls took no longer
    p99_ms: float  #: 99 of 100 calls took no longer
    images_per_second: float  #: over all calls
    calls: int  #: that were timed
    batch_size: int  #: images in a call
    threads: int  #: that torch computed with


@dataclass(frozen=True)
class Machine:
    """Where something was measured, and by what."""

    processor: str
    cores: int
    python: str
    torch: str


def this_machine() -> Machine:
    """Return where this runs."""
    processor, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        processor = named[1] if named else processor
    return Machine(processor, os.cpu_count() or 1, platform.python_version(), str(torch.__version__))


def measure_latency(
    networks: Mapping[str, Forward], images: Inputs, *, threads: int | None = None, seconds: float = 1.0
) -> dict[str, Latency]:
    """Time networks on one batch, in eval mode without gradients; whatever is compared takes turns.

    Args:
        networks: what to time, by name; modules are left in the mode they were in.
        images: (B, C, H, W), on the device of the networks; or a tuple, as a view takes it.
        threads: that torch computes with; as many as now if not given.
        seconds: for each network; each is called 20 times at least.

    Raises:
        StageCostError: there is nothing to time, or not a single thread or moment for it.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> networks = {"whole": net, "small": net.keep(sc.Cut.first(2))}
        >>> list(sc.measure_latency(networks, torch.rand(1, 3, 8, 8), seconds=0.01))
        ['whole', 'small']
    """
    first = images if isinstance(images, Tensor) else images[0]
    if not networks or len(first) == 0:
        raise StageCostError("there is nothing to time: give at least one network and one image")
    if not 0 < seconds < math.inf or not (threads is None or 1 <= threads <= MOST_THREADS):
        raise StageCostError(
            f"{seconds} seconds on {threads} threads: give more than 0 of both, no endless time, and at "
            f"most {MOST_THREADS:,} threads"
        )
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad(), ExitStack() as undo:
        for network in networks.values():
            if isinstance(network, nn.Module):
                undo.enter_context(evaluation_mode(network))
        before = torch.get_num_threads()
        undo.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads or before)
        for forward in networks.values():
            for _ in range(WARM_UP):
                _time(forward, images)
        stop = time.perf_counter() + seconds * len(networks)
        while len(next(iter(times.values()))) < LEAST_CALLS or time.perf_counter() < stop:
            for name, forward in networks.items():
                times[name].append(_time(forward, images))
        return {name: _summary(each, len(first)) for name, each in times.items()}


def _time(forward: Forward, images: Inputs) -> float:
    """Return the seconds of a call; an accelerator has then done what it was asked for."""
    device = (images if isinstance(images, Tensor) else images[0]).device
    _finish(device)
    start = time.perf_counter()
    forward(images)
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _summary(times: list[float], batch: int) -> Latency:
    seconds = torch.tensor(times, dtype=torch.float64)
    p50, p90, p99 = torch.quantile(seconds, seconds.new_tensor([0.5, 0.9, 0.99])).tolist()
    return Latency(
        p50_ms=1000 * p50,
        p90_ms=1000 * p90,
        p99_ms=1000 * p99,
        images_per_second=batch * len(times) / float(seconds.sum()),
        calls=len(times),
        batch_size=batch,
        threads=torch.get_num_threads(),
    )


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Tally:
    """Adds up what the tensors that operations make take at a time, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self.peak: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, and count what it leaves; what was there before, as a weight, is not new."""
        result = func(*args, **(kwargs or {}))
        before = {storage.data_ptr() for storage in _storages((args, kwargs))} - self.live.keys()
        for storage in _storages(result):
            if storage.data_ptr() not in before:
                self.live[storage.data_ptr()] = weakref.ref(storage), storage.nbytes()
        self.live = {key: one for key, one in self.live.items() if one[0]() is not None}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


class LiveTensors(_Tally, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The same while it is entered; torch's compiler is imported by modes that dispatch themselves."""


def peak_memory(forward: Forward, images: Tensor) -> int:
    """Return the bytes that the tensors of a forward pass take at most, beside weights and images."""
    with torch.no_grad(), LiveTensors() as tensors:
        forward(images)
    peak: int = tensors.peak
    return peak
