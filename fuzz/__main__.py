"""`python -m fuzz --count N --seed S`: mutate files, and see what becomes of each.

Verdicts go to a file of JSON lines, from which a run that was stopped goes on; with --record, a summary
goes to a JSON file.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from fuzz.kinds import ENTRIES, WEIGHTS, Kind, kinds_of, make_originals
from fuzz.originals import quiet, write
from fuzz.worker import MEMORY, SECONDS, Verdict, Worker, draw


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kinds", default=",".join(WEIGHTS), help="of files, with commas")
    parser.add_argument("--log", type=Path, help="JSON lines of verdicts; goes on where it ends")
    parser.add_argument("--faults", type=Path, help="folder for the inputs that are faults")
    parser.add_argument("--record", type=Path, help="JSON file for the summary")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    return parser.parse_args(arguments)


def prepare(folder: Path) -> dict[str, Kind]:
    """Make the valid files in an empty folder, and leave it empty."""
    kinds = kinds_of(make_originals(folder))
    _warm_up(kinds, folder)
    return kinds


def _warm_up(kinds: dict[str, Kind], folder: Path) -> None:
    """Import what is imported late, and see that valid files are read rightly."""
    import vl_convert  # noqa: F401

    before = Path.cwd()
    os.chdir(folder)
    try:
        for kind in kinds.values():
            for entry in kind.entries.keys() - {"report"}:
                _empty(folder)
                write(folder, kind.files)
                ENTRIES[entry]()
    finally:
        os.chdir(before)
        _empty(folder)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def summarise(lines: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Count verdicts."""
    import torch

    from stagecost import __version__

    tally: dict[str, Counter[str]] = {}
    for line in lines:
        tally.setdefault(line["kind"], Counter())[line["outcome"]] += 1
    outcomes = ("right", "refused", "fault")
    return {
        "command": f"python -m fuzz --count {len(lines)} --seed {seed}",
        "inputs": len(lines),
        "outcomes": {o: sum(t[o] for t in tally.values()) for o in outcomes},
        "kinds": {kind: {o: t[o] for o in outcomes} for kind, t in sorted(tally.items())},
        "longest_seconds": max((line["seconds"] for line in lines), default=0.0),
        "limits": {"seconds": SECONDS, "bytes": MEMORY},
        "faults": [line for line in lines if line["outcome"] == "fault"],
        "stagecost": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return 1 if there is a fault."""
    asked = parse(arguments)
    quiet()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    names = asked.kinds.split(",")
    if unknown := set(names) - set(WEIGHTS):
        sys.exit(f"unknown kinds: {', '.join(sorted(unknown))}; choose from {', '.join(WEIGHTS)}")
    done = _done(asked.log)
    known = {line["number"] for line in done}
    numbers = [n for n in range(asked.first, asked.first + asked.count) if n not in known]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with Path(os.devnull).open("w") as null, redirect_stderr(null):
            kinds = prepare(folder)
        worker = Worker(folder, lambda number: draw(kinds, names, asked.seed, number))
        for verdict in worker.run(iter(numbers)):
            done.append(verdict.to_json())
            _note(verdict, asked.log)
            if verdict.outcome == "fault":
                if asked.faults is not None:
                    _keep(worker, verdict, asked.faults)
                print(json.dumps(verdict.to_json()), file=sys.stderr, flush=True)
        worker.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summary = summarise(done, asked.seed)
    if asked.record is not None:
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        asked.record.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary) if asked.json else f"{summary['inputs']} inputs: {summary['outcomes']}")
    return int(summary["outcomes"]["fault"] > 0)


def _done(log: Path | None) -> list[dict[str, Any]]:
    """Return the verdicts that are there already; a last line that was cut off does not count."""
    if log is None or not log.is_file():
        return []
    text = log.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        log.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def _note(verdict: Verdict, log: Path | None) -> None:
    if log is not None:
        with log.open("a") as file:
            file.write(json.dumps(verdict.to_json()) + "\n")


def _keep(worker: Worker, verdict: Verdict, folder: Path) -> None:
    """Write the files of an input, and the verdict beside them."""
    _, case = worker.draw_case(verdict.number)
    target = folder / f"{verdict.number}"
    write(target, case.files)
    (target / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
