"""Recorded results say what produced them, and the page of results says what was recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stagecost.benchmark.configurations import CONFIGURATIONS
from stagecost.benchmark.scaling import SIZES

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "results").rglob("*.json"))


def test_the_page_follows_from_the_records() -> None:
    script = ROOT / "scripts" / "results_table.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True, timeout=60)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_every_record_names_its_circumstances(record: Path) -> None:
    content = json.loads(record.read_text())
    for key in ("command", "commit", "seeds", "machine", "threads", "versions"):
        assert content[key], key


@pytest.mark.parametrize("record", [p for p in RECORDS if p.parent.name == "runs"], ids=lambda p: p.stem)
def test_every_recorded_run_kept_its_promise(record: Path) -> None:
    """The prediction held exactly where it must, and within the allowed drop elsewhere."""
    content = json.loads(record.read_text())
    pruning = content["prune"]
    if "homogeneous" in record.stem:
        assert pruning["accuracy_after"] == pruning["accuracy_predicted"]
    assert pruning["accuracy_before"] - pruning["accuracy_after"] <= 1.0 + 1e-9
    assert content["test_pruned"]["num_blocks"] == len(pruning["kept_blocks"])


@pytest.mark.parametrize(
    "record", [p for p in RECORDS if p.parent.name == "benchmark"], ids=lambda p: p.stem
)
def test_a_recorded_benchmark_shows_all_that_was_measured(record: Path) -> None:
    content = json.loads(record.read_text())
    if record.stem == "peers":
        names = {row["configuration"] for row in content["peers"]}
        assert names == {c.name for c in CONFIGURATIONS[:2]}
        return
    assert [row["configuration"] for row in content["rows"]] == [c.name for c in CONFIGURATIONS]
    assert {row["num_blocks"] for row in content["scale"]} == set(SIZES)
    assert content["rounds"] >= 7
