"""Charts by declaration: from plain numbers to Vega-Lite, which a page draws live, and to SVG.

Every colour is `var(--name, #hex)`: inside a page the light and the dark scheme set the variables, and
an SVG opened by itself shows the light colours. Curves differ by dash and shape as well as by colour.
Missing values (NaN, infinite) leave a gap.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from xml.sax.saxutils import quoteattr

from stagecost.report.extra import report_extra

with report_extra():
    import altair as alt
    import vl_convert

WIDTH, HEIGHT = 480, 300
FONT_SIZE = 12.5
# A value beyond this is a training that diverged; drawn, it would flatten everything else.
LARGEST_DRAWN, SMALLEST_LOG = 1e15, 1e-12
COLOURS = {
    "ink": "#1d2935",
    "muted": "#5b6b7b",
    "hairline": "#e3e8ed",
    "accent": "#1f6292",
    "faded": "#c9d2da",
    "mark": "#b8541a",
    "surface": "#ffffff",
    "green": "#3c7a4b",
    "violet": "#77549b",
}
STYLES = (
    ("accent", [1, 0], "circle"),
    ("mark", [6, 3], "square"),
    ("muted", [2, 2.5], "triangle-up"),
    ("green", [9, 3, 2, 3], "diamond"),
    ("violet", [4, 2], "cross"),
    ("ink", [1, 3], "triangle-down"),
)

Curve = Sequence[tuple[float, float]]
Numbers = Sequence[float]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        title: its name and unit.
        log: logarithmic, where the values are positive and span more than a decade.
        zero: begins at 0.
        domain: first and last value, chosen from the values if not given.
        ticks: where the ticks are, chosen if empty.
    """

    title: str
    log: bool = False
    zero: bool = False
    domain: tuple[float, float] | None = None
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """A curve, or a cloud of points.

    Attributes:
        name: what the key calls it; empty where there is only one.
        points: pairs (x, y); a y that is missing leaves a gap.
        line: join the points.
        dots: show the points.
        colour: one of `COLOURS`; that of its place among the series if empty.
        sizes: of the dots, in square pixels; alike if empty.
        labels: what hovering calls each point; nothing if empty.
    """

    name: str
    points: Curve
    line: bool = True
    dots: bool = True
    colour: str = ""
    sizes: Numbers = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A figure, and the sentence that a screen reader says in its place.

    Attributes:
        layers: what is always drawn.
        summary: the sentence.
        x: the places of those layers that have none of their own.
        y: the values of those layers that have none of their own.
        tables: the data by name; "rows" of those layers that name none and have none of their own.
        title: stands above the values' axis.
        live: what a page with scripts draws besides: what hovering and sliders show.
        height: pixels.
        margin: pixels at the right, for text that stands there.
    """

    layers: Sequence[alt.Chart]
    summary: str
    x: alt.X
    y: alt.Y
    tables: Mapping[str, Rows]
    title: str = ""
    live: Sequence[alt.Chart] = ()
    height: int = HEIGHT
    margin: int = 8

    def spec(self, *, live: bool = False) -> dict[str, Any]:
        """Return the Vega-Lite specification; a live one takes its width from the page."""
        if live:
            return self._specification
        still = {name: value for name, value in self._specification.items() if name != "params"}
        return still | {"layer": still["layer"][: len(self.layers)], "width": WIDTH}

    @cached_property
    def _specification(self) -> dict[str, Any]:
        chart = alt.layer(*self.layers, *self.live, data=alt.NamedData("rows"))
        chart = chart.encode(x=self.x, y=self.y).properties(
            width="container",
            height=self.height,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
            padding={"left": 4, "top": 4, "right": self.margin, "bottom": 4},
            title=alt.TitleParams(self.title, anchor="start", frame="bounds", offset=10),
            config=_config(),
        )
        # Altair checks what is declared as it is declared; the tables join late, for they may be long.
        specification: dict[str, Any] = chart.to_dict(validate=False)
        specification.setdefault("datasets", {}).update(self.tables)
        return specification

    def svg(self, name: str = "chart") -> str:
        """Return SVG that can stand in a page or a file; its ids begin with `name`."""
        drawn: str = vl_convert.vegalite_to_svg(json.dumps(self.spec()))
        # The ids count on from chart to chart; numbered anew, the same data give the same bytes.
        for number, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn))):
            drawn = re.sub(rf'(\bid="|url\(#){old}\b', rf"\g<1>{name}-{number}", drawn)
        return drawn.replace("<svg", f'<svg role="img" aria-label={quoteattr(self.summary)}', 1)


def colour(name: str) -> str:
    """Return a colour as CSS that the page may override."""
    return f"var(--{name}, {COLOURS[name]})"


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

    Raises:
        StageCostError: the extra `report` is not installed (when this module is imported).
    """
    low = y.domain[0] if y.domain else -math.inf
    rows = [row for each in series for row in _rows(each, low)]
    first, named = series[0].points, any(each.name for each in series)
    layers = [
        *_band(band),
        *_stages(stage_starts, first[-1][0] if first else 0),
        *_curves(series, y.title),
        *(_mark(*mark, first) if mark else ()),
        *(() if named else _end(first)),
    ]
    live = [*(_follower(follows) if follows else ()), _hover(series, x, y)]
    return Chart(
        layers,
        summary,
        _places(x, [row["x"] for row in rows]),
        _values(y, [row["y"] for row in rows]),
        {"rows": rows},
        "" if named else y.title,
        live,
        height=HEIGHT + 18 * (math.ceil(len(series) / _columns(series)) - 1),
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
    half = 0.39 if len(values) <= 80 else 0.5
    rows = [
        {"k": k, "x": k - half, "right": k + half, "y": drawn, "strong": k in strong}
        for k, drawn in enumerate(map(_drawable, values))
    ]
    across = _places(x, [0, max(len(values), 1) - 1], room=0.75)
    fills = alt.Scale(domain=[True, False], range=[colour("accent"), colour("faded")])
    bars = (
        alt.Chart()
        .mark_rect()
        .encode(
            x2="right:Q",
            y2=alt.datum(0),
            color=alt.Color("strong:N", scale=fills, legend=None),
            tooltip=[_tooltip("k:Q", x.title, "d"), _tooltip("y:Q", y.title)],
        )
    )
    layers = [bars, *_stages(stage_starts, len(values), shift=-0.5)]
    up = _values(y, [row["y"] for row in rows])
    return Chart(layers, summary, across, up, {"rows": rows}, y.title)


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
    names = f"'epoch ' + (datum.value ? {drawn[-1]} : {drawn[0]})"
    key = _legend(y.title, "stroke", values=[0, last], labelExpr=names) if last else None
    shade = alt.Scale(domain=[0, max(last, 1)], range=[0.16, 1] if last else [1, 1])
    tables = {
        "rows": _lists([(order, dict(curves)[epoch]) for order, epoch in enumerate(drawn)]),
        "played": _lists(curves),
    }
    faint = alt.Chart().transform_flatten(["y", "x"]).mark_line(strokeWidth=1.8, color=colour("accent"))
    faint = faint.encode(detail="z:Q", opacity=alt.Opacity("z:Q", scale=shade, legend=key))
    bold = alt.Chart(alt.NamedData("played")).transform_filter(f"datum.z === {follows}")
    bold = bold.transform_flatten(["y", "x"]).mark_line(strokeWidth=3, color=colour("mark"))
    bold = bold.add_params(alt.param(name=follows, value=drawn[-1]))
    up = _values(y, [value for _, curve in curves for value in map(_drawable, curve)])
    layers, title = [*_stages(stage_starts, end), faint], "" if key else y.title
    return Chart(layers, summary, _places(x, [0, end]), up, tables, title, [bold])


def heatmap(names: Sequence[str], counts: Sequence[Sequence[int]], *, summary: str) -> Chart:
    """Draw a square table of counts, each shaded by its share of the row."""
    classes = list(map(_printable, names))
    rows = [
        {"class": classes[i], "answer": classes[j], "n": n, "share": n / max(sum(row), 1)}
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
    ]
    order = alt.Scale(domain=classes)
    answer = alt.Axis(title="answer", labelAngle=0, domain=False, format="")
    across = alt.X("answer:N", scale=order, axis=answer)
    down = alt.Y("class:N", scale=order, axis=alt.Axis(title=None, grid=False))
    shade = alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.03, 1]), legend=None)
    tooltip = [_tooltip("class:N", "class"), _tooltip("answer:N", "answer"), _tooltip("n:Q", "images")]
    cells = alt.Chart().mark_rect(fill=colour("accent"), cornerRadius=2)
    ink = alt.when("datum.share > 0.5").then(alt.value(colour("surface")))
    ink = ink.when("datum.n === 0").then(alt.value(colour("faded")))
    numbers = alt.Chart().mark_text(fontSize=11, tooltip=None)
    numbers = numbers.encode(text="n:Q", color=ink.otherwise(alt.value(colour("ink"))))
    layers = [cells.encode(fillOpacity=shade, tooltip=tooltip), numbers]
    height = min(max(HEIGHT, 70 + 24 * len(classes)), 520)
    return Chart(layers, summary, across, down, {"rows": rows}, "class", height=height)


def _rows(series: Series, low: float) -> list[dict[str, Any]]:
    """Make the rows of a series; what is below `low` is not seen."""
    values = [_drawable(y) for _, y in series.points]
    extra: dict[str, Sequence[object]] = {"size": series.sizes, "label": series.labels}
    rows = []
    for place, ((x, _), y) in enumerate(zip(series.points, values, strict=True)):
        neighbours = values[max(place - 1, 0) : place] + values[place + 1 : place + 2]
        row = {"series": _printable(series.name), "x": x, "y": y, "line": series.line}
        row |= {name: known[place] for name, known in extra.items() if known}
        # A value whose neighbours are missing has no line through it and would be invisible.
        row["dot"] = series.dots or all(value is None for value in neighbours)
        rows.append(row | {"seen": y is not None and y >= low})
    return rows


def _lists(curves: Sequence[tuple[int, Numbers]]) -> Rows:
    """Make one row of lists of each curve z, which travels shorter than a row for each point."""
    return [
        {"z": z, "y": list(map(_drawable, curve)), "x": list(range(len(curve)))} for z, curve in curves
    ]


def _curves(series: Sequence[Series], title: str) -> list[alt.Chart]:
    names = [_printable(each.name) for each in series]
    styles = [STYLES[place % len(STYLES)] for place in range(len(series))]
    dotted = any(each.dots for each in series)
    key = None
    if any(names):
        symbol = {"symbolSize": 60, "symbolStrokeWidth": 0} if dotted else {"symbolSize": 240}
        key = _legend(title, "circle" if dotted else "stroke", columns=_columns(series), **symbol)
    colours = [colour(each.colour or style[0]) for each, style in zip(series, styles, strict=True)]

    def scale(values: list[Any]) -> alt.Scale:
        return alt.Scale(domain=names, range=values)

    tint = alt.Color("series:N", scale=scale(colours), legend=key)
    dash = alt.StrokeDash("series:N", scale=scale([style[1] for style in styles]), legend=key)
    shape = alt.Shape("series:N", scale=scale([style[2] for style in styles]), legend=key)
    sized = alt.when("isValid(datum.size)").then(alt.Size("size:Q", scale=None))
    lines = alt.Chart().transform_filter("datum.line").mark_line(strokeWidth=2, clip=True)
    dots = alt.Chart().transform_filter("datum.dot && datum.seen").mark_point(filled=True, opacity=1)
    dots = dots.encode(color=tint, size=sized.otherwise(alt.value(30)))
    return [
        lines.encode(color=tint, strokeDash=dash, detail="series:N"),
        dots.encode(shape=shape) if dotted else dots,
    ]


def _mark(place: float, text: str, curve: Curve) -> list[alt.Chart]:
    """Mark a place by a line, a ring on the curve, and a text where the curve leaves room."""
    known = [y for _, y in curve if math.isfinite(y)] or [0.0]
    rising = known[-1] > known[0]
    # Beyond the needed depth the curve is flat, so the right of the line is free, if there is room.
    right = place <= 0.62 * max(curve[-1][0], 1)
    side: dict[str, Any] = {"align": "left", "dx": 7} if right else {"align": "right", "dx": -7}
    here, tint = alt.Chart().transform_filter(f"datum.x === {place}"), colour("mark")
    label = here.mark_text(text=text, color=tint, fontSize=FONT_SIZE, **side)
    ring = here.transform_filter("datum.seen").mark_point(filled=True, size=80, opacity=1, color=tint)
    return [
        here.mark_rule(color=tint, strokeDash=[4, 3], strokeWidth=1.3).encode(**_from_top_to_bottom()),
        ring.encode(stroke=alt.value(colour("surface"))),
        label.encode(y=alt.value(alt.expr("height - 28" if rising else "28"))),
    ]


def _end(curve: Curve) -> list[alt.Chart]:
    """Write the last value beside it."""
    row = {"x": curve[-1][0], "y": _drawable(curve[-1][1])}
    text = alt.Chart(_data([row])).transform_filter("isValid(datum.y)")
    text = text.mark_text(align="left", dx=9, fontSize=FONT_SIZE, color=colour("ink"))
    return [text.encode(text=alt.Text("y:Q", format=".3~g"))]


def _follower(name: str) -> list[alt.Chart]:
    """Draw a line and rings at the place that a slider chooses."""
    here = alt.Chart().transform_filter(f"datum.x === {name}")
    rule = here.mark_rule(color=colour("ink"), opacity=0.5).encode(**_from_top_to_bottom())
    ring = here.transform_filter("datum.seen").mark_point(size=110, color=colour("ink"), opacity=1)
    return [rule.add_params(alt.param(name=name, value=-1)), ring]


def _hover(series: Sequence[Series], x: Axis, y: Axis) -> alt.Chart:
    """Draw nothing but what the pointer is nearest to, and its values."""
    largest = max((x for each in series for x, _ in each.points), default=0.0)
    # Vega-Lite itself looks for names in the wrong place where the nearest point is wanted.
    point = "(datum.datum || datum)"
    shown = {
        "curve": f"{point}.series" if any(each.name for each in series) else "",
        "network": f"{point}.label" if any(each.labels for each in series) else "",
        x.title: f"format({point}.x, '{_format(largest)}')",
        y.title: f"format({point}.y, ',.4~g')",
    }
    pairs = (f"{json.dumps(title)}: {value}" for title, value in shown.items() if value)
    tooltip = alt.value(alt.expr(f"{{{', '.join(pairs)}}}"))
    near = alt.selection_point(
        "near", nearest=True, on="pointerover", clear="pointerout", fields=["x", "series"], empty=False
    )
    dots = (
        alt.Chart().transform_filter("datum.seen").mark_point(filled=True, size=70, color=colour("ink"))
    )
    visible = alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    nearest: alt.Chart = dots.encode(opacity=visible, tooltip=tooltip).add_params(near)
    return nearest


def _band(band: tuple[float, float] | None) -> list[alt.Chart]:
    if band is None or not all(map(math.isfinite, band)):
        return []
    ground = alt.Chart(_data([{"y": min(band), "high": max(band)}])).mark_rect(
        color=colour("accent"), opacity=0.14
    )
    return [ground.encode(x=alt.value(0), x2=alt.value("width"), y2="high:Q")]


def _stages(starts: Collection[int], end: float, *, shift: float = 0.0) -> list[alt.Chart]:
    """Part the places, which end at `end`, where stages begin, and name the stages if there are two."""
    known = sorted({start for start in starts if 0 <= start < end} | {0})
    if len(known) < 2:
        return []
    stages = enumerate(zip(known, [*known[1:], end], strict=True), start=1)
    rows = [
        {
            "x": start + shift,
            "middle": (start + stop) / 2 + shift,
            # Where a stage is too narrow for its name, the number has to do.
            "text": f"stage {number}" if (stop - start) / end > 0.14 else str(number),
        }
        for number, (start, stop) in stages
    ]
    names = alt.Chart(_data(rows)).mark_text(color=colour("muted"), fontSize=11, baseline="bottom")
    lines = alt.Chart(_data(rows[1:])).mark_rule(color=colour("faded"))
    return [
        lines.encode(**_from_top_to_bottom()),
        names.encode(x="middle:Q", y=alt.value(-4), text="text:N"),
    ]


def _from_top_to_bottom() -> dict[str, Any]:
    return {"y": alt.value(0), "y2": alt.value("height")}


def _places(axis: Axis, values: Sequence[float | None], room: float | None = None) -> alt.X:
    scale = _scale(axis, values, room)
    ticks: dict[str, Any] = {"values": list(axis.ticks)} if axis.ticks else {"tickMinStep": 1}
    form = _format(scale.domain[1])
    return alt.X("x:Q", scale=scale, axis=alt.Axis(title=axis.title, format=form, tickCount=8, **ticks))


def _values(axis: Axis, values: Sequence[float | None]) -> alt.Y:
    scale = _scale(axis, values)
    ticks: dict[str, Any] = {"values": _decades(*scale.domain)} if scale.type == "log" else {}
    return alt.Y("y:Q", scale=scale, axis=alt.Axis(title=None, format=",.4~g", tickCount=5, **ticks))


def _scale(axis: Axis, values: Sequence[float | None], room: float | None = None) -> alt.Scale:
    """Fit a scale to the values, with some room at the ends; logarithmic if wanted and of help."""
    known = [value for value in values if value is not None] + ([0.0] if axis.zero else [])
    low, high = axis.domain or (min(known, default=0.0), max(known, default=1.0))
    if axis.log and low > SMALLEST_LOG and high > 10 * low:
        factor = (high / low) ** 0.04
        return alt.Scale(type="log", domain=[low / factor, high * factor], nice=False)
    room = 0.04 * (high - low) if room is None else room
    if room <= 1e-9 * max(abs(low), abs(high)):  # a constant curve gets a range, too
        room = 0.05 * max(abs(low), abs(high)) or 0.5
    bottom = low if axis.domain or (axis.zero and low == 0) else low - room
    return alt.Scale(type="linear", domain=[bottom, high + room], nice=False, zero=False)


def _decades(low: float, high: float) -> list[float]:
    """Place the ticks of a logarithmic axis: 1, 2, 5, 10, … of few decades, else some powers of ten."""
    decades = math.log10(high / low)
    exponents = range(
        math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, math.ceil(decades / 6)
    )
    digits = (1, 2, 5) if decades < 2.5 else (1,)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _columns(series: Sequence[Series]) -> int:
    """Return how many names the key has in a row, so that it fits a phone."""
    longest = max(len(each.name) for each in series)
    return max(1, min(len(series), 36 // (longest + 4)))


def _legend(title: str, symbol: str, **options: Any) -> alt.Legend:
    return alt.Legend(
        title=title, titleOrient="left", orient="top", symbolType=symbol, symbolOpacity=1, **options
    )


def _tooltip(name: str, title: str, form: str = ",.4~g") -> alt.Tooltip:
    number: dict[str, Any] = {"format": form} if name.endswith(":Q") else {}
    return alt.Tooltip(name, title=title, **number)


def _format(largest: float) -> str:
    return ".3~s" if largest >= 1e5 else ",.6~g"


def _config() -> dict[str, Any]:
    text = {"labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE, "titleFontWeight": "normal"}
    muted, ink = colour("muted"), colour("ink")
    lines = {"gridColor": colour("hairline"), "domainColor": colour("faded"), "ticks": False}
    axis = {"labelColor": muted, "titleColor": muted, "labelPadding": 6, "titlePadding": 8}
    legend = {"labelColor": muted, "titleColor": ink, "symbolStrokeWidth": 2, "labelLimit": 240}
    return {
        "font": "system-ui, sans-serif",
        "background": "transparent",
        "aria": False,
        "view": {"stroke": "transparent"},
        "title": {"fontSize": FONT_SIZE, "fontWeight": "normal", "color": ink},
        "axis": text | lines | axis,
        "axisX": {"grid": False},
        "axisY": {"domain": False, "minExtent": 30},
        "legend": text | legend | {"titlePadding": 14, "columnPadding": 14, "offset": 10},
    }


def _drawable(value: float) -> float | None:
    """Round for drawing; what is no number, or far too large, is a gap."""
    if not math.isfinite(value) or abs(value) > LARGEST_DRAWN:
        return None
    return float(f"{value:.6g}")


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _data(rows: Rows) -> alt.InlineData:
    return alt.InlineData(values=list(rows))
