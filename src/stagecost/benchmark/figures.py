"""The figures of a benchmark: how time a block and memory grow with N."""

from collections.abc import Mapping, Sequence
from typing import Any

from stagecost.report.canvas import FONT_SIZE, draw_curve, make_panel, scale_values, write_text
from stagecost.report.svg import COLOURS, to_svg

_STYLES: tuple[tuple[str, tuple[float, float] | None], ...] = (
    ("muted", None),
    ("accent", None),
    ("mark", (4, 2)),
)


def scaling_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Draw the rows of `stagecost.benchmark.scaling`: SVG by name, "time" and "memory"."""
    milliseconds = [{**row, "value": 1000 * row["seconds_a_block"]} for row in rows]
    megabytes = [{**row, "value": row["peak_bytes"] / 2**20} for row in rows]
    return {
        "time": _figure(milliseconds, "milliseconds a block, one training step", "scale-time"),
        "memory": _figure(megabytes, "MiB above the resting level, one step", "scale-memory"),
    }


def _figure(rows: Sequence[Mapping[str, Any]], value_name: str, name: str) -> str:
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    panel = make_panel(value_name, 0)
    axes = panel.axes
    sizes = sorted({row["num_blocks"] for row in rows})
    curves = _curves(rows)
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("blocks N", color=COLOURS["muted"], fontsize=FONT_SIZE)
    scale_values(axes, [list(curve.values()) for curve in curves.values()], logarithmic=True)
    if axes.get_yscale() == "linear":
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # the key stands above the curves
    for place, (curve_name, curve) in enumerate(curves.items()):
        colour, dashes = _STYLES[place % len(_STYLES)]
        draw_curve(axes, list(curve), list(curve.values()), colour=colour, dashes=dashes)
        axes.plot(list(curve), list(curve.values()), "o", color=COLOURS[colour], markersize=4)
        height = 0.94 - 0.075 * place
        write_text(axes, 0.03, height, f"● {curve_name}", ha="left", colour=colour)
    return to_svg(panel.figure, name, f"{value_name} for N = {', '.join(map(str, sizes))}")


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        curves.setdefault(row["training"], {})[row["num_blocks"]] = row["value"]
    return curves
