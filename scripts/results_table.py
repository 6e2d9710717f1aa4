"""Write results/README.md from the recorded results; `--check` only compares.

python scripts/results_table.py [--check]
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

INTRODUCTION = """\
# Recorded results

Made by `python scripts/results_table.py` from the JSON files in this folder. Each file holds what
the verbs printed with `--json`, with their commands, the commit, the seeds, the machine and the
versions.

## The whole way on real images

One run each (`python scripts/record_runs.py`): train with a stage cost, analyse, prune by at most
one point of validation accuracy without retraining, read the test images once at the end. These are
short trainings on two CPU cores. They show that the way works; they are no comparison with plain
training.
"""
COLUMNS = (
    "recipe",
    "blocks kept",
    "validation: full → pruned",
    "test: full",
    "test: pruned",
    "parameters",
    "MACs",
)


def main() -> None:
    """Write the page, or compare it with the one that is there."""
    page = render()
    target = RESULTS / "README.md"
    if "--check" in sys.argv[1:]:
        if target.read_text() != page:
            sys.exit(f"{target} is not what the recorded results say: run this script without --check")
        return
    target.write_text(page)


def render() -> str:
    """Return the page as it follows from the recorded files."""
    files = sorted((RESULTS / "runs").glob("*.json"))
    records = [json.loads(file.read_text()) for file in files]
    lines = [INTRODUCTION, _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(_cells(record)) for record in records]
    lines += ["", "How each was made:", ""]
    lines += [_circumstances(record) for record in records]
    return "\n".join(lines) + "\n"


def _cells(record: dict[str, Any]) -> list[str]:
    found = record["prune"]
    parameters = found["parameters_after"] / found["parameters_before"]
    macs = found["macs_after"] / found["macs_before"]
    return [
        f"[{record['name']}](runs/{record['name']}.json)",
        f"{len(found['kept_blocks'])} of {found['num_blocks_before']}",
        f"{found['accuracy_before']:.2f} → {found['accuracy_after']:.2f}",
        f"{record['test_full']['accuracy']:.2f}",
        f"{record['test_pruned']['accuracy']:.2f}",
        f"{found['parameters_after']:,} ({parameters:.0%})",
        f"{found['macs_after']:,} ({macs:.0%})",
    ]


def _circumstances(record: dict[str, Any]) -> str:
    seconds = record["train"]["seconds"]
    return (
        f"- **{record['name']}**: `{record['commands'][0]}`; commit {record['commit']}, "
        f"{record['machine']}, {record['threads']} thread, torch {record['versions']['torch']}, "
        f"seed {record['seeds'][0]}, {seconds / 60:.0f} minutes of training."
    )


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
