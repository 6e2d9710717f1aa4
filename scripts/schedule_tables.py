"""The section of results/README.md about what was tried for the two schedules."""

import statistics
from collections.abc import Sequence
from typing import Any

HEADING = "## What was tried for the two schedules"
INTRODUCTION = """\
`python scripts/schedule_trials.py`: the recipe of the layer pruning above as it was at the commit named
below (with 10,000 images of CIFAR-10, too, and a smaller weight decay of the schedule `pruned`), a seed
that is not among those of the table, validation accuracy of the first blocks alone; test images are not
read. c is Σ gamma·c_k.
"""
LATER = """\
What was tried after that (`python scripts/schedule_trials.py --later`), by the recipe as it is, means
over seeds that are not among those of the table. It is why the schedule `pruned` presses with c = 30
instead of 10; on CIFAR-10 it gave no reason to change `full-depth`.
"""
DEPTHS = (4, 6, 8, 10, 12)


def schedules_section(records: Sequence[dict[str, Any]], later: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded.

    Args:
        records: of the trials by which the schedules were settled.
        later: of those that came after.
    """
    if not records:
        return []
    lines = ["", HEADING, "", INTRODUCTION, *_table(records, "schedule-trials")]
    return [*lines, "", LATER, *_table(later, "schedule-trials-later")] if later else lines


def _table(records: Sequence[dict[str, Any]], folder: str) -> list[str]:
    lines = [_line("data", "training", *(f"depth {k}" for k in DEPTHS)), _line(*["---"] * 7)]
    for record in records:
        link = f"[{record['name']}]({folder}/{record['name']}.json)"
        for trial in dict.fromkeys(run["trial"] for run in record["runs"]):
            curves = [run["val_accuracies"] for run in record["runs"] if run["trial"] == trial]
            lines.append(_line(link, trial, *(_mean(curves, k) for k in DEPTHS)))
    lines.append("")
    for record in records:
        about = f"commit {record['commit']}, {record['machine']}, {record['threads']} thread"
        seeds = ", ".join(map(str, record["seeds"]))
        lines.append(f"- {record['name']}: seeds {seeds}; {about}, torch {record['versions']['torch']}.")
    return lines


def _mean(curves: Sequence[Sequence[float]], depth: int) -> str:
    found = [curve[depth] for curve in curves if depth < len(curve)]
    return f"{statistics.mean(found):.1f}" if found else ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
