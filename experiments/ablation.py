"""The variants of the stage cost by one recipe: validation accuracy over depth.

Command     python -m experiments run ablation [--dataset D] [--data-root DIR]
Machine     one of two CPU cores, one thread
Runtime     Fashion-MNIST: a minute a run, an hour in all; CIFAR-10: three minutes a run, three hours
Seeds       0, 1, 2

Every variant has Σ gamma·c_k = 1 at its full strength, a normalised objective (but one) and the weight
decay of plain training, so that what differs is the variant alone. Only validation images are read: the
table is for choosing. The record has one variant that is gone, a constant head.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.contrib.group_lasso import group_lasso
from experiments.contrib.schedules import Scheduled, from_depth, with_plain_decay
from experiments.recipes import SUB_BLOCKS, base_recipe, staged_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import at_depths, grouped, table
from experiments.trainings import Training, trained_run
from stagecost.objective import squared_weight_norms

GROUP_LASSO = {"group-lasso": 0.02, "strong-group-lasso": 0.2}
"""Weights of the penalty; they were not tuned."""
STAGED = {"blocks_per_stage": [4, 4, 4], "widths": [8, 16, 32]}
TEXT = """\
Every variant by the recipe of the cpu tier, 12 blocks, Σ gamma·c_k = 1 at full strength, the weight
decay of plain training. Validation accuracy of the first blocks alone; depth 12 is the whole network.
`plain` is gamma = 0; `plain-4-blocks` is a network of 4 blocks trained alone. In the staged networks
(4+4+4 blocks of widths 8, 16, 32) the output at depth 4 skips two stages, so their rows compare with
each other only. `constant-head` can be run at the commit of the record alone."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return every variant."""
    plain, m = base_recipe(tier, dataset), SUB_BLOCKS[tier]
    n = plain["num_blocks"]

    def uniform(first: int = 0) -> Scheduled:
        return Scheduled(1 / (n - first), from_depth(first, n))

    growing = tuple((k + 1) / n for k in range(n))
    costs = {
        "uniform": uniform(),
        "late": replace(uniform(), schedule="late"),
        "distilled": replace(uniform(), stage_loss="distilled"),
        "hinged": replace(uniform(), stage_loss="hinged"),
        f"late-from-{m}": replace(uniform(m), schedule="late"),
        "growing": Scheduled(1 / sum(growing), from_depth(0, n), factors=growing),
        "falling": replace(uniform(), schedule="falling"),
        "warmup": replace(uniform(), schedule="warmup"),
        "early": replace(uniform(), schedule="early"),
        f"from-{m}": uniform(m),
        "late-distilled": replace(uniform(), schedule="late", stage_loss="distilled"),
        "not-normalised": replace(uniform(), normalized=False),
    }
    variants = {name: with_plain_decay(plain, cost) for name, cost in costs.items()}
    whole = variants["uniform"]
    lassos = {
        name: replace(whole, on_step=group_lasso(weight), also={"group_lasso": weight})
        for name, weight in GROUP_LASSO.items()
    }
    staged = staged_recipe(tier, dataset, STAGED if tier == "cpu" else None)
    blocks = sum(staged["blocks_per_stage"])
    pressed = Scheduled(1 / blocks, from_depth(0, blocks))
    return {
        "plain": Training(plain),
        f"plain-{m}-blocks": Training({**plain, "num_blocks": m}),
        **variants,
        **lassos,
        "sampled-3": replace(whole, settings={**whole.settings, "sampled_depths": 3}),
        "staged": with_plain_decay(staged, pressed),
        "staged-average": with_plain_decay({**staged, "projection": "average"}, pressed),
    }


def run(context: Context) -> dict[str, Any]:
    """Train every variant with every seed."""
    return {
        "runs": [
            _measured(context, name, training, seed)
            for name, training in trainings(context.tier, context.dataset).items()
            for seed in context.seeds
        ]
    }


def _measured(context: Context, name: str, training: Training, seed: int) -> Row:
    done = trained_run(context, name, training, seed)
    return {
        "variant": name,
        "seed": seed,
        "settings": training.to_json(),
        "val_accuracies": done.val_accuracies,
        "zero_branches": squared_weight_norms(done.open().network).count(0.0),
        "seconds": done.seconds,
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return a table for each data set, the most accurate variant first."""
    return [TEXT, *map(_table, records)]


def _table(record: Record) -> str:
    columns = {
        record.dataset: "{variant}",
        **at_depths("val_accuracies", (2, 4, 6, 8, 12)),
        "branches at zero": lambda row: f"{statistics.mean(row['zero_branches']):.1f}",
        "seconds of training": lambda row: f"{statistics.mean(row['seconds']):.0f}",
    }

    def last(row: Row) -> float:
        return float(statistics.mean(curve[-1] for curve in row["val_accuracies"]))

    return table(sorted(grouped(record["runs"], "variant"), key=last, reverse=True), columns)


ABLATION = Experiment(
    name="ablation",
    title="Training variants",
    datasets={"cpu": ("fashion-mnist", "cifar10"), "quick": ("digits",)},
    run=run,
    section=section,
    trainings=trainings,
    rows="runs",
)
