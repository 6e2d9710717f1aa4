"""A row of the table: what the stage cost costs in one configuration, relative to the plain loop."""

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from stagecost.benchmark.configurations import Configuration
from stagecost.benchmark.memory import peak_bytes
from stagecost.benchmark.steps import (
    exact_step,
    plain_step,
    sampled_step,
    separate_heads_step,
)
from stagecost.benchmark.timing import Arm, Ratio, clock_of, ratio, take_turns
from stagecost.trajectory import loss_trajectory, terminal_score

ANALYSED_BATCHES = 3
TARGETS = {
    "exact_step_ratio": 1.05,
    "sampled_step_ratio": 1.02,
    "memory_ratio": 1.03,
    "analyze_ratio": 1.10,
}
"""What the project aims for on a CPU: the table is read against these."""


@dataclass(frozen=True)
class TrainingRatios:
    """What was measured of one configuration.

    Attributes:
        configuration: its name.
        ratios: of times to the plain loop's, by the names of the table.
        seconds: the median time of each arm.
        peak_bytes: of a step above the resting level, for each arm that was measured.
    """

    configuration: str
    ratios: dict[str, Ratio]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]

    def row(self, device: torch.device, threads: int) -> dict[str, Any]:
        """Return the row of the table."""
        names = ("exact_step_ratio", "literal_step_ratio", "sampled_step_ratio")
        return {
            "configuration": self.configuration,
            "device": str(device),
            "threads": threads,
            **{name: round(self.ratios[name].median, 4) for name in names},
            "memory_ratio": round(self.memory_ratio("exact"), 4),
            "analyze_ratio": round(self.ratios["analyze_ratio"].median, 4),
        }

    def memory_ratio(self, arm: str) -> float:
        """Return an arm's peak relative to the plain loop's."""
        return self.peak_bytes[arm] / self.peak_bytes["plain"]

    def spreads(self) -> dict[str, Any]:
        """Return the quartiles of every ratio of times, and what the ratios are of."""
        return {
            "configuration": self.configuration,
            **{name: ratio.quartiles for name, ratio in self.ratios.items()},
            "seconds": {arm: round(seconds, 5) for arm, seconds in self.seconds.items()},
            "peak_bytes": self.peak_bytes,
        }


def measure(configuration: Configuration, device: torch.device, rounds: int) -> TrainingRatios:
    """Measure a configuration: training steps, their memory, and the analysis of all depths."""
    # The plain loop stands between the two that are compared with it most closely.
    arms = {
        "literal": exact_step(configuration, device, way="literal"),
        "exact": exact_step(configuration, device),
        "plain": plain_step(configuration, device),
        "sampled": sampled_step(configuration, device),
        "separate_heads": separate_heads_step(configuration, device),
    }
    seconds = take_turns(arms, rounds, clock_of(device))
    peaks = {name: peak_bytes(arms[name], device) for name in ("plain", "exact", "separate_heads")}
    analysis = analysis_seconds(configuration, device, rounds)
    ratios = {
        f"{name}_step_ratio": ratio(times, seconds["plain"])
        for name, times in seconds.items()
        if name != "plain"
    }
    ratios["analyze_ratio"] = ratio(analysis["analyze"], analysis["evaluate"])
    medians = {name: statistics.median(times) for name, times in {**seconds, **analysis}.items()}
    return TrainingRatios(configuration.name, ratios, medians, peaks)


def analysis_seconds(
    configuration: Configuration, device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time the analysis of all depths and the evaluation of the terminal output, on the same batches."""
    network = configuration.network(device).eval()
    batches = [configuration.batch(device, place) for place in range(ANALYSED_BATCHES)]
    arms: dict[str, Arm] = {
        "evaluate": partial(terminal_score, network, batches),
        "analyze": partial(loss_trajectory, network, batches),
    }
    return take_turns(arms, rounds, clock_of(device))
