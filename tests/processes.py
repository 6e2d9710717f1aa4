"""The command line in processes of its own, without the seconds that importing torch takes each time.

The processes are forked from one that has imported everything; they have their own file descriptors,
signals and exit status, as the console script has.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
VERBS = (
    "training",
    "analysis",
    "pruning",
    "evaluation",
    "prediction",
    "exiting",
    "exporting",
    "measuring",
    "bound",
    "reporting",
    "models",
    "demo",
)
PRELOAD = [
    *("stagecost.cli.main", "stagecost.cli.verbs", "stagecost.cli.views"),
    *(f"stagecost.runs.{name}" for name in VERBS),
    *("datasets", "PIL.Image", "rich.progress"),
]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int | None
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.status == 0, self.stderr
        answer = json.loads(self.stdout)
        assert isinstance(answer, dict)
        return answer

    @property
    def refusal(self) -> str:
        """The one line on standard error of a command that was refused; what was loaded comes before."""
        assert self.status == 2, (self.status, self.stdout, self.stderr)
        assert "Traceback" not in self.stderr
        *before, last = self.stderr.splitlines()
        assert last.startswith("stagecost: "), self.stderr
        assert not any(line.startswith("stagecost: ") for line in before), self.stderr
        text = last.removeprefix("stagecost: ")
        assert ": " in text or "--help" in text
        assert self.stdout == "" or json.loads(self.stdout) == {"error": text}
        return last


@dataclass(frozen=True)
class Running:
    """A command under way."""

    process: ForkServerProcess
    stdout: Path
    stderr: Path

    def wait(self, timeout: float = 120) -> Outcome:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"did not end in {timeout} s: {self.stderr.read_text()}")
        return Outcome(self.process.exitcode, self.stdout.read_text(), self.stderr.read_text())

    def kill(self) -> Outcome:
        self.process.kill()
        return self.wait()


class CommandLine:
    """Runs `stagecost` with some arguments, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        """Prepare to keep what the commands print in a folder."""
        self.folder, self.count = folder, 0
        environment = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "COLUMNS": "100",
        }
        CONTEXT.set_forkserver_preload(PRELOAD)
        with mock.patch.dict(os.environ, environment):
            ensure_running()

    def start(self, *arguments: object, prepare: Callable[[], None] | None = None) -> Running:
        """Start a command; `prepare` is called in its process first."""
        self.count += 1
        stdout, stderr = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        command = [str(argument) for argument in arguments]
        process = CONTEXT.Process(target=_run, args=(command, stdout, stderr, prepare))
        process.start()
        return Running(process, stdout, stderr)

    def __call__(self, *arguments: object, prepare: Callable[[], None] | None = None) -> Outcome:
        """Run a command to its end."""
        return self.start(*arguments, prepare=prepare).wait()


def _run(arguments: list[str], stdout: Path, stderr: Path, prepare: Callable[[], None] | None) -> None:
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    if prepare is not None:
        prepare()
    from stagecost.cli.main import main

    main(arguments)
