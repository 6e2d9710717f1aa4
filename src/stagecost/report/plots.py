"""The report's figures, each a function from plain numbers to an SVG string.

No figure contains text that a user provides. Missing values (None, NaN, infinite) leave a gap.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from stagecost.report.canvas import (
    FONT_SIZE,
    HEIGHT,
    RIGHT,
    WIDTH,
    Panel,
    Values,
    cleaned,
    draw_curve,
    draw_stages,
    make_panel,
    scale_values,
    write_text,
)
from stagecost.report.svg import COLOURS, to_svg

MAX_EPOCH_LINES = 12


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
    panel = make_panel("loss", len(losses))
    scale_values(panel.axes, [cleaned(losses)], logarithmic=True)
    draw_stages(panel.axes, stage_starts, len(losses) - 1, shift=0.0)
    _draw_depth_curve(panel.axes, losses, needed_blocks, label_height=0.88, end="{:.3g}")
    return to_svg(panel.figure, "loss", summary)


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
    panel = make_panel("accuracy (%)", len(accuracies))
    values = cleaned(accuracies)
    terminal = values[-1]
    threshold = cleaned([terminal - tolerance])[0]
    floor = accuracy_floor(values, tolerance)
    scale_values(panel.axes, [[v for v in values if not v < floor], [threshold, floor]])
    if math.isfinite(floor):
        panel.axes.set_ylim(bottom=floor)
    if math.isfinite(threshold):
        panel.axes.axhspan(threshold, terminal, color=COLOURS["accent"], alpha=0.14, linewidth=0)
        panel.axes.axhline(threshold, color=COLOURS["accent"], linewidth=0.8, alpha=0.6)
    draw_stages(panel.axes, stage_starts, len(values) - 1, shift=0.0)
    _draw_depth_curve(panel.axes, values, needed_blocks, label_height=0.12, end="{:.1f}")
    return to_svg(panel.figure, "accuracy", summary)


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
    curves = [cleaned(losses) for _, losses in drawn]
    longest = max((len(curve) for curve in curves), default=1)
    panel = make_panel("loss", longest)
    scale_values(panel.axes, curves, logarithmic=True)
    draw_stages(panel.axes, stage_starts, longest - 1, shift=0.0)
    opacities = _opacities(len(drawn))
    for curve, opacity in zip(curves, opacities, strict=True):
        last = opacity == 1.0
        draw_curve(panel.axes, range(len(curve)), curve, width=2.2 if last else 1.5, alpha=opacity)
    _draw_epoch_scale(panel, [epoch for epoch, _ in drawn], opacities)
    return to_svg(panel.figure, "development", summary)


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
    panel = make_panel("loss of the terminal output", 0)
    axes, train, validation = panel.axes, cleaned(train_losses), cleaned(validation_losses)
    scale_values(axes, [train, validation], logarithmic=True)
    first, last = (min(epochs), max(epochs)) if epochs else (1, 1)
    margin = max(0.02 * (last - first), 0.5 if first == last else 0.0)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("epoch", color=COLOURS["muted"], fontsize=FONT_SIZE)
    draw_curve(axes, epochs, train, colour="muted", width=1.6, dashes=(4, 2))
    draw_curve(axes, epochs, validation)
    shown = [("training", "muted", (0, (4, 2)), train), ("validation", "accent", "-", validation)]
    for row, (label, colour, style, values) in enumerate(shown):
        if any(map(math.isfinite, values)):
            _draw_key(axes, row, label, colour, style)
    return to_svg(panel.figure, "learning", summary)


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


def accuracy_floor(accuracies: Values, tolerance: float) -> float:
    """Return where the accuracy axis ends at the bottom: minus infinity if nothing is cut off.

    With an axis down to chance level, a tolerance of half a point would be as thin as a hair. What
    lies below the floor is far from good enough, and the loss figure shows all of it.
    """
    values = cleaned(accuracies)
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


def _bars(
    values: Values,
    kept_blocks: Collection[int],
    stage_starts: Sequence[int],
    *,
    value_name: str,
    name: str,
    summary: str,
) -> str:
    heights, kept = cleaned(values), set(kept_blocks)
    panel = make_panel(value_name, 0)
    panel.axes.set_xlabel("block k", color=COLOURS["muted"], fontsize=FONT_SIZE)
    panel.axes.set_xlim(-0.75, max(len(heights), 1) - 0.25)
    # A bar's length is its value, so the axis starts at 0 and stays linear.
    finite = [value for value in heights if math.isfinite(value)]
    scale_values(panel.axes, [finite, [0.0] if finite else []])
    if min(finite, default=0.0) >= 0:
        panel.axes.set_ylim(bottom=0)
    width = 0.78 if len(heights) <= 80 else 1.0
    for colour, wanted in (("accent", True), ("faded", False)):
        chosen = [k for k in range(len(heights)) if (k in kept) is wanted]
        _draw_bars(panel.axes, chosen, heights, width, COLOURS[colour])
    draw_stages(panel.axes, stage_starts, len(heights), shift=-0.5)
    return to_svg(panel.figure, name, summary)


def _draw_depth_curve(
    axes: Any, values: Values, needed_blocks: int, *, label_height: float, end: str
) -> None:
    curve = cleaned(values)
    draw_curve(axes, range(len(curve)), curve)
    if len(curve) <= 41:
        axes.plot(curve, "o", color=COLOURS["accent"], markersize=4.2)
    if math.isfinite(curve[-1]):
        last = (len(curve) - 1, curve[-1])
        text = end.format(curve[-1])
        write_text(axes, *last, text, transform="data", offset=(8, -4), ha="left", colour="ink")
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
    write_text(
        axes, depth, label_height, text, transform="x", offset=(shift, -4), ha=side, colour="mark"
    )


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


def _draw_epoch_scale(panel: Panel, epochs: Sequence[int], opacities: Sequence[float]) -> None:
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
        write_text(panel.axes, x / WIDTH, top / HEIGHT, text, transform="figure", ha=align)


def _draw_key(axes: Any, row: int, label: str, colour: str, style: Any) -> None:
    from matplotlib.lines import Line2D

    x, y = (WIDTH - RIGHT - 190 + 95 * row) / WIDTH, (HEIGHT - 12.5) / HEIGHT
    ends = [x, x + 20 / WIDTH], [y, y]
    line = {"transform": axes.figure.transFigure, "clip_on": False, "linestyle": style}
    axes.add_line(Line2D(*ends, color=COLOURS[colour], linewidth=2, **line))
    write_text(axes, ends[0][1], y, label, transform="figure", offset=(6, -4), ha="left")


def _opacities(count: int) -> list[float]:
    if count < 2:
        return [1.0] * count
    return [0.14 + 0.66 * index / (count - 1) for index in range(count - 1)] + [1.0]
