"""`python -m experiments`: what it prints, and what it refuses in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from experiments.__main__ import main
from experiments.records import RESULTS
from experiments.runner import EXPERIMENTS, find_experiment

from stagecost.train.parsing import parse_settings

LISTS = {
    "layer-pruning": {"other_rows", "differences"},
    "staged": {"differences"},
    "peers": set[str](),
    "bound": set[str](),
    "loss-trajectory": set[str](),
}
"""The lists beside `rows`."""
KEYS = {"experiment", "title", "tier", "rows", "figures", "records"}
BENCHMARK_KEYS = ["rows", "shrink", "pruned_speedup", "scale", "peers", "spreads", "rounds"]
LOOP_KEYS = {"configuration", "plain_seconds", "literal", "collapsed", "compiled", "c", "sampled"}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("experiments: ")
    return said.err


@pytest.mark.parametrize("name", LISTS)
def test_what_show_prints_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "show", name, "--json"))
    assert set(found) == KEYS | LISTS[name]
    assert (found["experiment"], found["tier"]) == (name, "cpu")
    datasets = [record["dataset"] for record in found["records"]]
    one = json.loads(printed(capsys, "show", name, "--dataset", datasets[0], "--json"))
    assert one["rows"] == [row for row in found["rows"] if row["dataset"] == datasets[0]]


def test_what_show_prints_of_a_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "show", "benchmark", "--json"))
    assert list(found) == [*BENCHMARK_KEYS, "machine", "versions"]
    loops = json.loads(printed(capsys, "show", "c-loops", "--json"))
    assert all(set(row) == LOOP_KEYS for row in loops["rows"])
    assert set(loops["rows"][0]["c"]) == {"time", "quartiles", "memory"}


def test_the_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    assert "(recorded: cpu, mnist, cpu, fashion-mnist, cpu, cifar10" in lines[0]


REFUSED = [
    (["run", "zzz"], "experiment 'zzz' is unknown: choose from layer-pruning"),
    (["show", "zzz"], "experiment 'zzz' is unknown: choose from layer-pruning"),
    (["run", "bound", "--tier", "tpu"], "'tpu'"),
    (["run", "bound", "--dataset", "svhn"], "data set 'svhn' is not in bound on the cpu tier"),
    (["run", "peers", "--tier", "gpu"], "peers has no gpu tier: choose from cpu, quick"),
    (["run", "bound", "--seeds", "x"], "'x': give numbers"),
    (["run", "bound", "--seeds", "1,1"], "seeds are '1,1': give different numbers"),
    (["run", "bound", "--data-root", "nowhere"], "nowhere is no folder"),
    (["run", "bound", "--rounds", "5"], "bound does not heed --rounds: leave it out"),
    (["run", "benchmark", "--quick", "--rounds", "2"], "rounds is 2: give at least 3"),
    (["run", "benchmark", "--threads", "0"], "--threads"),
    (["run", "c-loops"], "c-loops can no longer be run"),
    (["show", "bound", "--results", "empty"], "nothing is recorded of bound on the cpu tier"),
    (["show", "bound", "--seeds", "0"], "--seeds"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=lambda part: str(part)[:40])
def test_what_is_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(capsys, *flags)


def test_the_gpu_tier_needs_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "use --tier cpu" in refusal(capsys, "run", "layer-pruning", "--tier", "gpu")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": 1}', "no rows"])
def test_a_damaged_record_is_named_and_left_alone(
    content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "bound" / "cpu-mnist.json"
    file.parent.mkdir()
    whole = json.loads((RESULTS / "bound" / file.name).read_text())
    file.write_text(json.dumps({**whole, "rows": []}) if content == "no rows" else content)
    before = file.read_text()
    for verb in ("show", "run"):
        assert str(file) in refusal(capsys, verb, "bound", "--results", str(tmp_path))
    assert file.read_text() == before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_training_can_be_trained(name: str) -> None:
    """All tiers name settings that a training takes, on their own device."""
    experiment = find_experiment(name)
    assert experiment.name == name
    for tier, datasets in experiment.datasets.items():
        for dataset in datasets:
            kinds: dict[str, Any] = dict(experiment.trainings(tier, dataset))  # type: ignore[arg-type]
            for training in kinds.values():
                parsed = parse_settings({**training.settings, "data": "digits", "seed": 0})
                parsed.check()
                assert parsed.training.device == ("cuda" if tier == "gpu" else "cpu")
                json.dumps(training.to_json(), allow_nan=False)


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stopped:
        main(["run", "bound", "--quick", "--work", str(file), "--results", str(tmp_path / "results")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert said.startswith(f"experiments: {file}")
    assert said.endswith("choose another folder")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "experiments", "list"]
    root = RESULTS.parent
    called = subprocess.run(command, cwd=root, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (called.returncode, called.stderr) == (0, b"")
