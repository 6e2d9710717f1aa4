"""What a stage cost costs: every ratio of the table, measured one after the other (docs/benchmark.md).

Command     taskset -c 0 python -m experiments run benchmark [--quick] [--rounds 15] [--threads 1]
Machine     the record names it; measure on a quiet one
Runtime     about a quarter of an hour on one core; quick, less than two minutes
Seeds       0
"""

from collections.abc import Sequence
from typing import Any

import torch

from experiments.benchmark.configurations import CONFIGURATIONS, QUICK
from experiments.benchmark.measure import check_rounds, keep_freed_memory
from experiments.benchmark.packages import compare_packages, separate_heads
from experiments.benchmark.ratios import pruned_speedups, scaling, step_ratios
from experiments.records import RESULTS, Record, Row, versions
from experiments.runner import Context, Experiment, Figures, find_experiment
from experiments.tables import Column, Columns, quartiles, table

ROUNDS, QUICK_ROUNDS = 15, 7
# A forward pass takes a fraction of a step, and a few more rounds steady its median.
LATENCY_ROUNDS_FACTOR = 3
SCALING_ROUNDS = 3
AIMS = {
    "exact_step_ratio": 1.15,
    "sampled_step_ratio": 1.02,
    "memory_ratio": 1.03,
    "analyze_ratio": 1.15,
}
"""On a CPU: the table is read against these."""
SPEEDUP_AIM = 0.9
"""Of the ratio of the blocks before and after a cut."""
COLUMNS = {
    "exact": "exact_step_ratio",
    "literal": "literal_step_ratio",
    "sampled": "sampled_step_ratio",
    "memory": "memory_ratio",
    "analyze": "analyze_ratio",
}


TEXT = """\
How it is measured is in [docs/benchmark.md](../docs/benchmark.md): arms by turns, medians over rounds
of the ratio within a round, quartiles in brackets, everything relative to the plain loop. `exact` is
the whole stage cost by the pass that the record names; all passes are in the second table. Beside
packages the weights are the initial ones, so times and MACs alone are compared: larger is better where
it says speed-up, smaller for steps."""


def run(context: Context) -> dict[str, Any]:
    """Measure all ratios, and read what was recorded of blocks that leave in training."""
    quick = context.tier == "quick"
    device = torch.device("cuda" if context.tier == "gpu" else "cpu")
    rounds = context.options.get("rounds") or (QUICK_ROUNDS if quick else ROUNDS)
    chosen = QUICK if quick else CONFIGURATIONS
    check_rounds(rounds)
    keep_freed_memory()
    rows, spreads = [], []
    for configuration in chosen:
        context.report(f"measuring {configuration.name}")
        row, spread = step_ratios(configuration, device, rounds)
        rows.append(row)
        spreads.append(spread)
    context.report("measuring the latency of a pruned network")
    speedups, quartiles_of = pruned_speedups(device, LATENCY_ROUNDS_FACTOR * rounds)
    scale = [] if quick else scaling(device, min(rounds, SCALING_ROUNDS), context.report)
    packages = [] if quick else compare_packages(chosen, device, rounds, context.report)
    return {
        "rows": rows,
        "shrink": shrink_rows(),
        "pruned_speedup": speedups,
        "scale": scale,
        "peers": [*(row for each in spreads for row in separate_heads(each)), *packages],
        "spreads": [*spreads, *quartiles_of],
        "rounds": rounds,
    }


def shrink_rows() -> list[Row]:
    """Return what is recorded of blocks that leave in training: it takes hours, so it is read."""
    return [
        {"dataset": record.dataset, **{key: record["summary"][key] for key in SHRINK_KEYS}}
        for record in find_experiment("shrink").records(RESULTS)
    ]


SHRINK_KEYS = ("total_ratio", "accuracy_difference")


def answer(record: Record) -> dict[str, Any]:
    """Return what `--json` prints."""
    lists = ("rows", "shrink", "pruned_speedup", "scale", "peers", "spreads")
    return {
        **{name: record.content.get(name, []) for name in lists},
        "rounds": record["rounds"],
        "machine": record["machine"],
        "versions": {**versions(), **record["versions"]},
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return the tables."""
    return [TEXT, *(part for record in records for part in _tables(record) if part.count("\n") > 1)]


def _tables(record: Record) -> list[str]:
    lists = record.lists()
    between = {row["configuration"]: row for row in lists.get("spreads", [])}
    configuration: Columns = {"configuration": "{configuration}"}

    def ratio(key: str) -> Column:
        return lambda row: quartiles(row[key], between.get(row["configuration"], {}).get(key))

    def arm(name: str) -> Column:
        return f"{{medians[{name}]:.3f}}, {{memory[{name}]:.3f}}"

    ratios = {f"{n} ≤ {AIMS[k]}" if k in AIMS else n: ratio(k) for n, k in COLUMNS.items()}
    # Records of the loops in C have no table of every pass.
    passes = [row for row in between.values() if "medians" in row]
    arms = {name: arm(name) for row in passes for name in row["memory"] if name != "plain"}
    speedups: Columns = {
        "pruned network": "{blocks_before} → {blocks_after} blocks",
        "batch": "{batch}",
        "speed-up of inference": "{speedup:.2f}",
        "aim": lambda r: f"≥ {SPEEDUP_AIM * r['blocks_before'] / r['blocks_after']:.2f}",
    }
    scale: Columns = {
        "one training step": "{training}",
        "N": "{num_blocks}",
        "milliseconds a block": lambda row: f"{1000 * row['seconds_a_block']:.2f}",
        "MiB above the resting level": lambda row: f"{row['peak_bytes'] / 2**20:,.1f}",
    }
    peers: Columns = {"peer": "{peer}", "what": "{quantity}", **configuration, "value": _value}
    return [
        table(lists.get("rows", []), configuration | ratios),
        table(passes, {"step time, memory": "{configuration}", **arms}),
        table(lists.get("pruned_speedup", []), speedups),
        table(sorted(lists.get("scale", []), key=lambda row: str(row["training"])), scale),
        table(sorted(lists.get("peers", []), key=lambda r: (r["peer"], r["quantity"])), peers),
    ]


def _value(row: Row) -> str:
    if row["value"] is None:
        return str(row["note"])
    shown = quartiles(row["value"], row["spread"])
    return f"{shown} ({row['note']})" if row["quantity"] == "MACs kept" else shown


def figures(record: Record) -> Figures:
    """Draw how time a block and memory grow with N."""
    from stagecost.report.charts import Axis, Series, line_chart

    rows = record.lists().get("scale", [])
    if not rows:
        return {}
    kinds = {
        "time": ("milliseconds a block, one training step", "seconds_a_block", 1000.0),
        "memory": ("MiB above the resting level, one step", "peak_bytes", 2**-20),
    }
    sizes = tuple(sorted({float(row["num_blocks"]) for row in rows}))
    charts = {}
    for name, (title, key, factor) in kinds.items():
        series = [
            Series(
                kind,
                [(r["num_blocks"], factor * r[key]) for r in rows if r["training"] == kind],
            )
            for kind in dict.fromkeys(row["training"] for row in rows)
        ]
        x, y = Axis("blocks N", log=True, ticks=sizes), Axis(title, log=True)
        charts[name] = line_chart(series, x=x, y=y, summary=f"{title} over N")
    return charts


BENCHMARK = Experiment(
    name="benchmark",
    title="What a stage cost costs",
    datasets={"cpu": ("",), "gpu": ("",), "quick": ("",)},
    seeds=(0,),
    run=run,
    section=section,
    figures=figures,
    options=frozenset({"rounds"}),
    answer=answer,
)
