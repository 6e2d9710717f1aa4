"""The section of results/README.md about the training variants."""

import statistics
from collections.abc import Sequence
from typing import Any

INTRODUCTION = """\
## Training variants

`python scripts/ablation.py`: every variant by the recipe of the CPU tier, 12 blocks, Σ gamma·c_k = 1 at
full strength, the weight decay of plain training. Validation accuracy (mean ± standard deviation over
seeds) of the first blocks alone; depth 12 is the whole network. Test images are not read. `plain` is
gamma = 0; `plain-4-blocks` is a network of 4 blocks trained alone. In the staged networks (4+4+4 blocks
of widths 8, 16, 32) the output at depth 4 skips two stages, so their rows compare with each other only.
Sorted by the accuracy at depth 12.
"""
DEPTHS = (2, 4, 6, 8, 12)


def ablation_section(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    lines = ["", INTRODUCTION] if records else []
    for record in records:
        header = [record["name"], *(f"depth {k}" for k in DEPTHS), "branches at zero", "training"]
        lines += [_line(header), _line(["---"] * len(header)), *_rows(record["runs"])]
        about = f"commit {record['commit']}, {record['machine']}, {record['threads']} thread a run"
        link = f"[{record['name']}.json](ablation/{record['name']}.json)"
        lines += ["", f"{link}: `{record['command']}`; seeds {record['seeds']}, {about}, "]
        lines[-1] += f"torch {record['versions']['torch']}."
        lines += [""] if record is not records[-1] else []
    return lines


def _rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == name]
        curves = [run["val_accuracies"] for run in own]
        zero = statistics.mean(run["zero_branches"] for run in own)
        seconds = statistics.mean(run["seconds"] for run in own)
        cells = [name, *(_accuracy(curves, k) for k in DEPTHS), f"{zero:.1f}", f"{seconds:.0f} s"]
        last = statistics.mean(curve[-1] for curve in curves)
        found.append((last, _line(cells)))
    return [line for _, line in sorted(found, key=lambda pair: -pair[0])]


def _accuracy(curves: Sequence[Sequence[float]], depth: int) -> str:
    values = [curve[depth] for curve in curves if depth < len(curve)]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if values else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
