"""Mutated files end in the right result or in one clear line; see `fuzz/`."""

import faulthandler
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fuzz", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_two_thousand_inputs(tmp_path: Path) -> None:
    done = run("--count", 2000, "--seed", 2026, "--json", "--faults", tmp_path / "faults")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["inputs"] == 2000
    assert summary["faults"] == []
    assert summary["outcomes"]["right"] > 100
    assert summary["outcomes"]["refused"] > 500


def test_the_recorded_run() -> None:
    record = json.loads((ROOT / "results" / "fuzz" / "seed-0.json").read_text())
    assert record["inputs"] >= 100_000
    assert sum(sum(kind.values()) for kind in record["kinds"].values()) == record["inputs"]
    assert record["faults"] == []
    assert record["outcomes"]["fault"] == 0
    assert record["longest_seconds"] < record["limits"]["seconds"]


def test_a_run_goes_on_and_says_the_same(tmp_path: Path) -> None:
    """From its log, with a last line that was cut off; a seed says what was tried."""
    log, kinds = tmp_path / "log", ("--kinds", "settings,idx", "--seed", 3)
    whole = run("--count", 30, *kinds, "--log", tmp_path / "whole", "--json")
    assert run("--count", 10, *kinds, "--log", log).returncode == 0
    log.write_text(log.read_text()[:-20])
    again = run("--count", 30, *kinds, "--log", log, "--json")
    assert json.loads(again.stdout)["kinds"] == json.loads(whole.stdout)["kinds"]
    told = [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (log, tmp_path / "whole")
    ]
    first, second = ([(v["number"], v["said"], v["line"]) for v in verdicts] for verdicts in told)
    assert first == second


def test_the_judge_sees_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can go wrong is told apart from a refusal, in a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT))
    from fuzz import kinds, worker

    def memory() -> None:
        bytearray(3 * 2**30)

    def hang() -> None:
        while True:
            pass

    def crash() -> None:
        faulthandler.disable()  # pytest's would write a stack that looks like a failure
        os.kill(os.getpid(), 11)

    def change() -> None:
        Path("file").write_text("other")

    def execute() -> None:
        os.system("true")

    bad = {"memory": memory, "hang": hang, "crash": crash, "change": change, "execute": execute}
    bad |= {"raw": lambda: {}["x"], "good": lambda: None}  # type: ignore[dict-item]
    for name, entry in bad.items():
        monkeypatch.setitem(kinds.ENTRIES, name, entry)
    names = [*bad]
    monkeypatch.setattr(worker, "SECONDS", 0.5)
    reader = worker.Worker(tmp_path, lambda n: ("x", kinds.Case({"file": b"x"}, "", names[n])))
    outcomes = {names[n]: reader.read(n) for n in range(len(names))}
    reader.close()
    assert outcomes.pop("good").outcome == "right"
    assert {verdict.outcome for verdict in outcomes.values()} == {"fault"}
    words = {"memory": "memory", "hang": "over 0.5 s", "crash": "signal 11", "change": "changed file",
             "execute": "os.system", "raw": "KeyError"}  # fmt: skip
    for name, word in words.items():
        assert word in outcomes[name].line


def test_every_mutation_changes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from fuzz import mutations

    text = json.dumps({"a": [1, 2.5, {"b": "x"}], "c": None}).encode()
    changed = sum(mutations.mutate_json_file(random.Random(k), text)[0] != text for k in range(200))
    assert changed > 180
