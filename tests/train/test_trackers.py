"""Figures of each epoch go to the trackers that are asked for."""

import sys
from pathlib import Path
from unittest import mock

import pytest

from stagecost.errors import StageCostError
from stagecost.runs.training import train
from stagecost.train.history import EpochRecord
from stagecost.train.state import State

SETTINGS = {"data": "digits", "num_blocks": 2, "width": 4, "limit_train": 64, "limit_test": 20}
SETTINGS |= {"batch_size": 32, "device": "cpu", "epochs": 2}


@pytest.mark.parametrize(
    ("name", "begins", "logs", "ends"),
    [("wandb", "init", "log", "finish"), ("mlflow", "start_run", "log_metrics", "end_run")],
)
def test_a_run_is_begun_told_each_epoch_and_ended(
    name: str, begins: str, logs: str, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = mock.Mock()
    monkeypatch.setitem(sys.modules, name, package)
    result = train(SETTINGS | {"tracker": name}, tmp_path / "mine")
    calls = [call[0] for call in package.method_calls]
    order = [call for call in calls if call in {begins, logs, ends}]
    assert order == [begins, logs, logs, ends]
    assert "mine" in getattr(package, begins).call_args.kwargs.values()
    (*_, (figures,)), (*_, steps) = zip(*getattr(package, logs).call_args_list, strict=True)
    assert figures["val_accuracy"] == result.val_accuracy
    assert steps == {"step": 2}


def test_a_run_is_ended_by_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", package := mock.Mock())

    def refuse(state: State, record: EpochRecord) -> EpochRecord:
        if record.epoch == 2:
            raise RuntimeError("in the second epoch")
        return record

    with pytest.raises(RuntimeError, match="in the second epoch"):
        train(SETTINGS | {"tracker": "mlflow"}, tmp_path / "run", after_epoch=refuse)
    package.log_metrics.assert_called_once()
    package.end_run.assert_called_once_with("FAILED")


def test_the_old_flag_is_the_new_one(tmp_path: Path) -> None:
    train(SETTINGS | {"tensorboard": True, "epochs": 1}, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_what_is_unknown_or_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(StageCostError, match="--tracker trackio needs a package: pip install trackio"):
        train(SETTINGS | {"tracker": "trackio"}, tmp_path / "run")
    with pytest.raises(StageCostError, match="--tracker is 'paper': give some of tensorboard, trackio"):
        train(SETTINGS | {"tracker": ["paper"]}, tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))
