"""Compare the training variants on Fashion-MNIST: validation accuracy over depth, three seeds each.

    python scripts/ablation.py [VARIANT …] [--data-root DIR] [--jobs 2]

Machine     two CPU cores, one run on each, one thread a run
Runtime     about 80 seconds a run; about a quarter of an hour in all, resumable
Seeds       0, 1, 2

Twelve homogeneous blocks of width 16 behind a stride of 2, 10,000 training and 5,000 validation images,
six epochs, c = gamma·N = 1, normalised objective. Only validation images are read: the table is for
choosing. One JSON file a variant goes to results/ablation.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

SEEDS = (0, 1, 2)
BASE: dict[str, Any] = {
    "data": "fashion-mnist",
    "model": "homogeneous",
    "num_blocks": 12,
    "width": 16,
    "stem_stride": 2,
    "limit_train": 15000,
    "val_fraction": 1 / 3,
    "epochs": 6,
    "gamma": 1 / 12,
    "normalize_objective": True,
    "device": "cpu",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"gamma": 0.0},
    "plain-4-blocks": {"gamma": 0.0, "num_blocks": 4},
    "uniform": {},
    "late": {"gamma_schedule": "late"},
    "from-4": {"first_depth": 4},
    "late-from-4": {"gamma_schedule": "late", "first_depth": 4},
    "distilled": {"stage_loss": "distilled"},
    "constant-head": {"constant_head": True},
    "growing": {"depth_weights": "growing"},
    "hinged": {"stage_loss": "hinged"},
    "falling": {"gamma_schedule": "falling"},
}


def main() -> None:
    """Train the variants asked for and record what they did."""
    parser = argparse.ArgumentParser(description="Compare the training variants.")
    parser.add_argument("variants", nargs="*", default=[])
    parser.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "ablation")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    names = options.variants or list(VARIANTS)
    if unknown := sorted(set(names) - set(VARIANTS)):
        sys.exit(f"variant {unknown[0]!r} is unknown: choose from {', '.join(VARIANTS)}")
    pairs = list(product(SEEDS, names))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(measure, options.data_root, options.work), pairs))
    for name in names:
        runs = [run for (_, variant), run in zip(pairs, found, strict=True) if variant == name]
        record(name, runs, options.results / f"{name}.json")


def measure(data_root: Path | None, work: Path, pair: tuple[int, str]) -> dict[str, Any]:
    """Train one variant with one seed, and return its validation accuracies over depth."""
    import torch

    from stagecost.training.loop import train

    torch.set_num_threads(1)
    seed, name = pair
    settings = {**BASE, **VARIANTS[name], "seed": seed}
    if data_root is not None and (data_root / BASE["data"]).is_dir():
        settings["data"] = str(data_root / BASE["data"])
    result = train(settings, work / f"{name}-{seed}", resume=True, label=f"{name} {seed}")
    last = result.history[-1]
    return {"val_accuracies": last["val_accuracies"], "seconds": result.seconds}


def record(name: str, runs: list[dict[str, Any]], target: Path) -> None:
    """Write the outcome of a variant."""
    content = {
        "name": name,
        "seeds": list(SEEDS),
        **circumstances("python scripts/ablation.py"),
        "threads": 1,
        "settings": {**BASE, **VARIANTS[name]},
        "runs": runs,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
