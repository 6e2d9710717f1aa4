"""The ratios of the table: steps, memory and analysis beside the plain loop, inference, growing N."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from experiments.benchmark.configurations import KEPT_BLOCKS, WHOLE, Configuration, homogeneous
from experiments.benchmark.measure import Arm, clock_of, peak_bytes, ratio, take_turns
from experiments.benchmark.steps import (
    EXACT,
    PASSES,
    Step,
    exact_step,
    plain_step,
    sampled_step,
    separate_heads_step,
)
from experiments.records import Row
from stagecost.cut import Cut
from stagecost.trajectory import loss_trajectory, terminal_score

ANALYSED_BATCHES = 3
BATCHES = (1, 64)
# A forward pass of one image takes a few milliseconds, too short to be timed by itself.
SMALL_BATCH, SMALL_BATCH_REPEATS = 8, 5
SIZES = (12, 54, 200, 1000)
# Small enough that a thousand blocks without checkpointing fit into a few gigabytes.
SCALING_WIDTH, SCALING_BATCH = 16, 16

Model = nn.Module | Callable[[Tensor], object]


def step_ratios(configuration: Configuration, device: torch.device, rounds: int) -> tuple[Row, Row]:
    """Measure training steps, their memory, and the analysis of all depths.

    Returns:
        The row of the table; and all that is behind it: quartiles by the names of the row, the pass that
        is called exact, medians, memory, seconds and peaks of every arm.
    """
    # The plain loop stands between those that are compared with it most closely.
    arms: dict[str, Step] = {
        **{name: exact_step(configuration, device, name) for name in PASSES},
        "plain": plain_step(configuration, device),
        "sampled": sampled_step(configuration, device),
        "separate_heads": separate_heads_step(configuration, device),
    }
    seconds = take_turns(arms, rounds, clock_of(device))
    analysis = analysis_seconds(configuration, device, rounds)
    ratios = {name: ratio(times, seconds["plain"]) for name, times in seconds.items() if name != "plain"}
    ratios["analyze"] = ratio(analysis["analyze"], analysis["evaluate"])
    peaks = {name: peak_bytes(arm, device) for name, arm in arms.items()}
    memory = {name: round(peak / peaks["plain"], 4) for name, peak in peaks.items()}
    named = {f"{name}_step_ratio": ratios[name] for name in ("literal", "sampled", "separate_heads")}
    named |= {"exact_step_ratio": ratios[EXACT], "analyze_ratio": ratios["analyze"]}
    shown = {key: round(each.median, 4) for key, each in named.items() if "heads" not in key}
    row = {
        "configuration": configuration.name,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    spread = {
        "configuration": configuration.name,
        **{key: each.quartiles for key, each in named.items()},
        "exact_is": EXACT,
        "medians": {name: round(each.median, 4) for name, each in ratios.items()},
        "memory": memory,
        "seconds": {n: round(statistics.median(t), 5) for n, t in {**seconds, **analysis}.items()},
        "peak_bytes": peaks,
    }
    return {**row, **shown, "memory_ratio": memory[EXACT]}, spread


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


def pruned_speedups(
    device: torch.device, rounds: int, whole: Configuration = WHOLE, kept_blocks: int = KEPT_BLOCKS
) -> tuple[list[Row], list[Row]]:
    """Truncate a network and time both, for one image and for a batch: rows, and quartiles."""
    network = whole.network(device).eval()
    models: dict[str, Model] = {"whole": network, "pruned": network.keep(Cut.first(kept_blocks)).eval()}
    images, _ = whole.batch(device)
    rows, spreads = [], []
    for batch in BATCHES:
        seconds = forward_seconds(models, images[:batch], device, rounds)
        faster = ratio(seconds["whole"], seconds["pruned"])
        blocks = {"blocks_before": network.num_blocks, "blocks_after": kept_blocks}
        rows.append({**blocks, "batch": batch, "speedup": round(faster.median, 4)})
        name = f"{network.num_blocks} to {kept_blocks} blocks, batch {batch}"
        spreads.append({"configuration": name, "speedup": faster.quartiles})
    return rows, spreads


def forward_seconds(
    models: Mapping[str, Model], images: Tensor, device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time a forward pass of each model by turns, in inference mode."""

    def arm(model: Model) -> Arm:
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
    """Measure a plain step and one with the whole stage cost for every N: medians, and peaks."""
    rows = []
    for num_blocks in sizes:
        report(f"a step of {num_blocks} blocks")
        configuration = homogeneous(num_blocks, SCALING_WIDTH, SCALING_BATCH)
        arms = {
            "plain": plain_step(configuration, device),
            "stage cost": exact_step(configuration, device, EXACT),
            "stage cost, checkpointed": exact_step(configuration, device, "checkpointed"),
        }
        seconds = take_turns(arms, rounds, clock_of(device))
        for name, arm in arms.items():
            median = statistics.median(seconds[name])
            times = {"step_seconds": round(median, 5), "seconds_a_block": round(median / num_blocks, 7)}
            row = {"num_blocks": num_blocks, "training": name, **times}
            rows.append({**row, "peak_bytes": peak_bytes(arm, device)})
    return rows
