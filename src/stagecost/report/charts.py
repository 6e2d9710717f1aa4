"""Charts by declaration: from plain numbers to Vega-Lite, which a page draws live, and to SVG.

Missing values (NaN, infinite) leave a gap.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from xml.sax.saxutils import quoteattr

from stagecost.errors import report_extra
from stagecost.report.layers import (
    Axis,
    Numbers,
    Series,
    Spec,
    axes,
    band_layer,
    category,
    colour,
    config,
    curve_layers,
    curve_rows,
    drawable,
    end_layer,
    follower_layers,
    hover_layer,
    key_columns,
    legend,
    mark_layers,
    points_of_lists,
    printable,
    quantity,
    series_rows,
    stage_layers,
)

WIDTH, HEIGHT, KEY_HEIGHT = 480, 300, 18

__all__ = ["Axis", "Chart", "Series", "bar_chart", "fading_lines", "heatmap", "line_chart"]


@dataclass(frozen=True)
class Chart:
    """A figure, and the sentence that a screen reader says in its place."""

    title: str  #: stands above the values' axis
    summary: str  #: the sentence
    encoding: Spec  #: x and y of the layers that have none of their own
    layers: Sequence[Spec]  #: what is always drawn
    live: Sequence[Spec] = ()  #: what a page with scripts draws besides: what hovering and sliders show
    #: the data by name; "rows" of the layers that have none of their own
    tables: Mapping[str, Sequence[Spec]] = field(default_factory=dict)
    #: those that the live layers follow, and where they begin
    sliders: Mapping[str, int] = field(default_factory=dict)
    height: int = HEIGHT  #: pixels
    margin: int = 8  #: pixels at the right, for text that stands there

    def spec(self, *, live: bool = False) -> Spec:
        """Return the Vega-Lite specification; a live one takes its width from the page."""
        return {
            "width": "container" if live else WIDTH,
            "height": self.height,
            "autosize": {"type": "fit", "contains": "padding"},
            "padding": {"left": 4, "top": 4, "right": self.margin, "bottom": 4},
            "title": {"text": self.title, "anchor": "start", "frame": "bounds", "offset": 10},
            "config": config(),
            "data": {"name": "rows"},
            "datasets": self.tables,
            "encoding": self.encoding,
            "params": [{"name": name, "value": value} for name, value in self.sliders.items()],
            "layer": [*self.layers, *(self.live if live else ())],
        }

    def png(self, scale: float = 2.0) -> bytes:
        """Return a picture in the light colours.

        Raises:
            StageCostError: the extra `report` is not installed.
        """
        with report_extra():
            import vl_convert

        plain = re.sub(r"var\(--\w+, (#\w+)\)", r"\1", json.dumps(self.spec()))
        drawn: bytes = vl_convert.vegalite_to_png(plain, scale=scale)
        return drawn

    def svg(self, name: str = "chart") -> str:
        """Return SVG that can stand in a page or a file; its ids begin with `name`.

        Raises:
            StageCostError: the extra `report` is not installed.
        """
        with report_extra():
            import vl_convert

        drawn: str = vl_convert.vegalite_to_svg(json.dumps(self.spec()))
        # The ids count on from chart to chart; numbered anew, the same data give the same bytes.
        for number, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn))):
            drawn = re.sub(rf'(\bid="|url\(#){old}\b', rf"\g<1>{name}-{number}", drawn)
        return drawn.replace("<svg", f'<svg role="img" aria-label={quoteattr(self.summary)}', 1)

    _repr_svg_ = svg  # in a notebook


def line_chart(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    summary: str,
    mark: tuple[float, str] | None = None,
    band: tuple[float, float] | None = None,
    stage_starts: Collection[int] = (),
    follows: str = "",
) -> Chart:
    """Draw curves and clouds of points.

    Args:
        series: what is drawn, the last on top.
        x: axis of the places.
        y: axis of the values.
        summary: what a screen reader says in place of the figure.
        mark: a place that a vertical line marks, and the text at it.
        band: values between which the ground is shaded.
        stage_starts: where stages begin, numbered from 0; fewer than two are not drawn.
        follows: name of the slider that moves a second, solid line over the places.
    """
    low = y.domain[0] if y.domain else -math.inf
    rows = [row for each in series for row in series_rows(each, low)]
    first, named = series[0].points, any(each.name for each in series)
    stages = stage_layers(stage_starts, first[-1][0] if first else 0)
    layers = [
        *band_layer(band),
        *stages,
        *curve_layers(series, legend(bool(stages), columns=key_columns(series)) if named else None),
        *(mark_layers(*mark, first) if mark else ()),
        *(() if named else end_layer(first)),
    ]
    return Chart(
        y.title,
        summary,
        axes(x, [row["x"] for row in rows], y, [row["y"] for row in rows]),
        layers,
        [*(follower_layers(follows) if follows else ()), hover_layer(series, x, y)],
        {"rows": rows},
        {follows: -1} if follows else {},
        height=HEIGHT + (KEY_HEIGHT * math.ceil(len(series) / key_columns(series)) if named else 0),
        margin=8 if named else 44,
    )


def bar_chart(
    values: Numbers,
    strong: Collection[int],
    *,
    x: Axis,
    y: Axis,
    summary: str,
    stage_starts: Collection[int] = (),
) -> Chart:
    """Draw one bar for each value, those not in `strong` pale; a bar's length is its value."""
    half = 0.39 if len(values) <= 80 else 0.55
    rows = [
        {"k": k, "x": k - half, "right": k + half, "y": drawn, "strong": k in strong}
        for k, drawn in enumerate(map(drawable, values))
    ]
    end = max(len(values), 1)
    fills = {"domain": [True, False], "range": [colour("accent"), colour("faded")]}
    encoding = {
        "x2": {"field": "right"},
        "y2": {"datum": 0},
        "color": category("strong", scale=fills, legend=None),
        "tooltip": [quantity("k", title=x.title), quantity("y", title=y.title, format=",.4~g")],
    }
    plane = axes(replace(x, domain=(-0.75, end - 0.25)), [], y, [row["y"] for row in rows])
    layers = [{"mark": "rect", "encoding": encoding}, *stage_layers(stage_starts, end, shift=-0.5)]
    return Chart(y.title, summary, plane, layers, tables={"rows": rows})


def fading_lines(
    curves: Sequence[tuple[int, Numbers]],
    drawn: Sequence[int],
    *,
    x: Axis,
    y: Axis,
    summary: str,
    follows: str,
    stage_starts: Collection[int] = (),
) -> Chart:
    """Draw one curve an epoch, from faint (early) to strong (late).

    Lines rather than a heatmap: they have the axes of the loss figure, so the last line is that
    figure, one epoch needs no special case, and "flat from here on" is a shape, which the eye reads
    better than an edge between shades. Opacity instead of a colour map reads alike on a light and on a
    dark page.

    Args:
        curves: pairs of an epoch's number and its values over the places 0, 1, ….
        drawn: the epochs that are always drawn; a slider shows the others one by one.
        x: axis of the places.
        y: axis of the values.
        summary: what a screen reader says in place of the figure.
        follows: name of the slider that chooses the epoch shown bold.
        stage_starts: where stages begin, numbered from 0; fewer than two are not drawn.
    """
    last, end = len(drawn) - 1, max(len(curve) for _, curve in curves) - 1
    stages = stage_layers(stage_starts, end)
    ends = f"'epoch ' + (datum.value ? {drawn[-1]} : {drawn[0]})"
    key = legend(bool(stages), values=[0, last], labelExpr=ends, symbolType="stroke") if last else None
    shades = {"domain": [0, max(last, 1)], "range": [0.16, 1] if last else [1, 1]}
    faint = {
        "transform": points_of_lists(),
        "mark": {"type": "line", "strokeWidth": 1.8, "color": colour("accent")},
        "encoding": {"detail": quantity("z"), "opacity": quantity("z", scale=shades, legend=key)},
    }
    bold = {
        "data": {"name": "played"},
        "transform": [{"filter": f"datum.z === {follows}"}, *points_of_lists()],
        "mark": {"type": "line", "strokeWidth": 3, "color": colour("mark")},
    }
    values = [value for _, curve in curves for value in map(drawable, curve)]
    return Chart(
        y.title,
        summary,
        axes(x, [0, end], y, values),
        [*stages, faint],
        [bold],
        {
            "rows": curve_rows([(order, dict(curves)[epoch]) for order, epoch in enumerate(drawn)]),
            "played": curve_rows(curves),
        },
        {follows: drawn[-1]},
        height=HEIGHT + KEY_HEIGHT,
    )


def heatmap(names: Sequence[str], counts: Sequence[Sequence[int]], *, summary: str) -> Chart:
    """Draw a square table of counts, each shaded by its share of the row."""
    classes = list(map(printable, names))
    rows = [
        {"class": classes[i], "answer": classes[j], "n": n, "share": n / max(sum(row), 1)}
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
    ]
    order = {"domain": classes}
    plane = {
        "x": category("answer", scale=order, axis={"title": "answer", "labelAngle": 0, "domain": False}),
        "y": category("class", scale=order, axis={"title": None, "grid": False}),
    }
    shade = quantity("share", scale={"domain": [0, 1], "range": [0.03, 1]}, legend=None)
    tooltip = [category("class"), category("answer"), quantity("n", title="images")]
    exceptions = [
        {"test": "datum.share > 0.5", "value": colour("surface")},
        {"test": "datum.n === 0", "value": colour("faded")},
    ]
    cells = {
        "mark": {"type": "rect", "fill": colour("accent"), "cornerRadius": 2},
        "encoding": {"fillOpacity": shade, "tooltip": tooltip},
    }
    numbers = {
        "mark": {"type": "text", "fontSize": 11, "tooltip": None},
        "encoding": {
            "text": quantity("n"),
            "color": {"value": colour("ink"), "condition": exceptions},
        },
    }
    height = min(max(HEIGHT, 70 + 24 * len(classes)), 520)
    return Chart("class", summary, plane, [cells, numbers], tables={"rows": rows}, height=height)
