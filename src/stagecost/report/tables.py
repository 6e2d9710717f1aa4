"""The tables that are more than a row for each value: pruning, confusions, settings."""

import math
from collections.abc import Callable, Mapping, Sequence

from stagecost.report.data import Confusion, ReportData, value_at
from stagecost.report.words import (
    count_text,
    duration_text,
    operations_text,
    percent_text,
    setting_text,
    share_text,
    signed_points_text,
)

CONFUSION_ROWS = 8


def pruning_rows(data: ReportData) -> list[tuple[str, ...]]:
    """List quantity, full network, prediction, pruned network, and pruned against full."""
    pruning = data.pruning
    if pruning is None:
        return []
    full, cut = pruning.accuracy_before, pruning.accuracy_before_finetuning

    def accuracy(suffix: str, predicted: float | None, now: float) -> tuple[str, ...]:
        label = f"Accuracy, {data.analysis.split_word} split{suffix}"
        expected = "" if predicted is None else percent_text(predicted)
        return label, percent_text(full), expected, percent_text(now), signed_points_text(now - full)

    def cost(label: str, old: float, new: float, write: Callable[[float], str]) -> tuple[str, ...]:
        return (label, write(old), "", write(new), share_text(new, old))

    if pruning.finetune_epochs and math.isfinite(cut):
        accuracies = [
            accuracy(", before fine-tuning", pruning.accuracy_predicted, cut),
            accuracy(", fine-tuned", None, pruning.accuracy_after),
        ]
    else:
        accuracies = [accuracy("", pruning.accuracy_predicted, pruning.accuracy_after)]
    macs = pruning.macs_before, pruning.macs_after
    times = pruning.latency_ms_before / 1000, pruning.latency_ms_after / 1000
    known = math.isfinite(sum(times))
    return [
        cost(
            "Blocks",
            pruning.num_blocks_before or data.analysis.num_blocks,
            len(pruning.kept_blocks),
            count_text,
        ),
        *accuracies,
        cost("Parameters", pruning.parameters_before, pruning.parameters_after, count_text),
        cost("MACs an image", *macs, operations_text),
        *([cost("Time an image", *times, duration_text)] if known else []),
    ]


def exit_rows(data: ReportData) -> list[tuple[str, str, str, str]]:
    """List quantity, whole network, with exits, and the second against the first."""
    exits = data.exits
    if exits is None:
        return []
    accuracies = percent_text(exits.accuracy_full), percent_text(exits.accuracy_exit)
    change = signed_points_text(exits.accuracy_exit - exits.accuracy_full)
    blocks = count_text(data.analysis.num_blocks), f"{exits.mean_blocks:.2f}"
    macs = value_at(data.analysis.macs, data.analysis.num_blocks)
    counts = operations_text(macs), operations_text(exits.mean_macs_ratio * macs)
    times = [
        (
            f"Time an image, batches of {timing.batch_size:,}",
            duration_text(timing.latency_ms_full / 1000),
            duration_text(timing.latency_ms_exit / 1000),
            share_text(timing.ratio, 1),
        )
        for timing in exits.timings
    ]
    return [
        ("Accuracy, test split", *accuracies, change),
        ("Blocks, on average", *blocks, share_text(exits.mean_blocks, data.analysis.num_blocks)),
        ("MACs an image, on average", *counts, share_text(exits.mean_macs_ratio, 1)),
        *times,
    ]


def confusion_rows(confusion: Confusion | None) -> list[tuple[str, str, int, int]]:
    """List the most frequent confusions: class, answer, how often, and of how many images."""
    if confusion is None:
        return []
    names = confusion.class_names
    rows = [
        (names[true], names[answer], count, sum(row))
        for true, row in enumerate(confusion.counts)
        for answer, count in enumerate(row)
        if true != answer and count
    ]
    return sorted(rows, key=lambda row: -row[2])[:CONFUSION_ROWS]


def setting_rows(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """List names and values, nested names joined by dots."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += setting_rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", setting_text(value)))
    return rows


def differing_rows(runs: Sequence[ReportData]) -> list[tuple[str, ...]]:
    """List the settings that are not the same in all runs."""
    tables = [dict(setting_rows(run.settings)) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, *(table.get(name, "") for table in tables)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]
