"""The section of results/README.md about what was tried for the two schedules."""

from collections.abc import Sequence
from typing import Any

HEADING = "## What was tried for the two schedules"
INTRODUCTION = """\
`python scripts/schedule_trials.py`: the recipe of the layer pruning above as it was at the commit named
below (with 10,000 images of CIFAR-10, too, and a smaller weight decay of the schedule `pruned`), a seed
that is not among those of the table, validation accuracy of the first blocks alone; test images are not
read. c is Σ gamma·c_k.
"""
DEPTHS = (4, 6, 8, 10, 12)


def schedules_section(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    if not records:
        return []
    lines = ["", HEADING, "", INTRODUCTION]
    lines += [_line("data", "training", *(f"depth {k}" for k in DEPTHS)), _line(*["---"] * 7)]
    for record in records:
        link = f"[{record['name']}](schedule-trials/{record['name']}.json)"
        for run in record["runs"]:
            found = run["val_accuracies"]
            cells = (f"{found[k]:.1f}" if k < len(found) else "" for k in DEPTHS)
            lines.append(_line(link, run["trial"], *cells))
    one = records[0]
    about = f"commit {one['commit']}, {one['machine']}, {one['threads']} thread"
    return [*lines, "", f"Seed {one['seeds'][0]}, {about}, torch {one['versions']['torch']}."]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
