"""The section of results/README.md about time and memory, from results/benchmark."""

from itertools import groupby
from typing import Any

HEADING = "## What a stage cost costs"
INTRODUCTION = """\
How it is measured is in [docs/benchmark.md](../docs/benchmark.md): arms by turns, medians over rounds
of the ratio within a round, quartiles in brackets, everything relative to the plain loop. All
configurations are shown.
"""
PEERS = """\
Beside other packages (`python scripts/benchmark_peers.py`): a homogeneous network of 54 blocks, images
of 16×16 pixels, initial weights, so times and MACs only. Larger is better where it says speed-up,
smaller for steps.
"""
KERNELS = """\
### The loops in C

`python scripts/kernel_times.py`: one depth, forwards and backwards, batches of 64 images, in
microseconds of CPU time (medians; arms by turns). The ratio is the median within a round, quartiles in
brackets.
"""
RATIOS = {
    "exact step": "exact_step_ratio",
    "literal step": "literal_step_ratio",
    "sampled step": "sampled_step_ratio",
    "memory": "memory_ratio",
    "analyze": "analyze_ratio",
}


def benchmark_section(records: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the section; none where nothing was recorded."""
    if not records:
        return []
    lines = [HEADING, "", INTRODUCTION]
    for record in records:
        if record["name"] != "peers":
            lines += [*_ratios(record), *_speedups(record), *_scale(record), about(record), ""]
    for record in records:
        if record["name"] == "peers":
            lines += [PEERS, *_peers(record["peers"]), about(record), ""]
    return lines[:-1]


def kernels_section(records: list[dict[str, Any]]) -> list[str]:
    """Return the lines about single kernels; none where nothing was recorded."""
    lines: list[str] = []
    for record in records:
        names = ("torch's modules", "torch.compile", "C")
        lines += ["", KERNELS, *_header("part", "state", *names, "C / torch.compile")]
        for row in record["rows"]:
            times = [str(row["microseconds"].get(name, "")) for name in names]
            shape = "×".join(map(str, row["shape"]))
            lines.append(_line(row["part"], shape, *times, _with_spread(row["ratio"], row["spread"])))
        lines += ["", about(record, "kernels")]
    return lines


def about(record: dict[str, Any], folder: str = "benchmark") -> str:
    """Return the circumstances of a record in one line."""
    return (
        f"[{record['name']}.json]({folder}/{record['name']}.json): `{record['command']}`, commit "
        f"{record['commit']}, {record['machine']}, {record['threads']} thread, torch "
        f"{record['versions']['torch']}, {record['rounds']} rounds, seed {record['seeds'][0]}."
    )


def _ratios(record: dict[str, Any]) -> list[str]:
    spreads = {spread["configuration"]: spread for spread in record["spreads"]}
    heads = {
        row["configuration"]: row
        for row in record["peers"]
        if row["peer"] == "separate heads by hooks" and row["spread"] is not None
    }
    lines = _header("configuration", *RATIOS, "separate heads by hooks")
    for row in record["rows"]:
        name = row["configuration"]
        cells = [_with_spread(row[key], spreads[name].get(key)) for key in RATIOS.values()]
        cells.append(_with_spread(heads[name]["value"], heads[name]["spread"]) if name in heads else "")
        lines.append(_line(name, *cells))
    return [*lines, ""]


def _speedups(record: dict[str, Any]) -> list[str]:
    lines = _header("pruned network", "batch", "speed-up of inference", "blocks before / after")
    for row in record["pruned_speedup"]:
        before, after = row["blocks_before"], row["blocks_after"]
        proportion = f"{before / after:.2f}"
        cells = (str(row["batch"]), f"{row['speedup']:.2f}", proportion)
        lines.append(_line(f"{before} → {after} blocks", *cells))
    return [*lines, ""]


def _scale(record: dict[str, Any]) -> list[str]:
    if not record["scale"]:
        return []
    lines = _header("one training step", "N", "milliseconds a block", "MiB above the resting level")
    for row in sorted(record["scale"], key=lambda row: row["training"]):
        time, memory = 1000 * row["seconds_a_block"], row["peak_bytes"] / 2**20
        lines.append(_line(row["training"], str(row["num_blocks"]), f"{time:.2f}", f"{memory:,.1f}"))
    figures = (f"![{what} over N](benchmark/scale-{what}-{record['name']}.svg)" for what in _FIGURES)
    return [*lines, "", " ".join(figures), ""]


_FIGURES = ("time", "memory")


def _peers(rows: list[dict[str, Any]]) -> list[str]:
    """Return one table: a line for each peer and quantity, a column for each configuration."""
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    lines = _header("peer", "what", *(name.rsplit("-b", 1)[0] for name in names))
    key = _peer_and_quantity
    for (peer, quantity), found in groupby(sorted(rows, key=key), key=key):
        values = {row["configuration"]: row for row in found}
        lines.append(_line(peer, quantity, *(_peer_cell(values.get(name)) for name in names)))
    return [*lines, ""]


def _peer_and_quantity(row: dict[str, Any]) -> tuple[str, str]:
    return row["peer"], row["quantity"]


def _peer_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return str(row["note"])
    text = _with_spread(row["value"], row["spread"])
    return f"{text} ({row['note']})" if row["quantity"] == "MACs kept" else text


def _with_spread(value: float, spread: list[float] | None) -> str:
    if not spread:
        return f"{value:.3f}"
    return f"{value:.3f} [{spread[0]:.3f}, {spread[1]:.3f}]"


def _header(*names: str) -> list[str]:
    return [_line(*names), _line(*["---"] * len(names))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
