"""How well cheap measures rank the blocks of a network by what their removal costs.

    python scripts/importance_evidence.py [--work DIR] [--results DIR]

Command     python scripts/importance_evidence.py
Machine     the JSON file names it; one thread
Runtime     about five minutes on one core, resumable
Seeds       0, 1, 2, 3, 4

The demo's recipe on digits (16 homogeneous blocks), with its stage cost and without one. For each
trained network J_N is measured on the validation images with one block removed at a time, and Spearman's
rank correlation of that with the costates' estimate, with ‖F_k(x_k)‖/‖x_k‖ and with ‖w_F,k‖. The J_N is
that of gamma = 0.1 for both. Test images are not read.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

SEEDS = (0, 1, 2, 3, 4)
GAMMA = 0.1
TRAININGS = {"stage cost": GAMMA, "plain": 0.0}


def main() -> None:
    """Train, measure and record."""
    import torch

    parser = argparse.ArgumentParser(description="How well cheap measures rank blocks.")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "importance")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "importance")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [
        {"training": name, "seed": seed, **measure(options.work / f"{gamma:g}-{seed}", gamma, seed)}
        for name, gamma in TRAININGS.items()
        for seed in SEEDS
    ]
    about = circumstances("python scripts/importance_evidence.py")
    content = {
        "name": "digits",
        "seeds": list(SEEDS),
        **about,
        "threads": 1,
        "gamma": GAMMA,
        "runs": runs,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / "digits.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"recorded {target}", file=sys.stderr)


def measure(folder: Path, gamma: float, seed: int) -> dict[str, Any]:
    """Train one network and return the measures of its blocks and their rank correlations."""
    from scipy.stats import spearmanr

    from stagecost.importance import block_importance, removal_cost
    from stagecost.training.loop import train
    from stagecost.training.trained import open_trained
    from stagecost.trajectory import loss_trajectory
    from stagecost.verbs.demo import RECIPE

    train({**RECIPE, "gamma": gamma, "seed": seed, "device": "cpu"}, folder, resume=True)
    trained = open_trained(folder, device="cpu")
    batches = trained.batches("val")
    trajectory = loss_trajectory(trained.network, batches, loss=trained.loss)
    measures = {
        "costate": block_importance(trained.network, batches, GAMMA, loss=trained.loss),
        "residual_ratio": list(trajectory.residual_ratios),
        "weight_norm": list(trajectory.weight_norms),
    }
    removal = removal_cost(trained.network, batches, GAMMA, loss=trained.loss)
    ranks = {name: float(spearmanr(values, removal).statistic) for name, values in measures.items()}
    return {"rank_correlations": ranks, "removal": removal, **measures}


if __name__ == "__main__":
    main()
