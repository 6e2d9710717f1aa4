"""The figures of predicted depth and of saturation, in the report's style."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from stagecost.report.canvas import FONT_SIZE, draw_curve, make_panel, scale_values, write_text
from stagecost.report.svg import COLOURS, to_svg

_STYLES: tuple[tuple[str, tuple[float, float] | None], ...] = (
    ("accent", None),
    ("mark", (4, 2)),
    ("muted", (1.5, 1.5)),
)


def predicted_depth_figure(record: Mapping[str, Any]) -> str:
    """Draw measured over predicted depth: needed blocks (rings) and active blocks (dots).

    A mark's area is the number of trainings at the same place; the diagonal is a perfect prediction.
    """
    last = record["num_blocks"]
    panel = make_panel("measured depth (blocks)", 0)
    axes = panel.axes
    scale_values(axes, [[0.0, float(last)]])
    axes.set_xlim(0, last + 0.6)
    axes.set_xlabel("predicted depth (blocks)", color=COLOURS["muted"], fontsize=FONT_SIZE)
    draw_curve(axes, [0, last], [0.0, float(last)], colour="faded", width=1.2, dashes=(3, 3))
    filled = {"active": (COLOURS["accent"], -0.1), "needed": ("none", 0.1)}
    for name, (face, shift) in filled.items():
        places = Counter(
            (point["predicted"]["separate"], point["measured"][name]) for point in record["points"]
        )
        colour = COLOURS["accent" if name == "active" else "mark"]
        for (x, y), count in places.items():
            style = {"markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.6}
            axes.plot([x + shift], [y], "o", markersize=5 * count**0.5, **style)
    write_text(axes, 0.03, 0.93, "● active blocks", ha="left", colour="accent")
    write_text(axes, 0.03, 0.855, "○ needed blocks, by loss", ha="left", colour="mark")
    summary = f"Measured over predicted depth of {len(record['points'])} trainings"
    return to_svg(panel.figure, "predicted-depth", summary)


def saturation_figure(rows: Sequence[Mapping[str, Any]], quantity: str, value_name: str) -> str:
    """Draw a number of blocks over N, a curve for each way of training (means over the seeds).

    Args:
        rows: with `training`, `num_blocks` and the quantity.
        quantity: the key to draw.
        value_name: what stands above the axis.
    """
    from matplotlib.ticker import FixedLocator

    panel = make_panel(value_name, 0)
    axes = panel.axes
    sizes = sorted({row["num_blocks"] for row in rows})
    curves = {
        training: [
            mean(r[quantity] for r in rows if (r["training"], r["num_blocks"]) == (training, size))
            for size in sizes
        ]
        for training in dict.fromkeys(row["training"] for row in rows)
    }
    scale_values(axes, [[0.0], *curves.values()])
    axes.set_xlim(0, sizes[-1] + 2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.set_xlabel("blocks N", color=COLOURS["muted"], fontsize=FONT_SIZE)
    for place, (training, values) in enumerate(curves.items()):
        colour, dashes = _STYLES[place % len(_STYLES)]
        draw_curve(axes, sizes, values, colour=colour, dashes=dashes)
        axes.plot(sizes, values, "o", color=COLOURS[colour], markersize=4)
        write_text(axes, 0.03, 0.93 - 0.075 * place, f"● {training}", ha="left", colour=colour)
    return to_svg(panel.figure, f"saturation-{quantity}", f"{value_name} over N")
