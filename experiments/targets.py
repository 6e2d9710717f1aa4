"""One training for several depths, beside one training for each: are both ends as good?

Command     python -m experiments run targets --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU
Runtime     cpu: one to six minutes a run, seven runs a data set and seed
Seeds       0, 1, 2

joint       the whole network and target cuts from one training; nothing is trained after a cut
alone       plain training of each network by itself
plain_long  plain training of the whole network with all the compute of joint
cut_first   plain training of a target's network with all the compute of joint

joint gets as many block passes as all trainings of `alone` together, so its epochs are more than theirs.
"""

from collections.abc import Sequence
from typing import Any

from experiments.recipes import SUB_BLOCKS, base_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, accuracy, rows_of, table
from experiments.trainings import Training, row_of_runs, runs_of
from stagecost.cut import Cut

TEXT = """\
One training for several depths (`joint`) beside plain training of each network by itself (`alone`), and
beside controls that get all the compute of `joint`: plain training of the whole network (`plain_long`),
and of a target's network (`cut_first`). Nothing is trained after a cut. The last column is how far a
cut of `joint` is above the same network trained alone."""


def targets(tier: Tier, num_blocks: int) -> tuple[int, ...]:
    """Return the depths beside the whole one: M, and one between M and N on the cpu tier."""
    m = SUB_BLOCKS[tier]
    return (m, 2 * num_blocks // 3) if tier == "cpu" else (m,)


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return each kind of training, "arm" or "arm-M"."""
    plain = base_recipe(tier, dataset)
    n, cuts = plain["num_blocks"], targets(tier, plain["num_blocks"])
    passes = (n + sum(cuts)) * plain["epochs"]
    long = {**plain, "epochs": passes // n}
    return {
        "joint": Training({**long, "targets": [str(m) for m in cuts], "gamma": 1.0}),
        "alone": Training(plain),
        **{f"alone-{m}": Training({**plain, "num_blocks": m}) for m in cuts},
        "plain_long": Training(long),
        **{f"cut_first-{m}": Training({**plain, "num_blocks": m, "epochs": passes // m}) for m in cuts},
    }


def run(context: Context) -> dict[str, Any]:
    """Train every kind with every seed, then read the test images."""
    runs = runs_of(context, trainings(context.tier, context.dataset))
    rows = []
    for kind, done in runs.items():
        arm, _, depth = kind.partition("-")
        test = len(done[0].open().load("test").splits["test"])
        cuts = [None, *done[0].training.settings.get("targets", [])]
        for cut in cuts:
            row = row_of_runs(context, arm, done, None if cut is None else Cut.parse(cut))
            rows.append({**row, "cut": cut or depth or "whole", "num_test": test})
    return {"rows": rows}


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    rows = rows_of(records)
    alone = {(row["record"], row["cut"]): row["mean"] for row in rows if row["arm"] == "alone"}

    def above(row: Row) -> str:
        other = alone.get((row["record"], row["cut"]))
        return "" if other is None or row["arm"] == "alone" else f"{row['mean'] - other:+.2f}"

    columns: Columns = {
        "tier, data": "{record}",
        "arm": "{arm}",
        "cut": "{cut}",
        "test accuracy": accuracy,
        "MACs": "{macs:,}",
        "MACs of training": "{training_macs:.3g}",
        "above alone": above,
    }
    return [TEXT, table(rows, columns)]


TARGETS = Experiment(
    name="targets",
    title="One training, several depths",
    datasets={
        "cpu": ("mnist", "fashion-mnist", "cifar10"),
        "gpu": ("mnist", "cifar10", "cifar100"),
        "quick": ("digits",),
    },
    run=run,
    section=section,
    trainings=trainings,
)
