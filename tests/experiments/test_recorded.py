"""Recorded results say what produced them, and the page of results says what was recorded."""

import json
import re
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from experiments.again import READINGS, compared, distance
from experiments.benchmark.configurations import CONFIGURATIONS
from experiments.benchmark.ratios import SIZES
from experiments.records import ABOUT, RESULTS
from experiments.runner import EXPERIMENTS, find_experiment, render
from experiments.tables import table
from experiments.trainings import PAPER, paper_difference

from experiments import guide

CHECKS = {RESULTS / "models", RESULTS / "fuzz"}  # by `stagecost models --check` and `python -m fuzz`
RECORDS = sorted(path for path in RESULTS.rglob("*.json") if path.parent not in CHECKS)


def content_of(record: Path) -> dict[str, Any]:
    content = json.loads(record.read_text())
    assert isinstance(content, dict)
    return content


def test_the_page_follows_from_the_records() -> None:
    """If not: `python -m experiments tables`."""
    assert (RESULTS / "README.md").read_text() == render()


def test_the_guide_follows_from_the_records() -> None:
    """If not: `python -m experiments tables`."""
    text = guide.PAGE.read_text()
    assert text == guide.page(text)
    assert len(guide.guide().splitlines()) > 5


def test_every_record_is_shown_by_a_command() -> None:
    shown = {record.file for name in EXPERIMENTS for record in find_experiment(name).records(RESULTS)}
    assert shown == set(RECORDS)


def test_every_figure_is_on_the_page_and_drawn() -> None:
    page = (RESULTS / "README.md").read_text()
    linked = {(RESULTS / link).resolve() for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)}
    assert linked == set(RESULTS.rglob("*.svg"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_record_names_its_circumstances(record: Path) -> None:
    content = content_of(record)
    for key in ABOUT:
        assert content[key], key


@pytest.mark.parametrize("record", sorted((RESULTS / "runs").glob("*.json")), ids=lambda path: path.stem)
def test_every_recorded_run_kept_its_promise(record: Path) -> None:
    """The prediction held exactly where it must, and within the allowed drop elsewhere."""
    content = content_of(record)
    pruning = content["prune"]
    if "homogeneous" in record.stem:
        assert pruning["accuracy_after"] == pruning["accuracy_predicted"]
    assert pruning["accuracy_before"] - pruning["accuracy_after"] <= 1.0 + 1e-9
    assert content["test_pruned"]["num_blocks"] == len(pruning["kept_blocks"])


def test_a_recorded_benchmark_shows_all_that_was_measured() -> None:
    """Of all configurations, or of the first ones (`--quick`)."""
    content = content_of(next((RESULTS / "benchmark").glob("*.json")))
    measured = [row["configuration"] for row in content["rows"]]
    assert measured
    assert measured == [c.name for c in CONFIGURATIONS[: len(measured)]]
    assert {row["num_blocks"] for row in content["scale"]} <= set(SIZES)
    assert content["rounds"] >= 5


def test_every_recorded_variant_has_every_seed() -> None:
    for record in (RESULTS / "ablation").glob("*.json"):
        seeds: dict[str, list[int]] = {}
        for run in content_of(record)["runs"]:
            seeds.setdefault(run["variant"], []).append(run["seed"])
        assert {"plain", "plain-4-blocks", "uniform", "distilled"} <= set(seeds)
        assert all(found == [0, 1, 2] for found in seeds.values())


def test_the_papers_figures() -> None:
    """What the paper pays, as it says itself."""
    full = [paper_difference(name, "stage_full", "plain_full") for name in PAPER]
    pruned = [paper_difference(name, "stage_pruned", "plain_sub") for name in PAPER]
    assert (full, pruned) == ([-0.02, -1.46, -1.97], [-0.09, -0.41, -2.22])
    assert paper_difference("fashion-mnist", "stage_full", "plain_full") is None


def test_a_table() -> None:
    rows = [{"arm": "plain", "mean": 1.0, "paper": None, "seeds": [0, 1]}, {"arm": "stage", "mean": 0.5}]
    columns = {
        "arm": "{arm}",
        "mean": "{mean:.2f}",
        "paper": "{paper:+.2f}",
        "n": lambda row: len(row.get("seeds", [])) or None,
    }
    assert table(rows, columns).splitlines() == [
        "| arm | mean | paper | n |",
        "| --- | --- | --- | --- |",
        "| plain | 1.00 |  | 2 |",
        "| stage | 0.50 |  |  |",
    ]


@pytest.mark.parametrize("name", READINGS)
def test_what_was_run_again_stands_beside_its_record(name: str) -> None:
    """A record beside itself is off by nothing; what is moved by a deviation is seen to be."""
    record = find_experiment(name).records(RESULTS, "cpu")[0]
    reading, seeds = READINGS[name], record["seeds"]
    rows = compared(reading, record.content, dict(record.content), seeds)
    assert rows
    for row in rows:
        assert row["again"] == row["same_seeds"] == row["recorded"]
        assert len(row["again"]) == len(seeds)
        deviation = stdev(row["recorded"]) if len(seeds) > 1 else 0.0
        moved = {**row, "again": [value + 3 * deviation for value in row["recorded"]]}
        assert distance(moved) == (pytest.approx(3) if deviation else None)
