"""Ways to train one network for several depths, tried on validation images of a seed of their own.

Command     python -m experiments run targets-trials --tier cpu [--data-root DIR]
Machine     one core, one thread
Runtime     cpu: about ten minutes a seed
Seeds       10

CIFAR-10 shrunk to 16×16, 5,000 images for training and 1,000 for validation: one image in a thousand is
a tenth of a point, and seeds differ by a point or two, so only what is far apart says anything. No test
image is read. All joint arms cost about what the three trainings of `alone` cost together.
"""

from collections.abc import Sequence
from typing import Any

from experiments.recipes import base_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, at_depths, grouped, rows_of, spread, table
from experiments.trainings import Training, runs_of

EPOCHS, DEPTHS = 6, (4, 8)
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {},
    "joint_norms": {"target_norms": "own", "epochs": EPOCHS},
    "joint_equilibrium": {"equilibrium": True},
    "joint_gate": {"gate": 0.5},
    "joint_closed_gate": {"gate": 0.0},
    "joint_distilled": {"stage_loss": "distilled"},
}
TEXT = """\
Ways to train the whole network and targets 4 and 8 at once, before `targets` was run: validation images,
a seed of their own, images shrunk to 16×16. `joint_norms` has norms of its own for each target, and so
half the epochs of the others for the same compute. `joint_gate` lets half of the gradient from beyond a
target through, `joint_closed_gate` none. `plain_long` is plain training of the whole network, with as
many epochs as `joint`."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return plain training at three depths and a longer one, and each way to train all at once."""
    plain = {**base_recipe(tier, dataset), "epochs": EPOCHS}
    if tier == "cpu":
        plain |= {"limit_train": 6000, "image_size": 16}
    depths = DEPTHS if tier == "cpu" else (2,)
    joint = {**plain, "targets": [str(m) for m in depths], "gamma": 1.0, "epochs": 2 * EPOCHS}
    return {
        "alone": Training(plain),
        **{f"alone-{m}": Training({**plain, "num_blocks": m}) for m in depths},
        "plain_long": Training({**plain, "epochs": 2 * EPOCHS}),
        **{arm: Training({**joint, **variant}) for arm, variant in VARIANTS.items()},
    }


def run(context: Context) -> dict[str, Any]:
    """Train every kind, and note what validation images say of every depth."""
    runs = runs_of(context, trainings(context.tier, context.dataset))
    rows = [
        {
            "dataset": context.dataset,
            "arm": kind,
            "seed": seed,
            "val_accuracies": each.val_accuracies,
            "num_images": each.result.num_images,
            "seconds": each.seconds,
        }
        for kind, done in runs.items()
        for seed, each in zip(context.seeds, done, strict=True)
    ]
    return {"rows": rows}


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""

    def whole(row: Row) -> str:
        return spread(curve[-1] for curve in row["val_accuracies"])

    columns: Columns = {"tier, data": "{record}", "training": "{arm}"}
    columns |= at_depths("val_accuracies", DEPTHS) | {"whole": whole}
    return [TEXT, table(grouped(rows_of(records), "record", "arm"), columns)]


TARGETS_TRIALS = Experiment(
    name="targets-trials",
    title="One training, several depths: what was tried",
    datasets={"cpu": ("cifar10",), "quick": ("digits",)},
    seeds=(10,),
    run=run,
    section=section,
    trainings=trainings,
)
