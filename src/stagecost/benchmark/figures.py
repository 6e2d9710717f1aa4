"""The figures of a benchmark: how time a block and memory grow with N."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from stagecost.report.charts import Axis, Series, line_chart

_COLOURS = ("muted", "accent", "mark")


def scaling_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Draw the rows of `stagecost.benchmark.scaling`: SVG by name, "time" and "memory"."""
    milliseconds = [{**row, "value": 1000 * row["seconds_a_block"]} for row in rows]
    megabytes = [{**row, "value": row["peak_bytes"] / 2**20} for row in rows]
    return {
        "time": _figure(milliseconds, "milliseconds a block, one training step", "scale-time"),
        "memory": _figure(megabytes, "MiB above the resting level, one step", "scale-memory"),
    }


def _figure(rows: Sequence[Mapping[str, Any]], value_name: str, name: str) -> str:
    sizes = sorted({row["num_blocks"] for row in rows})
    series = [
        Series(training, list(curve.items()), colour=colour)
        for (training, curve), colour in zip(_curves(rows).items(), cycle(_COLOURS), strict=False)
    ]
    chart = line_chart(
        series,
        x=Axis("blocks N", log=True, ticks=tuple(sizes)),
        y=Axis(value_name, log=True),
        summary=f"{value_name} for N = {', '.join(map(str, sizes))}",
    )
    return chart.svg(name)


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        curves.setdefault(row["training"], {})[row["num_blocks"]] = row["value"]
    return curves
