"""What is superseded, and what was measured with code that is gone: shown, no longer run."""

from collections.abc import Callable, Mapping, Sequence

from experiments.benchmark.experiment import section as benchmark_section
from experiments.contrib.gamma_auto import FACTS, verdicts
from experiments.contrib.shrink import section as shrink_section
from experiments.records import Record, Row
from experiments.runner import Experiment
from experiments.tables import at_depths, grouped, quartiles, rows_of, table

Section = Callable[[Sequence[Record]], list[str]]
MNISTS = ("cifar10", "fashion-mnist", "mnist")


def one_table(text: str, columns: Mapping[str, str | Callable[[Row], object]], name: str) -> Section:
    """Return a section of a text and one table of a list of rows."""
    return lambda records: [text, table(rows_of(records, name), dict(columns))]


def _loops(arm: str) -> Callable[[Row], str]:
    return lambda row: f"{quartiles(row[arm]['time'], row[arm]['quartiles'])}, {row[arm]['memory']:.3f}"


LOOPS = """\
The last measurement before the loops in C, which were compiled at run time, were removed: a training step by each way
relative to a plain one, interleaved; median [quartiles] of the time, and memory."""
C_LOOPS = Experiment(
    "c-loops",
    "Steps with and without the loops in C",
    {"cpu": ("",)},
    one_table(
        LOOPS,
        {
            "configuration": "{configuration}",
            **{arm: _loops(arm) for arm in ("literal", "collapsed", "compiled", "c", "sampled")},
        },
        "rows",
    ),
)

KERNEL_TIMES = """\
One depth, forwards and backwards, batches of 64 images, in microseconds of CPU time (medians; arms by turns). The
ratio is the median within a round, quartiles in brackets."""
KERNELS = Experiment(
    "kernels",
    "The loops in C",
    {"cpu": ("",)},
    one_table(
        KERNEL_TIMES,
        {
            "part": "{part}",
            "state": "{shape[0]}×{shape[1]}×{shape[2]}",
            "torch's modules": lambda row: row["microseconds"].get("torch's modules"),
            "torch.compile": "{microseconds[torch.compile]}",
            "C": "{microseconds[C]}",
            "C / torch.compile": lambda row: quartiles(row["ratio"], row["spread"]),
        },
        "rows",
    ),
)
BENCHMARK_WITH_C = Experiment(
    "benchmark-with-c", "What a stage cost cost with the loops in C", {"cpu": ("",)}, benchmark_section
)
BENCHMARK_PEERS = Experiment(
    "benchmark-peers", "Packages beside the loops in C", {"cpu": ("",)}, benchmark_section, rows="peers"
)
OTHER_SCHEDULE = Experiment(
    "layer-pruning-other-schedule",
    "Layer pruning by an earlier schedule",
    {"cpu": ("fashion-mnist",)},
    one_table(
        "With gamma = 10 instead of 30 in the schedule `pruned`, the earlier choice:",
        {"tier, data": "{record}", "stage_pruned − plain_sub": "{pruned:+.2f}"},
        "differences",
    ),
)

TRIALS = """\
Validation accuracy of the first blocks alone, means over seeds that are not among those of the layer pruning's table;
c is Σ gamma·c_k."""
LATER = """\
By the recipe of the layer pruning. It is why its schedule `pruned` presses with c = 30 instead of 10; on CIFAR-10 it
gave no reason to change `full-depth`."""
EARLIER = """\
The recipe of the layer pruning as it was at the commit named below: 10,000 images of CIFAR-10, too, and a smaller
weight decay of the schedule `pruned`."""


def schedule_trials(text: str) -> Section:
    """Return the section of trials of schedules."""

    def section(records: Sequence[Record]) -> list[str]:
        columns = {"data": "{data}", "training": "{trial}", **at_depths("val_accuracies", (4, 6, 8, 10, 12))}
        return [f"{TRIALS} {text}", table(grouped(rows_of(records, "runs"), "data", "trial"), columns)]

    return section


SCHEDULE_TRIALS = Experiment(
    "schedule-trials",
    "What was tried for the two schedules",
    {"cpu": ("cifar10", "fashion-mnist")},
    schedule_trials(LATER),
    rows="runs",
)
FIRST_SCHEDULE_TRIALS = Experiment(
    "schedule-trials-first",
    "What was tried first for the two schedules",
    {"cpu": ("cifar10", "fashion-mnist")},
    schedule_trials(EARLIER),
    rows="runs",
)

STAGED_TEXT = """\
Plain training (gamma = 0), whole, of a final shape alone, and cut in the training; a seed that is not among those of
the staged network's table, validation accuracy. A cut is written as epoch:blocks of each stage. Seeds differ by about
half a point. The first rows of each setting show what the depth is worth there, which is what a cut network would have
to keep."""
STAGED_CUT = """\
Cut when the training is over, from 9+9+9 blocks, with no training after it and BatchNorm statistics estimated anew.
The stage cost, if there is one, is on the output of the shape that is kept."""


def staged_trials_section(records: Sequence[Record]) -> list[str]:
    """Return the two tables about what blocks are worth."""
    runs = [{**run["settings"], **run} for run in rows_of(records, "runs")]
    whole = {
        "widths": lambda run: ", ".join(map(str, run["widths"])),
        "training images": lambda run: f"{round(run['limit_train'] * (1 - run['val_fraction'])):,}",
        "epochs": "{epochs}",
        "blocks at the start": lambda run: "+".join(map(str, run["blocks_per_stage"])),
        "cut": "{cut_at}",
        "blocks": "{num_blocks}",
        "accuracy": "{val_accuracy:.1f}",
    }
    cut = {
        "gamma": "{gamma:g}",
        "schedule": lambda run: run.get("gamma_schedule", "constant"),
        "stage loss": lambda run: run.get("stage_loss", "same"),
        "kept": lambda run: "+".join(map(str, run["keep"])),
        "whole": "{val_accuracy:.1f}",
        "after the cut": "{cut_val_accuracy:.1f}",
    }
    kept = [run for run in runs if "keep" in run]
    return [
        STAGED_TEXT,
        table([run for run in runs if run not in kept], whole),
        STAGED_CUT,
        table(kept, cut),
    ]


STAGED_TRIALS = Experiment(
    "staged-trials",
    "What blocks are worth in a staged network",
    {"cpu": ("cifar10",)},
    staged_trials_section,
    rows="runs",
)


def shrink_trials_section(records: Sequence[Record]) -> list[str]:
    """Return what was tried for the rule that lets blocks leave."""
    runs = rows_of(records, "runs")
    columns = {
        "data": "{data}",
        "training": "{arm}",
        "blocks at the end": "{num_blocks}",
        "validation accuracy": "{val_accuracy:.2f}",
        "CPU seconds": lambda run: f"{run['cpu_seconds'] / runs[0]['cpu_seconds']:.2f}×",
        "MACs": lambda run: f"{run['macs'] / runs[0]['macs']:.2f}×",
    }
    text = "One seed that is not among those of the rule's table. Costs are parts of plain training's."
    return [text, table(runs, columns)]


SHRINK_TRIALS = Experiment(
    "shrink-trials",
    "What was tried for depth that shrinks",
    {"cpu": ("cifar10-half-the-steps",)},
    shrink_trials_section,
    rows="runs",
)
SHRINK_OTHER_RECIPE = Experiment(
    "shrink-other-recipe",
    "Depth that shrinks, by another recipe",
    {"cpu": ("cifar10-half-the-steps",)},
    shrink_section,
    rows="runs",
    facts=("summary",),
)
LOW_START = """\
Begins at c = 0.1, moves from the first piece on and goes down to 0.01. On MNIST an early gap, which all runs make up,
drove it down, and the depth was gone."""
HELD_START = """\
Holds c = 0.2 for the first 40 % of the training and then steers it. It pressed harder, for depth that cost accuracy."""
GAMMA_LOW_START = Experiment(
    "gamma-low-start",
    "gamma by an earlier rule, which starts low",
    {"cpu": MNISTS},
    lambda records: [LOW_START, *verdicts(records)],
    rows="runs",
    facts=FACTS,
)
GAMMA_HELD_START = Experiment(
    "gamma-held-start",
    "gamma by another rule, which holds its start",
    {"cpu": MNISTS},
    lambda records: [HELD_START, *verdicts(records)],
    rows="runs",
    facts=FACTS,
)
