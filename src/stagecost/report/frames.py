"""What the sliders of a page show at each place: texts that are written here, once, for good."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecost.report.data import Analysis, Epoch, ReportData, value_at
from stagecost.report.words import (
    count_text,
    duration_text,
    measure_text,
    operations_text,
    percent_text,
    share_text,
    signed_points_text,
)
from stagecost.text import counted, shell_path

MOST_PLAYED, MOST_DRAWN, MOST_POINTS = 100, 12, 30_000


@dataclass(frozen=True)
class Frame:
    """One place of a slider."""

    value: int  #: what the charts that follow the slider are told
    says: str  #: what a screen reader says at this place
    texts: Mapping[str, str]  #: by the name of the element that shows each


def depth_frames(data: ReportData) -> list[Frame]:
    """Make a frame for each depth 0 … N: accuracy, loss, costs where they are known, the command."""
    frames = []
    for k in range(data.analysis.num_blocks + 1):
        accuracy = value_at(data.analysis.accuracies, k)
        texts = {
            "depth": f"{k:,} of {counted(data.analysis.num_blocks, 'block')}",
            "accuracy": percent_text(accuracy),
            "change": signed_points_text(accuracy - data.analysis.terminal_accuracy),
            "loss": measure_text(value_at(data.analysis.losses, k)),
            **_costs(data.analysis, k),
            "command": _prune_command(data, k),
        }
        says = f"{counted(k, 'block')}: accuracy {texts['accuracy']}, loss {texts['loss']}"
        frames.append(Frame(k, says, texts))
    return frames


def epoch_frames(history: Sequence[Epoch]) -> list[Frame]:
    """Make a frame for each epoch that can be played."""
    frames = []
    for entry in played_epochs(history):
        accuracy, loss = percent_text(entry.val_accuracy), measure_text(entry.val_losses[-1])
        texts = {"epoch": f"{entry.epoch:,}", "ends": f"All blocks: loss {loss}, accuracy {accuracy}."}
        frames.append(Frame(entry.epoch, f"epoch {entry.epoch}. {texts['ends']}", texts))
    return frames


def comparison_frames(runs: Sequence[ReportData]) -> list[Frame]:
    """Make a frame for each depth up to that of the deepest run; shallower runs show their last."""
    frames = []
    for k in range(max(run.analysis.num_blocks for run in runs) + 1):
        texts = {"depth": counted(k, "block")}
        for place, run in enumerate(runs):
            depth = min(k, run.analysis.num_blocks)
            texts[f"accuracy-{place}"] = percent_text(value_at(run.analysis.accuracies, depth))
            texts[f"loss-{place}"] = measure_text(value_at(run.analysis.losses, depth))
            texts[f"macs-{place}"] = operations_text(value_at(run.analysis.macs, depth))
            texts[f"latency-{place}"] = duration_text(value_at(run.analysis.latencies, depth))
        reached = (f"{run.run} {texts[f'accuracy-{place}']}" for place, run in enumerate(runs))
        frames.append(Frame(k, f"{texts['depth']}: {', '.join(reached)}", texts))
    return frames


def played_epochs(history: Sequence[Epoch]) -> list[Epoch]:
    """Return the epochs that can be played: those whose losses over depth are known, or many of them."""
    known = [entry for entry in history if entry.val_losses]
    longest = max((len(entry.val_losses) for entry in known), default=1)
    most = max(MOST_DRAWN, min(MOST_PLAYED, MOST_POINTS // longest))
    return [known[index] for index in _chosen(len(known), most)]


def drawn_epochs(history: Sequence[Epoch]) -> list[int]:
    """Return the numbers of the epochs that are always drawn."""
    played = played_epochs(history)
    return [played[index].epoch for index in _chosen(len(played), MOST_DRAWN)]


def _chosen(count: int, most: int) -> list[int]:
    """Choose which of `count` epochs to show: all of a few, else first, last and some between.

    The steps grow geometrically, for a loss changes about as much from epoch 1 to 2 as from 100 to 200.
    """
    if count <= most:
        return list(range(count))
    ratio = count ** (1 / (most - 1))
    return sorted({round(ratio**step) - 1 for step in range(most)})


def _costs(analysis: Analysis, k: int) -> dict[str, str]:
    """Write what the first k blocks cost, as far as that is known."""
    texts = {}
    for name, values, write in (
        ("macs", analysis.macs, operations_text),
        ("parameters", analysis.parameters, count_text),
        ("latency", analysis.latencies, duration_text),
    ):
        if math.isfinite(value_at(values, k)):
            texts[name] = write(values[k])
            texts[f"{name}_share"] = f"{share_text(values[k], values[-1])} of the full network"
    return texts


def _prune_command(data: ReportData, k: int) -> str:
    sizes = [len(cut.kept_blocks) for cut in data.analysis.cuts]
    least = min(sizes, default=len(data.analysis.stage_starts))  # a stage need not keep a block
    if k < least:
        return f"# the least that can stay: {counted(least, 'block')}"
    if k == data.analysis.num_blocks:
        return "# all blocks stay: nothing to cut"
    return prune_command(data, f"--keep-blocks {k}", f"small-{k}/")


def prune_command(data: ReportData, wish: str, output: str) -> str:
    """Write how to prune the run, by the checkpoint and the images that the page is on."""
    if data.analysis.split == "train":
        return "# there are no validation images to cut by: train with --val-fraction 0.1"
    options = f"{wish} {data.options}".rstrip()
    return f"stagecost prune {shell_path(data.run)} {options} --output {output}"
