"""What is superseded, or was measured with code that is gone: shown, no longer run."""

from collections.abc import Sequence

from experiments.benchmark.experiment import figures as benchmark_figures
from experiments.benchmark.experiment import section as benchmark_section
from experiments.pretrained.experiment import section as pretrained_section
from experiments.records import Record, Row
from experiments.runner import Experiment
from experiments.tables import Column, Columns, at_depths, grouped, quartiles, rows_of, spread, table
from experiments.targets import section as targets_section

SHRINK = """\
A rule (`experiments.contrib.shrink`) that lets tail blocks leave during the training once the
validation loss can do without them, for the same number of epochs as plain training at full depth.
`stage` is the stage cost without the rule; `control` is gamma = 0, cut to the same depths at the same
moments, and does as well: the rule is not recommended. Costs are CPU seconds and operations (MACs) of
all training and validation passes."""
GAMMA = """\
A rule (`experiments.contrib.gamma_auto`) that steers gamma, against fixed gammas (c = gamma·N), 12
homogeneous blocks. Needed blocks are those within 0.5 points of the terminal validation accuracy; test
accuracies are those of all blocks and of the needed ones alone. A constant c = 0.1 does as well: the
rule is not recommended."""
LOW_START = """\
An earlier rule, which begins at c = 0.1, moves from the first piece on and goes down to 0.01. On MNIST
an early gap, which all runs make up, drove it down, and the depth was gone."""
HELD_START = """\
Another rule, which holds c = 0.2 for the first 40 % of the training and then steers it. It pressed
harder, for depth that cost accuracy."""
TRIALS = """\
Validation accuracy of the first blocks alone; c is Σ gamma·c_k. It is why the schedule `pruned` of the
layer pruning presses with c = 30 instead of 10; on CIFAR-10 it gave no reason to change `full-depth`."""
FIRST_TRIALS = """\
Validation accuracy of the first blocks alone, one seed; c is Σ gamma·c_k. With 10,000 images of
CIFAR-10, too, and a smaller weight decay of the schedule `pruned`."""
STAGED_TRIALS = """\
CIFAR-10, a seed that is not among those of the staged network's table, validation accuracy. Plain
training (gamma = 0), whole, of a final shape alone, and cut in the training (epoch:blocks of each
stage); and cut when the training is over, with no training after it, where the stage cost, if there is
one, is on the output of the shape that is kept. Seeds differ by about half a point."""
LOOPS = """\
The last measurement before the loops in C, which were compiled at run time, were removed: a training
step by each way relative to a plain one, interleaved; median [quartiles] of the time, and memory."""
KERNELS = """\
One depth, forwards and backwards, batches of 64 images, in microseconds of CPU time (medians; arms by
turns), and the median ratio of the loops in C to torch.compile within a round."""


def _listed(key: str) -> Column:
    return lambda row: ", ".join(map(str, row[key]))


def _joined(key: str) -> Column:
    return lambda row: "+".join(map(str, row["settings"].get(key) or row.get(key) or ()))


def _mean(key: str) -> Column:
    return lambda row: spread(row[key])


def _total(key: str) -> Column:
    return lambda row: f"{sum(row[key]):.4g}"


def _loops(arm: str) -> Column:
    return lambda row: f"{quartiles(row[arm]['time'], row[arm]['quartiles'])}, {row[arm]['memory']:.3f}"


def _setting(key: str) -> Column:
    return lambda row: row["settings"].get(key)


ARMS: Columns = {"data": "{data}", "arm": "{arm}", "blocks": _listed("num_blocks")}
COSTS: Columns = {"CPU seconds": _total("cpu_seconds"), "MACs": _total("macs")}
SHRUNK = {**ARMS, "test accuracy": _mean("test_accuracy"), **COSTS}
STEERED: Columns = {
    "data": "{data}",
    "training": "{arm}",
    "needed blocks": _listed("needed_blocks"),
    "test: all blocks": _mean("test_accuracy"),
    "test: needed blocks": _mean("pruned_test_accuracy"),
    "last c": lambda row: ", ".join(f"{strengths[-1]:.2g}" for strengths in row["strengths"]),
}
SCHEDULES: Columns = {"data": "{data}", "training": "{trial}"}
SCHEDULES |= at_depths("val_accuracies", (4, 6, 8, 10, 12))
STAGED: Columns = {
    **{name: _joined(key) for name, key in {"blocks": "blocks_per_stage", "widths": "widths"}.items()},
    **{key: _setting(key) for key in ("limit_train", "epochs", "cut_at", "gamma", "gamma_schedule")},
    "stage loss": _setting("stage_loss"),
    "accuracy": "{val_accuracy:.1f}",
    "kept": _joined("keep"),
    "after the cut": "{cut_val_accuracy:.1f}",
}
KERNEL_TIMES: Columns = {
    "part": "{part}",
    "state": "{shape[0]}×{shape[1]}×{shape[2]}",
    "torch's modules": lambda row: row["microseconds"].get("torch's modules"),
    "torch.compile": "{microseconds[torch.compile]}",
    "C": "{microseconds[C]}",
    "C / torch.compile": lambda row: quartiles(row["ratio"], row["spread"]),
}
LOOP_TIMES: Columns = {"configuration": "{configuration}"}
LOOP_TIMES |= {arm: _loops(arm) for arm in ("literal", "collapsed", "compiled", "c", "sampled")}
PRUNED: Columns = {"data": "{data}", "stage_pruned − plain_sub": "{pruned:+.2f}"}

GAMMAS = ("gamma", "gamma-low-start", "gamma-held-start")
FACTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GAMMAS, ("auto_minus_best_fixed", "best_fixed", "met")),
    **dict.fromkeys(("shrink", "shrink-other-recipe"), ("summary",)),
}
ARCHIVE: dict[str, Experiment] = {}
"""By name."""


def _archive(
    name: str,
    title: str,
    text: str,
    columns: Columns,
    rows: str = "rows",
    by: Sequence[str] = (),
) -> None:
    """Enter one table of a list of rows, grouped by some of their entries."""

    def section(records: Sequence[Record]) -> list[str]:
        found: list[Row] = rows_of(records, rows)
        return [text, table(grouped(found, "data", *by) if by else found, columns)]

    ARCHIVE[name] = Experiment(name, title, {}, section, rows=rows, facts=FACTS.get(name, ()))


_archive("shrink", "Depth that shrinks", SHRINK, SHRUNK, "runs", ("arm",))
_archive(
    "shrink-trials",
    "What was tried for depth that shrinks",
    "One seed, validation images alone.",
    {**ARMS, "validation accuracy": _mean("val_accuracy"), **COSTS},
    "runs",
    ("arm",),
)
_archive(
    "shrink-other-recipe", "Depth that shrinks, by another recipe", SHRINK, SHRUNK, "runs", ("arm",)
)
_archive("gamma", "gamma without being told", GAMMA, STEERED, "runs", ("arm",))
_archive("gamma-low-start", "gamma by a rule that starts low", LOW_START, STEERED, "runs", ("arm",))
_archive(
    "gamma-held-start", "gamma by a rule that holds its start", HELD_START, STEERED, "runs", ("arm",)
)
_archive(
    "schedule-trials", "What was tried for the two schedules", TRIALS, SCHEDULES, "runs", ("trial",)
)
_archive(
    "schedule-trials-first", "What was tried for them first", FIRST_TRIALS, SCHEDULES, "runs", ("trial",)
)
_archive(
    "layer-pruning-other-schedule",
    "Layer pruning by an earlier schedule",
    "With gamma = 10 instead of 30 in the schedule `pruned`, the earlier choice.",
    PRUNED,
    "differences",
)
_archive("staged-trials", "What blocks are worth in a staged network", STAGED_TRIALS, STAGED, "runs")
_archive("c-loops", "Steps with and without the loops in C", LOOPS, LOOP_TIMES)
_archive("kernels", "The loops in C", KERNELS, KERNEL_TIMES)
for _name, _title, _rows in (
    ("benchmark-with-c", "What a stage cost cost with the loops in C", "rows"),
    ("benchmark-peers", "Packages beside the loops in C", "peers"),
):
    ARCHIVE[_name] = Experiment(
        _name, _title, {}, benchmark_section, rows=_rows, figures=benchmark_figures
    )
ARCHIVE["targets-every-step"] = Experiment(
    "targets-every-step", "Targets of a staged network, each in every step", {}, targets_section
)
for _name, _title in (
    ("pretrained-fewer-epochs", "Networks that others trained, in fewer epochs"),
    ("pretrained-slower-cuts", "Networks that others trained, cuts at the rates of the whole network"),
    ("pretrained-half-blocks", "A ViT that others trained, cuts of half blocks"),
    ("pretrained-three-seeds", "Networks that others trained, three seeds of what has more by now"),
    ("pretrained-first-blocks", "A ResNet-32 that others trained, cut to the first of each stage"),
    ("pretrained-all-ways", "A ViT that others trained, the best of all cuts to two thirds"),
    ("pretrained-fewer-images", "A ViT that others trained, on half of the images of waste"),
):
    ARCHIVE[_name] = Experiment(_name, _title, {}, pretrained_section)
