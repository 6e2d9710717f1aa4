"""The sentences of a report: what was measured, what follows, and what makes it less than it seems."""

import math
from collections.abc import Sequence

from stagecost.report.data import Analysis, Exits, Pruning, ReportData
from stagecost.report.words import measure_text, percent_text, points_text, ranges_text
from stagecost.text import counted


def verdict(analysis: Analysis) -> str:
    """Say how many blocks are needed, and for what."""
    needed = analysis.needed_blocks
    verb = "is" if needed == 1 else "are"
    return (
        f"{needed:,} of {counted(analysis.num_blocks, 'block')} {verb} needed on the "
        f"{analysis.split_word} split to stay within {points_text(analysis.tolerance)} of the full "
        f"network’s {percent_text(analysis.terminal_accuracy)}."
    )


def consequence(data: ReportData) -> str:
    """Say what pruning has brought or would bring."""
    analysis, pruning = data.analysis, data.pruning
    if pruning is not None:
        return (
            f"The pruned network keeps {counted(len(pruning.kept_blocks), 'block')} and reaches "
            f"{percent_text(pruning.accuracy_after)}{_retraining(pruning)}."
        )
    rest = analysis.num_blocks - analysis.needed_blocks
    if rest <= 0:
        return "Within this tolerance no block can be cut off."
    other = "The other block" if rest == 1 else f"The other {counted(rest, 'block')}"
    remaining = percent_text(analysis.needed.accuracy)
    return f"{other} can be cut off without retraining; {remaining} would remain."


def _retraining(pruning: Pruning) -> str:
    if not pruning.finetune_epochs:
        return ", without retraining"
    before = pruning.accuracy_before_finetuning
    known = f" ({percent_text(before)} right after the cut)" if math.isfinite(before) else ""
    return f" after {counted(pruning.finetune_epochs, 'epoch')} of fine-tuning{known}"


def what_pruning_did(pruning: Pruning) -> str:
    """Say which blocks are left, and whether they were trained after the cut."""
    epochs = pruning.finetune_epochs
    after = f"and the rest was fine-tuned for {counted(epochs, 'epoch')}" if epochs else ""
    kept = ranges_text(pruning.kept_blocks) or "none"
    return f"Blocks were removed, {after or 'nothing was retrained'}. Kept: blocks {kept}."


def notes_on(data: ReportData) -> list[str]:
    """Say what makes the numbers of this very report less than they seem."""
    notes = [
        f"{text}." if text.startswith(data.run) else f"{text[:1].upper()}{text[1:]}."  # a path stays
        for text in data.analysis.warnings
    ]
    if data.analysis.split_word == "test":
        notes.append(
            "The depth was chosen on the test split, so an accuracy on the same images flatters. "
            "Choose it on a validation split and read the test split once."
        )
    if data.analysis.split_word == "training":
        notes.append(
            "The depth was chosen on the images that the network was trained on. New images may "
            "need more blocks."
        )
    if data.settings.get("gamma") == 0:
        notes.append(
            "Trained with gamma = 0, plain training: nothing rewarded good intermediate outputs, so "
            "most blocks are expected to be needed."
        )
    if data.settings.get("target_norms") == "own":
        targets = data.settings.get("targets")
        depths = ", ".join(map(str, targets)) if isinstance(targets, Sequence) else ""
        notes.append(
            f"The targets {depths} have norms of their own, which a cut takes along. Other depths are "
            "read with those of the whole network."
        )
    if data.exits is not None:
        before = data.exits.val_accuracy_full
        notes += _age(data.analysis, before, "its exits were chosen", "Choose them")
    return notes if data.pruning is None else notes + _pruning_notes(data.analysis, data.pruning)


def blocks_summary(data: ReportData) -> str:
    """Say which blocks the row of blocks colours."""
    word = "needed" if data.pruning is None else "kept"
    which = ranges_text(data.analysis.blocks[place] for place in data.kept_places) or "none"
    return f"{counted(data.analysis.num_blocks, 'block')} from input to output; {word}: {which}."


def newly_wrong_text(data: ReportData) -> str:
    """Say how many images the cut gets newly wrong, and how many are shown."""
    shown = len(data.newly_wrong)
    count = max(shown, data.newly_wrong_count)
    verb = "is" if count == 1 else "are"
    seen = f"; {shown:,} shown" if shown < count else ""
    return f"{counted(count, 'image')} {verb} right with all blocks and wrong after the cut{seen}."


def what_exits_do(exits: Exits) -> str:
    """Say where images leave, and how many."""
    places = [
        f"{100 * share:.0f} % at depth {depth:,}"
        for depth, share in zip(exits.depths, exits.leaving, strict=True)
    ]
    where = ", ".join(places)
    if not exits.thresholds:
        return f"All images leave at one depth: {where}."
    rule = {"patience": "the answers of so many depths in a row agree"}.get(
        exits.criterion, f"its {exits.criterion.replace('-', ' ')} is that large"
    )
    least = ", ".join(map(measure_text, exits.thresholds))
    return (
        f"An image leaves as soon as {rule}: {least}. Of the test images leave "
        f"{where}. Nothing was trained for it."
    )


def comparison_verdict(runs: Sequence[ReportData]) -> str:
    """Say which run needs the fewest blocks, and which reaches the highest accuracy."""
    fewest = min(run.analysis.needed_blocks for run in runs)
    accuracies = [run.analysis.terminal_accuracy for run in runs]
    highest = max((value for value in accuracies if math.isfinite(value)), default=math.nan)
    shallow = [run.run for run in runs if run.analysis.needed_blocks == fewest]
    best = [run.run for run, value in zip(runs, accuracies, strict=True) if value == highest]
    first = f"{' and '.join(shallow)} need{'s' * (len(shallow) == 1)} the fewest blocks, {fewest:,}"
    if not best:
        return f"{first}."
    second = f"{' and '.join(best)} reach{'es' * (len(best) == 1)} the highest accuracy"
    return f"{first}; {second}, {percent_text(highest)}."


def _age(analysis: Analysis, before: float, done: str, again: str) -> list[str]:
    """Say that something was done with the network when it had another accuracy, if it had."""
    now = analysis.terminal_accuracy
    if not abs(before - now) >= 0.05:
        return []
    return [
        f"The whole network had {percent_text(before)} when {done}, and has "
        f"{percent_text(now)}: it was trained on, it is another checkpoint, or other "
        f"images judge it. {again} again."
    ]


def _pruning_notes(analysis: Analysis, pruning: Pruning) -> list[str]:
    notes = _age(analysis, pruning.accuracy_before, "it was pruned", "Prune")
    first = len(pruning.kept_blocks)
    if pruning.kept_blocks != analysis.blocks[:first]:
        kept = f"blocks {ranges_text(pruning.kept_blocks)}" if pruning.kept_blocks else "no block"
        notes.append(
            f"The pruned network keeps {kept}, not the first {first:,}: the figures over depth do not "
            "show its accuracy."
        )
    elif pruning.finetune_epochs:
        notes.append("It was trained on after the cut: the figures over depth show the cut before that.")
    # What was predicted is the accuracy of the cut; training after it changes that in any case.
    cut = pruning.accuracy_before_finetuning if pruning.finetune_epochs else pruning.accuracy_after
    if abs(pruning.accuracy_predicted - cut) >= 0.05:
        notes.append(
            f"{percent_text(pruning.accuracy_predicted)} was predicted for the pruned network, and "
            f"{percent_text(cut)} measured. Trust the measurement."
        )
    return notes
