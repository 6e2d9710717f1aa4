"""The speed table on a GPU: training steps beside the plain one, inference before and after the cut.

Homogeneous networks of 54 blocks, images of 16×16 pixels, bf16, channels last, nothing compiled: eager,
and as one CUDA graph. Arms by turns, timed by CUDA events; the lines hold every round.

    python -m experiments run gpu-speed --tier gpu
    python -m experiments.gpu_speed --out OUT       the same, into the lines of `gpu_tier`
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.gpu_tier.job import optimizer, stage_loss
from experiments.gpu_tier.plan import Recipe
from experiments.gpu_tier.session import Line, Session
from experiments.records import Record, Row
from experiments.runner import Context, Experiment
from experiments.tables import Columns, quartiles, rows_of, table
from stagecost.cut import Cut
from stagecost.models.catalogue import create_model
from stagecost.objective import StageCost


def milliseconds(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time functions by turns, in milliseconds: by CUDA events, without a GPU by the wall clock."""
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 2):
        for name, function in functions.items():
            if torch.cuda.is_available():
                start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
                start.record()
                function()
                end.record()
                torch.cuda.synchronize()
                value = start.elapsed_time(end)
            else:
                begun = time.perf_counter()
                function()
                value = 1000 * (time.perf_counter() - begun)
            if turn >= 2:  # the first two warm up
                measured[name].append(value)
    return measured


def graphed(function: Callable[[], object]) -> Callable[[], object]:
    """Return a function that replays another as a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def training_step(recipe: Recipe, depths: int | None, device: torch.device) -> Callable[[], None]:
    """Return a training step on noise: with all outputs (−1), with this many drawn once, or plain."""
    torch.manual_seed(0)
    network = create_model("homogeneous", num_blocks=recipe.num_blocks, width=recipe.width)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    sgd = optimizer([network], torch.tensor(0.01, device=device), recipe)
    images = torch.randn(recipe.batch_size, 3, 16, 16, device=device).to(
        memory_format=torch.channels_last
    )
    labels = torch.randint(10, (recipe.batch_size,), device=device)
    cost = StageCost.uniform(recipe.num_blocks, 0.0 if depths is None else recipe.gamma)
    if depths is not None and depths > 0:
        cost = cost.sampled(depths, torch.Generator().manual_seed(0))
    weights = torch.tensor([*cost.weights, cost.terminal_weight], device=device)

    def step() -> None:
        sgd.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, device.type == "cuda", cache_enabled=False):
            loss = stage_loss(network(images, cost.outputs), labels, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step


def peak_bytes(step: Callable[[], object]) -> int:
    """Return what a step needs above the resting level; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    resting = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - resting


def speed(session: Session, recipe: Recipe, sizes: Sequence[int] = (64, 128), rounds: int = 15) -> None:
    """Measure training steps beside the plain one, and inference before and after the cut."""
    cuda = session.device.type == "cuda"
    for batch_size in sizes:
        for width in (16, 32):
            trial = replace(recipe, width=width, batch_size=batch_size)
            arms = {"plain": None, "literal": -1, "sampled": 2}
            steps: dict[str, Callable[[], object]]
            steps = {name: training_step(trial, depths, session.device) for name, depths in arms.items()}
            peaks = {name: peak_bytes(step) for name, step in steps.items()}
            configuration = f"homogeneous-{recipe.num_blocks}-w{width}-b{batch_size}"
            for mode in ("eager", "graph") if cuda else ("eager",):
                if mode == "graph":
                    steps = {name: graphed(step) for name, step in steps.items()}
                times = milliseconds(steps, rounds)
                session.write(
                    "speed", configuration=configuration, mode=mode, milliseconds=times, peak_bytes=peaks
                )
            del steps
    for batch_size in (1, 64, 512) if cuda else (1,):
        for mode in ("eager", "graph") if cuda else ("eager",):
            times = inference_times(session.device, recipe, batch_size, mode, rounds)
            session.write(
                "inference", batch=batch_size, mode=mode, width=recipe.width, milliseconds=times
            )


@torch.no_grad()
def inference_times(
    device: torch.device, recipe: Recipe, batch_size: int, mode: str, rounds: int
) -> dict[str, list[float]]:
    """Time the whole network and its first blocks, in bf16 and eval mode."""
    network = create_model("homogeneous", num_blocks=recipe.num_blocks, width=recipe.width).eval()
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    cut = network.keep(Cut.first(recipe.kept))
    images = torch.randn(batch_size, 3, 16, 16, device=device, dtype=kind).to(
        memory_format=torch.channels_last
    )
    functions: dict[str, Callable[[], object]] = {
        "whole": lambda: network(images),
        "cut": lambda: cut(images),
    }
    if mode == "graph":
        functions = {name: graphed(function) for name, function in functions.items()}
    return milliseconds(functions, rounds)


def speed_table(lines: Sequence[Line], recipe: Recipe) -> Row:
    """Return medians of ratios within a round, with their quartiles."""
    rows, inference, rounds = [], [], 0
    for line in lines:
        if line["stage"] == "speed":
            times, peaks = line["milliseconds"], line["peak_bytes"]
            rounds = len(times["plain"])
            entry = {"configuration": line["configuration"], "mode": line["mode"], "device": "cuda"}
            for arm in ("literal", "sampled"):
                entry[f"{arm}_step_ratio"], entry[f"{arm}_spread"] = ratio(times[arm], times["plain"])
                known = peaks["plain"] > 0
                entry[f"{arm}_memory_ratio"] = round(peaks[arm] / peaks["plain"], 4) if known else None
            rows.append({**entry, "milliseconds": medians(times), "peak_bytes": peaks})
        elif line["stage"] == "inference":
            times = line["milliseconds"]
            speedup, spread = ratio(times["whole"], times["cut"])
            entry = {"blocks_before": recipe.num_blocks, "blocks_after": recipe.kept}
            entry |= {key: line[key] for key in ("batch", "mode", "width")}
            entry |= {"speedup": speedup, "spread": spread, "milliseconds": medians(times)}
            inference.append(entry)
    return {"rows": rows, "pruned_speedup": inference, "rounds": rounds}


def ratio(times: Sequence[float], others: Sequence[float]) -> tuple[float, list[float]]:
    """Return the median over rounds of times / others, and its quartiles."""
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return round(middle, 4), [round(low, 4), round(high, 4)]


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def run(context: Context) -> Row:
    """Measure, and keep what was measured in the folder of the trainings as well."""
    session, quick = Session(context.work), context.tier == "quick"
    recipe = Recipe(num_blocks=4, kept=2, width=4) if quick else Recipe()
    session.lines.unlink()
    torch.backends.cudnn.benchmark = True
    speed(session, recipe, *(((2,), 3) if quick else ()))
    return speed_table([json.loads(line) for line in session.lines.read_text().splitlines()], recipe)


def section(records: Sequence[Record]) -> list[str]:
    """Return the two tables."""
    steps: Columns = {
        "network, batch": "{configuration}",
        "how": "{mode}",
        "every output": lambda row: quartiles(row["literal_step_ratio"], row["literal_spread"]),
        "memory": "{literal_memory_ratio:.3f}",
        "two sampled depths": lambda row: quartiles(row["sampled_step_ratio"], row["sampled_spread"]),
        "their memory": "{sampled_memory_ratio:.3f}",
    }
    inference: Columns = {
        "blocks": "{blocks_before} → {blocks_after}",
        "batch": "{batch}",
        "how": "{mode}",
        "times as fast": lambda row: quartiles(row["speedup"], row["spread"]),
    }
    return [
        "A training step beside the plain one in bf16, median [quartiles] of ratios by turns; nothing "
        "is compiled, and a graph is a CUDA graph.",
        table(rows_of(records), steps),
        "Inference after the cut:",
        table(rows_of(records, "pruned_speedup"), inference),
    ]


GPU_SPEED = Experiment(
    name="gpu-speed",
    title="Speed on a GPU",
    datasets={"gpu": ("",), "quick": ("",)},
    run=run,
    section=section,
    seeds=(0,),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append to the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    torch.backends.cudnn.benchmark = True
    speed(Session(parser.parse_args(arguments).out), Recipe())


if __name__ == "__main__":
    main()
