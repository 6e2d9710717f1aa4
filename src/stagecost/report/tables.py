"""The cards and the tables of a report: rows of text, the first of each its heading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecost.report.content import Analysis, ReportData, number, value_at
from stagecost.report.wording import (
    count_text,
    duration_text,
    measure_text,
    operations_text,
    percent_text,
    points_text,
    setting_text,
    share_text,
    short_text,
    signed_points_text,
)

HISTORY_ROWS = 10


@dataclass(frozen=True)
class Card:
    """A number that the top of the report shows large."""

    label: str
    value: str
    detail: str


def make_cards(analysis: Analysis, data: ReportData) -> list[Card]:
    """Make the cards: what is needed, and what it costs or has cost."""
    full = analysis.terminal_accuracy
    cards = [
        Card(
            "Blocks needed",
            f"{analysis.needed:,} of {analysis.num_blocks:,}",
            f"within {points_text(analysis.tolerance)}",
        ),
        Card(
            "Accuracy, full network",
            percent_text(full),
            f"loss {measure_text(value_at(analysis.losses, analysis.num_blocks))}",
        ),
    ]
    if data.pruning is not None:
        return cards + _pruning_cards(data.pruning)
    cut = analysis.needed_accuracy
    label = f"Accuracy at depth {analysis.needed:,}"
    cards.append(Card(label, percent_text(cut), signed_points_text(cut - full)))
    if data.history:
        seconds = sum(number(entry.get("seconds")) for entry in data.history)
        count = len(data.history)
        unit = "epoch" if count == 1 else "epochs"
        cards.append(Card("Training", f"{count:,} {unit}", duration_text(seconds)))
    return cards


def _pruning_cards(pruning: Mapping[str, object]) -> list[Card]:
    _, after, change = _accuracies(pruning)
    costs = _costs(pruning)
    return [
        Card("Accuracy, pruned", after, change),
        *(Card(f"{label}, pruned", new, f"{share} of {old}") for label, old, new, share in costs),
    ]


def _accuracies(pruning: Mapping[str, object]) -> tuple[str, str, str]:
    """Return the accuracy before, after, and the change."""
    before, after = (number(pruning.get(f"accuracy_{when}")) for when in ("before", "after"))
    return percent_text(before), percent_text(after), signed_points_text(after - before)


def _costs(pruning: Mapping[str, object]) -> list[tuple[str, str, str, str]]:
    """List what each cost is called, the cost before, after, and the part that is left."""
    rows = []
    for label, key, write in (
        ("Parameters", "parameters", count_text),
        ("MACs an image", "macs", operations_text),
    ):
        old, new = pruning.get(f"{key}_before"), pruning.get(f"{key}_after")
        rows.append((label, write(old), write(new), share_text(new, old)))
    return rows


def comparison_rows(
    analysis: Analysis, pruning: Mapping[str, object] | None
) -> list[tuple[str, str, str, str, str]]:
    """List quantity, full network, prediction, pruned network, and pruned against full."""
    if pruning is None:
        return []
    kept, blocks = len(analysis.kept), analysis.num_blocks
    before, after, change = _accuracies(pruning)
    predicted = percent_text(pruning.get("accuracy_predicted"))
    return [
        ("Blocks", count_text(blocks), "", count_text(kept), share_text(kept, blocks)),
        (f"Accuracy, {analysis.split} split", before, predicted, after, change),
        *((label, old, "", new, share) for label, old, new, share in _costs(pruning)),
    ]


def result_rows(rows: Sequence[Mapping[str, object]]) -> list[tuple[str, ...]]:
    """List name, blocks, accuracy, loss, parameters and operations of each network tested."""
    return [
        (
            str(row.get("name", "")),
            count_text(row.get("num_blocks")),
            percent_text(row.get("accuracy")),
            measure_text(row.get("loss")),
            count_text(row.get("parameters")),
            operations_text(row.get("macs")),
        )
        for row in rows
    ]


def history_rows(history: Sequence[Mapping[str, object]]) -> list[tuple[str, ...]]:
    """List what the last epochs brought."""
    return [
        (
            count_text(entry.get("epoch")),
            short_text(entry.get("seconds")),
            short_text(entry.get("learning_rate")),
            measure_text(entry.get("train_objective")),
            measure_text(entry.get("train_loss")),
            measure_text(entry.get("val_loss")),
            percent_text(entry.get("val_accuracy")),
        )
        for entry in history[-HISTORY_ROWS:]
    ]


def depth_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """List depth, loss, accuracy, ratio and norm; the last depth has no block."""
    return [
        (
            str(k),
            measure_text(value_at(analysis.losses, k)),
            percent_text(value_at(analysis.accuracies, k)),
            measure_text(value_at(analysis.ratios, k)),
            measure_text(value_at(analysis.norms, k)),
        )
        for k in range(analysis.num_blocks + 1)
    ]


def setting_rows(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """List names and values, nested names joined by dots."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += setting_rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", setting_text(value)))
    return rows
