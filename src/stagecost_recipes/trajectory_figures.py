"""The figures of the loss trajectory: two trainings over the depth of one staged network."""

from collections.abc import Mapping, Sequence

from stagecost.report.canvas import (
    draw_curve,
    draw_stages,
    make_panel,
    scale_values,
    write_text,
)
from stagecost.report.svg import COLOURS, to_svg

Curves = Mapping[str, Sequence[float]]

_STYLES = (("muted", (4.0, 2.0)), ("accent", None))
_NAMES = {"plain": "plain training", "stage": "stage cost"}


def trajectory_figures(curves: Mapping[str, Curves], stage_starts: Sequence[int]) -> dict[str, str]:
    """Draw loss and accuracy over k.

    Args:
        curves: "losses" and "accuracies", each by the name of the training.
        stage_starts: the paper's indices k of the blocks at which a stage begins.

    Returns:
        SVG by name, "loss" and "accuracy".
    """
    return {
        "loss": _figure("loss L_k", curves["losses"], stage_starts, lower_is_better=True),
        "accuracy": _figure("accuracy of y_k (%)", curves["accuracies"], stage_starts),
    }


def _figure(
    value_name: str, curves: Curves, stage_starts: Sequence[int], *, lower_is_better: bool = False
) -> str:
    num_depths = len(next(iter(curves.values())))
    panel = make_panel(value_name, num_depths)
    scale_values(panel.axes, list(curves.values()))
    draw_stages(panel.axes, stage_starts, num_depths - 1, shift=0.0)
    for place, (name, curve) in enumerate(curves.items()):
        colour, dashes = _STYLES[place]
        draw_curve(panel.axes, range(num_depths), curve, colour=colour, dashes=dashes)
        panel.axes.plot(curve, "o", color=COLOURS[colour], markersize=3.5)
        # Where the curves of both trainings leave room: in front of good values.
        height = (0.16 if lower_is_better else 0.94) - 0.09 * place
        label = f"● {_NAMES.get(name, name)}"
        write_text(panel.axes, 0.03, height, label, ha="left", colour=colour)
    summary = f"{value_name} for k = 0 … {num_depths - 1}: {', '.join(curves)}"
    return to_svg(panel.figure, value_name.split(maxsplit=1)[0], summary)
