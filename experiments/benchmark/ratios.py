"""The ratios of the table: steps, memory and analysis beside the plain loop, inference after a cut, growing N."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from experiments.benchmark.configurations import KEPT_BLOCKS, WHOLE, Configuration, homogeneous
from experiments.benchmark.steps import (
    PASSES,
    Step,
    exact_pass,
    exact_step,
    plain_step,
    sampled_step,
    separate_heads_step,
)
from experiments.benchmark.measure import Arm, Ratio, clock_of, peak_bytes, ratio, take_turns
from experiments.records import Row
from stagecost.cut import Cut
from stagecost.network import ResidualNetwork
from stagecost.trajectory import loss_trajectory, terminal_score

ANALYSED_BATCHES = 3
BATCHES = (1, 64)
# A forward pass of one image takes a few milliseconds, too short to be timed by itself.
SMALL_BATCH, SMALL_BATCH_REPEATS = 8, 5
SIZES = (12, 54, 200, 1000)
# Small enough that a thousand blocks without checkpointing fit into a few gigabytes.
SCALING_WIDTH, SCALING_BATCH = 16, 16


@dataclass(frozen=True)
class StepRatios:
    """What was measured of one configuration.

    Attributes:
        configuration: its name.
        exact: the pass by which training computes the exact cost.
        ratios: of times to the plain loop's, by arm; of "analyze" to an evaluation's.
        seconds: the median time of each arm.
        peak_bytes: of a step above the resting level.
    """

    configuration: str
    exact: str
    ratios: dict[str, Ratio]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]

    def memory(self, arm: str) -> float:
        """Return an arm's peak relative to the plain loop's."""
        return round(self.peak_bytes[arm] / self.peak_bytes["plain"], 4)

    def row(self, device: torch.device) -> Row:
        """Return the row of the table."""
        arms = {"exact": self.exact, **{name: name for name in ("literal", "sampled")}}
        return {
            "configuration": self.configuration,
            "device": str(device),
            "threads": torch.get_num_threads(),
            **{f"{name}_step_ratio": round(self.ratios[arm].median, 4) for name, arm in arms.items()},
            "memory_ratio": self.memory(self.exact),
            "analyze_ratio": round(self.ratios["analyze"].median, 4),
        }

    def spread(self) -> Row:
        """Return everything: quartiles by the names of the row, and median, quartiles and memory of each arm."""
        ratios = {**self.ratios, "exact": self.ratios[self.exact]}
        return {
            "configuration": self.configuration,
            **{
                f"{name}_ratio" if name == "analyze" else f"{name}_step_ratio": each.quartiles
                for name, each in ratios.items()
            },
            "exact_is": self.exact,
            "medians": {name: round(each.median, 4) for name, each in self.ratios.items()},
            "memory": {arm: self.memory(arm) for arm in self.peak_bytes},
            "seconds": {arm: round(seconds, 5) for arm, seconds in self.seconds.items()},
            "peak_bytes": self.peak_bytes,
        }


def step_ratios(configuration: Configuration, device: torch.device, rounds: int) -> StepRatios:
    """Measure a configuration: training steps, their memory, and the analysis of all depths."""
    torch.compiler.reset()  # it would give up compiling after some shapes
    exact = exact_pass(device)
    passes = [name for name in PASSES if name != "compiled" or exact == "compiled"]
    # The plain loop stands between those that are compared with it most closely.
    arms: dict[str, Step] = {
        **{name: exact_step(configuration, device, name) for name in passes},
        "plain": plain_step(configuration, device),
        "sampled": sampled_step(configuration, device),
        "separate_heads": separate_heads_step(configuration, device),
    }
    seconds = take_turns(arms, rounds, clock_of(device))
    analysis = analysis_seconds(configuration, device, rounds)
    ratios = {name: ratio(times, seconds["plain"]) for name, times in seconds.items() if name != "plain"}
    ratios["analyze"] = ratio(analysis["analyze"], analysis["evaluate"])
    medians = {name: statistics.median(times) for name, times in {**seconds, **analysis}.items()}
    peaks = {name: peak_bytes(arm, device) for name, arm in arms.items()}
    return StepRatios(configuration.name, exact, ratios, medians, peaks)


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


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the pruned network is, at one batch size."""

    before: int
    after: int
    batch: int
    ratio: Ratio

    def row(self) -> Row:
        """Return the row of the table."""
        return {
            "blocks_before": self.before,
            "blocks_after": self.after,
            "batch": self.batch,
            "speedup": round(self.ratio.median, 4),
        }

    def spread(self) -> Row:
        """Return the quartiles of the speed-up."""
        name = f"{self.before} to {self.after} blocks, batch {self.batch}"
        return {"configuration": name, "speedup": self.ratio.quartiles}


def pruned_speedups(
    device: torch.device, rounds: int, whole: Configuration = WHOLE, kept_blocks: int = KEPT_BLOCKS
) -> list[Speedup]:
    """Truncate a network and time both, for a single image and for a batch."""
    network = whole.network(device).eval()
    pruned = truncated(network, kept_blocks)
    models = {"whole": network, "pruned": pruned}
    images, _ = whole.batch(device)
    speedups = []
    for batch in BATCHES:
        seconds = forward_seconds(models, images[:batch], device, rounds)
        faster = ratio(seconds["whole"], seconds["pruned"])
        speedups.append(Speedup(network.num_blocks, pruned.num_blocks, batch, faster))
    return speedups


def truncated(network: ResidualNetwork, kept_blocks: int) -> ResidualNetwork:
    """Return the network cut to its first blocks, in eval mode."""
    return network.keep(Cut.first(kept_blocks)).eval()


def forward_seconds(
    models: Mapping[str, nn.Module | Callable[[Tensor], object]],
    images: Tensor,
    device: torch.device,
    rounds: int,
) -> dict[str, list[float]]:
    """Time a forward pass of each model by turns, in inference mode."""

    def arm(model: nn.Module | Callable[[Tensor], object]) -> Arm:
        def run() -> None:
            with torch.inference_mode():
                model(images)

        return run

    repeats = SMALL_BATCH_REPEATS if len(images) <= SMALL_BATCH else 1
    arms = {name: arm(model) for name, model in models.items()}
    return take_turns(arms, rounds, clock_of(device), repeats=repeats, warm=True)


def scaling(
    device: torch.device, rounds: int, report: Callable[[str], None], sizes: Sequence[int] = SIZES
) -> list[Row]:
    """Measure a step of plain training and of the whole stage cost for every N.

    Returns:
        A row for each N and way of training: `num_blocks`, `training`, `step_seconds`,
        `seconds_a_block` (medians) and `peak_bytes` above the resting level.
    """
    exact, rows = exact_pass(device), []
    for num_blocks in sizes:
        report(f"a step of {num_blocks} blocks")
        configuration = homogeneous(num_blocks, SCALING_WIDTH, SCALING_BATCH)
        arms = {
            "plain": plain_step(configuration, device),
            "stage cost": exact_step(configuration, device, exact),
            "stage cost, checkpointed": exact_step(configuration, device, "checkpointed"),
        }
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
