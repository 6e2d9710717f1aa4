"""A verb that trains nothing imports nothing that takes seconds and does nothing for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import Runs

# Each takes from half a second to two, and all of them were imported once.
NEEDLESS = ("torch._dynamo", "torch._inductor", "sklearn", "scipy", "pandas", "datasets")
NEEDLESS += ("lightning_fabric", "transformers", "timm", "torchvision", "matplotlib", "vl_convert")

PROGRAM = """
import json, os, sys, time
from stagecost.cli.main import main
before = os.dup(1)
os.dup2(2, 1)  # what the verbs print
main(json.loads(sys.argv[1]))
os.dup2(before, 1)
needless = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps({"needless": needless, "seconds": time.process_time()}))
"""


@pytest.mark.parametrize("verb", ["analyze", "evaluate", "prune"])
def test_a_verb_starts_at_once(verb: str, runs: Runs, tmp_path: Path) -> None:
    arguments = {
        "analyze": ["analyze", str(runs.three)],
        "evaluate": ["evaluate", str(runs.saved)],
        "prune": ["prune", str(runs.three), "--keep-blocks", "2", "--output", str(tmp_path / "small")],
    }[verb]
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments), json.dumps(NEEDLESS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    answer = json.loads(outcome.stdout)
    assert answer["needless"] == []
    assert answer["seconds"] < 12, "far more than the two or three that importing torch takes"


def test_help_imports_no_tensors() -> None:
    code = "import sys; from stagecost.cli.main import main; main(['train', '--help-all']); "
    code += "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
