"""What charts are made of: layers of Vega-Lite, scales, rows of data, and the style of them all.

Every colour is `var(--name, #hex)`: inside a page the light and the dark scheme set the variables, and
an SVG opened by itself shows the light colours. Curves differ by dash and shape as well as by colour.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    ("accent", (1, 0), "circle"),
    ("mark", (6, 3), "square"),
    ("muted", (2, 2.5), "triangle-up"),
    ("green", (9, 3, 2, 3), "diamond"),
    ("violet", (4, 2), "cross"),
    ("ink", (1, 3), "triangle-down"),
)
FONT_SIZE = 12.5
# A value beyond this is a training that diverged; drawn, it would flatten everything else.
LARGEST_DRAWN, SMALLEST_LOG = 1e15, 1e-12

Curve = Sequence[tuple[float, float]]
Numbers = Sequence[float]
Spec = Mapping[str, Any]
"""A part of a Vega-Lite specification, or a row of data."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    title: str  #: its name and unit
    log: bool = False  #: logarithmic, where the values are positive and span more than a decade
    zero: bool = False  #: begins at 0
    #: the ends, chosen from the values if not given; what is beyond is cut off
    domain: tuple[float, float] | None = None
    ticks: tuple[float, ...] = ()  #: where the ticks are, chosen if empty


@dataclass(frozen=True)
class Series:
    """A curve, or a cloud of points."""

    name: str  #: what the key calls it; empty where there is only one
    points: Curve  #: pairs (x, y); a y that is missing leaves a gap
    line: bool = True  #: join the points
    dots: bool = True  #: show the points
    colour: str = ""  #: one of `COLOURS`; that of its place among the series if empty
    sizes: Numbers = ()  #: of the dots, in square pixels; alike if empty
    labels: Sequence[str] = ()  #: what hovering calls each point; nothing if empty


def colour(name: str) -> str:
    """Return a colour as CSS that the page may override."""
    return f"var(--{name}, {COLOURS[name]})"


def series_rows(series: Series, low: float) -> list[Spec]:
    """Make the rows of a series; what is below `low` is not seen."""
    values = [drawable(y) for _, y in series.points]
    rows: list[Spec] = []
    for place, ((x, _), y) in enumerate(zip(series.points, values, strict=True)):
        neighbours = values[max(place - 1, 0) : place] + values[place + 1 : place + 2]
        row: dict[str, object] = {
            "series": printable(series.name),
            "x": x,
            "y": y,
            "line": series.line,
            # A value whose neighbours are missing has no line through it and would be invisible.
            "dot": series.dots or all(value is None for value in neighbours),
            "seen": y is not None and y >= low,
            "size": series.sizes[place] if series.sizes else 30,
        }
        rows.append(row | ({"label": printable(series.labels[place])} if series.labels else {}))
    return rows


def curve_rows(curves: Sequence[tuple[int, Numbers]]) -> list[Spec]:
    """Make one row of lists of each curve z, which travels shorter than a row for each point."""
    return [{"z": z, "y": list(map(drawable, curve))} for z, curve in curves]


def points_of_lists() -> list[Spec]:
    """Make points x, y, z of such rows."""
    place = {"window": [{"op": "row_number", "as": "place"}], "groupby": ["z"]}
    return [{"flatten": ["y"]}, place, {"calculate": "datum.place - 1", "as": "x"}]


def curve_layers(series: Sequence[Series], key: Spec | None) -> list[Spec]:
    """Draw lines and dots."""
    names = [printable(each.name) for each in series]
    count = len(STYLES)
    styles = [STYLES[place % count] for place in range(len(series))]
    # From the seventh on a colour comes again, with another dash and another shape.
    forms = [STYLES[(place + place // count) % count] for place in range(len(series))]
    colours = [colour(each.colour or style[0]) for each, style in zip(series, styles, strict=True)]
    dotted = any(each.dots for each in series)
    if key:
        symbol = {"symbolSize": 60, "symbolStrokeWidth": 0} if dotted else {"symbolSize": 240}
        key = {**key, **symbol, "symbolType": "circle" if dotted else "stroke"}

    def by_name(values: Sequence[object]) -> Spec:
        return category("series", scale={"domain": names, "range": values}, legend=key)

    tint, dashes = by_name(colours), by_name([form[1] for form in forms])
    lines = {
        "transform": [{"filter": "datum.line"}],
        "mark": {"type": "line", "strokeWidth": 2, "clip": True},
        "encoding": {"color": tint, "strokeDash": dashes, "detail": category("series")},
    }
    shape = {"shape": by_name([form[2] for form in forms])} if dotted else {}
    dots = {
        "transform": [{"filter": "datum.dot && datum.seen"}],
        "mark": {"type": "point", "filled": True, "opacity": 1},
        "encoding": {"color": tint, "size": quantity("size", scale=None), **shape},
    }
    return [lines, dots]


def mark_layers(place: float, text: str, curve: Curve) -> list[Spec]:
    """Mark a place by a line, a ring on the curve, and a text where the curve leaves room."""
    known = [y for _, y in curve if math.isfinite(y)] or [0.0]
    height = "height - 28" if known[-1] > known[0] else "28"
    # Beyond the needed depth the curve is flat, so the right of the line is free, if there is room.
    right = place <= 0.62 * max(curve[-1][0], 1)
    side = {"align": "left", "dx": 7} if right else {"align": "right", "dx": -7}
    here, tint = {"filter": f"datum.x === {place}"}, {"color": colour("mark")}
    ring = {"type": "point", "filled": True, "size": 80, "opacity": 1, "stroke": colour("surface")}
    return [
        {**_rule(strokeDash=[4, 3], strokeWidth=1.3, **tint), "transform": [here]},
        {"transform": [here, {"filter": "datum.seen"}], "mark": {**ring, **tint}},
        {
            "transform": [here],
            "mark": {"type": "text", "text": text, "fontSize": FONT_SIZE, **side, **tint},
            "encoding": {"y": {"value": {"expr": height}}},
        },
    ]


def end_layer(curve: Curve) -> list[Spec]:
    """Write the last value beside it."""
    return [
        {
            "data": {"values": [{"x": curve[-1][0], "y": drawable(curve[-1][1])}]},
            "transform": [{"filter": "isValid(datum.y)"}],
            "mark": {
                "type": "text",
                "align": "left",
                "dx": 9,
                "fontSize": FONT_SIZE,
                "color": colour("ink"),
            },
            "encoding": {"text": quantity("y", format=".3~g")},
        }
    ]


def follower_layers(name: str) -> list[Spec]:
    """Draw a line and rings at the place that a slider chooses."""
    here, ink = {"filter": f"datum.x === {name}"}, colour("ink")
    ring = {"type": "point", "size": 110, "opacity": 1, "color": ink}
    return [
        {**_rule(color=ink, opacity=0.5), "transform": [here]},
        {"transform": [here, {"filter": "datum.seen"}], "mark": ring},
    ]


def hover_layer(series: Sequence[Series], x: Axis, y: Axis) -> Spec:
    """Draw nothing but what the pointer is nearest to, and its values."""
    largest = max((place for each in series for place, _ in each.points), default=0.0)
    # Vega-Lite itself looks for names in the wrong place where the nearest point is wanted.
    point = "(datum.datum || datum)"
    shown = {
        "curve": f"{point}.series" if any(each.name for each in series) else "",
        "network": f"{point}.label" if any(each.labels for each in series) else "",
        x.title: f"format({point}.x, '{_format(largest)}')",
        y.title: f"format({point}.y, ',.4~g')",
    }
    pairs = (f"{json.dumps(title)}: {value}" for title, value in shown.items() if value)
    select = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    return {
        "transform": [{"filter": "datum.seen"}],
        "params": [{"name": "near", "select": {**select, "fields": ["x", "series"]}}],
        "mark": {"type": "point", "filled": True, "size": 70, "color": colour("ink")},
        "encoding": {
            "opacity": {"value": 0, "condition": {"param": "near", "empty": False, "value": 1}},
            "tooltip": {"value": {"expr": f"{{{', '.join(pairs)}}}"}},
        },
    }


def band_layer(band: tuple[float, float] | None) -> list[Spec]:
    """Shade the ground between two values, if both can be drawn."""
    if band is None or None in map(drawable, band):
        return []
    return [
        {
            "data": {"values": [{"y": min(band), "high": max(band)}]},
            "mark": {"type": "rect", "color": colour("accent"), "opacity": 0.14, "clip": True},
            "encoding": {"x": {"value": 0}, "x2": {"value": "width"}, "y2": {"field": "high"}},
        }
    ]


def stage_layers(starts: Collection[int], end: float, *, shift: float = 0.0) -> list[Spec]:
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
    names = {"type": "text", "color": colour("muted"), "fontSize": 11, "baseline": "bottom"}
    return [
        {**_rule(color=colour("faded")), "data": {"values": rows[1:]}},
        {
            "data": {"values": rows},
            "mark": names,
            "encoding": {"x": quantity("middle"), "y": {"value": -4}, "text": category("text")},
        },
    ]


def _rule(**style: object) -> Spec:
    """Draw a line from top to bottom."""
    whole = {"y": {"value": 0}, "y2": {"value": "height"}}
    return {"mark": {"type": "rule", **style}, "encoding": whole}


def axes(x: Axis, places: Sequence[float], y: Axis, values: Sequence[float | None]) -> dict[str, Spec]:
    """Make the axes and scales that hold these places and values."""
    across, up = _scale(x, places), _scale(y, values)
    ticks = {"values": x.ticks} if x.ticks else {"tickMinStep": 1, "tickCount": 8}
    form = _format(across["domain"][1])
    decades = {"values": _decades(*up["domain"])} if up["type"] == "log" else {"tickCount": 5}
    return {
        "x": quantity("x", scale=across, axis={"title": x.title, "format": form, **ticks}),
        "y": quantity("y", scale=up, axis={"title": None, "format": ",.4~g", **decades}),
    }


def _scale(axis: Axis, values: Sequence[float | None]) -> Spec:
    """Fit a scale to the values, with some room at the ends; logarithmic if wanted and of help."""
    if axis.domain:
        return {"type": "linear", "domain": axis.domain, "nice": False, "zero": False}
    known = [value for value in values if value is not None] + ([0.0] if axis.zero else [])
    low, high = min(known, default=0.0), max(known, default=1.0)
    if axis.log and low > SMALLEST_LOG and high > 10 * low:
        factor = (high / low) ** 0.04
        return {"type": "log", "domain": [low / factor, high * factor], "nice": False}
    room = 0.04 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):  # a constant curve gets a range, too
        room = 0.05 * max(abs(low), abs(high)) or 0.5
    bottom = 0 if axis.zero and low == 0 else low - room
    return {"type": "linear", "domain": [bottom, high + room], "nice": False, "zero": False}


def _decades(low: float, high: float) -> list[float]:
    """Place the ticks of a logarithmic axis: 1, 2, 5, 10, … of few decades, else some powers of ten."""
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if decades < 2.5 else (1,)
    exponents = range(first, last + 1, math.ceil(decades / 6))
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def key_columns(series: Sequence[Series]) -> int:
    """Return how many names the key has in a row, so that it fits a phone."""
    longest = max(len(each.name) for each in series)
    return max(1, min(len(series), 36 // (longest + 4)))


def legend(staged: bool, **options: object) -> Spec:
    """Make the key that stands above a plot."""
    # The names of stages stand between the key and the plot.
    return {"title": None, "orient": "top", "offset": 24 if staged else 8, "symbolOpacity": 1, **options}


def quantity(name: str, **options: object) -> Spec:
    """Encode a field of numbers."""
    return {"field": name, "type": "quantitative", **options}


def category(name: str, **options: object) -> Spec:
    """Encode a field of names."""
    return {"field": name, "type": "nominal", **options}


def _format(largest: float) -> str:
    return ".3~s" if largest >= 1e5 else ",.6~g"


def config() -> Spec:
    """Make the style that all charts have."""
    text = {"labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE, "titleFontWeight": "normal"}
    muted, ink = colour("muted"), colour("ink")
    lines = {"gridColor": colour("hairline"), "domainColor": colour("faded"), "ticks": False}
    axis = {"labelColor": muted, "titleColor": muted, "labelPadding": 6, "titlePadding": 8}
    key = {"labelColor": muted, "symbolStrokeWidth": 2, "labelLimit": 240, "columnPadding": 24}
    return {
        "font": "system-ui, sans-serif",
        "background": "transparent",
        "aria": False,
        "view": {"stroke": "transparent"},
        "title": {"fontSize": FONT_SIZE, "fontWeight": "normal", "color": ink},
        "axis": {**text, **lines, **axis},
        "axisX": {"grid": False},
        "axisY": {"domain": False, "minExtent": 30},
        "legend": {"labelFontSize": FONT_SIZE, **key},
    }


def drawable(value: float) -> float | None:
    """Round for drawing; what is no number, or far too large, is a gap."""
    if not math.isfinite(value) or abs(value) > LARGEST_DRAWN:
        return None
    return float(f"{value:.5g}")


def printable(text: str) -> str:
    """Replace what is no text, such as bytes of a path."""
    return text.encode("utf-8", "replace").decode("utf-8")
