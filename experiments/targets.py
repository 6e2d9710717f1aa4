"""One training for several depths, beside one training for each: are both ends as good?

Command     python -m experiments run targets --tier cpu [--data-root DIR] [--arms joint,alone,...]
Machine     cpu: one core, one thread; gpu: one GPU
Runtime     cpu: one to six minutes a run, seven runs a data set and seed without further arms
Seeds       0, 1, 2

joint       the whole network and target cuts from one training; nothing is trained after a cut
alone       plain training of each network by itself
plain_long  plain training of the whole network with all the compute of joint
cut_first   plain training of a target's network with all the compute of joint

Further arms, if asked for by --arms, for the same compute as joint (but the first):

joint_short        joint for the epochs of alone alone, so in the time of one plain training
joint_norms        targets with norms of their own, each with a pass of its own, so fewer epochs
joint_equilibrium  each block gets the mean of the losses behind it
joint_gate         half of what comes back from beyond a target
joint_distilled    targets learn half from the detached whole network

In a staged network targets of joint have norms of their own, and one of them is drawn for each step,
with weight 1. joint_heavy gives weight 1 to each target, so 2 to the one that is drawn; joint_shared has
norms that are shared, and all targets in every step.

joint gets as many block passes as all trainings of `alone` together, so its epochs are more than theirs.
Its answers, `joint_answers`, are mean log-probabilities of its last target and the whole network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.recipes import SUB_BLOCKS, Settings, base_recipe, staged_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, accuracy, rows_of, table
from experiments.trainings import (
    Run,
    Training,
    accuracy_of_answers,
    accuracy_row,
    macs_of_cuts,
    row_of_runs,
    runs_of,
)
from stagecost.cut import Cut

ARMS = ("joint", "alone", "plain_long", "cut_first")
"""Those of a record, if none are asked for."""
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {},
    "joint_short": {},
    "joint_norms": {"target_norms": "own"},
    "joint_equilibrium": {"equilibrium": True},
    "joint_gate": {"gate": 0.5},
    "joint_distilled": {"stage_loss": "distilled"},
}
SHAPE, WIDTHS, SHAPES = (9, 9, 9), [8, 16, 32], ("3+3+4", "5+5+6")
"""Of the data sets "…-staged": blocks of each stage, their widths (cpu tier), targets."""
LONGER = 30
"""Epochs of alone in the data sets "…-long"."""
ON_GPU: Settings = {"epochs": 10, "compile": False}
"""What differs from the gpu tier's recipe in its "…-staged": short trainings, and norms of their own."""
GPU_WIDTHS = [16, 32, 64]
"""Of the stages there: a ResNet-56."""
TEXT = """\
One training for several depths (`joint` and its variants) beside plain training of each network by
itself (`alone`), and beside controls that get all the compute of `joint`: plain training of the whole
network (`plain_long`), and of a target's network (`cut_first`). `joint_answers` are mean
log-probabilities of the last target and the whole network. Nothing is trained after a cut. The last
column is how far a network of one training for several is above the same network trained alone."""


def variants(*, staged: bool) -> dict[str, dict[str, Any]]:
    """Return what joint and its variants add to plain training.

    Cuts of a staged network meet other states than the whole of it: there the norms of joint are their
    own, and no gate is at a depth.
    """
    if not staged:
        return VARIANTS
    drawn = {"target_norms": "own", "sampled_depths": 1}
    joint = {"joint": {**drawn, "gamma": 1 / len(SHAPES)}, "joint_heavy": drawn, "joint_shared": {}}
    return joint | {arm: each for arm, each in VARIANTS.items() if arm not in ("joint", "joint_gate")}


def parts_of(dataset: str) -> tuple[str, str]:
    """Return the images of a data set of this experiment, and "staged", "long" or nothing."""
    data, _, kind = dataset.rpartition("-")
    return (data, kind) if kind in ("staged", "long") else (dataset, "")


def shapes(tier: Tier, dataset: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return plain training at full depth, and what differs for each target, by its printed form."""
    data, kind = parts_of(dataset)
    if kind == "staged":
        on_gpu = tier == "gpu"
        widths = GPU_WIDTHS if on_gpu else WIDTHS
        plain = staged_recipe(tier, data, {"blocks_per_stage": list(SHAPE), "widths": widths})
        return plain | (ON_GPU if on_gpu else {}), {
            cut: {"blocks_per_stage": list(Cut.parse(cut).per_stage)} for cut in SHAPES
        }
    plain = base_recipe(tier, data) | ({"epochs": LONGER} if kind == "long" else {})
    m, n = SUB_BLOCKS[tier], plain["num_blocks"]
    depths = (m, 2 * n // 3) if tier == "cpu" else (m,)
    return plain, {str(depth): {"num_blocks": depth} for depth in depths}


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return each kind of training, "arm" or "arm-cut"."""
    plain, targets = shapes(tier, dataset)
    sizes = plain.get("blocks_per_stage") or [plain["num_blocks"]]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    stages = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    cuts = [Cut.whole().among(stages), *(Cut.parse(cut).among(stages) for cut in targets)]
    blocks = [len(cut.blocks) for cut in cuts]
    passes, one_each = sum(blocks) * plain["epochs"], [0, *[1] * sum(sizes), 0]

    def joint(arm: str, variant: Mapping[str, Any]) -> Training:
        own = variant.get("target_norms") == "own"
        drawn = (variant.get("sampled_depths") or len(targets)) / len(targets)
        step = blocks[0] + drawn * sum(blocks[1:]) if own else macs_of_cuts(one_each, cuts)
        epochs = int(passes // step)
        epochs = plain["epochs"] if arm == "joint_short" else epochs
        settings = {**plain, "epochs": epochs, "targets": list(targets), "gamma": 1.0, **variant}
        return Training({k: v for k, v in settings.items() if not (own and k == "compile")})

    kinds = variants(staged="blocks_per_stage" in plain)
    return {
        **{arm: joint(arm, variant) for arm, variant in kinds.items()},
        "alone": Training(plain),
        **{f"alone-{cut}": Training({**plain, **shape}) for cut, shape in targets.items()},
        "plain_long": Training({**plain, "epochs": passes // blocks[0]}),
        **{
            f"cut_first-{cut}": Training({**plain, **shape, "epochs": passes // size})
            for (cut, shape), size in zip(targets.items(), blocks[1:], strict=True)
        },
    }


def run(context: Context) -> dict[str, Any]:
    """Train every kind of the arms with every seed, then read the test images."""
    every = trainings(context.tier, context.dataset)
    arms = context.arms(list(dict.fromkeys(kind.partition("-")[0] for kind in every)), ARMS)
    chosen = {kind: each for kind, each in every.items() if kind.partition("-")[0] in arms}
    rows = []
    data = context.images(parts_of(context.dataset)[0])
    for kind, done in runs_of(context, chosen, data).items():
        arm, _, depth = kind.partition("-")
        test = len(done[0].open().load("test").splits["test"])
        cuts = [None, *done[0].training.settings.get("targets", [])]
        for cut in cuts:
            row = row_of_runs(context, arm, done, None if cut is None else Cut.parse(cut))
            rows.append({**row, "cut": cut or depth or "whole", "num_test": test})
        if arm == "joint":
            rows.append(_answers(context, done, rows[-len(cuts)]))
    return {"rows": rows, "settings": {kind: each.to_json() for kind, each in chosen.items()}}


def _answers(context: Context, runs: Sequence[Run], whole: Row) -> Row:
    """Return the row of common answers of the last target and the whole network."""
    last = str(runs[0].training.settings["targets"][-1])
    opened, cuts = [run.open() for run in runs], [Cut.parse(last), Cut.whole()]
    test = [accuracy_of_answers(trained, cuts) for trained in opened]
    row = accuracy_row(context, "joint_answers", test)
    val = [accuracy_of_answers(trained, cuts, "val") for trained in opened]
    return {**whole, **row, "val_accuracies": val, "answers": [last, "whole"]}


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
        "cpu": (
            *("mnist", "fashion-mnist", "cifar10", "cifar100"),
            *("mnist-long", "fashion-mnist-long", "cifar10-long", "cifar10-staged"),
        ),
        "gpu": ("mnist", "cifar10", "cifar100", "cifar10-staged"),
        "quick": ("digits",),
    },
    run=run,
    section=section,
    trainings=trainings,
    options=frozenset({"arms"}),
)
