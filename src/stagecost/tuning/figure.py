"""The figure of a search: every trial, and the Pareto front."""

from collections.abc import Sequence

from stagecost.report.canvas import FONT_SIZE, draw_curve, make_panel, scale_values, write_text
from stagecost.report.svg import COLOURS, to_svg

Point = tuple[int, float]
"""Needed blocks and accuracy in percent."""


def pareto_figure(points: Sequence[Point], front: Sequence[Point], baseline: Point | None) -> str:
    """Draw accuracy over needed blocks as SVG.

    Args:
        points: of all trials that came to an end.
        front: those that no other trial beats in both.
        baseline: of plain training.
    """
    panel = make_panel("validation accuracy (%)", 0)
    axes = panel.axes
    scale_values(axes, [[accuracy for _, accuracy in points]])
    depths = [depth for depth, _ in points] or [1]
    axes.set_xlim(min(depths) - 0.5, max(depths) + 0.5)
    axes.set_xlabel("needed blocks", color=COLOURS["muted"], fontsize=FONT_SIZE)
    style = {"linestyle": "none", "marker": "o"}
    axes.plot(*_columns(points), color=COLOURS["faded"], markersize=6, **style)
    ordered = sorted(front)
    draw_curve(axes, *_columns(ordered), dashes=(4, 2), width=1.2)
    axes.plot(*_columns(ordered), color=COLOURS["accent"], markersize=7, **style)
    key = [("● Pareto front", "accent")]
    if baseline is not None:
        axes.plot(*_columns([baseline]), color=COLOURS["mark"], markersize=7, **style)
        key.append(("● plain training", "mark"))
    for place, (text, colour) in enumerate(key):
        write_text(axes, 0.97, 0.06 + 0.075 * place, text, ha="right", colour=colour)
    summary = f"Validation accuracy over needed blocks of {len(points)} trials"
    return to_svg(panel.figure, "pareto", summary)


def _columns(points: Sequence[Point]) -> tuple[list[int], list[float]]:
    return [depth for depth, _ in points], [accuracy for _, accuracy in points]
