"""The sentences of a report: what was found, what follows, and what makes it less than it seems."""

from collections.abc import Mapping

from stagecost.report.content import Analysis, ReportData, number
from stagecost.report.wording import blocks_text, percent_text, points_text, ranges_text


def verdict(analysis: Analysis) -> str:
    """Say how many blocks are needed, and for what."""
    verb = "is" if analysis.needed == 1 else "are"
    return (
        f"{analysis.needed:,} of {blocks_text(analysis.num_blocks)} {verb} needed on the "
        f"{analysis.split} split to stay within {points_text(analysis.tolerance)} of the full network’s "
        f"{percent_text(analysis.terminal_accuracy)}."
    )


def consequence(analysis: Analysis, pruning: Mapping[str, object] | None) -> str:
    """Say what pruning has brought or would bring."""
    if pruning is not None:
        return (
            f"The pruned network keeps {blocks_text(len(analysis.kept))} and reaches "
            f"{percent_text(pruning.get('accuracy_after'))}, without retraining."
        )
    rest = analysis.num_blocks - analysis.needed
    if rest <= 0:
        return "Within this tolerance no block can be cut off."
    other = "The other block" if rest == 1 else f"The other {blocks_text(rest)}"
    remaining = percent_text(analysis.needed_accuracy)
    return f"{other} can be cut off without retraining; {remaining} would remain."


def notes_on(analysis: Analysis, data: ReportData) -> list[str]:
    """Say what makes the numbers of this very report less than they seem."""
    notes = []
    if analysis.split == "test":
        notes.append(
            "The depth was chosen on the test split, so an accuracy on the same images flatters. "
            "Choose it on a validation split and read the test split once."
        )
    if analysis.split == "training":
        notes.append(
            "The depth was chosen on the images that the network was trained on. New images may "
            "need more blocks."
        )
    if number(data.settings.get("gamma")) == 0:
        notes.append(
            "Trained with gamma = 0, plain training: nothing rewarded good intermediate outputs, so "
            "most blocks are expected to be needed."
        )
    return notes if data.pruning is None else notes + _pruning_notes(analysis, data.pruning)


def _pruning_notes(analysis: Analysis, pruning: Mapping[str, object]) -> list[str]:
    notes = []
    if analysis.kept != list(range(analysis.needed)):
        kept = f"blocks {ranges_text(analysis.kept)}" if analysis.kept else "no block"
        notes.append(
            f"The pruned network keeps {kept}, not the first "
            f"{analysis.needed:,}: the figures over depth do not show its accuracy."
        )
    predicted = number(pruning.get("accuracy_predicted"))
    measured = number(pruning.get("accuracy_after"))
    if abs(predicted - measured) >= 0.05:
        notes.append(
            f"{percent_text(predicted)} was predicted for the pruned network, and "
            f"{percent_text(measured)} measured. Trust the measurement."
        )
    return notes
