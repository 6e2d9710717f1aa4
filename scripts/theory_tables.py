"""The sections of results/README.md about theory: predicted depth and saturation."""

import statistics
from typing import Any

PREDICTED = """\
## Predicted and measured depth

`python scripts/predicted_depth.py`: digits, N = 12 homogeneous blocks, normalised objective, one
training of each gamma and lambda at each depth. Predicted is the M with the least right-hand side of
Theorem 3.1 ([docs/theory.md](../docs/theory.md)), from networks trained alone or from truncations of
the run itself. Measured on the training images: *needed*, the least M whose loss is within a tolerance
of L_N; *active*, the blocks whose ‖F_k(x_k)‖/‖x_k‖ is above a threshold. The truncations and the needed
blocks come from the same losses, so their agreement is no independent test.
"""
SATURATION = """\
## Saturation

`python scripts/saturation.py`: digits, homogeneous networks of N blocks, normalised objective. Active
and needed blocks as above: mean (of each seed).
"""


def predicted_depth_section(records: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    if not records:
        return []
    record = records[0]
    points = record["points"]
    lines = [PREDICTED, *_header("c = gamma·N", "lambda", "J_N / least right-hand side", *_DEPTHS)]
    lines += [_line(*_point_cells(point)) for point in points]
    limit = f"tolerance {record['tolerance']:g}, threshold {record['threshold']:g}"
    above = sum(p["objective"] > min(p["right_hand_sides"].values()) for p in points)
    lines += ["", f"Depths in blocks ({limit}). In {above} of {len(points)} trainings some shallower"]
    lines += ["network, trained alone, gives a right-hand side below J_N: the deep network was not"]
    lines += ["optimised far enough.", ""]
    lines += ["Spearman's rank correlation over the grid:", ""]
    lines += _header(*_CORRELATIONS)
    lines += [_line(*_correlation_cells(row)) for row in record["rank_correlations"]]
    return [
        *lines,
        "",
        "![Measured over predicted depth](predicted-depth/digits.svg)",
        "",
        _about(record),
    ]


_CORRELATIONS = ("predicted from", "measured", "limit", "correlation", "points", "predicted − measured")
_DEPTHS = ("predicted, trained alone", "predicted, truncations", "needed", "active")


def _point_cells(point: dict[str, Any]) -> list[str]:
    ratio = point["objective"] / min(point["right_hand_sides"].values())
    depths = [*point["predicted"].values(), *point["measured"].values()]
    shares = [f"{point['stage_share']:g}", f"{point['weight_decay']:g}", f"{ratio:.2f}"]
    return [*shares, *map(str, depths)]


def _correlation_cells(row: dict[str, Any]) -> list[str]:
    names = {"separate": "networks trained alone", "truncation": "truncations"}
    value = "does not vary" if row["spearman"] is None else f"{row['spearman']:+.2f}"
    cells = [names[row["predicted"]], row["measured"], f"{row['limit']:g}", value, str(row["points"])]
    return [*cells, f"{row['mean_difference']:+.1f}"]


def saturation_section(records: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    if not records:
        return []
    record = records[0]
    runs = record["runs"]
    lines = [SATURATION, *_header("training", "N", "active", "needed", "validation accuracy")]
    for training in dict.fromkeys(run["training"] for run in runs):
        for size in sorted({run["num_blocks"] for run in runs}):
            found = [r for r in runs if (r["training"], r["num_blocks"]) == (training, size)]
            lines.append(_line(training, str(size), *_saturation_cells(found)))
    figures = (f"![{what} blocks over N](saturation/digits-{what}.svg)" for what in ("active", "needed"))
    return [*lines, "", " ".join(figures), "", _about(record)]


def _saturation_cells(runs: list[dict[str, Any]]) -> list[str]:
    counts = [
        f"{statistics.mean(r[key] for r in runs):.1f} ({', '.join(str(r[key]) for r in runs)})"
        for key in ("active", "needed")
    ]
    accuracies = [run["val_accuracy"] for run in runs]
    return [*counts, f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"]


def _about(record: dict[str, Any]) -> str:
    settings = record["settings"]
    folder = record["command"].split("/")[1].removesuffix(".py").replace("_", "-")
    return (
        f"[{record['name']}.json]({folder}/{record['name']}.json): seeds {record['seeds']}, "
        f"{settings['epochs']} epochs, width {settings['width']}, commit {record['commit']}, "
        f"{record['machine']}, {record['threads']} thread, torch {record['versions']['torch']}."
    )


def _header(*names: str) -> list[str]:
    return [_line(*names), _line(*["---"] * len(names))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
