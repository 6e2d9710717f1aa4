"""The figures of a report, each with the sentence that a screen reader says in its place."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from stagecost.report import plots
from stagecost.report.block_strip import block_strip
from stagecost.report.content import Analysis, ReportData, number, numbers, value_at
from stagecost.report.wording import blocks_text, measure_text, percent_text, ranges_text


def draw_figures(analysis: Analysis, data: ReportData) -> dict[str, object]:
    """Draw the figures. Their text is made here from numbers alone, so their SVG is safe as it is."""
    starts, kept, needed = analysis.stage_starts, analysis.kept, analysis.needed
    svgs = {
        "strip": block_strip(
            analysis.num_blocks, kept, stage_starts=starts, summary=_strip_summary(analysis)
        ),
        "loss": plots.loss_over_depth(
            analysis.losses,
            needed,
            stage_starts=starts,
            summary=_curve_summary("Loss", analysis.losses, needed, measure_text),
        ),
        "accuracy": plots.accuracy_over_depth(
            analysis.accuracies,
            needed,
            analysis.tolerance,
            stage_starts=starts,
            summary=_curve_summary("Accuracy", analysis.accuracies, needed, percent_text),
        ),
        "ratios": plots.residual_ratios(
            analysis.ratios,
            kept,
            stage_starts=starts,
            summary=_bar_summary("Relative size of the residual branch", analysis.ratios),
        ),
        "norms": plots.weight_norms(
            analysis.norms,
            kept,
            stage_starts=starts,
            summary=_bar_summary("Weight norm of the residual branch", analysis.norms),
        ),
    }
    figures: dict[str, object] = {name: Markup(svg) for name, svg in svgs.items()}
    return figures | _epoch_figures(analysis, data.history)


def _epoch_figures(analysis: Analysis, history: Sequence[Mapping[str, object]]) -> dict[str, object]:
    if not history:
        return {"learning": None, "development": None}
    epochs = [int(number(entry["epoch"])) for entry in history]
    train = [number(entry.get("train_loss")) for entry in history]
    validation = [number(entry.get("val_loss")) for entry in history]
    ends = f"training {measure_text(train[-1])}, validation {measure_text(validation[-1])}"
    summary = f"Loss of the terminal output over {len(epochs)} epochs; at the end: {ends}."
    svg = plots.learning_curve(epochs, train, validation, summary=summary)
    figures: dict[str, object] = {"learning": Markup(svg), "development": None}
    pairs = [(epoch, numbers(e.get("val_losses"))) for epoch, e in zip(epochs, history, strict=True)]
    curves = [(epoch, losses) for epoch, losses in pairs if losses]
    if curves:
        drawn = [curves[index][0] for index in plots.chosen_epochs(len(curves))]
        summary = f"Loss at every depth after epoch {', '.join(map(str, drawn))}."
        svg = plots.development_over_epochs(curves, stage_starts=analysis.stage_starts, summary=summary)
        figures |= {"development": Markup(svg), "drawn_epochs": drawn}
        figures["all_drawn"] = len(drawn) == len(curves)
    return figures


def floor_text(analysis: Analysis) -> str:
    """Say where the accuracy axis is cut off at the bottom; nothing if it is not."""
    floor = plots.accuracy_floor(analysis.accuracies, analysis.tolerance)
    return percent_text(floor) if math.isfinite(floor) else ""


def _strip_summary(analysis: Analysis) -> str:
    word = "kept" if analysis.pruned else "needed"
    which = ranges_text(analysis.kept) or "none"
    return f"{blocks_text(analysis.num_blocks)} from input to output; {word}: {which}."


def _curve_summary(
    name: str, values: Sequence[float], needed: int, write: Callable[[object], str]
) -> str:
    last = len(values) - 1
    ends = (
        f"{write(value_at(values, 0))} at depth 0, {write(value_at(values, needed))} at depth {needed}"
    )
    return f"{name} over depth: {ends}, {write(value_at(values, last))} at depth {last}."


def _bar_summary(name: str, values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"{name} of each block: no values."
    low, high = (f"{measure_text(v)} in block {values.index(v)}" for v in (min(finite), max(finite)))
    return f"{name} of each block: smallest {low}, largest {high}."
