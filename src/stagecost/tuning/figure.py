"""The figure of a search: every trial, and the Pareto front."""

from collections.abc import Sequence

from stagecost.report.charts import Axis, Series, line_chart

Point = tuple[int, float]
"""Needed blocks and accuracy in percent."""


def pareto_figure(points: Sequence[Point], front: Sequence[Point], baseline: Point | None) -> str:
    """Draw accuracy over needed blocks as SVG.

    Args:
        points: of all trials that came to an end.
        front: those that no other trial beats in both.
        baseline: of plain training.
    """
    series = [
        Series("trials", points, line=False, colour="faded"),
        Series("Pareto front", sorted(front), colour="accent"),
    ]
    if baseline is not None:
        series.append(Series("plain training", [baseline], line=False, colour="mark"))
    summary = f"Validation accuracy over needed blocks of {len(points)} trials"
    x, y = Axis("needed blocks"), Axis("validation accuracy (%)")
    return line_chart(series, x=x, y=y, summary=summary).svg("pareto")
