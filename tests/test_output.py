"""What is printed is the same whatever the terminal, the pipe or the device can take."""

import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from helpers import DATA, Runs
from processes import CommandLine
from stagecost.text import counted

ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "utf-16", "utf-8", "idna", "koi8-r", "shift_jis"]


def prepare_streams(
    encoding: str | None = None, stdout: str | None = None, stderr: str | None = None
) -> None:
    """Make the streams of a process what another terminal, or a shell, would have made them."""
    if encoding is not None:
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding=encoding, errors="strict")
    for descriptor, kind in ((1, stdout), (2, stderr)):
        if kind == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
        elif kind == "pipe":
            reader, writer = os.pipe()
            os.dup2(writer, descriptor)
            os.close(reader)
        elif kind == "closed":
            os.close(descriptor)
            setattr(sys, {1: "stdout", 2: "stderr"}[descriptor], None)


def width_of(columns: str) -> None:
    os.environ["COLUMNS"] = columns


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding(cli: CommandLine, runs: Runs, encoding: str) -> None:
    prepare = partial(prepare_streams, encoding)
    table = cli.start("analyze", runs.three, prepare=prepare)
    refused = cli.start("evaluate", runs.three / "größe ‖ 大", prepare=prepare)
    answer = cli.start("analyze", runs.three, "--json", prepare=prepare)
    for running, status in ((table, 0), (refused, 2), (answer, 0)):
        running.process.join(120)
        assert running.process.exitcode == status
        assert b"Traceback" not in running.stderr.read_bytes()
    printed = "ascii" if encoding == "idna" else encoding
    assert "blocks are needed" in table.stdout.read_bytes().decode(printed)
    assert (
        json.loads(answer.stdout.read_bytes().decode(printed))
        == cli("analyze", runs.three, "--json").answer
    )


@pytest.mark.parametrize("columns", ["20", "1", "0", "-5", "x", "100000"])
def test_any_width(cli: CommandLine, runs: Runs, columns: str) -> None:
    for verb in ("analyze", "evaluate"):
        outcome = cli(verb, runs.three, prepare=partial(width_of, columns))
        assert outcome.status == 0, outcome.stderr
        assert "%" in outcome.stdout
        assert "…" not in outcome.stdout
    wide, narrow = (
        cli("analyze", runs.three, "--json", prepare=partial(width_of, c)) for c in ("100", columns)
    )
    assert wide.stdout == narrow.stdout


@pytest.mark.parametrize("kind", ["full", "pipe", "closed"])
def test_standard_error_that_takes_nothing(
    cli: CommandLine, runs: Runs, tmp_path: Path, kind: str
) -> None:
    """What is shown on the way is lost, and nothing else."""
    prepare = partial(prepare_streams, stderr=kind)
    assert cli("evaluate", tmp_path, prepare=prepare).status == 2
    usual = cli("evaluate", runs.three, "--json").answer
    assert cli("evaluate", runs.three, "--json", prepare=prepare).answer == usual
    flags = (*DATA, "--num-blocks", 1, "--width", 4, "--epochs", 2, "--batch-size", 64, "--json")
    seen = cli("train", *flags, "--output", tmp_path / "seen").answer
    unseen = cli("train", *flags, "--output", tmp_path / "unseen", prepare=prepare).answer
    assert seen["val_loss"] == unseen["val_loss"]


@pytest.mark.parametrize(("kind", "status"), [("pipe", 0), ("closed", 0), ("full", 2)])
def test_standard_output_that_takes_nothing(
    cli: CommandLine, runs: Runs, tmp_path: Path, kind: str, status: int
) -> None:
    """A reader that has seen enough is no error; a full device is one, in one line."""
    prepare = partial(prepare_streams, stdout=kind)
    for arguments in (("analyze", runs.three), ("evaluate", runs.three, "--json"), ("--help",)):
        outcome = cli(*arguments, prepare=prepare)
        assert outcome.status == status
        assert len(outcome.stderr.splitlines()) == (status == 2)
    for arguments in (("evaluate", tmp_path), ("evaluate", tmp_path, "--json")):
        outcome = cli(*arguments, prepare=prepare)
        assert outcome.status == 2
        assert len(outcome.stderr.splitlines()) == 1
        assert str(tmp_path) in outcome.stderr


REDIRECTIONS = [
    ("--help", ">/dev/full", 2),
    ("--help", ">&-", 0),
    ("--help", "2>&-", 0),
    ("--help", "<&- 2>/dev/full", 0),
    ("--help", "| head -c 1", 0),
    ("nonsense", "2>/dev/full", 2),
    ("nonsense --json", ">/dev/full", 2),
    ("nonsense --json", ">/dev/full 2>/dev/full", 2),
    ("nonsense", ">&- 2>&-", 2),
]


@pytest.mark.parametrize(("arguments", "redirection", "status"), REDIRECTIONS)
def test_redirections(arguments: str, redirection: str, status: int) -> None:
    """In processes of their own: Python has a word to say when it ends."""
    line = f'"$0" -m stagecost.cli {arguments} {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


PATHS = ["a\nb", "b\udcff", "\x1b[31mred", "a\u2028b", "tab\there", "größe 大 ‖", " ", "%s {0} [b]x[b]"]


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_any_path(cli: CommandLine, runs: Runs, tmp_path: Path, name: str) -> None:
    """One line, valid JSON, and the same result as anywhere else."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / name).mkdir()
    outcome = cli("evaluate", tmp_path / "empty" / name, "--json")
    assert outcome.status == 2
    assert len(outcome.stderr.splitlines()) == 1
    assert outcome.stderr.rstrip("\n").isprintable()
    assert json.loads(outcome.stdout)["error"] in outcome.stderr.rstrip("\n")
    run = tmp_path / name
    run.symlink_to(runs.three)
    usual = cli("evaluate", runs.three, "--json").answer
    assert cli("evaluate", run, "--json").answer == usual
    for verb in ("evaluate", "analyze"):
        assert cli(verb, run).status == 0


def test_the_bar_of_a_loss_stands_beside_it(cli: CommandLine, runs: Runs) -> None:
    printed = cli("analyze", runs.three).stdout
    rows = re.findall(r"\d+ +│ +(\d+\.\d+) +│ +(█+) +│ +\d+\.\d+ %", printed)
    losses, bars = [float(loss) for loss, _ in rows], [len(bar) for _, bar in rows]
    assert len(rows) == 4
    order = sorted(range(4), key=losses.__getitem__)
    assert [bars[k] for k in order] == sorted(bars)


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (1200, "block", "1,200 blocks"),
    ],
)
def test_numbers_of_things(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text
