"""The section of results/README.md about `--gamma auto`, from results/gamma."""

import statistics
from typing import Any

INTRODUCTION = """\
## gamma without being told

`python scripts/gamma_evidence.py`: `--gamma auto` with its defaults against fixed gammas (c = gamma·N),
the same recipe, 12 homogeneous blocks. Needed blocks are those within 0.5 points of the terminal
validation accuracy. Test accuracy in percent, read once, at full depth and of the needed blocks alone
(mean ± standard deviation over seeds). The best fixed gamma, in bold, is the one with the fewest needed
blocks (mean) among those whose validation accuracy at full depth (mean) is within 0.2 points of the best
fixed one's.
"""
OTHER_RULES = {
    "gamma-low-start": """\
An earlier rule, which begins at c = 0.1, moves from the first piece on and goes down to 0.01
([records](gamma-low-start)). On MNIST an early gap, which all runs make up, drove it down, and the depth
was gone:
""",
    "gamma-held-start": """\
Another, which holds c = 0.2 for the first 40 % of the training and then steers it
([records](gamma-held-start)). It pressed harder, for depth that cost accuracy:
""",
}
"""Folder of records → what they are of. Their seeds judge the rule that stayed no more."""
AIM = "Auto minus the best fixed gamma; the aim is −0.2 points or better, and at most one block more:"


def gamma_section(records: list[dict[str, Any]], earlier: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded.

    Args:
        records: of the rule as it is.
        earlier: of other rules, by their folder.
    """
    if not records:
        return []
    header = ("data", "training", "needed blocks", "test: full", "test: needed blocks", "last c")
    lines = ["", INTRODUCTION, _line(*header), _line(*["---"] * len(header))]
    for record in records:
        arms = dict.fromkeys(run["arm"] for run in record["runs"])
        lines += [_line(*_cells(record, arm)) for arm in arms]
    lines += ["", AIM, "", *map(_verdict, records)]
    for folder, others in earlier.items():
        lines += ["", OTHER_RULES[folder], *map(_verdict, others)] if others else []
    return lines


def _verdict(record: dict[str, Any]) -> str:
    found = record["auto_minus_best_fixed"]
    points, blocks = f"{found['test_accuracy']:+.2f} points", f"{found['needed_blocks']:+.1f} blocks"
    about = f"seeds {record['seeds']}, commit {record['commit']}, {record['machine']}"
    versions = f"{record['threads']} thread, torch {record['versions']['torch']}"
    outcome = "met" if record["met"] else "missed"
    return f"- **{record['name']}**: {points}, {blocks}: {outcome}; {about}, {versions}."


def _cells(record: dict[str, Any], arm: str) -> list[str]:
    runs = [run for run in record["runs"] if run["arm"] == arm]
    return [
        f"[{record['name']}](gamma/{record['name']}.json)",
        f"**{arm}**" if arm == record["best_fixed"] else arm,
        ", ".join(str(run["needed_blocks"]) for run in runs),
        *(_spread([run[key] for run in runs]) for key in ("test_accuracy", "pruned_test_accuracy")),
        ", ".join(f"{run['strengths'][-1]:.2g}" for run in runs),
    ]


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
