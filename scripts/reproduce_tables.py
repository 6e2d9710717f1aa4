"""The section of results/README.md about the experiments of `stagecost reproduce`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers_tables import peers_tables

Record = dict[str, Any]

HEADING = "## Beside the paper"
INTRODUCTION = """\
`stagecost reproduce`, see [docs/reproduce.md](../docs/reproduce.md). Settings were chosen on validation
images; test images are read once, at the end. Accuracies in percent, mean ± sample standard deviation
over seeds.
"""
LAYER_PRUNING = """\
### Layer pruning

`stage_pruned` is `stage_full` cut to its first blocks, without training after it. Each schedule of the
stage cost is shown at both ends; the ones in brackets are not those that the differences compare. The
paper's figures are of networks of 54 and 12 blocks by a recipe that is not known: on the cpu tier, of
other networks than these.
"""
OTHER_SCHEDULE = """\
With gamma = 10 instead of 30 in the schedule `pruned`, the earlier choice
([record](layer-pruning-other-schedule)); the trials that raised it are
[below](#what-was-tried-for-the-two-schedules):
"""
BOUND = """\
### Theorem 3.1

J_N of a network with a uniform stage cost, gamma = 1/N, against the bound from networks of M blocks that
were trained alone by the same recipe; losses of the training images. Where J_N is above its bound,
optimisation fell short: the training of N blocks has not found weights as good as those of M blocks
followed by blocks that do nothing. The corollary compares the losses over 1 + gamma·N, and is proved for
lambda = 0.
"""
TRAJECTORY = """\
### Loss over depth

A staged network, plain and with a uniform stage cost, on test images: by how much the loss falls from
one output to the next, on average within stages (without the very first block), and at the blocks that
begin a later stage.
"""
STAGED = """\
### A staged network, cut in the training

27 blocks in three stages, ten of them left: of `stage_cut` and `control_cut` after a fifth of the
epochs, of `vector_pruned` and `plain_pruned` at the end, without training after the cut. `vector_full`
has the stage cost on the output of the vector of depths that is kept. All arms have the same number of
epochs. Test accuracy in percent (mean ± standard deviation over seeds); MACs as parts of those of the
plain, whole network.
"""


def reproduce_section(results: Path) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    tables = {"layer-pruning": _layer_pruning, "bound": _bound, "loss-trajectory": _trajectory}
    tables |= {"peers": peers_tables, "staged": _staged}
    lines: list[str] = []
    for name, table in tables.items():
        files = sorted((results / name).glob("*.json"))
        if records := [json.loads(file.read_text()) for file in files]:
            lines += [*table(records), "", *(_about(record) for record in records), ""]
        if name == "layer-pruning":
            lines += _other_schedule(results / "layer-pruning-other-schedule")
    return ["", HEADING, "", INTRODUCTION, *lines[:-1]] if lines else []


def _layer_pruning(records: Sequence[Record]) -> list[str]:
    lines = [LAYER_PRUNING, *_header("tier, data", "arm", "blocks", "accuracy", "paper", "training")]
    for record in records:
        shown = [(row, "{}") for row in record["rows"]]
        shown += [(row, "({})") for row in record["other_rows"]]
        for row, form in shown:
            name = f"{row['arm']}, {row['schedule']}" if "schedule" in row else row["arm"]
            time = f"{row['seconds']:.0f} s"
            cells = (form.format(name), row["num_blocks"], _accuracy(row), _number(row["paper"]), time)
            lines.append(_line(f"{record['tier']}, {record['dataset']}", *cells))
    lines += ["", "Differences of the means, in points:", ""]
    names = ("stage_full − plain_full", "paper", "stage_pruned − plain_sub", "paper")
    lines += _header("tier, data", *names)
    for record in records:
        for row in record["differences"]:
            keys = ("full_depth", "paper_full_depth", "pruned", "paper_pruned")
            points = (_number(row[key], "+") for key in keys)
            lines.append(_line(f"{record['tier']}, {row['dataset']}", *points))
    return lines


def _other_schedule(folder: Path) -> list[str]:
    """Return what another schedule came to; nothing where it was not recorded."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = [OTHER_SCHEDULE] if records else []
    for record in records:
        row = record["differences"][0]
        points = f"stage_pruned − plain_sub {_number(row['pruned'], '+')}"
        about = f"`{record['command']}`; commit {record['commit']}, {record['machine']}"
        lines += [f"- {record['tier']}, {row['dataset']}: {points}; {about}.", ""]
    return lines


def _staged(records: Sequence[Record]) -> list[str]:
    names = ("arm", "blocks", "accuracy", "MACs", "MACs of training")
    lines = [STAGED, *_header("tier, data", *names)]
    for record in records:
        full = next(row for row in record["rows"] if row["arm"] == "plain_full")
        for row in record["rows"]:
            parts = (f"{row[key] / full[key]:.2f}×" for key in ("macs", "training_macs"))
            cells = (row["arm"], row["num_blocks"], _accuracy(row), *parts)
            lines.append(_line(f"{record['tier']}, {record['dataset']}", *cells))
    lines += ["", "Points of the cut networks above the others, differences of the means:", ""]
    lines += _header("tier, data", "arm", "plain_full", "plain_final", "control_cut", "MACs saved")
    for record in records:
        for row in record["differences"]:
            keys = ("to_plain_full", "to_plain_final", "to_control_cut")
            points = (_number(row[key], "+") for key in keys)
            saved = f"{100 * row['macs_saved']:.0f} %"
            name = f"{record['tier']}, {row['dataset']}"
            lines.append(_line(name, row["arm"], *points, saved))
    return lines


def _bound(records: Sequence[Record]) -> list[str]:
    names = ("M of N", "J_N", "right-hand side", "J_N ≤ it", "J_N / it", "corollary", "predicted M")
    lines = [BOUND, *_header("tier, data", "seed", *names)]
    for record in records:
        for row in record["rows"]:
            cells = (
                row["seed"],
                f"{row['sub_blocks']} of {row['num_blocks']}",
                f"{row['objective']:.4f}",
                f"{row['right_hand_side']:.4f}",
                "yes" if row["holds"] else "no, fell short",
                f"{row['tightness']:.3f}",
                f"{row['normalized_loss']:.4f} against {row['normalized_bound']:.4f}",
                row["predicted_blocks"],
            )
            lines.append(_line(f"{record['tier']}, {record['dataset']}", *cells))
    return lines


def _trajectory(records: Sequence[Record]) -> list[str]:
    names = ("terminal accuracy", "fall within stages", "fall where a stage begins")
    lines = [TRAJECTORY, *_header("tier, data", "arm", "seed", *names)]
    figures = []
    for record in records:
        for row in record["rows"]:
            falls = (f"{row[key]:.4f}" for key in ("plateau", "jump"))
            cells = (row["arm"], row["seed"], f"{row['accuracies'][-1]:.2f}", *falls)
            lines.append(_line(f"{record['tier']}, {record['dataset']}", *cells))
        figures += [f"![{name}](loss-trajectory/{name})" for name in record["figures"]]
    return [*lines, "", " ".join(figures)]


def _about(record: Record) -> str:
    name = f"{record['experiment']}/{record['tier']}-{record['dataset']}.json"
    return (
        f"- [{name}]({name}): `{record['command']}`; commit {record['commit']}, {record['machine']}, "
        f"{record['threads']} thread, torch {record['versions']['torch']}."
    )


def _accuracy(row: Record) -> str:
    return _number(row["mean"]) + ("" if row["std"] is None else f" ± {row['std']:.2f}")


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.2f}"


def _header(*names: str) -> list[str]:
    return [_line(*names), _line(*["---"] * len(names))]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
