"""The depth that Theorem 3.1 predicts, beside the depth that training uses, as gamma and lambda vary.

Command     python -m experiments run predicted-depth
Machine     the record names it; one thread
Runtime     about a quarter of an hour on one core
Seeds       0

Digits, N = 12 homogeneous blocks of width 8, normalised objective. For each gamma and lambda of a grid a
ResNet-N and several SubResNets of M < N blocks are trained with the same gamma and lambda. Predicted:
the M with the least right-hand side, from the SubResNets (and the ResNet-N itself as M = N), and from
the truncations of the ResNet-N. Measured: see `experiments.digits`. Test images are not read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from experiments.digits import THRESHOLD, TOLERANCE, active_blocks, base, measured, needed_by_loss
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import rows_of, table
from stagecost.bound import predicted_blocks, right_hand_side, truncation_right_hand_sides
from stagecost.report.charts import Axis, Chart, Series, line_chart

OTHER_TOLERANCES, OTHER_THRESHOLDS = (0.02, 0.1), (0.05, 0.2)
NAMES = {"separate": "networks trained alone", "truncation": "truncations"}
TEXT = """\
Digits, N = 12 homogeneous blocks, normalised objective, one training of each gamma and lambda at each depth. Predicted
is the M with the least right-hand side of Theorem 3.1 ([docs/theory.md](../docs/theory.md)), from networks trained
alone or from truncations of the run itself. Measured on the training images: *needed*, the least M whose loss is
within a tolerance of L_N; *active*, the blocks whose ‖F_k(x_k)‖/‖x_k‖ is above a threshold. The truncations and the
needed blocks come from the same losses, so their agreement is no independent test."""
FELL_SHORT = """\
Depths in blocks (tolerance {:g}, threshold {:g}). In {} of {} trainings some shallower network, trained alone, gives a
right-hand side below J_N: the deep network was not optimised far enough. Spearman's rank correlation over the grid:"""


@dataclass(frozen=True)
class Grid:
    """What is trained: N, the M < N, c = gamma·N, lambda."""

    num_blocks: int
    sub_blocks: tuple[int, ...]
    stage_shares: tuple[float, ...]
    weight_decays: tuple[float, ...]


GRIDS: dict[Tier, Grid] = {
    "cpu": Grid(12, (1, 2, 3, 4, 5, 6, 8, 10), (0.1, 0.5, 2.0, 10.0), (3e-3, 1e-2, 3e-2, 1e-1)),
    "quick": Grid(3, (1, 2), (0.5, 2.0), (1e-2,)),
}


def run(context: Context) -> dict[str, Any]:
    """Train the grid, predict, measure."""
    grid = GRIDS[context.tier]
    points = [_point(context, grid, *pair) for pair in product(grid.stage_shares, grid.weight_decays)]
    return {
        "num_blocks": grid.num_blocks,
        "sub_blocks": list(grid.sub_blocks),
        "tolerance": TOLERANCE,
        "threshold": THRESHOLD,
        "rank_correlations": correlations(points),
        "points": points,
    }


def _point(context: Context, grid: Grid, stage_share: float, weight_decay: float) -> Row:
    """Train ResNet-N and its SubResNets with one gamma and lambda; predict and measure the depth."""
    n, gamma = grid.num_blocks, stage_share / grid.num_blocks
    settings = {**base(context.tier, 25), "gamma": gamma, "weight_decay": weight_decay}
    runs = {
        m: measured(context, "predicted", {**settings, "num_blocks": m}, context.seeds[0])
        for m in (*grid.sub_blocks, n)
    }
    sides = {
        m: right_hand_side(run.losses, run.squared_norms, gamma, weight_decay, n) for m, run in runs.items()
    }
    full = runs[n]
    cuts = truncation_right_hand_sides(full.losses, full.squared_norms, gamma, weight_decay)
    return {
        "stage_share": stage_share,
        "gamma": gamma,
        "weight_decay": weight_decay,
        "objective": sides[n],
        "right_hand_sides": sides,
        "truncation_right_hand_sides": cuts,
        "predicted": {"separate": predicted_blocks(sides), "truncation": predicted_blocks(cuts)},
        "measured": {
            "needed": needed_by_loss(full.losses),
            "active": active_blocks(full.residual_ratios),
        },
        "full": full.to_json(),
        "sub_losses": {m: runs[m].losses for m in grid.sub_blocks},
    }


def correlations(points: Sequence[Row]) -> list[Row]:
    """Return Spearman's correlation of each prediction with each measurement, at several limits."""
    depths: dict[tuple[str, float], list[int]] = {}
    for limit in (TOLERANCE, *OTHER_TOLERANCES):
        depths["needed", limit] = [needed_by_loss(point["full"]["losses"], limit) for point in points]
    for limit in (THRESHOLD, *OTHER_THRESHOLDS):
        depths["active", limit] = [active_blocks(p["full"]["residual_ratios"], limit) for p in points]
    rows = []
    for kind, ((name, limit), found) in product(NAMES, depths.items()):
        predicted = [point["predicted"][kind] for point in points]
        rows.append(
            {
                "predicted": kind,
                "measured": name,
                "limit": limit,
                "spearman": spearman(predicted, found),
                "points": len(points),
                "mean_difference": (sum(predicted) - sum(found)) / len(points),
            }
        )
    return rows


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None where one of the two does not vary."""
    from scipy.stats import spearmanr

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def section(records: Sequence[Record]) -> list[str]:
    """Return the two tables of the first record."""
    record, points = records[0], rows_of(records[:1], "points")
    above = sum(_over_least(point) > 1 for point in points)
    depths = {
        "predicted, trained alone": "{predicted[separate]}",
        "predicted, truncations": "{predicted[truncation]}",
        "needed": "{measured[needed]}",
        "active": "{measured[active]}",
    }
    grid = {"c = gamma·N": "{stage_share:g}", "lambda": "{weight_decay:g}"}
    ratio = {"J_N / least right-hand side": lambda point: f"{_over_least(point):.2f}"}
    correlation = {
        "predicted from": lambda row: NAMES[row["predicted"]],
        "measured": "{measured}",
        "limit": "{limit:g}",
        "correlation": "{spearman:+.2f}",
        "predicted − measured": "{mean_difference:+.1f}",
    }
    return [
        TEXT,
        table(points, {**grid, **ratio, **depths}),
        FELL_SHORT.format(record["tolerance"], record["threshold"], above, len(points)),
        table(record["rank_correlations"], correlation),
    ]


def _over_least(point: Row) -> float:
    return float(point["objective"] / min(point["right_hand_sides"].values()))


def figures(record: Record) -> dict[str, Chart]:
    """Draw measured over predicted depth; a mark's area is the number of trainings at the same place."""
    last = float(record["num_blocks"])
    names = {"active": "active blocks", "needed": "needed blocks, by loss"}
    series = [Series("a perfect prediction", [(0.0, 0.0), (last, last)], dots=False, colour="faded")]
    for kind, name in names.items():
        points = ((p["predicted"]["separate"], p["measured"][kind]) for p in record["points"])
        places = Counter(points)
        sizes = [30.0 * count for count in places.values()]
        series.append(Series(name, list(places), line=False, sizes=sizes))
    title = "measured depth (blocks)"
    axes = {"x": Axis("predicted depth (blocks)", zero=True), "y": Axis(title, zero=True)}
    summary = f"Measured over predicted depth of {len(record['points'])} trainings"
    return {"depth": line_chart(series, **axes, summary=summary)}


PREDICTED_DEPTH = Experiment(
    name="predicted-depth",
    title="Predicted and measured depth",
    datasets={"cpu": ("digits",), "quick": ("digits",)},
    seeds=(0,),
    run=run,
    section=section,
    rows="points",
    facts=("num_blocks", "sub_blocks", "tolerance", "threshold"),
    figures=figures,
)
