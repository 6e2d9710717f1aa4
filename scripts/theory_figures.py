"""The figures of predicted depth and of saturation, in the report's style."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from stagecost.report.charts import Axis, Series, line_chart


def predicted_depth_figure(record: Mapping[str, Any]) -> str:
    """Draw measured over predicted depth of needed and of active blocks.

    A mark's area is the number of trainings at the same place; the diagonal is a perfect prediction.
    """
    last = float(record["num_blocks"])
    series = [Series("perfect prediction", [(0.0, 0.0), (last, last)], dots=False, colour="faded")]
    marks = (
        ("active", "active blocks", "accent", -0.1),
        ("needed", "needed blocks, by loss", "mark", 0.1),
    )
    for quantity, name, colour, shift in marks:
        places = Counter(
            (point["predicted"]["separate"], point["measured"][quantity]) for point in record["points"]
        )
        points = [(x + shift, y) for x, y in places]
        sizes = [40 * count for count in places.values()]
        series.append(Series(name, points, line=False, colour=colour, sizes=sizes))
    chart = line_chart(
        series,
        x=Axis("predicted depth (blocks)"),
        y=Axis("measured depth (blocks)"),
        summary=f"Measured over predicted depth of {len(record['points'])} trainings",
    )
    return chart.svg("predicted-depth")


def saturation_figure(rows: Sequence[Mapping[str, Any]], quantity: str, value_name: str) -> str:
    """Draw a number of blocks over N, a curve for each way of training (means over the seeds).

    Args:
        rows: with `training`, `num_blocks` and the quantity.
        quantity: the key to draw.
        value_name: what stands above the axis.
    """
    sizes = sorted({row["num_blocks"] for row in rows})
    series = []
    for training in dict.fromkeys(row["training"] for row in rows):
        values = {
            size: [r[quantity] for r in rows if (r["training"], r["num_blocks"]) == (training, size)]
            for size in sizes
        }
        series.append(Series(training, [(size, mean(known)) for size, known in values.items()]))
    chart = line_chart(
        series,
        x=Axis("blocks N", zero=True, ticks=tuple(sizes)),
        y=Axis(value_name, zero=True),
        summary=f"{value_name} over N",
    )
    return chart.svg(f"saturation-{quantity}")
