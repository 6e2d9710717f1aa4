"""What was tried for the two schedules of `stagecost_recipes.schedules`: validation images, other seeds.

    python scripts/schedule_trials.py [DATASET …] [--data-root DIR] [--work DIR] [--results DIR]

Machine     one of two CPU cores, one thread
Runtime     about a minute and a half a run, nine runs a data set; resumable
Seeds       10, which is not among those of the recorded comparisons

The CPU tier's recipe (`stagecost_recipes.tiers`), N = 12 and M = 4. The schedules were settled by such
trials on Fashion-MNIST and CIFAR-10, in part with other batch sizes and seeds; these are the same
ones by one recipe. Validation accuracy over depth; test images are not read. One JSON file a data set
goes to results/schedule-trials.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

SEED = 10
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


def main() -> None:
    """Train what is missing, and record the data sets asked for."""
    parser = argparse.ArgumentParser(description="What was tried for the two schedules.")
    parser.add_argument("datasets", nargs="*", default=[])
    parser.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "schedule-trials")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "schedule-trials")
    options = parser.parse_args()
    if unknown := [name for name in options.datasets if name not in DATASETS]:
        sys.exit(f"{unknown[0]!r} is unknown: choose from {', '.join(DATASETS)}")
    for name in options.datasets or DATASETS:
        local = options.data_root is not None and (options.data_root / name).is_dir()
        record(name, str(options.data_root / name) if local else name, options.work, options.results)


def record(name: str, data: str, work: Path, results: Path) -> None:
    """Train the trials of one data set, and write what they reached."""
    import torch

    from stagecost.storage import write_json
    from stagecost.training.loop import train

    torch.set_num_threads(1)
    runs = []
    for number, (label, settings) in enumerate(trials(name).items()):
        given = {**settings, "data": data, "seed": SEED}
        found = train(given, work / name / f"{number}", resume=True, label=f"{name}: {label}")
        accuracies = found.history[-1]["val_accuracies"]
        runs.append({"trial": label, "settings": settings, "val_accuracies": accuracies})
    about = circumstances("python scripts/schedule_trials.py")
    write_json(results / f"{name}.json", {"name": name, "seeds": [SEED], **about, "runs": runs})


if __name__ == "__main__":
    main()
