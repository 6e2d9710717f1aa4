"""The report's figures, each a function from plain numbers to an SVG string.

Every colour is written as `var(--name, #hex)`: inside the report's page the light and the dark scheme
set the variables, and an SVG opened by itself shows the light colours. No figure contains text that a
user provides. Missing values (None, NaN, infinite) leave a gap.
"""

import io
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

Values = Sequence[float | None]
"""Measurements in order; None and NaN stand for one that is missing."""

COLOURS = {
    "ink": "#1d2935",
    "muted": "#5b6b7b",
    "hairline": "#e3e8ed",
    "accent": "#1f6292",
    "faded": "#c9d2da",
    "mark": "#b8541a",
    "surface": "#ffffff",
}

# Small figures with large type: one SVG serves a phone (scaled to 0.7) and half a desktop page.
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 46, 30, 46
STAGE_NAMES = 18
FONT_SIZE = 12.5

MAX_EPOCH_LINES = 12
# A value beyond this is a training that diverged; drawn, it would flatten everything else.
LARGEST_DRAWN = 1e15
SMALLEST_LOG = 1e-12


def loss_over_depth(
    losses: Values,
    needed_blocks: int,
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "Loss over depth",
) -> str:
    """Draw the loss L_k of every intermediate output y_k, k = 0 … N.

    The scale is logarithmic where the losses span more than a decade.

    Args:
        losses: L_0 … L_N.
        needed_blocks: the depth to mark.
        stage_starts: the paper's indices k of the blocks at which a stage begins.
        summary: what a screen reader says in place of the figure.
    """
    panel = _panel("loss", len(losses))
    _scale_values(panel.axes, [_cleaned(losses)], logarithmic=True)
    _draw_stages(panel.axes, stage_starts, len(losses) - 1, shift=0.0)
    _draw_depth_curve(panel.axes, losses, needed_blocks, label_height=0.88, end="{:.3g}")
    return _to_svg(panel.figure, "loss", summary)


def accuracy_over_depth(
    accuracies: Values,
    needed_blocks: int,
    tolerance: float,
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "Accuracy over depth",
) -> str:
    """Draw the accuracy of every intermediate output y_k, and the band that counts as good enough.

    Args:
        accuracies: percent, for k = 0 … N.
        needed_blocks: the depth to mark.
        tolerance: the band below the terminal accuracy, in points.
        stage_starts: the paper's indices k of the blocks at which a stage begins.
        summary: what a screen reader says in place of the figure.
    """
    panel = _panel("accuracy (%)", len(accuracies))
    values = _cleaned(accuracies)
    terminal = values[-1]
    threshold = _cleaned([terminal - tolerance])[0]
    floor = accuracy_floor(values, tolerance)
    _scale_values(panel.axes, [[v for v in values if not v < floor], [threshold, floor]])
    if math.isfinite(floor):
        panel.axes.set_ylim(bottom=floor)
    if math.isfinite(threshold):
        panel.axes.axhspan(threshold, terminal, color=COLOURS["accent"], alpha=0.14, linewidth=0)
        panel.axes.axhline(threshold, color=COLOURS["accent"], linewidth=0.8, alpha=0.6)
    _draw_stages(panel.axes, stage_starts, len(values) - 1, shift=0.0)
    _draw_depth_curve(panel.axes, values, needed_blocks, label_height=0.12, end="{:.1f}")
    return _to_svg(panel.figure, "accuracy", summary)


def development_over_epochs(
    epochs: Sequence[tuple[int, Values]],
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "Loss over depth, epoch by epoch",
) -> str:
    """Draw the loss over depth once an epoch, from faint (early) to strong (late).

    Lines rather than a heatmap: they have the axes of the loss figure, so the last line is that
    figure, one epoch needs no special case, and "flat from here on" is a shape, which the eye reads
    better than an edge between shades. A few lines stand for many epochs, see `chosen_epochs`, and
    opacity instead of a colour map reads alike on a light and on a dark page.

    Args:
        epochs: pairs of an epoch's number and its losses L_0 … L_N.
        stage_starts: the paper's indices k of the blocks at which a stage begins.
        summary: what a screen reader says in place of the figure.
    """
    drawn = [epochs[index] for index in chosen_epochs(len(epochs))]
    curves = [_cleaned(losses) for _, losses in drawn]
    longest = max((len(curve) for curve in curves), default=1)
    panel = _panel("loss", longest)
    _scale_values(panel.axes, curves, logarithmic=True)
    _draw_stages(panel.axes, stage_starts, longest - 1, shift=0.0)
    opacities = _opacities(len(drawn))
    for curve, opacity in zip(curves, opacities, strict=True):
        last = opacity == 1.0
        _draw_curve(panel.axes, range(len(curve)), curve, width=2.2 if last else 1.5, alpha=opacity)
    _draw_epoch_scale(panel, [epoch for epoch, _ in drawn], opacities)
    return _to_svg(panel.figure, "development", summary)


def learning_curve(
    epochs: Sequence[int],
    train_losses: Values,
    validation_losses: Values,
    *,
    summary: str = "Terminal loss over epochs",
) -> str:
    """Draw the loss of the terminal output y_N over the epochs, in training and in validation.

    Args:
        epochs: the epochs' numbers.
        train_losses: one value an epoch.
        validation_losses: one value an epoch; all of them missing if there was no such split.
        summary: what a screen reader says in place of the figure.
    """
    panel = _panel("loss of the terminal output", 0)
    axes, train, validation = panel.axes, _cleaned(train_losses), _cleaned(validation_losses)
    _scale_values(axes, [train, validation], logarithmic=True)
    first, last = (min(epochs), max(epochs)) if epochs else (1, 1)
    margin = max(0.02 * (last - first), 0.5 if first == last else 0.0)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("epoch", color=COLOURS["muted"], fontsize=FONT_SIZE)
    _draw_curve(axes, epochs, train, colour="muted", width=1.6, dashes=(4, 2))
    _draw_curve(axes, epochs, validation)
    shown = [("training", "muted", (0, (4, 2)), train), ("validation", "accent", "-", validation)]
    for row, (label, colour, style, values) in enumerate(shown):
        if any(map(math.isfinite, values)):
            _draw_key(axes, row, label, colour, style)
    return _to_svg(panel.figure, "learning", summary)


def residual_ratios(
    ratios: Values,
    kept_blocks: Collection[int],
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "Relative size of the residual branches",
) -> str:
    """Draw ‖F_k(x_k)‖ / ‖x_k‖ of every block, the blocks that are not kept in a muted colour."""
    text = "size of F relative to the state"
    return _bars(ratios, kept_blocks, stage_starts, value_name=text, name="ratios", summary=summary)


def weight_norms(
    norms: Values,
    kept_blocks: Collection[int],
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "Weight norms of the residual branches",
) -> str:
    """Draw ‖w_F,k‖ of every block, the blocks that are not kept in a muted colour."""
    text = "norm of the weights of F"
    return _bars(norms, kept_blocks, stage_starts, value_name=text, name="norms", summary=summary)


def block_strip(
    num_blocks: int,
    kept_blocks: Collection[int],
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "The blocks from the input to the output",
) -> str:
    """Draw the network as a row of blocks from input to output, the kept ones coloured."""
    width, height, stage_gap = 1000.0, 26, 10.0
    starts = [start for start in sorted(set(stage_starts)) if 0 < start < num_blocks]
    step = (width - stage_gap * len(starts)) / max(num_blocks, 1)
    # Gaps between single blocks vanish before they would eat the blocks themselves.
    gap = min(3.0, 0.2 * step) if num_blocks <= 200 else 0.0
    kept = set(kept_blocks)
    shapes = []
    for first, last in _runs(num_blocks, kept, starts, single=gap > 0):
        left = first * step + stage_gap * sum(start <= first for start in starts)
        size = (last - first + 1) * step - gap
        colour = "accent" if first in kept else "faded"
        radius = min(3.0, size / 4)
        shapes.append(
            f'<rect x="{left:.2f}" y="0" width="{size:.2f}" height="{height}" rx="{radius:.2f}" '
            f'style="fill: {_variable(colour)}"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" viewBox="0 0 {width:g} {height}" '
        f'preserveAspectRatio="none" role="img" aria-label={quoteattr(summary)}>'
        f"{''.join(shapes)}</svg>"
    )


def accuracy_floor(accuracies: Values, tolerance: float) -> float:
    """Return where the accuracy axis ends at the bottom: minus infinity if nothing is cut off.

    With an axis down to chance level, a tolerance of half a point would be as thin as a hair. What
    lies below the floor is far from good enough, and the loss figure shows all of it.
    """
    values = _cleaned(accuracies)
    floor = values[-1] - max(20 * tolerance, 4.0) if values else math.nan
    return floor if any(value < floor for value in values) else -math.inf


def chosen_epochs(count: int) -> list[int]:
    """Choose which of `count` epochs to draw: all of a few, else first, last and some between.

    The steps grow geometrically, for a loss changes about as much from epoch 1 to 2 as from 100 to 200.
    """
    if count <= MAX_EPOCH_LINES:
        return list(range(count))
    ratio = count ** (1 / (MAX_EPOCH_LINES - 1))
    positions = [round(ratio**step) - 1 for step in range(MAX_EPOCH_LINES)]
    return sorted({max(0, min(position, count - 1)) for position in positions} | {0, count - 1})


# ---------------------------------------------------------------------------------------- panels


@dataclass(frozen=True)
class _Panel:
    figure: Any
    axes: Any


def _panel(value_name: str, num_depths: int) -> _Panel:
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
    _write(axes, 6 / WIDTH, top, value_name, transform="figure", ha="left", colour="ink")
    if num_depths:
        last = num_depths - 1
        axes.set_xlim(-0.02 * max(last, 1), last + 0.02 * max(last, 1))
        axes.set_xlabel("depth k (blocks in use)", color=COLOURS["muted"], fontsize=FONT_SIZE)
    return _Panel(figure, axes)


def _bars(
    values: Values,
    kept_blocks: Collection[int],
    stage_starts: Sequence[int],
    *,
    value_name: str,
    name: str,
    summary: str,
) -> str:
    heights, kept = _cleaned(values), set(kept_blocks)
    panel = _panel(value_name, 0)
    panel.axes.set_xlabel("block k", color=COLOURS["muted"], fontsize=FONT_SIZE)
    panel.axes.set_xlim(-0.75, max(len(heights), 1) - 0.25)
    # A bar's length is its value, so the axis starts at 0 and stays linear.
    finite = [value for value in heights if math.isfinite(value)]
    _scale_values(panel.axes, [finite, [0.0] if finite else []])
    if min(finite, default=0.0) >= 0:
        panel.axes.set_ylim(bottom=0)
    width = 0.78 if len(heights) <= 80 else 1.0
    for colour, wanted in (("accent", True), ("faded", False)):
        chosen = [k for k in range(len(heights)) if (k in kept) is wanted]
        _draw_bars(panel.axes, chosen, heights, width, COLOURS[colour])
    _draw_stages(panel.axes, stage_starts, len(heights), shift=-0.5)
    return _to_svg(panel.figure, name, summary)


# --------------------------------------------------------------------------------------- drawing


def _draw_curve(
    axes: Any,
    positions: Sequence[int],
    values: Sequence[float],
    *,
    colour: str = "accent",
    width: float = 2.0,
    alpha: float = 1.0,
    dashes: tuple[float, float] | None = None,
) -> None:
    style = {"color": COLOURS[colour], "alpha": alpha, "solid_capstyle": "round"}
    (line,) = axes.plot(list(positions), list(values), linewidth=width, **style)
    if dashes is not None:
        line.set_dashes(dashes)
    # A value whose neighbours are missing has no line through it and would be invisible.
    dots = [i for i in range(len(values)) if math.isfinite(values[i]) and _isolated(values, i)]
    if dots:
        axes.plot([positions[i] for i in dots], [values[i] for i in dots], "o", markersize=4, **style)


def _draw_depth_curve(
    axes: Any, values: Values, needed_blocks: int, *, label_height: float, end: str
) -> None:
    curve = _cleaned(values)
    _draw_curve(axes, range(len(curve)), curve)
    if len(curve) <= 41:
        axes.plot(curve, "o", color=COLOURS["accent"], markersize=4.2)
    if math.isfinite(curve[-1]):
        last = (len(curve) - 1, curve[-1])
        text = end.format(curve[-1])
        _write(axes, *last, text, transform="data", offset=(8, -4), ha="left", colour="ink")
    if needed_blocks < len(curve):
        _draw_mark(axes, needed_blocks, curve[needed_blocks], len(curve) - 1, label_height)


def _draw_mark(axes: Any, depth: int, value: float, last: int, label_height: float) -> None:
    axes.axvline(depth, color=COLOURS["mark"], linewidth=1.3, dashes=(3, 2.5), zorder=3)
    if math.isfinite(value):
        mark = {"color": COLOURS["mark"], "markersize": 8, "markeredgewidth": 2}
        axes.plot([depth], [value], "o", markeredgecolor=COLOURS["surface"], zorder=4, **mark)
    # Beyond the needed depth the curve is flat, so the right of the line is free, if there is room.
    right = depth <= 0.62 * max(last, 1)
    side, shift = ("left", 7) if right else ("right", -7)
    text = f"{depth} needed"
    _write(axes, depth, label_height, text, transform="x", offset=(shift, -4), ha=side, colour="mark")


def _draw_stages(axes: Any, stage_starts: Sequence[int], end: int, *, shift: float) -> None:
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
            _write(axes, middle, 1, text, transform="x", offset=(0, 6), ha="center", size=11)


def _draw_bars(
    axes: Any, blocks: Sequence[int], heights: Sequence[float], width: float, colour: str
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners: list[tuple[float, float]] = []
    for k in blocks:
        if math.isfinite(heights[k]):
            left, right, top = k - width / 2, k + width / 2, heights[k]
            corners += [(left, 0.0), (left, top), (right, top), (right, 0.0), (left, 0.0)]
    if not corners:
        return
    # All bars of one colour are one path: a thousand blocks stay one element.
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * (len(corners) // 5)
    axes.add_patch(PathPatch(Outline(corners, codes), facecolor=colour, linewidth=0))


def _draw_epoch_scale(panel: _Panel, epochs: Sequence[int], opacities: Sequence[float]) -> None:
    from matplotlib.patches import Rectangle

    if len(epochs) < 2:
        return
    right, top = WIDTH - RIGHT - 26, HEIGHT - 17
    step = 96 / len(epochs)
    left = right - step * len(epochs)
    for index, opacity in enumerate(opacities):
        patch = Rectangle(
            ((left + index * step) / WIDTH, (top - 1) / HEIGHT),
            step / WIDTH,
            9 / HEIGHT,
            transform=panel.figure.transFigure,
            facecolor=COLOURS["accent"],
            alpha=opacity,
            linewidth=0,
            clip_on=False,
        )
        panel.axes.add_patch(patch)
    texts = [(f"epoch {epochs[0]}", left - 6, "right"), (str(epochs[-1]), right + 6, "left")]
    for text, x, align in texts:
        _write(panel.axes, x / WIDTH, top / HEIGHT, text, transform="figure", ha=align)


def _draw_key(axes: Any, row: int, label: str, colour: str, style: Any) -> None:
    from matplotlib.lines import Line2D

    x, y = (WIDTH - RIGHT - 190 + 95 * row) / WIDTH, (HEIGHT - 12.5) / HEIGHT
    ends = [x, x + 20 / WIDTH], [y, y]
    line = {"transform": axes.figure.transFigure, "clip_on": False, "linestyle": style}
    axes.add_line(Line2D(*ends, color=COLOURS[colour], linewidth=2, **line))
    _write(axes, ends[0][1], y, label, transform="figure", offset=(6, -4), ha="left")


def _write(
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


# ---------------------------------------------------------------------------------------- scales


def _scale_values(axes: Any, curves: Sequence[Sequence[float]], *, logarithmic: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    finite = [value for curve in curves for value in curve if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if not finite:
        _write(axes, 0.5, 0.5, "no values", ha="center")
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


def _cleaned(values: Values) -> list[float]:
    return [
        math.nan
        if value is None or not math.isfinite(value) or abs(value) > LARGEST_DRAWN
        else float(value)
        for value in values
    ]


def _isolated(values: Sequence[float], index: int) -> bool:
    neighbours = [*values[max(index - 1, 0) : index], *values[index + 1 : index + 2]]
    return not any(map(math.isfinite, neighbours))


def _opacities(count: int) -> list[float]:
    if count < 2:
        return [1.0] * count
    return [0.14 + 0.66 * index / (count - 1) for index in range(count - 1)] + [1.0]


def _runs(
    num_blocks: int, kept: Collection[int], starts: Sequence[int], *, single: bool
) -> list[tuple[int, int]]:
    # Neighbours of one colour and one stage are drawn as one shape, unless gaps part the blocks.
    runs: list[tuple[int, int]] = []
    for block in range(num_blocks):
        same = block > 0 and block not in starts and (block in kept) == (block - 1 in kept)
        if same and not single:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


# ------------------------------------------------------------------------------------------- svg


def _variable(colour: str) -> str:
    return f"var(--{colour}, {COLOURS[colour]})"


def _to_svg(figure: Any, name: str, summary: str) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # Text stays text: it takes the page's font and can be searched. The salt makes ids repeatable.
    options = {"svg.fonttype": "none", "svg.hashsalt": "stagecost"}
    with mpl.rc_context(options):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inlined(buffer.getvalue(), name, summary)


def _inlined(document: str, name: str, summary: str) -> str:
    """Make an SVG document a part of a page: no prolog, its own ids, colours as variables."""
    svg = document[document.index("<svg") :].strip()
    # The style sheet would hold for the whole page; its one rule that matters moves to the root.
    for unwanted in (r"\s*<metadata>.*?</metadata>", r"\s*<style\b.*?</style>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, code in COLOURS.items():
        svg = svg.replace(code, _variable(colour))
    # The page decides the size; the view box keeps the proportions.
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    root = f'<svg role="img" aria-label={quoteattr(summary)} style="stroke-linejoin: round"'
    return svg.replace("<svg", root, 1)
