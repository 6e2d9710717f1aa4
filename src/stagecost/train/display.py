"""What a person sees while a network trains: how far the run is, losses and accuracy by name."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stagecost.train.history import CutRecord, EpochRecord
from stagecost.train.loop import Step
from stagecost.train.state import State

_TICKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw numbers as a line of blocks, the lowest lowest; longer ones are sampled to `width`."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(finite), max(finite)
    scale = (len(_TICKS) - 1) / (high - low) if high > low else 0.0
    ticks = [_TICKS[round((value - low) * scale)] if low <= value <= high else "×" for value in values]
    return "".join(ticks)


class TrainingDisplay:
    """Shows training on standard error: a live bar of the whole run on a terminal, and a line an epoch.

    With `quiet` nothing is shown, as for all but the first of several processes.
    """

    def __init__(self, label: str, epochs: int, *, quiet: bool = False) -> None:
        """Prepare the display of a run called `label`."""
        self.label, self.epochs = label, epochs
        self.console = Console(stderr=True, quiet=quiet, emoji=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} % of the run, left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.smoothed: float | None = None

    def __enter__(self) -> "TrainingDisplay":
        """Start the live display."""
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the live display away."""
        self.bar.stop()

    def step_done(self, state: State, step: Step) -> None:
        """Show a step: how far the run is, the terminal loss, the accuracy of the epoch until now."""
        if self.bar.disable:
            return
        loss, moment, sums = float(step.terms.losses[-1]), step.moment, state.progress.sums
        before = loss if self.smoothed is None else self.smoothed
        self.smoothed = 0.9 * before + 0.1 * loss
        title = f"{self.label}, epoch {moment.epoch + 1} of {self.epochs}"
        status = f"train loss {self.smoothed:.3f}, train accuracy {sums.accuracy:.1f} %"
        if self.task is None:
            self.task = self.bar.add_task(
                title, total=moment.total_steps, completed=moment.step, status=""
            )
        self.bar.update(self.task, description=title, completed=moment.step + 1, status=status)

    def say(self, text: str) -> None:
        """Show some lines that stay."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def epoch_ends(self, record: EpochRecord) -> None:
        """Show what an epoch brought, in one line that stays."""
        text = f"{self.label} epoch {record.epoch}/{self.epochs}  train loss {record.train_loss:.4f}"
        if record.val_losses is not None:
            text += f"  val loss {record.val_loss:.4f}  val accuracy {record.val_accuracy:.2f} %"
            if len(record.val_losses) > 2:
                text += f"  val loss over depth {sparkline(record.val_losses)}"
        left = record.seconds / record.epoch * (self.epochs - record.epoch)
        if left >= 60:
            text += f"  about {left / 60:.0f} min left"
        self.say(text)
        if record.cut is not None:
            self._cut(record.cut)

    def _cut(self, cut: CutRecord) -> None:
        """Say which blocks left after the epoch that has just ended."""
        text = f"{self.label} cut from {cut.num_blocks_before} blocks to {len(cut.kept_blocks)}"
        if cut.val_loss_after is not None:
            text += f"  val loss {cut.val_loss_before:.4f} → {cut.val_loss_after:.4f}"
        self.say(text)
