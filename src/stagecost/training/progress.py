"""What a person sees while a network trains: a bar, the loss, and the loss over depth in one line."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

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
    """Shows training on standard error: a live bar on a terminal, else one line an epoch.

    With `quiet` nothing is shown, as for all but the first of several processes.
    """

    def __init__(
        self, label: str, epochs: int, *, quiet: bool = False, shows_gamma: bool = False
    ) -> None:
        """Prepare the display of a run called `label`; `shows_gamma` where gamma moves by itself."""
        self.label, self.epochs, self.shows_gamma = label, epochs, shows_gamma
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.smoothed: float | None = None
        self.shape = ""

    def __enter__(self) -> "TrainingDisplay":
        """Start the live display."""
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live display away."""
        self.bar.stop()

    def epoch_begins(self, epoch: int, batch: int, num_batches: int) -> None:
        """Show that an epoch (counted from 0) begins, or goes on at `batch`."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        title = f"{self.label} {epoch + 1}/{self.epochs}"
        self.task = self.bar.add_task(title, total=num_batches, completed=batch, status="")

    def step(self, losses: Sequence[float], accuracy: float) -> None:
        """Show a step: the losses over depth (the last is terminal), accuracy so far in percent."""
        if self.task is None or self.bar.disable:
            return
        before = losses[-1] if self.smoothed is None else self.smoothed
        self.smoothed = 0.9 * before + 0.1 * losses[-1]
        if len(losses) > 1:
            self.shape = sparkline(losses)
        status = f"loss {self.smoothed:.3f}  {accuracy:.1f} %  {self.shape}"
        self.bar.update(self.task, advance=1, status=status)

    def epoch_ends(self, entry: dict[str, Any]) -> None:
        """Show what an epoch brought, in one line that stays."""
        text = f"{self.label} epoch {entry['epoch']}/{self.epochs}  loss {entry['train_loss']:.4f}"
        if entry["val_losses"] is not None:
            self.shape = sparkline(entry["val_losses"])
            text += f"  val {entry['val_loss']:.4f}  {entry['val_accuracy']:.2f} %  {self.shape}"
        if self.shows_gamma:
            text += f"  gamma {entry['gamma']:.3g}"
        self.console.print(text, highlight=False, soft_wrap=True)

    def cut(self, cut: dict[str, Any]) -> None:
        """Say which blocks left, or could not leave, after the epoch that has just ended."""
        blocks = f"{cut['num_blocks_before']} blocks to {len(cut['kept_blocks'])}"
        text = f"{self.label} {'cut from' if cut['made'] else 'refused to cut from'} {blocks}"
        if cut["val_loss_after"] is not None:
            text += f"  val {cut['val_loss_before']:.4f} → {cut['val_loss_after']:.4f}"
        self.console.print(text, highlight=False, soft_wrap=True)
