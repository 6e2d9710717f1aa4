"""Compare the training variants by the recipe of the CPU tier: validation accuracy over depth.

    python scripts/ablation.py [DATASET …] [--data-root DIR]

Machine     one of two CPU cores, one thread
Runtime     Fashion-MNIST: a minute a run, an hour in all; CIFAR-10: three minutes a run, three hours in
            all; resumable
Seeds       0, 1, 2

Every variant has Σ gamma·c_k = 1 at its full strength, a normalised objective (but one) and the weight
decay of plain training, so that what differs is the variant alone. Only validation images are read: the
table is for choosing. One JSON file a data set goes to results/ablation; it holds the variants of which
all seeds are trained.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

DATASETS = ("fashion-mnist", "cifar10")
SEEDS = (0, 1, 2)
STRENGTH = 1.0
"""Σ gamma·c_k."""
GROUP_LASSO = (0.02, 0.2)
"""Weights of the penalty; they were not tuned."""
STAGED: dict[str, Any] = {"model": "staged", "blocks_per_stage": [4, 4, 4], "widths": [8, 16, 32]}

VARIANTS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "late": {"gamma_schedule": "late"},
    "distilled": {"stage_loss": "distilled"},
    "hinged": {"stage_loss": "hinged"},
    "constant-head": {"constant_head": True},
    "group-lasso": {"group_lasso": GROUP_LASSO[0]},
    "strong-group-lasso": {"group_lasso": GROUP_LASSO[1]},
    "late-from-4": {"gamma_schedule": "late", "first_depth": 4},
    "growing": {"depth_weights": "growing"},
    "falling": {"gamma_schedule": "falling"},
    "warmup": {"gamma_schedule": "warmup"},
    "early": {"gamma_schedule": "early"},
    "from-4": {"first_depth": 4},
    "late-distilled": {"gamma_schedule": "late", "stage_loss": "distilled"},
    "sampled-3": {"sampled_depths": 3},
    "staged": STAGED,
    "staged-average": {**STAGED, "projection": "average"},
}
"""Departures from the uniform, constant stage cost, by flag name."""


def trials(dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of every training, by flag name, without data and seed."""
    from stagecost.training.settings import TrainingSettings, VariantSettings
    from stagecost_recipes.tiers import SUB_BLOCKS, base_recipe

    plain, m = base_recipe("cpu", dataset), SUB_BLOCKS["cpu"]
    n, decay = plain["num_blocks"], TrainingSettings.weight_decay * (1 + STRENGTH)
    found = {
        "plain": plain,
        f"plain-{m}-blocks": {**plain, "num_blocks": m},
        "not-normalised": {**plain, "gamma": STRENGTH / n},
    }
    for name, changes in VARIANTS.items():
        weighted = {k: v for k, v in changes.items() if k in ("first_depth", "depth_weights")}
        weights = VariantSettings(**weighted).total_weight(n)
        own_shape = ("num_blocks", "width") if "model" in changes else ()
        kept = {k: v for k, v in plain.items() if k not in own_shape}
        cost = {"gamma": STRENGTH / weights, "normalize_objective": True, "weight_decay": decay}
        found[name] = {**kept, **cost, **changes}
    return found


def main() -> None:
    """Train what is missing, and record the data sets asked for."""
    parser = argparse.ArgumentParser(description="Compare the training variants.")
    parser.add_argument("datasets", nargs="*", default=[])
    parser.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "ablation")
    options = parser.parse_args()
    if unknown := [name for name in options.datasets if name not in DATASETS]:
        sys.exit(f"{unknown[0]!r} is unknown: choose from {', '.join(DATASETS)}")
    for name in options.datasets or DATASETS:
        record(name, options)


def record(dataset: str, options: argparse.Namespace) -> None:
    """Train the variants on one data set, and write after each what they reached so far."""
    import torch

    from stagecost.storage import write_json

    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    about = circumstances(f"python scripts/ablation.py {dataset}")
    for name, settings in trials(dataset).items():
        runs += [measure(dataset, name, settings, seed, options) for seed in SEEDS]
        content = {"name": dataset, "seeds": list(SEEDS), **about, "runs": runs}
        write_json(options.results / f"{dataset}.json", content)


def measure(
    dataset: str, name: str, settings: dict[str, Any], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train one variant with one seed; return its accuracies over depth and its branches at zero."""
    from stagecost.norms import squared_weight_norms
    from stagecost.training.loop import train
    from stagecost.training.trained import open_trained

    root = options.data_root
    data = str(root / dataset) if root is not None and (root / dataset).is_dir() else dataset
    folder = options.work / dataset / f"{name}-{seed}"
    result = train(
        {**settings, "data": data, "seed": seed}, folder, resume=True, label=f"{dataset}: {name}, {seed}"
    )
    return {
        "variant": name,
        "seed": seed,
        "settings": settings,
        "val_accuracies": result.history[-1]["val_accuracies"],
        "zero_branches": squared_weight_norms(open_trained(folder, device="cpu").network).count(0.0),
        "seconds": result.seconds,
    }


if __name__ == "__main__":
    main()
