"""A verb that trains nothing imports nothing that takes seconds and does nothing for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers import Runs
from stagecost.cli.verbs import VERBS

# Each takes from half a second to two, and all of them were imported once.
NEEDLESS = ("torch._dynamo", "torch._inductor", "sympy", "sklearn", "scipy", "pandas", "datasets")
NEEDLESS += ("triton", "lightning_fabric", "transformers", "timm", "torchvision", "matplotlib", "onnx")
DRAWING = ("vl_convert", "jinja2")

TIMES = 3
"""A verb's CPU time with the least work, by that of `import torch` on the same machine: about twice."""

TRAINING = {"train", "demo"}

PROGRAM = """
import json, os, sys, time
import stagecost.cli.main, torch
seconds = time.process_time()  # nearly all of it for torch
for verb, arguments in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        before = os.dup(1)
        os.dup2(2, 1)  # what the verbs print
        stagecost.cli.main.main([verb, *arguments])
        os.dup2(before, 1)
        times = (time.process_time() + seconds) / seconds
        print(json.dumps([verb, times, list(sys.modules)]), flush=True)
        os._exit(0)
    os.wait()
"""


def arguments_of(verb: str, runs: Runs, folder: Path) -> list[str]:
    """Return how the verb is called with the least work."""
    run, saved, small = str(runs.three), str(runs.saved), ["--output", str(folder / "out")]
    Image.new("L", (8, 8)).save(folder / "image.png")
    return {
        "analyze": [run],
        "prune": [run, "--keep-blocks", "2", *small],
        "evaluate": [saved],
        "predict": [saved, str(folder / "image.png")],
        "exit": [saved, "--max-drop", "100", "--batch", "1"],
        "export": [saved, "--format", "pt2", *small],
        "measure": [saved, "--seconds", "0.01", "--batch", "1"],
        "bound": [run, "--sub", str(runs.two)],
        "report": [run],
        "compare": [run, str(runs.two), *small],
        "models": [],
    }[verb]


@pytest.fixture(scope="module")
def started(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, set[str]]]:
    """Run each verb in a process of its own: its time by that of torch, and the modules that it left."""
    verbs = sorted(VERBS.keys() - TRAINING)
    arguments = {verb: arguments_of(verb, runs, tmp_path_factory.mktemp(verb)) for verb in verbs}
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [verb for verb, _, _ in rows] == verbs, outcome.stderr
    return {verb: (times, set(modules)) for verb, times, modules in rows}


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - TRAINING))
def test_a_verb_starts_at_once(verb: str, started: dict[str, tuple[float, set[str]]]) -> None:
    times, modules = started[verb]
    print(verb, times)
    needless = NEEDLESS + (() if verb in ("report", "compare") else DRAWING)
    if verb == "export":  # its work is torch's exporter, which imports the compiler
        needless = ("datasets", "lightning_fabric", "transformers", "timm", *DRAWING)
    assert not modules & set(needless)
    assert times < (TIMES if verb != "export" else 3 * TIMES)


def test_export_comes_to_its_work_at_once(runs: Runs, tmp_path: Path) -> None:
    """What takes longer is torch's exporter, which imports the compiler."""
    code = """
import json, os, sys, time
import torch
seconds = time.process_time()
import stagecost.export.folder
from stagecost.cli.main import main

def begun(*_):
    print(json.dumps([time.process_time() / seconds, list(sys.modules)]), flush=True)
    os._exit(0)

stagecost.export.folder.trace = begun
main(sys.argv[1:])
"""
    arguments = ["export", str(runs.saved), "--format", "pt2", "--output", str(tmp_path / "out")]
    outcome = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    times, modules = json.loads(outcome.stdout)
    assert times < TIMES
    assert not set(modules) & {*NEEDLESS, *DRAWING}


@pytest.mark.parametrize("arguments", [["train", "--help-all"], ["--help"], ["report", "--nonsense"]])
def test_what_runs_nothing_imports_no_tensors(arguments: list[str]) -> None:
    code = f"import sys; from stagecost.cli.main import main\ntry: main({arguments})\n"
    code += "finally: assert not {'torch', 'numpy', 'rich'} & set(sys.modules), 'slow'"
    outcome = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert outcome.returncode == 2 * ("--nonsense" in arguments), outcome.stderr
    assert "slow" not in outcome.stderr
