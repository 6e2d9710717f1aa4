"""Recorded results say what produced them, and the page of results says what was recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stagecost.benchmark.configurations import CONFIGURATIONS
from stagecost.benchmark.scaling import SIZES
from stagecost.training.parsing import parse_settings
from stagecost.training.session import residual_decay

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import ablation  # noqa: E402

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


@pytest.mark.parametrize(
    "record", [p for p in RECORDS if p.parent.name == "ablation"], ids=lambda p: p.stem
)
def test_a_recorded_ablation_has_every_seed_and_the_settings_of_the_script(record: Path) -> None:
    trials = ablation.trials(record.stem)
    runs: dict[str, list[dict[str, object]]] = {}
    for run in json.loads(record.read_text())["runs"]:
        runs.setdefault(run["variant"], []).append(run)
    assert {"plain", "plain-4-blocks", "uniform", "distilled"} <= set(runs)
    for name, own in runs.items():
        assert [run["seed"] for run in own] == [0, 1, 2], name
        assert all(run["settings"] == trials[name] for run in own), name


@pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar10"])
def test_every_variant_of_the_ablation_presses_equally(dataset: str) -> None:
    """And decays equally, so that nothing but the variant differs."""
    for name, flat in ablation.trials(dataset).items():
        settings = parse_settings(flat)
        training, variant = settings.training, settings.variant
        if training.gamma == 0:
            continue
        assert training.gamma * variant.total_weight(12) == pytest.approx(1), name
        decay = residual_decay(training, variant, training.gamma, 12)
        assert decay == pytest.approx(5e-4), name
