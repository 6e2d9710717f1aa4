"""Small trained runs that many tests read; nobody writes to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stagecost.runs.pruning import prune
from stagecost.runs.training import train

TINY: dict[str, Any] = {
    "data": "digits",
    "limit_train": 600,
    "limit_test": 200,
    "device": "cpu",
    "epochs": 2,
    "batch_size": 32,
}


@dataclass(frozen=True)
class Trained:
    """Folders of trained runs, and of a saved network that was pruned from `three`."""

    three: Path
    two: Path
    staged: Path
    saved: Path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slowed down by more threads, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    made = Trained(*(folder / name for name in ("three", "two", "staged", "saved")))
    train({**TINY, "width": 6, "num_blocks": 3}, made.three)
    train({**TINY, "width": 6, "num_blocks": 2}, made.two)
    train({**TINY, "model": "staged", "blocks_per_stage": [2, 2], "widths": [6, 8]}, made.staged)
    prune(made.three, made.saved, keep=2)
    return made
