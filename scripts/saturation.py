"""How many blocks stay active, and how many are needed, as a network is made deeper.

    python scripts/saturation.py [--work DIR] [--results DIR]

Command     OMP_NUM_THREADS=1 python scripts/saturation.py
Machine     the JSON file names it; one thread
Runtime     about a quarter of an hour on one core, resumable
Seeds       0, 1, 2

Digits, homogeneous blocks of width 8, N = 6, 12, 24, 48, normalised objective, one lambda: with
c = gamma·N = 1 at every N, with gamma = 1/12 at every N, and plainly. What is measured is said in
`digits_runs`. Only training and validation images are read.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances
from digits_runs import BASE, THRESHOLD, TOLERANCE, active_blocks, needed_by_loss, trained
from theory_figures import saturation_figure

SEEDS = (0, 1, 2)
SIZES = (6, 12, 24, 48)
WEIGHT_DECAY = 1e-2
EPOCHS = 15
CONSTANT_SHARE, CONSTANT_GAMMA, PLAIN = "gamma·N = 1", "gamma = 1/12", "plain"


def main() -> None:
    """Train, measure and record."""
    import torch

    parser = argparse.ArgumentParser(description="Active and needed blocks as N grows.")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "saturation")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "saturation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # One seed of everything first: what is there after an interruption can be compared.
    rows = [
        measure(options.work, training, size, seed)
        for seed, size, training in product(SEEDS, SIZES, (CONSTANT_SHARE, CONSTANT_GAMMA, PLAIN))
    ]
    content = {
        "name": "digits",
        "seeds": list(SEEDS),
        **circumstances("python scripts/saturation.py"),
        "threads": 1,
        "settings": {**BASE, "epochs": EPOCHS, "weight_decay": WEIGHT_DECAY},
        "tolerance": TOLERANCE,
        "threshold": THRESHOLD,
        "runs": rows,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / "digits.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    names = {"active": "active blocks", "needed": "needed blocks, by loss"}
    for quantity, name in names.items():
        figure = saturation_figure(rows, quantity, name)
        (options.results / f"digits-{quantity}.svg").write_text(figure + "\n")
    print(f"recorded {target}", file=sys.stderr)


def measure(work: Path, training: str, num_blocks: int, seed: int) -> dict[str, Any]:
    """Train one network, or take the one of the same gamma, and measure it."""
    gamma = {CONSTANT_SHARE: 1 / num_blocks, CONSTANT_GAMMA: 1 / 12, PLAIN: 0.0}[training]
    recipe = {"gamma": gamma, "weight_decay": WEIGHT_DECAY, "epochs": EPOCHS}
    folder = work / f"gamma{gamma:.4f}-{num_blocks}-seed{seed}"
    run = trained(folder, {**recipe, "num_blocks": num_blocks, "seed": seed})
    return {
        "training": training,
        "num_blocks": num_blocks,
        "seed": seed,
        "gamma": gamma,
        "needed": needed_by_loss(run["losses"]),
        "active": active_blocks(run["residual_ratios"]),
        "val_accuracy": run["val_accuracies"][-1],
        **run,
    }


if __name__ == "__main__":
    main()
