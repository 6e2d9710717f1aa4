"""`stagecost exit` on real runs: what it tells, what it saves, and what it refuses."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import stagecost as sc
from runs.conftest import TINY, Trained
from stagecost.errors import StageCostError
from stagecost.macs import macs_by_part
from stagecost.runs.evaluation import evaluate
from stagecost.runs.exiting import Exits, exit_early, lost_more, overspent, trained_depths
from stagecost.runs.exporting import export
from stagecost.runs.reporting import report
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train
from stagecost.storage import read_tensors, write_tensors


@pytest.mark.parametrize("which", ["three", "staged", "saved"])
def test_exit_chooses_measures_and_saves(trained: Trained, tmp_path: Path, which: str) -> None:
    run = shutil.copytree(getattr(trained, which), tmp_path / which)
    done = exit_early(run, max_drop=2, criterion="all", combine=True, batch=(20, 64), device="cpu")
    content = json.loads((run / "exit.json").read_text())
    assert content == done.to_json()
    assert set(content) == {field.name for field in fields(Exits)} | set(Exits.aliases)
    policy = sc.ExitPolicy.load(run)
    assert (policy.depths, policy.criterion) == (done.depths, done.criterion)
    assert done.accuracy_full == pytest.approx(evaluate(run).accuracy)
    assert done.val_accuracy_exit >= done.val_accuracy_full - 2 - 1e-9
    opened = open_trained(run, device="cpu")
    batches = list(opened.batches("test"))
    answers = [sc.run_with_exits(opened.network, images, policy) for images, _ in batches]
    right = torch.cat([a.labels == y for a, (_, y) in zip(answers, batches, strict=True)])
    assert done.accuracy_exit == pytest.approx(100 * float(right.double().mean()))
    assert done.num_images == len(right) == 200
    assert done.mean_blocks == pytest.approx(
        sum(d * s for d, s in zip(done.depths, done.leaving, strict=True))
    )
    assert sum(done.leaving) == pytest.approx(1)
    network, shape = opened.network, opened.image_shape
    parts, asked, spent = macs_by_part(network, shape), 0, 0.0
    for depth, share in zip(done.depths, done.leaving, strict=True):
        macs = sc.count_macs(network, shape, sc.Cut.first(depth))
        spent += share * (macs + asked)
        asked += macs - sum(parts[: depth + 1])  # who goes on has been through skips and head in vain
    assert done.mean_macs_ratio == pytest.approx(spent / sc.count_macs(network, shape))
    assert done.cuts[0].mean_macs_ratio == pytest.approx(
        sc.count_macs(network, shape, sc.Cut.first(0)) / sc.count_macs(network, shape)
    )
    assert [(t.batch_size, t.num_images) for t in done.timings] == [(20, 200), (64, 192)]
    assert done.measured_time_ratio == max(t.ratio for t in done.timings)
    assert [row.depths for row in done.cuts] == [(k,) for k in range(opened.network.num_blocks + 1)]
    assert done.cuts[-1].accuracy == pytest.approx(done.accuracy_full)
    assert done.oracle[-1].accuracy >= max(row.accuracy for row in done.cuts)
    lost = done.accuracy_full - done.accuracy_exit > 2 + 1e-9
    assert lost == any("points of accuracy, more than --max-drop 2" in each for each in done.warnings)


def test_a_budget_is_kept(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    done = exit_early(run, max_macs=0.7, batch=(32, 32), device="cpu")
    assert [timing.batch_size for timing in done.timings] == [32]  # each once
    assert done.mean_macs_ratio < 0.75  # on test images, chosen on validation images
    assert done.expected_time_ratio > 0


def test_a_row_of_the_curve_tells_the_policy_that_it_measured(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    done = exit_early(run, max_macs=1, combine=True, batch=(32,), device="cpu")
    opened = open_trained(run, device="cpu")
    batches = list(opened.batches("test"))
    for row in done.curve:
        policy = sc.ExitPolicy(row.depths, row.thresholds, row.criterion, row.combine)
        answers = [sc.run_with_exits(opened.network, images, policy).labels for images, _ in batches]
        right = torch.cat([a == y for a, (_, y) in zip(answers, batches, strict=True)])
        assert row.accuracy == pytest.approx(100 * float(right.double().mean()))
        assert row.combine == (len(row.depths) > 1)


def test_images_are_asked_at_the_targets_of_the_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train({**TINY, "num_blocks": 4, "targets": ["2"], "epochs": 1}, run)
    done = exit_early(run, max_drop=2, batch=(20,), device="cpu")
    asked = {row.depths for row in done.curve if len(row.depths) > 1}
    assert asked <= {(2, 4)}
    assert [row.depths for row in done.cuts] == [(k,) for k in range(5)]


def test_exits_of_other_weights_are_refused(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    exit_early(run, max_drop=20, batch=(20,), device="cpu")
    export(run, output=tmp_path / "first", segments="exits")
    report(run)
    other = shutil.copytree(trained.staged, tmp_path / "other")
    shutil.copy(run / "exit.json", other)
    shutil.copy(run / "exit_policy.json", other)
    tensors, details = read_tensors(run / "last.safetensors")
    name = next(name for name in tensors if name.endswith("head.linear.bias"))
    write_tensors(run / "last.safetensors", tensors | {name: tensors[name] + 1e-3}, details)
    for folder, words in ((run, "other weights"), (other, "chosen for (other weights|another number)")):
        with pytest.raises(StageCostError, match=f"does not tell of exits of this network.*{words}"):
            export(folder, output=tmp_path / "second", segments="exits")
        with pytest.raises(StageCostError, match=words):
            report(folder)
    assert not (tmp_path / "second").exists()


def test_a_staged_target_that_is_a_plain_depth_is_an_exit(tmp_path: Path) -> None:
    run, shape = tmp_path / "run", {"model": "staged", "blocks_per_stage": [2, 2], "widths": [4, 4]}
    plain = {key: value for key, value in TINY.items() if key not in ("num_blocks", "width", "model")}
    train({**plain, **shape, "targets": ["2+1"], "epochs": 1}, run)
    assert trained_depths(open_trained(run, device="cpu")) == (3,)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "--max-drop, --max-macs or --max-time"),
    ({"max_drop": -1.0}, "--max-drop is -1.0"),
    ({"max_drop": float("nan")}, "--max-drop is nan"),
    ({"max_macs": 0.0}, "--max-macs is 0.0"),
    ({"max_time": 1.5}, "--max-time is 1.5"),
    ({"max_drop": 1.0, "batch": (0,)}, "--batch is '0'"),
    ({"max_drop": 1.0, "batch": ()}, "--batch is ''"),
    ({"max_macs": 0.001, "batch": (8,)}, "no exits cost as little as 0.001"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=str)
def test_what_is_refused_changes_nothing(trained: Trained, options: dict[str, Any], words: str) -> None:
    with pytest.raises(StageCostError) as caught:
        exit_early(trained.three, device="cpu", **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (trained.three / "exit.json").exists()


def test_thresholds_need_validation_images(tmp_path: Path) -> None:
    run = {**TINY, "epochs": 1, "num_blocks": 1, "width": 4, "val_fraction": 0.0}
    train(run, tmp_path / "run")
    with pytest.raises(StageCostError, match=r"without validation images.*--val-fraction"):
        exit_early(tmp_path / "run", max_drop=1)


def test_a_policy_that_the_record_does_not_tell_of_is_refused(trained: Trained, tmp_path: Path) -> None:
    """As after a kill between the two files."""
    run = shutil.copytree(trained.three, tmp_path / "run")
    exit_early(run, max_drop=100, batch=(8,), device="cpu")
    sc.ExitPolicy((1, 3), (0.5,)).save(run)
    for use in (
        lambda: export(run, tmp_path / "exits", segments="exits"),
        lambda: export(run, tmp_path / "depths", segments="1,3"),
        lambda: report(run, device="cpu"),
    ):
        with pytest.raises(StageCostError, match=r"exit_policy\.json holds other ones"):
            use()
    assert export(run, tmp_path / "others", segments="2,3").thresholds == (1.0,)


def test_the_command_line(cli: Any, trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    said = cli("exit", run, "--max-drop", 1, "--batch", "8,32", "--device", "cpu")
    assert said.status == 0, said.stderr
    for words in (
        "leaves at",
        "whole network",
        "with exits",
        "MACs",
        "batch size 32",
        "exit_policy.json",
    ):
        assert words in said.stdout
    assert "choosing exits on 60 validation images" in said.stderr
    assert cli("exit", run, "--max-drop", 1, "--criterion", "entropy").refusal
    assert "--batch is '0'" in cli("exit", run, "--max-drop", 1, "--batch", 0, "--json").refusal


def test_what_test_images_take_above_a_limit_is_told() -> None:
    spent = {"macs": 0.7, "time": 0.52}
    assert overspent(spent, {"macs": 0.7, "time": None}) == []
    (told,) = overspent(spent, {"macs": None, "time": 0.5})
    assert told.startswith(
        "test images took 0.520 of the whole network's time, more than --max-time 0.5"
    )
    assert lost_more(2.0, None, 60) == lost_more(1.0 + 1e-12, 1.0, 60) == []
    (told,) = lost_more(8.0, 1.0, 1440)
    assert told.startswith("test images lost 8.00 points of accuracy, more than --max-drop 1")
    assert told.endswith("1,440 validation images")
