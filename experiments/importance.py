"""How well cheap measures rank the blocks of a network by what their removal costs.

Command     python -m experiments run importance
Machine     the record names it; one thread
Runtime     about five minutes on one core
Seeds       0, 1, 2, 3, 4

The demo's recipe on digits (16 homogeneous blocks), with its stage cost and without one. For each
trained network J_N is measured on the validation images with one block removed at a time, and Spearman's
rank correlation of that with the costates' estimate, with ‖F_k(x_k)‖/‖x_k‖ and with ‖w_F,k‖. The J_N is
that of gamma = 0.1 for both. Test images are not read.
"""

from collections.abc import Sequence
from typing import Any

from experiments.predicted_depth import spearman
from experiments.recipes import Settings
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Column, grouped, rows_of, spread, table
from experiments.trainings import Training, trained_run
from stagecost.importance import block_importance, removal_cost
from stagecost.trajectory import loss_trajectory

GAMMA = 0.1
TRAININGS = {"stage cost": GAMMA, "plain": 0.0}
NAMES = {"costate": "costate", "residual_ratio": "‖F_k(x_k)‖/‖x_k‖", "weight_norm": "‖w_F,k‖"}
TEXT = """\
Spearman's rank correlation of three measures of a block with what J_N rises by when that block alone is removed, on
validation images of digits (16 blocks). The costate's estimate is −⟨p_{k+1}, F_k(x_k)⟩, see `stagecost.importance`."""


def recipe(tier: Tier, gamma: float) -> Settings:
    """Return the settings of a training."""
    whole = {"num_blocks": 16, "epochs": 20} if tier == "cpu" else {"num_blocks": 3, "epochs": 1}
    return {
        "model": "homogeneous",
        **whole,
        "width": 16,
        "gamma": gamma,
        "sampled_depths": 0,
        "weight_decay": 5e-3,
        "label_smoothing": 0.1,
        "batch_size": 64,
        "val_fraction": 0.2,
        "device": "cpu",
    }


def run(context: Context) -> dict[str, Any]:
    """Train and measure."""
    runs = [
        {"training": name, "seed": seed, **_measures(context, recipe(context.tier, gamma), seed)}
        for name, gamma in TRAININGS.items()
        for seed in context.seeds
    ]
    return {"gamma": GAMMA, "runs": runs}


def _measures(context: Context, settings: Settings, seed: int) -> Row:
    """Train one network and return the measures of its blocks and their rank correlations."""
    trained = trained_run(context, "importance", Training(settings), seed).open()
    network, batches, loss = trained.network, trained.batches("val"), trained.loss
    trajectory = loss_trajectory(network, batches, loss=loss)
    measures = {
        "costate": block_importance(network, batches, GAMMA, loss=loss),
        "residual_ratio": list(trajectory.residual_ratios),
        "weight_norm": list(trajectory.weight_norms),
    }
    removal = removal_cost(network, batches, GAMMA, loss=loss)
    ranks = {name: spearman(values, removal) for name, values in measures.items()}
    return {"rank_correlations": ranks, "removal": removal, **measures}


def section(records: Sequence[Record]) -> list[str]:
    """Return a row for each way of training."""

    def column(name: str) -> Column:
        return lambda row: spread(ranks[name] for ranks in row["rank_correlations"])

    columns = {"training": "{training}", **{title: column(name) for name, title in NAMES.items()}}
    return [TEXT, table(grouped(rows_of(records, "runs"), "training"), columns)]


IMPORTANCE = Experiment(
    name="importance",
    title="The importance of blocks",
    datasets={"cpu": ("digits",), "quick": ("digits",)},
    seeds=(0, 1, 2, 3, 4),
    run=run,
    section=section,
    rows="runs",
    facts=("gamma",),
)
