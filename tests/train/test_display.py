"""What is shown while a network trains, by name."""

import math
from pathlib import Path

import pytest
from test_loop import TINY

from stagecost.runs.training import train
from stagecost.train.display import sparkline


def test_sparklines() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([1.0, 1.0, 1.0]) == "▁▁▁"
    assert sparkline([0.0, math.nan, 1.0]) == "▁×█"
    assert len(sparkline(list(range(1001)))) == 24
    assert sparkline([math.inf]) == ""


def test_an_epoch_is_a_line_that_names_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train({**TINY, "cut_at": "1:2"}, tmp_path / "run", label="try")
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert lines[0].startswith("digits: 10 classes (0, 1, 2")
    assert lines[1].startswith("  train: 270 images (0 ")
    lines = [line for line in lines if line.startswith("try")]
    first, last = result.history
    assert lines[0].startswith("try epoch 1/2  train loss ")
    assert f"val loss {first.val_loss:.4f}  val accuracy {first.val_accuracy:.2f} %" in lines[0]
    assert "val loss over depth" in lines[0]
    assert lines[1].startswith("try cut from 3 blocks to 2  val loss ")
    assert lines[2].startswith(f"try epoch 2/2  train loss {last.train_loss:.4f}")
    assert len(lines) == 3


def test_without_validation_nothing_is_said_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train({**TINY, "val_fraction": 0.0, "epochs": 1}, tmp_path / "run")
    assert "val" not in capsys.readouterr().err.splitlines()[-1]
