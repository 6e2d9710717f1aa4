"""One input at a time, within limits of time and memory, and what became of it.

Inputs are read in forked processes, which a hang, a crash or a limit may end. Seconds are those of the
processor, so that a busy machine makes no faults.
"""

import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz.kinds import ENTRIES, WEIGHTS, WRITING, Case, Kind
from fuzz.mutations import TRAP
from fuzz.originals import Files, read, write

SECONDS = 5.0
WAIT = 60.0  # seconds of the clock until a process that does nothing is given up
MEMORY = 2 * 2**30  # bytes beyond what the process had
LONGEST = 700  # characters of a line
FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "socket.connect",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of an input.

    Attributes:
        number: of the input; with the seed, it says all.
        kind: of files.
        entry: what read them.
        said: what was done to them.
        outcome: right, refused or fault.
        line: the message of the refusal, or what is wrong.
        seconds: of the processor.
    """

    number: int
    kind: str
    entry: str
    said: str
    outcome: str
    line: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


def draw(kinds: dict[str, Kind], names: Sequence[str], seed: int, number: int) -> tuple[str, Case]:
    """Return an input by its number."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choices(names, [WEIGHTS[name] for name in names])[0]
    return name, kinds[name].case(rng)


def judge(case: Case, folder: Path) -> tuple[str, str]:
    """Read an input in the working folder, and return the outcome and a line."""
    from stagecost.errors import StageCostError

    _lay_out(case.files, folder)
    _events.clear()
    outcome, line = "right", ""
    try:
        ENTRIES[case.entry]()
    except StageCostError as error:
        outcome, line = "refused", str(error)
        if _is_memory(error):
            return "fault", f"too much memory: {line[:LONGEST]}"
        if "\n" in line or not line.strip() or len(line) > LONGEST:
            return "fault", f"no clear line of {len(line)} characters: {line[:LONGEST]!r}"
        line.encode("utf-8", "backslashreplace")
    except BaseException as error:
        what = "too much memory" if _is_memory(error) else "raw exception"
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        where = [f for f in traceback.extract_tb(error.__traceback__) if "stagecost" in f.filename]
        place = (where or [last])[-1]
        return "fault", f"{what} {text} at {Path(place.filename).name}:{place.lineno}"
    return _aftermath(case, folder, outcome, line)


def _aftermath(case: Case, folder: Path, outcome: str, line: str) -> tuple[str, str]:
    """Look for traces of what must not happen."""
    if _events:
        return "fault", f"did {_events[0]}"
    after = read(folder)
    if any(TRAP in path.name for path in folder.rglob("*")):
        return "fault", "executed what it read"
    if (outcome == "refused" or case.entry not in WRITING) and after != case.files:
        changed = [
            name for name in after.keys() | case.files.keys() if after.get(name) != case.files.get(name)
        ]
        return "fault", f"changed {', '.join(sorted(changed))[:200]} ({line[:200]})"
    return outcome, line


def _lay_out(files: Files, folder: Path) -> None:
    """Make the working folder hold these files and no others."""
    before = read(folder)
    for name in before.keys() - files.keys():
        (folder / name).unlink()
    for entry in folder.iterdir():  # of folders that are left, those without files go
        if not any(name.split("/")[0] == entry.name for name in files):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write(folder, {name: content for name, content in files.items() if before.get(name) != content})


def _is_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that it came from, is one of memory."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, MemoryError) or "allocate memory" in text or "MemoryError" in text:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


_events: list[str] = []


def _listen(event: str, _: tuple[Any, ...]) -> None:
    if event in FORBIDDEN:
        _events.append(event)


def _limit() -> None:
    """Let the memory of this process grow by so much and no more; no core is dumped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _work(connection: Connection, folder: Path, draw_case: Callable[[int], tuple[str, Case]]) -> None:
    """Read inputs whose numbers come in, and answer with verdicts."""
    os.chdir(folder)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for as long as it lives)
    sys.addaudithook(_listen)
    _limit()
    while True:
        number = connection.recv()
        name, case = draw_case(number)
        before = _seconds()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome, line = judge(case, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        spent = round(_seconds() - before, 4)
        connection.send(Verdict(number, name, case.entry, case.said, outcome, line, spent))


def _seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Worker:
    """A process that reads inputs; another one follows where an input ends it."""

    def __init__(self, folder: Path, draw_case: Callable[[int], tuple[str, Case]]) -> None:
        """Take the folder that the inputs are laid out in, and what draws them."""
        self.folder, self.draw_case = folder, draw_case
        self.process = 0
        self.connection: Connection | None = None

    def run(self, numbers: Iterator[int]) -> Iterator[Verdict]:
        """Read inputs, one after the other."""
        for number in numbers:
            yield self.read(number)

    def read(self, number: int) -> Verdict:
        """Read one input."""
        if self.connection is None:
            self._start()
        assert self.connection is not None
        try:
            self.connection.send(number)
            spent = -1
            while not self.connection.poll(WAIT) and spent != (spent := self._spent()):
                pass
            if self.connection.poll():
                answer: Verdict = self.connection.recv()
                return answer
            ending = f"does nothing for {WAIT:g} s"
        except (EOFError, OSError):
            ending = ""
        status = self._end()
        name, case = self.draw_case(number)
        if not ending:
            by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            ending = (
                f"over {SECONDS:g} s" if by == signal.SIGPROF else f"ended by signal {by} ({status})"
            )
        return Verdict(number, name, case.entry, case.said, "fault", ending, SECONDS)

    def close(self) -> None:
        """End the process."""
        if self.connection is not None:
            self._end()

    def _start(self) -> None:
        here, there = Pipe()
        self.process = os.fork()
        if self.process == 0:
            here.close()
            try:
                _work(there, self.folder, self.draw_case)
            finally:
                os._exit(1)
        there.close()
        self.connection = here

    def _spent(self) -> int:
        """Return the time of the processor that the process has had, in ticks."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def _end(self) -> int:
        assert self.connection is not None
        self.connection.close()
        self.connection = None
        done, status = os.waitpid(self.process, os.WNOHANG)
        if not done:
            for _ in range(50):
                time.sleep(0.02)
                done, status = os.waitpid(self.process, os.WNOHANG)
                if done:
                    return status
            os.kill(self.process, signal.SIGKILL)
            _, status = os.waitpid(self.process, 0)
        return status
