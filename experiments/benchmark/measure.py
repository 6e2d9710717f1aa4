"""Time by turns, and memory in exact bytes.

A machine's speed drifts by more than what is to be measured. So no arm has a time of its own: every
round runs each arm once, in reversed order every other time, which cancels a steady drift; only ratios
within a round are formed, and a ratio is the median over the rounds.

The peak of a step's memory is what the allocator hands out above the resting level (weights, momentum).
Scratch memory that oneDNN takes from the system itself is seen by neither arm.
"""

import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from stagecost.errors import StageCostError

Arm = Callable[[], object]
Clock = Callable[[Arm], float]
"""Runs an arm once and returns the seconds that it took."""
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios within a round, and their quartiles."""

    median: float
    low: float
    high: float

    @property
    def quartiles(self) -> list[float]:
        """Lower and upper quartile, for JSON."""
        return [round(self.low, 4), round(self.high, 4)]


def cpu_seconds(arm: Arm) -> float:
    """Run an arm and return the CPU time of this process, over all threads; others do not count."""
    before = time.process_time()
    arm()
    return time.process_time() - before


def cuda_seconds(arm: Arm) -> float:
    """Run an arm and return the time between two CUDA events around it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    arm()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def clock_of(device: torch.device) -> Clock:
    """Return the clock for a device."""
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def take_turns(
    arms: Mapping[str, Arm], rounds: int, clock: Clock, *, repeats: int = 1, warm: bool = False
) -> dict[str, list[float]]:
    """Return the seconds of one run of each arm, one entry a round, after one run that is not timed.

    Args:
        arms: what is compared, by name.
        rounds: how often each is timed.
        clock: what times an arm.
        repeats: how often an arm runs within one timing, for arms of a few milliseconds.
        warm: an untimed run comes before each timing, so the caches hold this arm and not the last one.

    Raises:
        StageCostError: too few rounds for a median.
    """
    check_rounds(rounds)
    for arm in arms.values():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would hit one arm with the garbage of all
    try:
        for turn in range(rounds):
            for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
                arm = arms[name]
                if warm:
                    arm()
                seconds[name].append(clock(partial(_repeat, arm, repeats)) / repeats)
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def check_rounds(rounds: int) -> None:
    """Refuse too few rounds for a median."""
    if rounds < LEAST_ROUNDS:
        raise StageCostError(f"rounds is {rounds}: give at least {LEAST_ROUNDS}, for a median")


def _repeat(arm: Arm, times: int) -> None:
    for _ in range(times):
        arm()


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Return the ratio of two arms' times that were taken by turns."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to two gigabytes; return whether it was done.

    By default glibc gives much back to the system. A step frees its large tensors and the next one asks
    for as many, and every page costs a fault that is charged to the step.
    """
    trim_threshold, mmap_max = -1, -4  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def peak_bytes(arm: Arm, device: torch.device) -> int:
    """Run an arm twice, and return the peak of what the second run allocates above the resting level."""
    arm()  # what stays afterwards, such as momentum, is the resting level
    if device.type == "cuda":
        return _peak_on_cuda(arm, device)
    # Without a GPU the profiler's library complains about missing ones on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        arm()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    return peak_of(size for _, size in sorted(changes, key=lambda change: change[0]))


def peak_of(changes: Iterable[int]) -> int:
    """Return the largest running sum of allocations (positive) and releases (negative), at least 0."""
    return max(accumulate(changes, initial=0))


def _peak_on_cuda(arm: Arm, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    resting = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    arm()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - resting
