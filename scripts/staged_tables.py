"""The section of results/README.md about what blocks are worth in a staged network."""

from collections.abc import Sequence
from typing import Any

INTRODUCTION = """\
### What blocks are worth in a staged network

`python scripts/staged_trials.py`: plain training (gamma = 0), whole, of a final shape alone, and cut in
the training; CIFAR-10, a seed that is not among those of the table above, validation accuracy in
percent; test images are not read. A cut is written as epoch:blocks of each stage. Seeds differ by about
half a point. The first rows of each setting show what the depth is worth there, which is what a cut
network would have to keep.
"""
AFTERWARDS = """\
Cut when the training is over, from 9+9+9 blocks, with no training after it and BatchNorm statistics
estimated anew. The stage cost, if there is one, is on the output of the vector of depths that is kept
(`--depth-vector`).
"""


def staged_trials_section(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    if not records:
        return []
    header = ("widths", "training images", "epochs", "blocks at the start", "cut", "blocks", "accuracy")
    lines = ["", INTRODUCTION, _line(header), _line(["---"] * len(header))]
    for record in records:
        lines += [_line(_cells(run)) for run in record["runs"] if "keep" not in run]
        about = f"commit {record['commit']}, {record['machine']}, {record['threads']} thread"
        link = f"[{record['name']}.json](staged-trials/{record['name']}.json)"
        seed = record["seeds"][0]
        cut = [_line(_cut_cells(run)) for run in record["runs"] if "keep" in run]
        columns = ("gamma", "schedule", "stage loss", "kept", "whole", "after the cut")
        lines += ["", AFTERWARDS, _line(columns), _line(["---"] * len(columns)), *cut] if cut else []
        lines += ["", f"{link}: seed {seed}, {about}, torch {record['versions']['torch']}."]
    return lines


def _cells(run: dict[str, Any]) -> list[str]:
    settings = run["settings"]
    images = round(settings["limit_train"] * (1 - settings["val_fraction"]))
    return [
        ", ".join(map(str, settings["widths"])),
        f"{images:,}",
        str(settings["epochs"]),
        "+".join(map(str, settings["blocks_per_stage"])),
        settings.get("cut_at", ""),
        str(run["num_blocks"]),
        f"{run['val_accuracy']:.1f}",
    ]


def _cut_cells(run: dict[str, Any]) -> list[str]:
    settings = run["settings"]
    return [
        f"{settings['gamma']:g}",
        settings.get("gamma_schedule", "constant"),
        settings.get("stage_loss", "same"),
        "+".join(map(str, run["keep"])),
        f"{run['val_accuracy']:.1f}",
        f"{run['cut_val_accuracy']:.1f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
