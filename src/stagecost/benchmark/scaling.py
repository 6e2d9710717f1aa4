"""Time a block and memory of a training step as N grows, with and without activation checkpointing."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stagecost.benchmark.configurations import Configuration, homogeneous
from stagecost.benchmark.memory import peak_bytes
from stagecost.benchmark.steps import Step, exact_step, plain_step
from stagecost.benchmark.timing import clock_of, take_turns

SIZES = (12, 54, 200, 1000)
WIDTH = 16
# Small enough that a thousand blocks without checkpointing fit into a few gigabytes.
BATCH_SIZE = 16


def scaling(
    device: torch.device, rounds: int, report: Callable[[str], None], sizes: Sequence[int] = SIZES
) -> list[dict[str, Any]]:
    """Measure a step of plain training and of the whole stage cost for every N.

    Args:
        device: where to compute.
        rounds: of the times.
        report: is told what is measured next.
        sizes: the numbers of blocks.

    Returns:
        A row for each N and way of training: `num_blocks`, `training`, `step_seconds`,
        `seconds_a_block` (medians) and `peak_bytes` above the resting level.
    """
    rows = []
    for num_blocks in sizes:
        report(f"a step of {num_blocks} blocks")
        arms = _arms(homogeneous(num_blocks, WIDTH, BATCH_SIZE), device)
        seconds = take_turns(arms, rounds, clock_of(device))
        for name, arm in arms.items():
            median = statistics.median(seconds[name])
            rows.append(
                {
                    "num_blocks": num_blocks,
                    "training": name,
                    "step_seconds": round(median, 5),
                    "seconds_a_block": round(median / num_blocks, 7),
                    "peak_bytes": peak_bytes(arm, device),
                }
            )
    return rows


def _arms(configuration: Configuration, device: torch.device) -> dict[str, Step]:
    return {
        "plain": plain_step(configuration, device),
        "stage cost": exact_step(configuration, device),
        "stage cost, checkpointed": exact_step(configuration, device, way="checkpointed"),
    }
