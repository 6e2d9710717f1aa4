"""The part of results/README.md about peers on the same work, from results/peers."""

from collections.abc import Sequence
from typing import Any

from stagecost_recipes.peers_view import COLUMNS, by_accuracy, cells

INTRODUCTION = """\
### Peers on the same work

What each arm is, and what is not comparable, is in [docs/peers.md](../docs/peers.md). One backbone, one
schedule, the same number of epochs in all; the most accurate arm first. MACs of an image and MACs of
training are parts of those of `plain_full`. `control_cut` is what `ours_cut` has to beat, and
`plain_cut_finetuned` what `ours_finetuned` has to beat.
"""


def peers_tables(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the tables, one for each record."""
    lines = [INTRODUCTION]
    for record in records:
        rows = by_accuracy(record["rows"])
        plain = next(row for row in rows if row["arm"] == "plain_full")
        names = [f"{record['tier']}, {record['dataset']}", *COLUMNS]
        lines += [_line(names), _line(["---"] * len(names))]
        lines += [_line([row["arm"], *cells(row, plain)]) for row in rows]
        lines.append("")
    return lines[:-1]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
