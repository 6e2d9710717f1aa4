"""How a benchmark looks on a terminal: one table a subject, the aims beside the figures."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from stagecost.benchmark.training_ratios import TARGETS

Result = Mapping[str, Any]

_COLUMNS = {
    "exact": "exact_step_ratio",
    "literal": "literal_step_ratio",
    "sampled": "sampled_step_ratio",
    "memory": "memory_ratio",
    "analyze": "analyze_ratio",
}
_SPEEDUP_TARGET = 0.9


def show_benchmark(console: Console, result: Result) -> None:
    """Print all tables of a benchmark, and how it was measured."""
    _ratios(console, result)
    _speedups(console, result)
    _shrink(console, result)
    _scale(console, result)
    _peers(console, result)
    row = result["rows"][0]
    console.print(
        f"{result['machine']}; {row['device']}, {row['threads']} thread(s), torch "
        f"{result['versions']['torch']}; medians of {result['rounds']} rounds, arms by turns"
    )


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place == 0)
    return table


def _ratios(console: Console, result: Result) -> None:
    table = _table(
        "step time, memory and analysis, relative to the plain loop", "configuration", *_COLUMNS
    )
    for row in result["rows"]:
        cells = (_judged(row[key], TARGETS.get(key)) for key in _COLUMNS.values())
        table.add_row(row["configuration"], *cells)
    table.add_section()
    aims = (f"≤ {TARGETS[key]:.2f}" if key in TARGETS else "" for key in _COLUMNS.values())
    table.add_row("aim on a CPU", *aims, style="dim")
    console.print(table)


def _judged(value: float, target: float | None) -> str:
    text = f"{value:.3f}"
    if target is None:
        return text
    return f"[green]{text}[/green]" if value <= target else f"[yellow]{text}[/yellow]"


def _speedups(console: Console, result: Result) -> None:
    table = _table("pruned network, inference", "blocks", "batch", "speed-up", "aim")
    for row in result["pruned_speedup"]:
        before, after = row["blocks_before"], row["blocks_after"]
        aim = _SPEEDUP_TARGET * before / after
        style = "green" if row["speedup"] >= aim else "yellow"
        speedup = f"[{style}]{row['speedup']:.2f}×[/{style}]"
        table.add_row(f"{before} → {after}", str(row["batch"]), speedup, f"≥ {aim:.2f}×")
    console.print(table)


def _shrink(console: Console, result: Result) -> None:
    if not result["shrink"]:
        return
    table = _table("shrinking in training (recorded)", "data set", "work, whole run", "accuracy")
    for row in result["shrink"]:
        difference = f"{row['accuracy_difference']:+.2f} points"
        table.add_row(row["dataset"], f"{row['total_ratio']:.2f}×", difference)
    console.print(table)


def _scale(console: Console, result: Result) -> None:
    if not result["scale"]:
        return
    table = _table("one step as N grows", "training", "N", "ms a block", "MiB above rest")
    for row in sorted(result["scale"], key=lambda row: row["training"]):
        time, memory = 1000 * row["seconds_a_block"], row["peak_bytes"] / 2**20
        table.add_row(row["training"], str(row["num_blocks"]), f"{time:.2f}", f"{memory:,.0f}")
    console.print(table)


def _peers(console: Console, result: Result) -> None:
    table = _table("peers", "", "value", "quartiles")
    table.columns[0].no_wrap = False
    for name, rows in groupby(result["peers"], key=lambda row: (row["configuration"], row["peer"])):
        table.add_section()
        table.add_row(f"[bold]{name[1]}[/bold] {name[0]}")
        for row in rows:
            what = f"{row['quantity']} ({row['note']})" if row["note"] else row["quantity"]
            value = "no" if row["value"] is None else f"{row['value']:.3f}"
            spread = "" if row["spread"] is None else " … ".join(f"{q:.3f}" for q in row["spread"])
            table.add_row(f"  {what}", value, spread)
    console.print(table)
