"""The whole way on real images: train with a stage cost, analyse, prune, read the test images once.

Command     python -m experiments run runs [--dataset mnist-homogeneous] [--data-root DIR]
Machine     the records name it; two CPU cores, one thread a run
Runtime     about three quarters of an hour on one core
Seeds       0

A record holds what `stagecost train`, `analyze`, `prune` and `evaluate` print with `--json`.
"""

import shutil
from collections.abc import Sequence

from experiments.recipes import Settings
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, table
from experiments.trainings import Training, trained_run
from stagecost.runs.analysis import analyze
from stagecost.runs.evaluation import evaluate
from stagecost.runs.pruning import prune

MAX_DROP = 1.0
SHAPES: dict[str, Settings] = {
    "homogeneous": {"model": "homogeneous", "num_blocks": 12, "width": 16, "stem_stride": 2},
    "staged": {
        "model": "staged",
        "blocks_per_stage": [4, 4, 4],
        "widths": [16, 32, 64],
        "stem_stride": 2,
    },
}
LENGTHS: dict[str, Settings] = {
    "mnist": {"limit_train": 20_000, "epochs": 6},
    "fashion-mnist": {"limit_train": 20_000, "epochs": 6},
    "cifar10": {"epochs": 10},
    "digits": {"limit_train": 400, "epochs": 2, "num_blocks": 4, "width": 8},
}
NAMES = ("mnist-homogeneous", "mnist-staged", "fashion-mnist-homogeneous")
TEXT = """\
One run each: train with a stage cost, analyse, prune by at most one point of validation accuracy
without retraining, read the test images once at the end. These are short trainings on two CPU cores.
They show that the way works; they are no comparison with plain training."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return the one training of a recipe, "data-shape"."""
    data, _, shape = dataset.rpartition("-")
    return {dataset: Training({**SHAPES[shape], **LENGTHS[data], "sampled_depths": 0, "device": "cpu"})}


def run(context: Context) -> Row:
    """Go the whole way."""
    ((name, training),) = trainings(context.tier, context.dataset).items()
    data = context.images(context.dataset.rpartition("-")[0])
    done = trained_run(context, name, training, context.seeds[0], data)
    small = context.work / "pruned"
    shutil.rmtree(small, ignore_errors=True)
    return {
        "train": done.result.to_json(),
        "analyze": analyze(done.folder, tolerance=MAX_DROP, device="cpu").to_json(),
        "prune": prune(done.folder, small, max_drop=MAX_DROP, device="cpu").to_json(),
        "test_full": evaluate(done.folder, device="cpu").to_json(),
        "test_pruned": evaluate(small, device="cpu").to_json(),
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    columns: Columns = {
        "recipe": "{recipe}",
        "blocks kept": lambda row: f"{len(row['kept_blocks'])} of {row['num_blocks_before']}",
        "validation: full → pruned": "{accuracy_before:.2f} → {accuracy_after:.2f}",
        "test: full": "{test_full:.2f}",
        "test: pruned": "{test_pruned:.2f}",
        "parameters": lambda row: f"{row['parameters_after'] / row['parameters_before']:.0%}",
        "MACs": lambda row: f"{row['macs_after'] / row['macs_before']:.0%}",
    }
    tests = ("test_full", "test_pruned")
    rows = [{"recipe": r.dataset, **r["prune"], **{t: r[t]["accuracy"] for t in tests}} for r in records]
    return [TEXT, table(rows, columns)]


RUNS = Experiment(
    name="runs",
    title="The whole way on real images",
    datasets={
        "cpu": (*NAMES, "cifar10-homogeneous", "cifar10-staged"),
        "quick": ("digits-homogeneous",),
    },
    seeds=(0,),
    run=run,
    section=section,
    trainings=trainings,
    rows="",
    facts=("train", "analyze", "prune", "test_full", "test_pruned"),
)
