"""Three experiments about theory, on digits: predicted depth, saturation, the importance of blocks.

Command     python -m experiments run predicted-depth, saturation, importance
Machine     the records name it; one thread
Runtime     a quarter of an hour each, importance five minutes
Seeds       predicted-depth 0; saturation 0, 1, 2; importance 0 … 4

predicted-depth  For each gamma and lambda of a grid, the M with the least right-hand side of Theorem
                 3.1, beside the depth that training uses. N = 12 homogeneous blocks of width 8, and
                 SubResNets of M blocks trained with the same gamma and lambda, normalised objective.
saturation       How many blocks stay active, and how many are needed, as N grows: with c = gamma·N = 1,
                 with gamma = 1/12, and plainly.
importance       How well cheap measures rank the blocks by what their removal costs: the demo's recipe.

Depth is measured on the images that were trained on, since the theory is about them: needed blocks are
those behind which the loss no longer falls, active ones still move the state. Test images are not read.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import product

from experiments.recipes import Settings
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Figures
from experiments.tables import Column, Columns, grouped, rows_of, spread, table
from experiments.trainings import Training, trained_run
from stagecost.bound import predicted_blocks, right_hand_side, truncation_right_hand_sides
from stagecost.importance import block_importance, removal_cost
from stagecost.objective import squared_weight_norms
from stagecost.trajectory import loss_trajectory

TOLERANCES = (0.05, 0.02, 0.1)
"""How much more loss than L_N, in nats, a good enough output may have; the first is used."""
THRESHOLDS = (0.1, 0.05, 0.2)
"""A block whose ‖F_k(x_k)‖/‖x_k‖ is above this is active; the first is used."""
DIGITS = {"cpu": ("digits",), "quick": ("digits",)}
BASE: Settings = {
    "model": "homogeneous",
    "width": 8,
    "batch_size": 64,
    "val_fraction": 0.2,
    "normalize_objective": True,
    "sampled_depths": 0,
    "device": "cpu",
}
QUICK: Settings = {"epochs": 1, "limit_train": 400}


def measured(context: Context, settings: Settings, seed: int) -> Row:
    """Train, or find the run done, and measure losses, norms, ratios and validation accuracies."""
    quick = QUICK if context.tier == "quick" else {}
    done = trained_run(context, "theory", Training({**BASE, **settings, **quick}), seed)
    trained = done.open()
    trajectory = loss_trajectory(trained.network, trained.batches("train"), loss=trained.loss)
    return {
        "losses": list(trajectory.losses),
        "squared_norms": squared_weight_norms(trained.network),
        "residual_ratios": list(trajectory.residual_ratios),
        "val_accuracies": done.val_accuracies,
    }


def needed_by_loss(losses: Sequence[float], tolerance: float = TOLERANCES[0]) -> int:
    """Return the least M ≥ 1 with L_M ≤ L_N + tolerance."""
    return next(m for m in range(1, len(losses)) if losses[m] <= losses[-1] + tolerance)


def active_blocks(residual_ratios: Sequence[float], threshold: float = THRESHOLDS[0]) -> int:
    """Count the blocks whose ‖F_k(x_k)‖/‖x_k‖ is above the threshold."""
    return sum(ratio > threshold for ratio in residual_ratios)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None where one of the two does not vary."""
    from scipy.stats import spearmanr

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


# ---------------------------------------------------------------------------------------------
# Predicted depth

GRIDS = {
    "cpu": (12, (1, 2, 3, 4, 5, 6, 8, 10), (0.1, 0.5, 2.0, 10.0), (3e-3, 1e-2, 3e-2, 1e-1)),
    "quick": (3, (1, 2), (0.5, 2.0), (1e-2,)),
}
"""N, the M < N, c = gamma·N, lambda."""
SOURCES = {"separate": "networks trained alone", "truncation": "truncations"}
PREDICTED = """\
Digits, N = 12 homogeneous blocks, normalised objective, one training of each gamma and lambda at each
depth. Predicted is the M with the least right-hand side of Theorem 3.1
([docs/theory.md](../docs/theory.md)), from networks trained alone or from truncations of the run
itself. Measured on the training images: *needed*, the least M whose loss is within a tolerance of L_N;
*active*, the blocks whose ‖F_k(x_k)‖/‖x_k‖ is above a threshold. The truncations and the needed blocks
come from the same losses, so their agreement is no independent test."""
FELL_SHORT = """\
Depths in blocks (tolerance {:g}, threshold {:g}). In {} of {} trainings some shallower network, trained
alone, gives a right-hand side below J_N: the deep network was not optimised far enough. Spearman's rank
correlation over the grid:"""


def run_predicted(context: Context) -> Row:
    """Train the grid, predict, measure."""
    n, subs, shares, decays = GRIDS[context.tier]
    points = [_point(context, n, subs, c, decay) for c, decay in product(shares, decays)]
    facts = {"num_blocks": n, "sub_blocks": list(subs)}
    limits = {"tolerance": TOLERANCES[0], "threshold": THRESHOLDS[0]}
    return {**facts, **limits, "rank_correlations": correlations(points), "points": points}


def _point(context: Context, n: int, subs: Sequence[int], c: float, decay: float) -> Row:
    settings = {"gamma": c / n, "weight_decay": decay}
    seed = context.seeds[0]
    runs = {m: measured(context, {**settings, "epochs": 25, "num_blocks": m}, seed) for m in (*subs, n)}
    given = (c / n, decay)
    sides = {m: right_hand_side(r["losses"], r["squared_norms"], *given, n) for m, r in runs.items()}
    full = runs[n]
    cuts = truncation_right_hand_sides(full["losses"], full["squared_norms"], *given)
    return {
        "stage_share": c,
        **settings,
        "objective": sides[n],
        "right_hand_sides": sides,
        "truncation_right_hand_sides": cuts,
        "predicted": {"separate": predicted_blocks(sides), "truncation": predicted_blocks(cuts)},
        "measured": {
            "needed": needed_by_loss(full["losses"]),
            "active": active_blocks(full["residual_ratios"]),
        },
        "full": full,
        "sub_losses": {m: runs[m]["losses"] for m in subs},
    }


def correlations(points: Sequence[Row]) -> list[Row]:
    """Return Spearman's correlation of each prediction with each measurement, at several limits."""
    full = [point["full"] for point in points]
    depths = {("needed", t): [needed_by_loss(each["losses"], t) for each in full] for t in TOLERANCES}
    depths |= {
        ("active", t): [active_blocks(each["residual_ratios"], t) for each in full] for t in THRESHOLDS
    }
    rows = []
    for kind, ((name, limit), found) in product(SOURCES, depths.items()):
        predicted = [point["predicted"][kind] for point in points]
        difference = (sum(predicted) - sum(found)) / len(points)
        row = {"predicted": kind, "measured": name, "limit": limit, "points": len(points)}
        rows.append({**row, "spearman": spearman(predicted, found), "mean_difference": difference})
    return rows


def predicted_section(records: Sequence[Record]) -> list[str]:
    """Return the two tables of the first record."""
    record, points = records[0], rows_of(records[:1], "points")
    grid: Columns = {
        "c = gamma·N": "{stage_share:g}",
        "lambda": "{weight_decay:g}",
        "J_N / least right-hand side": lambda point: f"{_over_least(point):.2f}",
        "predicted, trained alone": "{predicted[separate]}",
        "predicted, truncations": "{predicted[truncation]}",
        "needed": "{measured[needed]}",
        "active": "{measured[active]}",
    }
    correlation: Columns = {
        "predicted from": lambda row: SOURCES[row["predicted"]],
        "measured": "{measured}",
        "limit": "{limit:g}",
        "correlation": "{spearman:+.2f}",
        "predicted − measured": "{mean_difference:+.1f}",
    }
    above = sum(_over_least(point) > 1 for point in points)
    short = FELL_SHORT.format(record["tolerance"], record["threshold"], above, len(points))
    return [PREDICTED, table(points, grid), short, table(record["rank_correlations"], correlation)]


def _over_least(point: Row) -> float:
    return float(point["objective"] / min(point["right_hand_sides"].values()))


def predicted_figures(record: Record) -> Figures:
    """Draw measured over predicted depth; a mark's area is the number of trainings at the same place."""
    from stagecost.report.charts import Axis, Series, line_chart

    last = float(record["num_blocks"])
    series = [Series("a perfect prediction", [(0.0, 0.0), (last, last)], dots=False, colour="faded")]
    shifts = {"active": -0.1, "needed": 0.1}  # where both are the same, both are seen
    for kind, name in {"active": "active blocks", "needed": "needed blocks, by loss"}.items():
        places = Counter((p["predicted"]["separate"], p["measured"][kind]) for p in record["points"])
        sizes = [30.0 * count for count in places.values()]
        points = [(predicted + shifts[kind], depth) for predicted, depth in places]
        series.append(Series(name, points, line=False, sizes=sizes))
    x, y = (Axis(f"{kind} depth (blocks)", zero=True) for kind in ("predicted", "measured"))
    summary = f"Measured over predicted depth of {len(record['points'])} trainings"
    return {"depth": line_chart(series, x=x, y=y, summary=summary)}


PREDICTED_DEPTH = Experiment(
    name="predicted-depth",
    title="Predicted and measured depth",
    datasets=DIGITS,
    seeds=(0,),
    run=run_predicted,
    section=predicted_section,
    rows="points",
    facts=("num_blocks", "sub_blocks", "tolerance", "threshold"),
    figures=predicted_figures,
)


# ---------------------------------------------------------------------------------------------
# Saturation

SIZES = {"cpu": (6, 12, 24, 48), "quick": (2, 3)}
TRAININGS = ("gamma·N = 1", "gamma = 1/12", "plain")
SATURATED = """\
Digits, homogeneous networks of N blocks of width 8, normalised objective, 15 epochs. Active and needed
blocks as above: mean (of each seed)."""


def run_saturation(context: Context) -> Row:
    """Train and measure, one seed of everything first."""
    runs = []
    for seed, size, training in product(context.seeds, SIZES[context.tier], TRAININGS):
        gamma = dict(zip(TRAININGS, (1 / size, 1 / 12, 0.0), strict=True))[training]
        settings = {"gamma": gamma, "weight_decay": 1e-2, "epochs": 15, "num_blocks": size}
        found = measured(context, settings, seed)
        counts = {
            "needed": needed_by_loss(found["losses"]),
            "active": active_blocks(found["residual_ratios"]),
        }
        row = {"training": training, "num_blocks": size, "seed": seed, "gamma": gamma, **counts}
        runs.append({**row, "val_accuracy": found["val_accuracies"][-1], **found})
    return {"tolerance": TOLERANCES[0], "threshold": THRESHOLDS[0], "runs": runs}


def saturation_section(records: Sequence[Record]) -> list[str]:
    """Return the table of the first record."""

    def counts(key: str) -> Column:
        return lambda row: f"{statistics.mean(row[key]):.1f} ({', '.join(map(str, row[key]))})"

    columns: Columns = {
        "training": "{training}",
        "N": "{num_blocks}",
        "active": counts("active"),
        "needed": counts("needed"),
        "validation accuracy": lambda row: spread(row["val_accuracy"]),
    }
    rows = grouped(records[0]["runs"], "training", "num_blocks")
    return [
        SATURATED,
        table(sorted(rows, key=lambda row: (row["training"], row["num_blocks"])), columns),
    ]


def saturation_figures(record: Record) -> Figures:
    """Draw the numbers of blocks over N, a curve for each way of training (means over the seeds)."""
    from stagecost.report.charts import Axis, Series, line_chart

    charts = {}
    for kind, title in {"active": "active blocks", "needed": "needed blocks, by loss"}.items():
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in grouped(record["runs"], "training", "num_blocks"):
            curves.setdefault(row["training"], []).append(
                (row["num_blocks"], statistics.mean(row[kind]))
            )
        series = [Series(name, points) for name, points in curves.items()]
        x = Axis("blocks N", ticks=tuple(size for size, _ in series[0].points))
        charts[kind] = line_chart(series, x=x, y=Axis(title, zero=True), summary=f"{title} over N")
    return charts


SATURATION = Experiment(
    name="saturation",
    title="Saturation",
    datasets=DIGITS,
    run=run_saturation,
    section=saturation_section,
    rows="runs",
    facts=("tolerance", "threshold"),
    figures=saturation_figures,
)


# ---------------------------------------------------------------------------------------------
# The importance of blocks

GAMMA = 0.1
"""Of the J_N that is measured, and of the training with a stage cost."""
DEMO: Settings = {
    "num_blocks": 16,
    "width": 16,
    "weight_decay": 5e-3,
    "label_smoothing": 0.1,
    "epochs": 20,
    "normalize_objective": False,
}
MEASURES = {"costate": "costate", "residual_ratio": "‖F_k(x_k)‖/‖x_k‖", "weight_norm": "‖w_F,k‖"}
IMPORTANT = """\
Spearman's rank correlation of three measures of a block with what J_N rises by when that block alone is
removed, on validation images of digits (16 blocks). The costate's estimate is −⟨p_{k+1}, F_k(x_k)⟩, see
`stagecost.importance`."""


def run_importance(context: Context) -> Row:
    """Train and measure."""
    quick = {**QUICK, "num_blocks": 3} if context.tier == "quick" else {}
    runs = []
    for (name, gamma), seed in product({"stage cost": GAMMA, "plain": 0.0}.items(), context.seeds):
        training = Training({**BASE, **DEMO, "gamma": gamma, **quick})
        trained = trained_run(context, "importance", training, seed).open()
        network, batches, loss = trained.network, trained.batches("val"), trained.loss
        trajectory = loss_trajectory(network, batches, loss=loss)
        measures = {
            "costate": block_importance(network, batches, GAMMA, loss=loss),
            "residual_ratio": list(trajectory.residual_ratios),
            "weight_norm": list(trajectory.weight_norms),
        }
        removal = removal_cost(network, batches, GAMMA, loss=loss)
        ranks = {kind: spearman(values, removal) for kind, values in measures.items()}
        row = {"training": name, "seed": seed, "rank_correlations": ranks, "removal": removal}
        runs.append({**row, **measures})
    return {"gamma": GAMMA, "runs": runs}


def importance_section(records: Sequence[Record]) -> list[str]:
    """Return a row for each way of training."""

    def column(name: str) -> Column:
        return lambda row: spread(ranks[name] for ranks in row["rank_correlations"])

    columns = {"training": "{training}", **{title: column(name) for name, title in MEASURES.items()}}
    return [IMPORTANT, table(grouped(rows_of(records, "runs"), "training"), columns)]


IMPORTANCE = Experiment(
    name="importance",
    title="The importance of blocks",
    datasets=DIGITS,
    seeds=(0, 1, 2, 3, 4),
    run=run_importance,
    section=importance_section,
    rows="runs",
    facts=("gamma",),
)
