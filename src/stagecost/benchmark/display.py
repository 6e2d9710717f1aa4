"""What a person sees while a benchmark runs: on a terminal what is measured now, else a line each."""

from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class BenchmarkDisplay:
    """Shows on standard error what is being measured."""

    def __init__(self) -> None:
        """Prepare the display."""
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=None)

    def __enter__(self) -> "BenchmarkDisplay":
        """Start the live display."""
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live display away."""
        self.progress.stop()

    def report(self, what: str) -> None:
        """Show what is measured next."""
        if self.progress.disable:
            self.note(f"measuring {what}")
        else:
            self.progress.update(self.task, description=f"measuring {what}")

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self.console.print(text, soft_wrap=True)
