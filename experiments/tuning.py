"""A search for gamma and lambda with Optuna: needed depth against accuracy.

Command     python -m experiments run tuning --dataset D [--trials 20] [--set num_blocks=8 …]
Machine     any; the same command in several shells shares the trials
Runtime     `trials` trainings
Seeds       0

The first trial is plain training, gamma = 0. The others vary c, the weight of the whole stage cost (in
logarithm), lambda, and the first depth that bears a stage cost; what `--set` gives is not varied. Each
trial is a run in the work folder, judged on validation images: how many blocks are needed to be within
half a point of the full depth, and the accuracy. The study is a journal in the work folder, so a search
that was stopped goes on.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.recipes import Settings, base_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Figures
from experiments.tables import Columns, rows_of, table
from experiments.trainings import Training, digest, trained_run
from stagecost.errors import StageCostError
from stagecost.train.parsing import parse_settings
from stagecost.trajectory import needed_blocks

if TYPE_CHECKING:
    import optuna


STRENGTHS = (0.03, 3.0)
"""Limits of c."""
DECAYS = (1e-5, 1e-2)
"""Limits of lambda."""
TOLERANCE = 0.5
"""Points of accuracy that may be missing to the full depth."""
TRIALS, QUICK_TRIALS = 20, 3
TEXT = """\
Trials of a search, judged on validation images: the blocks that are needed to be within half a point of
the full depth, and the accuracy of all blocks. Those in bold are on the Pareto front."""


def sampled(trial: "optuna.Trial", given: Settings, num_blocks: int) -> Settings:
    """Return what a trial varies, by setting name; the first trial is plain training."""
    if trial.number == 0:
        return {"gamma": 0.0}
    c = trial.suggest_float("c", *STRENGTHS, log=True)
    chosen: Settings = {}
    if "weight_decay" not in given:
        chosen["weight_decay"] = trial.suggest_float("weight_decay", *DECAYS, log=True)
    first = given.get("first_depth")
    if first is None:
        first = chosen["first_depth"] = trial.suggest_int("first_depth", 0, num_blocks // 3)
    return {**chosen, "gamma": c / (num_blocks - first)}


def run(context: Context) -> dict[str, Any]:
    """Train until there are as many trials as asked for.

    Raises:
        StageCostError: impossible settings, or ones that leave nothing to vary, or to judge by.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    given: Settings = dict(map(_setting, context.options.get("set", ())))
    base = {**base_recipe(context.tier, context.dataset), "normalize_objective": True, **given}
    if "gamma" in given or base["model"] != "homogeneous" or not base["val_fraction"]:
        raise StageCostError("tuning varies gamma of a homogeneous network, judged on validation images")
    parse_settings({**base, "data": context.images(context.dataset)}).check()  # before any trial
    default = QUICK_TRIALS if context.tier == "quick" else TRIALS
    if (wanted := context.options.get("trials", default)) < 1:
        raise StageCostError(f"--trials is {wanted}: give at least 1")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    context.work.mkdir(parents=True, exist_ok=True)
    journal = context.work / f"tuning-{digest(base)}.log"
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=context.seeds[0], n_startup_trials=8),
        study_name="stagecost",
        directions=["minimize", "maximize"],
        load_if_exists=True,
    )

    def objective(trial: "optuna.Trial") -> tuple[int, float]:
        chosen = sampled(trial, given, base["num_blocks"])
        done = trained_run(context, "tuning", Training({**base, **chosen}), context.seeds[0])
        accuracies = done.val_accuracies
        needed = needed_blocks(accuracies, TOLERANCE)
        seen = {**chosen, "pruned_val_accuracy": accuracies[needed], "run": str(done.folder)}
        for name, value in seen.items():
            trial.set_user_attr(name, value)
        return needed, accuracies[-1]

    finished = [trial for trial in study.trials if trial.state.is_finished()]
    with contextlib.suppress(ValueError):  # nothing is left to do
        study.optimize(objective, max(0, wanted - len(finished)), catch=(StageCostError,))
    front = {trial.number for trial in study.best_trials}
    return {
        "rows": [
            _row(trial, trial.number in front) for trial in study.trials if trial.state.is_finished()
        ],
        "num_blocks": base["num_blocks"],
        "tolerance": TOLERANCE,
        "given": given,
    }


def _setting(written: str) -> tuple[str, Any]:
    """Read NAME=VALUE."""
    name, _, value = written.partition("=")
    with contextlib.suppress(json.JSONDecodeError):
        return name, json.loads(value)
    return name, value


def _row(trial: "optuna.trial.FrozenTrial", pareto: bool) -> Row:
    needed, accuracy = trial.values or (None, None)
    values = {"needed_blocks": needed, "val_accuracy": accuracy, "pareto": pareto}
    return {"number": trial.number, **trial.user_attrs, **values, "state": trial.state.name.lower()}


def section(records: Sequence[Record]) -> list[str]:
    """Return the trials, those that need the fewest blocks first."""
    rows = [row for row in rows_of(records) if row["needed_blocks"] is not None]
    columns: Columns = {
        "tier, data": "{record}",
        "trial": lambda row: f"**{row['number']}**" if row["pareto"] else row["number"],
        "gamma": "{gamma:.3g}",
        "lambda": "{weight_decay:.2g}",
        "first depth": "{first_depth}",
        "needed blocks": "{needed_blocks:.0f}",
        "validation accuracy": "{val_accuracy:.2f}",
        "of the needed blocks": "{pruned_val_accuracy:.2f}",
    }
    return [TEXT, table(sorted(rows, key=lambda r: (r["needed_blocks"], -r["val_accuracy"])), columns)]


def figures(record: Record) -> Figures:
    """Draw accuracy over needed blocks."""
    from stagecost.report.charts import Axis, Series, line_chart

    done = [row for row in record["rows"] if row["needed_blocks"] is not None]
    kinds = {
        "Pareto front": [row for row in done if row["pareto"]],
        "other trials": [row for row in done if not row["pareto"]],
        "plain training": [row for row in done if row["gamma"] == 0],
    }
    series = [
        Series(
            name,
            sorted((r["needed_blocks"], r["val_accuracy"]) for r in rows),
            line=name == "Pareto front",
        )
        for name, rows in kinds.items()
        if rows
    ]
    x, y = Axis("needed blocks"), Axis("validation accuracy (%)")
    summary = f"Validation accuracy over needed blocks of {len(done)} trials"
    return {"pareto": line_chart(series, x=x, y=y, summary=summary)} if series else {}


TUNING = Experiment(
    name="tuning",
    title="A search for gamma and lambda",
    datasets={"cpu": ("digits", "mnist", "fashion-mnist", "cifar10"), "quick": ("digits",)},
    seeds=(0,),
    run=run,
    section=section,
    facts=("num_blocks", "tolerance", "given"),
    figures=figures,
    options=frozenset({"trials", "set"}),
)
