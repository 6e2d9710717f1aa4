"""The README's first command, for real, judged by what it promises."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stagecost as sc
from stagecost.errors import StageCostError
from stagecost.runs.demo import demo

ROOT = Path(__file__).resolve().parent.parent


def make_demo(output: Path) -> str:
    """Run `make demo` with the packages that run this test (so nothing is installed again)."""
    environment = sys.prefix
    command = ["make", "-C", str(ROOT), "-o", f"{environment}/.installed", "demo"]
    variables = [f"VENV={environment}", f"OUTPUT={output}"]
    done = subprocess.run(
        [*command, *variables], check=False, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    shown = make_demo(tmp_path / "demo")
    assert "blocks are needed" in shown
    assert "report.html" in shown
    again = subprocess.run(
        [sys.executable, "-m", "stagecost.cli", "demo", "--output", str(tmp_path / "demo"), "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    check_promises(json.loads(again.stdout))


def test_what_is_of_no_demo_stays(tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "mine").write_text("mine")
    with pytest.raises(StageCostError, match="give another --output"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["pruned", "mine"]


def check_promises(found: dict[str, Any]) -> None:
    analysis, pruning = found["analyze"], found["prune"]
    assert analysis["num_blocks"] == 16
    assert analysis["tolerance"] == 0.5
    assert analysis["needed_blocks"] <= 4
    assert pruning["kept_blocks"] == list(range(analysis["needed_blocks"]))
    assert pruning["accuracy_after"] == pruning["accuracy_predicted"]
    test = {row["name"]: row["accuracy"] for row in found["test"]}
    pruned, plain = test["pruned, as it was cut"], test["plain training, full depth"]
    assert pruned >= 98
    assert pruned >= plain - 0.5
    assert found["seconds"] < 240
    assert Path(found["report"]).read_text().startswith("<!DOCTYPE html>")
    assert sc.load(found["pruned"]).num_blocks == analysis["needed_blocks"]
