"""Timing by turns: every round runs each arm once, and a ratio is a median over the rounds.

A machine's speed drifts by more than what is to be measured. So no arm has a time of its own: within a
round the arms stand side by side, their order is reversed in every other round, which cancels a steady
drift, and only ratios within a round are formed.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from stagecost.errors import StageCostError

Arm = Callable[[], object]
Clock = Callable[[Arm], float]
"""Runs an arm once and returns the seconds that it took."""

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: the median of the ratios within a round, and their quartiles."""

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
    """Time arms by turns, after one run each that is not timed.

    Args:
        arms: what is compared, by name.
        rounds: how often each is timed.
        clock: what times an arm.
        repeats: how often an arm runs within one timing, for arms of a few milliseconds.
        warm: an untimed run comes before each timing, so the caches hold this arm and not the last one.

    Returns:
        The seconds of one run of each arm, one entry a round.

    Raises:
        StageCostError: too few rounds for a median.
    """
    if rounds < LEAST_ROUNDS:
        raise StageCostError(f"rounds is {rounds}: give at least {LEAST_ROUNDS}, for a median")
    for arm in arms.values():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would hit one arm with the garbage of all
    try:
        for turn in range(rounds):
            names = list(arms) if turn % 2 == 0 else list(arms)[::-1]
            for name in names:
                if warm:
                    arms[name]()
                seconds[name].append(clock(_repeated(arms[name], repeats)) / repeats)
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def _repeated(arm: Arm, repeats: int) -> Arm:
    def run() -> None:
        for _ in range(repeats):
            arm()

    return run


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Return the ratio of two arms' times that were taken by turns."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to two gigabytes, for what it asks for next.

    By default glibc gives much back to the system. A step frees its large tensors and the next one asks
    for as many, and every page costs a fault that is charged to the step. This does what the variables
    MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_ do, from within.

    Returns:
        Whether it was done; elsewhere than in glibc there is nothing to do it with.
    """
    trim_threshold, mmap_max = -1, -4  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
