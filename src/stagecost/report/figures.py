"""The figures of a report, each with the sentence that a screen reader says in its place."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from stagecost.report.charts import (
    Axis,
    Chart,
    Series,
    bar_chart,
    fading_lines,
    heatmap,
    line_chart,
)
from stagecost.report.data import Analysis, Confusion, Epoch, Point, ReportData, value_at
from stagecost.report.frames import drawn_epochs, played_epochs
from stagecost.report.layers import drawable
from stagecost.report.words import measure_text, percent_text, ranges_text
from stagecost.text import counted

DEPTH, BLOCK = Axis("depth k (blocks in use)"), Axis("block k")
LOSS, ACCURACY = Axis("loss", log=True), Axis("accuracy (%)")
RATIO = Axis("size of F relative to the state", zero=True)
NORM = Axis("norm of the weights of F", zero=True)
MOST_DOTS = 41
MOST_CLASSES = 20
COST_RANGE = 15
"""Points of accuracy below the best that the figure of the costs shows."""


def figures_of(data: ReportData) -> dict[str, Chart]:
    """Make the figures that the data suffice for, by name."""
    analysis = data.analysis
    figures = {
        "loss": _depth_figure(analysis, "Loss", analysis.losses, LOSS, measure_text),
        "accuracy": _accuracy_figure(analysis),
        "ratios": _bars(data, analysis.residual_ratios, RATIO, "Relative size of the residual branch"),
        "norms": _bars(data, analysis.weight_norms, NORM, "Weight norm of the residual branch"),
    }
    if data.history:
        figures["learning"] = _learning_figure(data.history)
    if played_epochs(data.history):
        figures["development"] = _development_figure(data)
    if points := data.points or _cut_points(data, "cuts"):
        figures["cost"] = _cost_figure(points)
    if data.confusion is not None:
        figures["confusion"] = _confusion_figure(data.confusion)
    return figures


def trajectory_figure(
    losses: Sequence[float], accuracies: Sequence[float], stage_starts: Sequence[int]
) -> Chart:
    """Draw accuracy over depth, or the loss where there is no accuracy."""
    known = math.isfinite(accuracies[-1])
    values, axis, write = (accuracies, ACCURACY, percent_text) if known else (losses, LOSS, measure_text)
    ends = f"{axis.title} over depth: {write(values[0])} at depth 0, {write(values[-1])} at the end."
    return line_chart([_curve(values)], x=DEPTH, y=axis, summary=ends, stage_starts=stage_starts)


def comparison_figures(runs: Sequence[ReportData]) -> dict[str, Chart]:
    """Make the figures that show several runs beside each other."""
    names = ", ".join(run.run for run in runs)

    def over(x: Axis, y: Axis, name: str, values: Callable[[Analysis], Sequence[float]]) -> Chart:
        series = [_curve(values(run.analysis), run.run) for run in runs]
        if x is BLOCK:  # by their k: some may have left
            points = [zip(run.analysis.blocks, values(run.analysis), strict=False) for run in runs]
            series = [replace(each, points=[*some]) for each, some in zip(series, points, strict=True)]
        follows = "depth" if x is DEPTH else ""
        return line_chart(series, x=x, y=y, summary=f"{name} of {names}.", follows=follows)

    figures = {
        "loss": over(DEPTH, LOSS, "Loss over depth", lambda analysis: analysis.losses),
        "accuracy": over(DEPTH, ACCURACY, "Accuracy over depth", lambda analysis: analysis.accuracies),
        "ratios": over(BLOCK, RATIO, "Relative size of the residual branches", _ratios),
    }
    points = [point for run in runs for point in _cut_points(run, run.run)]
    return figures | ({"cost": _cost_figure(points)} if points else {})


def _ratios(analysis: Analysis) -> Sequence[float]:
    return analysis.residual_ratios


def _depth_figure(
    analysis: Analysis,
    name: str,
    values: Sequence[float],
    y: Axis,
    write: Callable[[float], str],
    band: tuple[float, float] | None = None,
) -> Chart:
    needed = analysis.needed_depth
    depths = (0, *(() if needed is None else (needed,)), len(values) - 1)
    ends = ", ".join(f"{write(value_at(values, depth))} at depth {depth}" for depth in depths)
    return line_chart(
        [_curve(values)],
        x=DEPTH,
        y=y,
        summary=f"{name} over depth: {ends}.",
        mark=None if needed is None else (needed, f"{needed} needed"),
        band=band,
        stage_starts=analysis.stage_starts,
        follows="depth",
    )


def _accuracy_figure(analysis: Analysis) -> Chart:
    values, terminal, floor = analysis.accuracies, analysis.terminal_accuracy, analysis.accuracy_floor
    highest = max((value for value in values if math.isfinite(value)), default=terminal)
    y = ACCURACY if None in map(drawable, (floor, highest)) else _cut_off(floor, highest)
    band = terminal - analysis.tolerance, terminal
    return _depth_figure(analysis, "Accuracy", values, y, percent_text, band)


def _bars(data: ReportData, values: Sequence[float], y: Axis, name: str) -> Chart:
    blocks, finite = data.analysis.blocks, [value for value in values if math.isfinite(value)]
    left = blocks != tuple(range(data.analysis.num_blocks))
    x = Axis(f"blocks {ranges_text(blocks)}, in order") if left else BLOCK
    summary = f"{name} of each block: no values."
    if finite:
        ends = min(finite), max(finite)
        low, high = (f"{measure_text(v)} in block {blocks[values.index(v)]}" for v in ends)
        summary = f"{name} of each block: smallest {low}, largest {high}."
    starts = data.analysis.stage_starts
    return bar_chart(values, data.kept_places, x=x, y=y, summary=summary, stage_starts=starts)


def _learning_figure(history: Sequence[Epoch]) -> Chart:
    """Draw the loss of the terminal output y_N over the epochs, in training and in validation."""
    train, val = history[-1].train_loss, history[-1].val_loss
    series = [
        Series("validation", [(e.epoch, e.val_loss) for e in history], dots=False),
        Series("training", [(e.epoch, e.train_loss) for e in history], dots=False, colour="muted"),
    ]
    return line_chart(
        [each for each in series if any(math.isfinite(y) for _, y in each.points)] or series,
        x=Axis("epoch"),
        y=LOSS,
        summary=f"Loss of the terminal output over {counted(len(history), 'epoch')}; at the end: "
        f"training {measure_text(train)}, validation {measure_text(val)}.",
    )


def _development_figure(data: ReportData) -> Chart:
    drawn = drawn_epochs(data.history)
    curves = [(entry.epoch, entry.val_losses) for entry in played_epochs(data.history)]
    # Before blocks left, stages began elsewhere.
    whole = all(len(losses) == data.analysis.num_blocks + 1 for _, losses in curves)
    return fading_lines(
        curves,
        drawn,
        x=DEPTH,
        y=LOSS,
        summary=f"Loss at every depth after epoch {', '.join(map(str, drawn))}.",
        follows="epoch",
        stage_starts=data.analysis.stage_starts if whole else (),
    )


def _cost_figure(points: Sequence[Point]) -> Chart:
    """Draw accuracy against MACs, a curve for each series."""
    known = [p for p in points if math.isfinite(p.accuracy) and math.isfinite(p.macs)]
    accuracies = [point.accuracy for point in known if point.series != "oracle"] or [0.0]
    best = max(accuracies)
    most = min(max([point.accuracy for point in known], default=best), best + COST_RANGE / 3)
    series = []
    for name in dict.fromkeys(point.series for point in points):
        chosen = sorted((p for p in known if p.series == name), key=lambda point: point.macs)
        places = [(p.macs, p.accuracy if p.accuracy <= most else math.nan) for p in chosen]
        dots = len(places) <= MOST_DOTS
        series.append(Series(name, places, dots=dots, labels=[point.name for point in chosen]))
    return line_chart(
        series,
        x=Axis("MACs an image"),
        y=_cut_off(max(min(accuracies), best - COST_RANGE) - 0.2, most),
        summary=f"Accuracy against MACs of {', '.join(each.name for each in series)}; the best reaches "
        f"{percent_text(best)}.",
    )


def _cut_points(data: ReportData, series: str) -> list[Point]:
    """Return the cuts as accuracy against MACs, if the MACs are known."""
    known = enumerate(zip(data.analysis.accuracies, data.analysis.macs, strict=False))
    return [Point(series, counted(k, "block"), accuracy, macs) for k, (accuracy, macs) in known]


def _confusion_figure(confusion: Confusion) -> Chart:
    """Draw the classes that are confused most."""
    counts, classes = confusion.counts, range(len(confusion.counts))
    wrong = [sum(counts[i]) + sum(row[i] for row in counts) - 2 * counts[i][i] for i in classes]
    most = sorted(sorted(classes, key=lambda i: -wrong[i])[:MOST_CLASSES])
    right, images = sum(counts[i][i] for i in classes), sum(map(sum, counts))
    return heatmap(
        [confusion.class_names[i] for i in most],
        [[counts[i][j] for j in most] for i in most],
        summary=f"Answers of the cut network by class: {right:,} of {images:,} images right.",
    )


def _cut_off(low: float, high: float) -> Axis:
    return replace(ACCURACY, domain=(low, high + 0.04 * (high - low)))


def _curve(values: Sequence[float], name: str = "") -> Series:
    return Series(name, list(enumerate(values)), dots=len(values) <= MOST_DOTS)
