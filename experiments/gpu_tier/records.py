"""Records of `gpu_tier` and `gpu_speed`: from their lines to the files in `results`.

`layer-pruning/gpu-<data>.json` is the paper's table, `targets/gpu-<data>.json` one training for two
depths beside each depth trained alone, `gpu-speed/gpu.json` the speed table.

    python -m experiments.gpu_tier records --lines OUT/gpu-tier.jsonl --results results
"""

import json
import statistics
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.gpu_speed import speed_table
from experiments.gpu_tier.plan import ONE_PASS, PLAN, SEEDS, TARGET_WEIGHTS, Recipe, images_of
from experiments.gpu_tier.session import Line
from experiments.trainings import PAPER
from stagecost.macs import count_macs, count_parameters
from stagecost.models.catalogue import create_model
from stagecost.storage import write_json

COMMAND = f"python -m experiments.gpu_tier train pilot {' '.join(PLAN)} --images IMAGES --out OUT"
SPEED_COMMAND = "python -m experiments.gpu_speed --out OUT"
TABLE = {  # the row's arm: the job's arm, which of its networks
    "plain_full": ("plain_full", "whole"),
    "plain_sub": ("plain_sub", "cut"),
    "stage_full": ("stage", "whole"),
    "stage_pruned": ("stage", "cut"),
}
TARGETS = (  # the row's arm, the job's arm, which of its networks
    ("alone", "plain_full", "whole"),
    ("alone", "plain_sub", "cut"),
    ("alone", "plain_mid", "middle"),
    *((arm, arm, network) for arm in ONE_PASS for network in ("whole", "middle", "cut")),
    ("joint", "joint", "whole"),
    ("joint", "joint", "cut"),
    ("joint_light", "joint_light", "whole"),
    ("joint_light", "joint_light", "cut"),
    ("plain_long", "plain_long", "whole"),
    ("plain_longer", "plain_longer", "whole"),
    ("cut_first", "cut_first", "cut"),
)


def write_records(file: Path, results: Path) -> None:
    """Write the records of all data sets whose jobs are in the lines, and of the speed table."""
    lines = with_machines([json.loads(text) for text in file.read_text().splitlines()])
    for dataset in PLAN:
        jobs = [line for line in lines if line["stage"] == "main" and line["dataset"] == dataset]
        in_table = [job for job in jobs if job["arm"] in {arm for arm, _ in TABLE.values()}]
        if "stage" in {job["arm"] for job in in_table}:
            content = about(in_table, dataset, COMMAND) | layer_pruning(in_table, dataset)
            write_json(results / "layer-pruning" / f"gpu-{dataset}.json", content)
        if jobs:
            content = about(jobs, dataset, COMMAND) | targets(jobs, dataset)
            content |= {"pilot": tried(lines) if dataset == "cifar10" else []}
            write_json(results / "targets" / f"gpu-{dataset}.json", content)
    if measured := [line for line in lines if line["stage"] == "speed"]:
        content = circumstances(measured, "gpu", SPEED_COMMAND) | {"seeds": [0]}
        write_json(results / "gpu-speed" / "gpu.json", content | speed_table(lines, Recipe()))


def with_machines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines, each with the line of the machine that wrote it, the last one before."""
    machine: Line = {}
    known = []
    for line in lines:
        machine = line if line["stage"] == "machine" else machine
        known.append({**line, "on": machine})
    return known


def circumstances(lines: Sequence[Line], name: str, command: str) -> dict[str, Any]:
    """Return what every record begins with; lines of several sittings name all machines and commits."""

    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(line["on"][key] for line in lines))

    return {
        "name": name,
        "tier": "gpu",
        "seeds": list(SEEDS),
        "command": command,
        "commit": all_of("commit"),
        "machine": all_of("machine"),
        "threads": 1,
        "versions": {"stagecost": version("stagecost"), **lines[0]["on"]["versions"]},
    }


def about(jobs: Sequence[Line], dataset: str, command: str) -> dict[str, Any]:
    """Return the circumstances of jobs, their recipe, and the epochs and steps of each arm."""
    arms = {job["arm"]: job for job in jobs}
    recipe = Recipe(**jobs[0]["recipe"])
    recorded = jobs[0]["recipe"] | {"gamma": recipe.gamma, "precision": "bf16", "val_fraction": 0.1}
    weights = {arm: weight for arm, weight in TARGET_WEIGHTS.items() if arm in arms}
    settings = {
        "recipe": recorded | {"target_weights": weights},
        "epochs": {arm: round(job["epochs"] * recipe.epoch_factor(arm), 2) for arm, job in arms.items()},
        "steps": {arm: job["steps"] for arm, job in arms.items()},
    }
    return circumstances(jobs, dataset, command) | {"settings": settings}


def row(jobs: Sequence[Line], dataset: str, arm: str, network: str) -> dict[str, Any]:
    """Return the accuracies of one arm's network over the seeds, and what it costs.

    `macs` are for one image; `training_macs` count three forward passes for each image of the training
    that the network comes from, and no reading of validation or test images; `seconds` are those of the
    device for one training, its share where several trained at once, and None where it had other work.
    """
    chosen = sorted((job for job in jobs if job["arm"] == arm), key=lambda job: int(job["seed"]))
    recipe = Recipe(**chosen[0]["recipe"])
    depth = {"whole": recipe.num_blocks, "cut": recipe.kept, "middle": recipe.middle}[network]
    passes = [size(recipe, dataset, recipe.blocks(arm))]
    if arm in TARGET_WEIGHTS:
        passes.append(size(recipe, dataset, recipe.kept))
    parameters, macs = size(recipe, dataset, depth)
    tested = [job["networks"][network]["test"] for job in chosen]
    seconds = statistics.median(job["shared_seconds"] for job in chosen) / recipe.at_once
    shared = any(job["on"].get("other_work") for job in chosen)
    return {
        "dataset": dataset,
        "num_blocks": depth,
        "seeds": [job["seed"] for job in chosen],
        "test_accuracies": tested,
        "val_accuracies": [job["networks"][network]["val"] for job in chosen],
        "mean": statistics.mean(tested),
        "std": statistics.stdev(tested) if len(tested) > 1 else 0.0,
        "parameters": parameters,
        "macs": macs,
        "training_macs": 3 * sum(m for _, m in passes) * chosen[0]["steps"] * recipe.batch_size,
        "seconds": None if shared else round(seconds, 1),
        "num_test": 10000,
    }


@cache
def size(recipe: Recipe, dataset: str, num_blocks: int) -> tuple[int, int]:
    """Return a network's parameters, and its MACs for one image."""
    images = images_of(dataset)
    shape = (1, 28, 28) if images == "mnist" else (3, 32, 32)
    with torch.random.fork_rng():
        network = create_model(
            "homogeneous",
            num_blocks=num_blocks,
            width=recipe.width,
            num_classes=100 if images == "cifar100" else 10,
            in_channels=shape[0],
            stem_stride=recipe.stem_stride,
        )
    return count_parameters(network), count_macs(network, shape)


def layer_pruning(jobs: Sequence[Line], dataset: str) -> dict[str, Any]:
    """Return the paper's table: rows, and differences in points."""
    paper = PAPER[dataset]
    rows = [
        {**row(jobs, dataset, arm, network), "arm": name, "paper": paper[name]}
        for name, (arm, network) in TABLE.items()
    ]
    means = {entry["arm"]: entry["mean"] for entry in rows}
    differences = {
        "dataset": dataset,
        "full_depth": means["stage_full"] - means["plain_full"],
        "pruned": means["stage_pruned"] - means["plain_sub"],
        "paper_full_depth": round(paper["stage_full"] - paper["plain_full"], 2),
        "paper_pruned": round(paper["stage_pruned"] - paper["plain_sub"], 2),
    }
    content = {"rows": rows, "other_rows": [], "differences": [differences], "figures": []}
    return {"experiment": "layer-pruning", "dataset": dataset, **content}


def targets(jobs: Sequence[Line], dataset: str) -> dict[str, Any]:
    """Return one training for two depths beside each depth alone, at equal epochs and equal MACs."""
    present = {job["arm"] for job in jobs}
    rows = []
    for name, arm, network in TARGETS:
        if arm in present:
            entry = row(jobs, dataset, arm, network)
            cut = "whole" if network == "whole" else str(entry["num_blocks"])
            rows.append({**entry, "arm": name, "cut": cut})
    means = {(entry["arm"], entry["cut"]): entry["mean"] for entry in rows}
    differences = [
        {"arm": arm, "other": other, "cut": cut, "points": mean - means[other, cut]}
        for (arm, cut), mean in means.items()
        for other in ("alone", "plain_long", "plain_longer", "cut_first")
        if arm in (*TARGET_WEIGHTS, *ONE_PASS) and (other, cut) in means
    ]
    return {"experiment": "targets", "dataset": dataset, "rows": rows, "differences": differences}


def tried(lines: Sequence[Line]) -> list[Line]:
    """Return what the pilot measured and chose, by validation images alone."""
    chosen = (line for line in lines if line["stage"] in ("fastest", "pilot", "choice"))
    return [{key: value for key, value in line.items() if key != "on"} for line in chosen]
