"""The figures of the loss trajectory: two trainings over the depth of one staged network."""

from collections.abc import Mapping, Sequence

from stagecost.report.charts import Axis, Series, line_chart

Curves = Mapping[str, Sequence[float]]

_COLOURS = ("muted", "accent")
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
        "loss": _figure("loss L_k", curves["losses"], stage_starts),
        "accuracy": _figure("accuracy of y_k (%)", curves["accuracies"], stage_starts),
    }


def _figure(value_name: str, curves: Curves, stage_starts: Sequence[int]) -> str:
    series = [
        Series(_NAMES.get(name, name), list(enumerate(curve)), colour=colour)
        for (name, curve), colour in zip(curves.items(), _COLOURS, strict=False)
    ]
    last = len(next(iter(curves.values()))) - 1
    chart = line_chart(
        series,
        x=Axis("depth k (blocks in use)"),
        y=Axis(value_name),
        summary=f"{value_name} for k = 0 … {last}: {', '.join(curves)}",
        stage_starts=stage_starts,
    )
    return chart.svg(value_name.split(maxsplit=1)[0])
