"""The depth that Theorem 3.1 predicts, beside the depth that training uses, as gamma and lambda vary.

    python scripts/predicted_depth.py [--work DIR] [--results DIR]

Command     OMP_NUM_THREADS=1 python scripts/predicted_depth.py
Machine     the JSON file names it; one thread
Runtime     about a quarter of an hour on one core, resumable
Seeds       0

Digits, N = 12 homogeneous blocks of width 8, normalised objective. For each gamma and lambda of a grid a
ResNet-N and several SubResNets of M < N blocks are trained with the same gamma and lambda. Predicted:
the M with the least right-hand side, from the SubResNets (and the ResNet-N itself as M = N), and from
the truncations of the ResNet-N. Measured: see `digits_runs`. Test images are not read.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances
from digits_runs import BASE, THRESHOLD, TOLERANCE, active_blocks, needed_by_loss, trained
from theory_figures import predicted_depth_figure

SEED = 0
NUM_BLOCKS = 12
SUB_BLOCKS = (1, 2, 3, 4, 5, 6, 8, 10)
STAGE_SHARES = (0.1, 0.5, 2.0, 10.0)  # c = gamma·N
WEIGHT_DECAYS = (3e-3, 1e-2, 3e-2, 1e-1)
EPOCHS = 25
OTHER_TOLERANCES, OTHER_THRESHOLDS = (0.02, 0.1), (0.05, 0.2)


def main() -> None:
    """Train the grid, predict, measure, and record."""
    import torch

    parser = argparse.ArgumentParser(description="Predicted against measured depth.")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "predicted-depth")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "predicted-depth")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = [measure(options.work, c, decay) for c, decay in product(STAGE_SHARES, WEIGHT_DECAYS)]
    content = {
        "name": "digits",
        "seeds": [SEED],
        **circumstances("python scripts/predicted_depth.py"),
        "threads": 1,
        "settings": {**BASE, "epochs": EPOCHS},
        "num_blocks": NUM_BLOCKS,
        "sub_blocks": list(SUB_BLOCKS),
        "tolerance": TOLERANCE,
        "threshold": THRESHOLD,
        "rank_correlations": correlations(points),
        "points": points,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / "digits.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    target.with_suffix(".svg").write_text(predicted_depth_figure(content) + "\n")
    print(f"recorded {target}", file=sys.stderr)


def measure(work: Path, stage_share: float, weight_decay: float) -> dict[str, Any]:
    """Train ResNet-N and its SubResNets with one gamma and lambda; predict and measure the depth."""
    from stagecost.bound import predicted_blocks, right_hand_side, truncation_right_hand_sides

    gamma = stage_share / NUM_BLOCKS
    recipe = {"gamma": gamma, "weight_decay": weight_decay, "epochs": EPOCHS, "seed": SEED}
    sides, subs = {}, {}
    for depth in (*SUB_BLOCKS, NUM_BLOCKS):
        folder = work / f"c{stage_share:g}-lambda{weight_decay:g}-{depth}"
        subs[depth] = run = trained(folder, {**recipe, "num_blocks": depth})
        losses, norms = run["losses"], run["squared_norms"]
        sides[depth] = right_hand_side(losses, norms, gamma, weight_decay, NUM_BLOCKS)
    full = subs[NUM_BLOCKS]
    losses, norms = full["losses"], full["squared_norms"]
    cuts = truncation_right_hand_sides(losses, norms, gamma, weight_decay)
    return {
        "stage_share": stage_share,
        "gamma": gamma,
        "weight_decay": weight_decay,
        "objective": sides[NUM_BLOCKS],
        "right_hand_sides": sides,
        "truncation_right_hand_sides": cuts,
        "predicted": {"separate": predicted_blocks(sides), "truncation": predicted_blocks(cuts)},
        "measured": {
            "needed": needed_by_loss(losses),
            "active": active_blocks(full["residual_ratios"]),
        },
        "full": full,
        "sub_losses": {depth: subs[depth]["losses"] for depth in SUB_BLOCKS},
    }


def correlations(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return Spearman's correlation of each prediction with each measurement, at several thresholds."""
    measured: dict[tuple[str, float], list[int]] = {}
    for tolerance in (TOLERANCE, *OTHER_TOLERANCES):
        depths = [needed_by_loss(point["full"]["losses"], tolerance) for point in points]
        measured["needed", tolerance] = depths
    for threshold in (THRESHOLD, *OTHER_THRESHOLDS):
        depths = [active_blocks(point["full"]["residual_ratios"], threshold) for point in points]
        measured["active", threshold] = depths
    return [
        {
            "predicted": kind,
            "measured": name,
            "limit": limit,
            "spearman": spearman([point["predicted"][kind] for point in points], depths),
            "points": len(points),
            "mean_difference": sum(
                point["predicted"][kind] - depth for point, depth in zip(points, depths, strict=True)
            )
            / len(points),
        }
        for kind in ("separate", "truncation")
        for (name, limit), depths in measured.items()
    ]


def spearman(first: list[int], second: list[int]) -> float | None:
    """Return Spearman's rank correlation; None where one of the two does not vary."""
    from scipy.stats import spearmanr

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


if __name__ == "__main__":
    main()
