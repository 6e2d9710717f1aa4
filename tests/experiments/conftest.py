"""Quick runs of experiments in one work folder, so that they share their plain trainings."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from experiments.records import Record  # noqa: E402
from experiments.runner import Context, answer, find_experiment, run  # noqa: E402

Quick = Callable[..., tuple[dict[str, Any], list[Record]]]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="session")
def quick(work: Path) -> Quick:
    """Run an experiment on its quick tier; return its answer and its records."""

    def run_it(name: str, *seeds: int, **options: Any) -> tuple[dict[str, Any], list[Record]]:
        experiment, records = run(name, "quick", seeds=seeds or (0,), work=work, options=options)
        return answer(experiment, records), records

    return run_it


@pytest.fixture
def context(work: Path) -> Context:
    """Return where the quick runs on digits with seed 0 are."""
    assert find_experiment("bound").datasets["quick"] == ("digits",)
    return Context("quick", "digits", (0,), work / "quick-digits")
