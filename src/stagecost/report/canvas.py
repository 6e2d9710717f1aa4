"""What the figures are drawn on and with: axes in the report's style, scales, curves, text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagecost.report.svg import COLOURS

Values = Sequence[float | None]
"""Measurements in order; None and NaN stand for one that is missing."""

# Small figures with large type: one SVG serves a phone (scaled to 0.7) and half a desktop page.
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 46, 30, 46
STAGE_NAMES = 18
FONT_SIZE = 12.5
# A value beyond this is a training that diverged; drawn, it would flatten everything else.
LARGEST_DRAWN = 1e15
SMALLEST_LOG = 1e-12


@dataclass(frozen=True)
class Panel:
    """A figure and its axes."""

    figure: Any
    axes: Any


def make_panel(value_name: str, num_depths: int) -> Panel:
    """Make axes for values of this name, over `num_depths` depths; with 0, over something else."""
    # The object API: no pyplot, so no figure is registered anywhere and no window system is touched.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="none")
    inner = (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *inner), facecolor="none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["faded"])
    axes.grid(axis="y", color=COLOURS["hairline"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6, labelsize=FONT_SIZE, labelcolor=COLOURS["muted"], which="both")
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 4, 5, 10], integer=True, min_n_ticks=1)
    )
    # The name of the values stands above the axis, where it can be read without turning the head.
    top = (HEIGHT - 16) / HEIGHT
    write_text(axes, 6 / WIDTH, top, value_name, transform="figure", ha="left", colour="ink")
    if num_depths:
        last = num_depths - 1
        axes.set_xlim(-0.02 * max(last, 1), last + 0.02 * max(last, 1))
        axes.set_xlabel("depth k (blocks in use)", color=COLOURS["muted"], fontsize=FONT_SIZE)
    return Panel(figure, axes)


def write_text(
    axes: Any,
    x: float,
    y: float,
    text: str,
    *,
    transform: str = "axes",
    offset: tuple[float, float] = (0, 0),
    ha: str,
    colour: str = "muted",
    size: float = FONT_SIZE,
) -> None:
    """Write text at a place, `offset` by points; `transform` names the system of coordinates.

    "x" is a mixed one: x in data, y as a fraction of the axes.
    """
    systems = {
        "axes": "axes fraction",
        "data": "data",
        "figure": "figure fraction",
        "x": axes.get_xaxis_transform(),
    }
    axes.annotate(
        text,
        (x, y),
        xycoords=systems[transform],
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va="baseline",
        color=COLOURS[colour],
        fontsize=size,
        annotation_clip=False,
    )


def draw_curve(
    axes: Any,
    positions: Sequence[int],
    values: Sequence[float],
    *,
    colour: str = "accent",
    width: float = 2.0,
    alpha: float = 1.0,
    dashes: tuple[float, float] | None = None,
) -> None:
    """Draw a line with gaps where values are missing."""
    style = {"color": COLOURS[colour], "alpha": alpha, "solid_capstyle": "round"}
    (line,) = axes.plot(list(positions), list(values), linewidth=width, **style)
    if dashes is not None:
        line.set_dashes(dashes)
    # A value whose neighbours are missing has no line through it and would be invisible.
    dots = [i for i in range(len(values)) if math.isfinite(values[i]) and _isolated(values, i)]
    if dots:
        axes.plot([positions[i] for i in dots], [values[i] for i in dots], "o", markersize=4, **style)


def draw_stages(axes: Any, stage_starts: Sequence[int], end: int, *, shift: float) -> None:
    """Part the axes, which end at `end`, where stages begin, and name the stages if there are two."""
    starts = sorted({start for start in stage_starts if 0 <= start < end} | {0})
    if len(starts) < 2:
        return
    height = (HEIGHT - TOP - STAGE_NAMES - BOTTOM) / HEIGHT
    axes.set_position((LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, height))
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True), start=1):
        if start > 0:
            axes.axvline(start + shift, color=COLOURS["faded"], linewidth=1, zorder=1)
        share = (stop - start) / end
        # Where a stage is too narrow for its name, the number has to do.
        text = f"stage {number}" if share > 0.14 else str(number) if share > 0.04 else ""
        if text:
            middle = (start + stop) / 2 + shift
            write_text(axes, middle, 1, text, transform="x", offset=(0, 6), ha="center", size=11)


def scale_values(axes: Any, curves: Sequence[Sequence[float]], *, logarithmic: bool = False) -> None:
    """Set the scale of the values so that all curves fit; with `logarithmic`, that if it helps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    finite = [value for curve in curves for value in curve if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if not finite:
        write_text(axes, 0.5, 0.5, "no values", ha="center")
    if logarithmic and low > SMALLEST_LOG and high > 10 * low:
        _scale_logarithmically(axes, low, high)
        return
    # A constant curve gets some room above and below instead of a range of zero.
    margin = 0.06 * (high - low)
    if margin <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.05 * max(abs(low), abs(high)) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _scale_logarithmically(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    decades = math.log10(high / low)
    margin = 10 ** (0.06 * decades)
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    subdivisions = (1, 2, 5) if decades < 2.5 else (1,)
    stride = max(1, math.ceil(decades / 6))
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2, stride)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in subdivisions]
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if _within(axes, t)]))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _within(axes: Any, value: float) -> bool:
    low, high = axes.get_ylim()
    return bool(low <= value <= high)


def _tick(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def cleaned(values: Values) -> list[float]:
    """Return the values with NaN for all that cannot be drawn."""
    return [
        math.nan
        if value is None or not math.isfinite(value) or abs(value) > LARGEST_DRAWN
        else float(value)
        for value in values
    ]


def _isolated(values: Sequence[float], index: int) -> bool:
    neighbours = [*values[max(index - 1, 0) : index], *values[index + 1 : index + 2]]
    return not any(map(math.isfinite, neighbours))
