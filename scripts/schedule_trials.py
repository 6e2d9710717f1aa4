"""What was tried for the two schedules of `stagecost_recipes.schedules`: validation images, other seeds.

    python scripts/schedule_trials.py [DATASET …] [--later] [--data-root DIR] [--work DIR]
                                      [--results DIR]

Machine     one of two CPU cores, one thread
Runtime     half a minute to a minute and a half a run, nine runs a data set; resumable
Seeds       10, with --later 10, 11, 12, which are not among those of the recorded comparisons

The CPU tier's recipe (`stagecost_recipes.tiers`), N = 12 and M = 4. The schedules were settled by such
trials on Fashion-MNIST and CIFAR-10, in part with other batch sizes and seeds; these are the same
ones by one recipe. With --later: what was tried after that, which raised gamma of the schedule
"pruned". Validation accuracy over depth; test images are not read. One JSON file a data set goes to
results/schedule-trials, or results/schedule-trials-later.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

SEEDS = (10,)
LATER_SEEDS = {"fashion-mnist": (10, 11, 12), "cifar10": (10, 11)}
DATASETS = ("fashion-mnist", "cifar10")


def trials(dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each trial, by what it is called in the table."""
    from stagecost_recipes.schedules import FULL_DEPTH_SCHEDULE, PRUNED_SCHEDULE, SCHEDULES
    from stagecost_recipes.tiers import SUB_BLOCKS, base_recipe

    plain, m = base_recipe("cpu", dataset), SUB_BLOCKS["cpu"]
    n = plain["num_blocks"]

    def pressed(c: float, first: int, **more: Any) -> dict[str, Any]:
        outputs = 1 if more.get("depth_weights") == "first" else n - first
        stage = {"gamma": c / outputs, "first_depth": first, "normalize_objective": True}
        return {**plain, **stage, **more}

    return {
        "plain": plain,
        f"plain, {m} blocks alone": {**plain, "num_blocks": m},
        f"plain, cut to {m} blocks after epoch 3": {**plain, "cut_at": f"3:{m}"},
        f"from y_{m} on, c = 5": pressed(5, m),
        f"from y_{m} on, late, c = 1": pressed(1, m, gamma_schedule="late"),
        "from y_6 on, late, c = 0.1": pressed(0.1, 6, gamma_schedule="late"),
        f"y_{m} alone, c = 3": pressed(3, m, depth_weights="first"),
        f"the schedule {FULL_DEPTH_SCHEDULE!r}": {**plain, **SCHEDULES[FULL_DEPTH_SCHEDULE](n, m)},
        f"the schedule {PRUNED_SCHEDULE!r}": {**plain, **SCHEDULES[PRUNED_SCHEDULE](n, m)},
    }


def later_trials(dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of the trials that came later, by what each is called in the table."""
    from stagecost_recipes.peer_arms.protocol import cut_stage_settings
    from stagecost_recipes.schedules import SCHEDULES, normalized_stage_cost
    from stagecost_recipes.tiers import SUB_BLOCKS, base_recipe

    plain, m = base_recipe("cpu", dataset), SUB_BLOCKS["cpu"]
    n = plain["num_blocks"]
    if dataset == "cifar10":
        full = {**plain, **SCHEDULES["full-depth"](n, m)}
        less = {**full, "gamma": 0.03 / (n - full["first_depth"])}
        return {"plain": plain, "full-depth, c = 0.1": full, "full-depth, c = 0.03": less}

    def on_y_m(gamma: float, schedule: str = "early", **more: Any) -> dict[str, Any]:
        first = {"first_depth": m, "depth_weights": "first", "gamma_schedule": schedule}
        return {**plain, **normalized_stage_cost(gamma, outputs=1), **first, **more}

    cut = {"cut_at": f"3:{m}"}
    return {
        f"plain, {m} blocks alone": {**plain, "num_blocks": m},
        f"y_{m} alone, early, c = 10": on_y_m(10.0),
        f"y_{m} alone, early, c = 30": on_y_m(30.0),
        f"y_{m} alone, early, c = 10, distilled": on_y_m(10.0, stage_loss="distilled"),
        f"y_{m} alone, late, c = 10": on_y_m(10.0, "late"),
        f"plain, cut to {m} blocks after epoch 3": {**plain, **cut},
        f"all outputs, c = 1, cut to {m} after epoch 3": {**plain, **cut_stage_settings(n), **cut},
        f"y_{m} alone, c = 1, cut to {m} after epoch 3": on_y_m(
            1.0, "constant", plain_after_cuts=True, **cut
        ),
    }


def main() -> None:
    """Train what is missing, and record the data sets asked for."""
    parser = argparse.ArgumentParser(description="What was tried for the two schedules.")
    parser.add_argument("datasets", nargs="*", default=[])
    parser.add_argument("--later", action="store_true", help="the trials that came later")
    parser.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "schedule-trials")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    if unknown := [name for name in options.datasets if name not in DATASETS]:
        sys.exit(f"{unknown[0]!r} is unknown: choose from {', '.join(DATASETS)}")
    for name in options.datasets or DATASETS:
        record(name, options)


def record(name: str, options: argparse.Namespace) -> None:
    """Train the trials of one data set, and write what they reached."""
    import torch

    from stagecost.storage import write_json
    from stagecost.training.loop import train

    torch.set_num_threads(1)
    root, kind = options.data_root, "-later" if options.later else ""
    data = str(root / name) if root is not None and (root / name).is_dir() else name
    seeds, tried = (LATER_SEEDS[name], later_trials(name)) if kind else (SEEDS, trials(name))
    runs = []
    for number, (label, settings) in enumerate(tried.items()):
        for seed in seeds:
            folder = options.work / f"{name}{kind}" / f"{number}-{seed}"
            given = {**settings, "data": data, "seed": seed}
            found = train(given, folder, resume=True, label=f"{name}: {label}, {seed}")
            accuracies = found.history[-1]["val_accuracies"]
            runs.append(
                {"trial": label, "seed": seed, "settings": settings, "val_accuracies": accuracies}
            )
    about = circumstances(f"python scripts/schedule_trials.py {name}{' --later' if kind else ''}")
    target = options.results / f"schedule-trials{kind}" / f"{name}.json"
    write_json(target, {"name": name, "seeds": list(seeds), **about, "runs": runs})


if __name__ == "__main__":
    main()
