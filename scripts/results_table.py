"""Write results/README.md from the recorded results; `--check` only compares.

python scripts/results_table.py [--check]
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from ablation_tables import ablation_section
from benchmark_tables import benchmark_section, kernels_section
from gamma_tables import OTHER_RULES, gamma_section
from reproduce_tables import reproduce_section
from schedule_tables import schedules_section
from staged_tables import staged_trials_section
from theory_tables import predicted_depth_section, saturation_section

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
SHRINK = """\
## Depth that shrinks

`python scripts/shrink_evidence.py`: `--shrink` with its defaults, for the same number of epochs as
plain training at full depth. `stage` is the stage cost without `--shrink`; `control` is gamma = 0, cut
to the same depths at the same moments. Test accuracy in percent (mean ± standard deviation over seeds),
read once, of the last checkpoint. The costs are parts of plain training's: CPU seconds, and operations
(MACs) of all training and validation passes.
"""
TRIALS = """\
### What was tried for it

`python scripts/shrink_evidence.py --trials`: one seed that is not among those above, validation
accuracy only; the rule's defaults were chosen by such runs. Costs are parts of plain training's.
"""
IMPORTANCE = """\
## The importance of blocks

`python scripts/importance_evidence.py`: Spearman's rank correlation of three measures of a block with
what J_N rises by when that block alone is removed, on validation images of digits (16 blocks, mean ±
standard deviation over seeds). The costate's estimate is −⟨p_{k+1}, F_k(x_k)⟩, see
`stagecost.importance`.
"""
OTHER_RECIPE = "shrink-other-recipe"
"""Folder of what was measured of `--shrink` by another recipe than a data set's own."""
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
    runs = _records("runs")
    lines = [INTRODUCTION, _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(_cells(record)) for record in runs]
    lines += ["", "How each was made:", "", *(_circumstances(record) for record in runs)]
    lines += ablation_section(_records("ablation"))
    if benchmark := benchmark_section(_records("benchmark")):
        lines += ["", *benchmark]
    lines += kernels_section(_records("kernels"))
    if shrink := [*_records("shrink"), *_records(OTHER_RECIPE)]:
        lines += ["", SHRINK, *_shrink_tables(shrink)]
    if trials := _records("shrink-trials"):
        lines += ["", TRIALS, *_trials_table(trials)]
    if importance := _records("importance"):
        lines += ["", IMPORTANCE, *_importance_table(importance[0])]
    lines += reproduce_section(RESULTS)
    lines += staged_trials_section(_records("staged-trials"))
    lines += schedules_section(_records("schedule-trials"), _records("schedule-trials-later"))
    if theory := predicted_depth_section(_records("predicted-depth")):
        lines += ["", *theory]
    if theory := saturation_section(_records("saturation")):
        lines += ["", *theory]
    lines += gamma_section(_records("gamma"), {folder: _records(folder) for folder in OTHER_RULES})
    return "\n".join(lines) + "\n"


def _shrink_tables(records: list[dict[str, Any]]) -> list[str]:
    header = ("data", "arm", "blocks at the end", "test accuracy", "CPU seconds", "MACs")
    lines = [_row(header), _row(["---"] * len(header))]
    lines += [_row(_arm_cells(r, arm)) for r in records for arm in dict.fromkeys(_arms(r))]
    columns = ("data", "shrink − stage", "shrink − control", "depths of the seeds, epoch:blocks")
    lines += ["", "Differences are of the means, in points:", "", _row(columns)]
    lines += [_row(["---"] * len(columns)), *(_row(_difference_cells(r)) for r in records)]
    lines += ["", "How each was made:", ""]
    for r in records:
        about = f"seeds {r['seeds']}, commit {r['commit']}, {r['machine']}, {r['threads']} thread"
        lines.append(f"- **{r['name']}**: {r['recipe']}; {about}, torch {r['versions']['torch']}.")
    return lines


def _arms(record: dict[str, Any]) -> list[str]:
    return [run["arm"] for run in record["runs"]]


def _arm_cells(record: dict[str, Any], arm: str) -> list[str]:
    runs = [run for run in record["runs"] if run["arm"] == arm]
    plain = [run for run in record["runs"] if run["arm"] == "plain"]
    accuracies = [run["test_accuracy"] for run in runs]
    costs = [
        sum(run[key] for run in runs) / sum(run[key] for run in plain) for key in ("cpu_seconds", "macs")
    ]
    folder = "shrink" if (RESULTS / "shrink" / f"{record['name']}.json").is_file() else OTHER_RECIPE
    return [
        f"[{record['name']}]({folder}/{record['name']}.json)",
        arm,
        ", ".join(str(run["num_blocks"]) for run in runs),
        f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}",
        *(f"{cost:.2f}×" for cost in costs),
    ]


def _difference_cells(record: dict[str, Any]) -> list[str]:
    cuts = [run["cuts"] for run in record["runs"] if run["arm"] == "shrink"]
    steps = [" ".join(f"{c['epoch']}:{len(c['kept_blocks'])}" for c in run) or "none" for run in cuts]
    keys = ("accuracy_difference", "difference_to_control")
    return [record["name"], *(f"{record['summary'][key]:+.2f}" for key in keys), "; ".join(steps)]


def _trials_table(records: list[dict[str, Any]]) -> list[str]:
    header = ("data", "training", "blocks at the end", "validation accuracy", "CPU seconds", "MACs")
    lines = [_row(header), _row(["---"] * len(header))]
    for record in records:
        link, plain = f"[{record['name']}](shrink-trials/{record['name']}.json)", record["runs"][0]
        for run in record["runs"]:
            costs = [f"{run[key] / plain[key]:.2f}×" for key in ("cpu_seconds", "macs")]
            accuracy = f"{run['val_accuracy']:.2f}"
            lines.append(_row([link, run["arm"], run["num_blocks"], accuracy, *costs]))
    one = records[0]
    about = f"commit {one['commit']}, {one['machine']}, {one['threads']} thread"
    return [*lines, "", f"Seed {one['seeds'][0]}, {about}, torch {one['versions']['torch']}."]


def _records(folder: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((RESULTS / folder).glob("*.json"))]


def _importance_table(record: dict[str, Any]) -> list[str]:
    """Return a row for each way of training."""
    names = {"costate": "costate", "residual_ratio": "‖F_k(x_k)‖/‖x_k‖", "weight_norm": "‖w_F,k‖"}
    lines = [f"| training | {' | '.join(names.values())} |", "| --- " * (1 + len(names)) + "|"]
    for training in dict.fromkeys(run["training"] for run in record["runs"]):
        runs = [r["rank_correlations"] for r in record["runs"] if r["training"] == training]
        cells = []
        for name in names:
            values = [correlations[name] for correlations in runs]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
        lines.append(f"| {training} | {' | '.join(cells)} |")
    about = f"commit {record['commit']}, {record['machine']}, {record['threads']} thread"
    return [*lines, "", f"[digits.json](importance/digits.json): seeds {record['seeds']}, {about}."]


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
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
