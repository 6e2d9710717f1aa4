"""`stagecost benchmark`: every ratio of the table, measured one after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stagecost.allocator import keep_freed_memory
from stagecost.benchmark.configurations import Configuration, choose
from stagecost.benchmark.display import BenchmarkDisplay
from stagecost.benchmark.latency import Speedup, pruned_speedups
from stagecost.benchmark.machine import machine, versions
from stagecost.benchmark.peers import compare_packages, separate_heads
from stagecost.benchmark.recorded import results_folder, shrink_rows
from stagecost.benchmark.scaling import scaling
from stagecost.benchmark.timing import check_rounds
from stagecost.benchmark.training_ratios import TrainingRatios, measure
from stagecost.errors import StageCostError
from stagecost.training.devices import select_device

ROUNDS, QUICK_ROUNDS = 15, 7
# A forward pass takes a fraction of a step, and a few more rounds steady its median.
LATENCY_ROUNDS_FACTOR = 3
SCALING_ROUNDS = 3


def run_benchmark(
    *,
    quick: bool = False,
    configurations: Sequence[str] | None = None,
    rounds: int | None = None,
    threads: int = 1,
    device: str = "auto",
    results: str | None = None,
) -> dict[str, Any]:
    """Measure the ratios and read what was recorded of shrinking.

    Returns:
        The object that `stagecost benchmark --json` prints.

    Raises:
        StageCostError: an unknown configuration or device, an impossible number, a damaged record.
    """
    chosen = choose(configurations, quick=quick)
    rounds = rounds if rounds is not None else QUICK_ROUNDS if quick else ROUNDS
    check_rounds(rounds)
    place = _device(device)
    shrink = shrink_rows(results_folder(results))
    keep_freed_memory()
    with using_threads(threads), BenchmarkDisplay() as display:
        if not shrink:
            display.note("no results of shrinking were found: --results names the folder that has them")
        measured = [_measured(configuration, place, rounds, display) for configuration in chosen]
        display.report("the latency of a pruned network")
        speedups = pruned_speedups(place, LATENCY_ROUNDS_FACTOR * rounds)
        scale = [] if quick else scaling(place, min(rounds, SCALING_ROUNDS), display.report)
        packages = [] if quick else compare_packages(chosen, place, rounds, display.report)
    peers = [*(figure for ratios in measured for figure in separate_heads(ratios)), *packages]
    return {
        "rows": [ratios.row(place, threads) for ratios in measured],
        "shrink": shrink,
        "pruned_speedup": [speedup.row() for speedup in speedups],
        "scale": scale,
        "peers": [figure.row() for figure in peers],
        "spreads": _spreads(measured, speedups),
        "rounds": rounds,
        "machine": _machine(place),
        "versions": versions(),
    }


def _measured(
    configuration: Configuration, device: torch.device, rounds: int, display: BenchmarkDisplay
) -> TrainingRatios:
    display.report(configuration.name)
    return measure(configuration, device, rounds)


def _spreads(measured: Sequence[TrainingRatios], speedups: Sequence[Speedup]) -> list[dict[str, Any]]:
    return [*(ratios.spreads() for ratios in measured), *(speedup.spread() for speedup in speedups)]


def _device(name: str) -> torch.device:
    """Return a device that has a clock and a counter of memory here."""
    device = select_device(name)
    if device.type == "mps" and name == "auto":
        return torch.device("cpu")
    if device.type == "mps":
        raise StageCostError("device 'mps' cannot be measured: use --device cpu")
    return device


def _machine(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, {machine()}" if device.type == "cuda" else machine()


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Compute with so many threads, and with as many as before afterwards.

    Raises:
        StageCostError: fewer than one.
    """
    if threads < 1:
        raise StageCostError(f"threads is {threads}: give a number of at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
