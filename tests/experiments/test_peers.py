"""The comparison with peers on a few digits: every arm's row, equal costs, what is kept and left out."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.peers import exits
from experiments.peers import experiment as peers
from experiments.peers.packages import is_installed
from experiments.peers.protocol import Outcome, Protocol, cached
from experiments.peers.twins import module_macs, network_of_twin, plain_twin
from experiments.records import Record, Row
from experiments.runner import Context
from experiments.trainings import trained_run

from helpers import build, images
from stagecost.errors import StageCostError
from stagecost.macs import count_macs

SMALL_MACS = 0.25
"""How far below the MACs of M blocks a network of width 8 may come: one channel less is much."""


def rows_by_arm(context: Context, arms: Sequence[peers.Arm], monkeypatch: Any) -> dict[str, Row]:
    monkeypatch.setattr(peers, "ARMS", tuple(arms))
    return {row["arm"]: row for row in peers.run(context)["rows"]}


def test_the_arms_of_this_library(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [arm for arm in peers.ARMS if arm.package is None]
    rows = rows_by_arm(context, arms, monkeypatch)
    assert list(rows) == [arm.rows[0] for arm in arms]
    full, sub = rows["plain_full"], rows["plain_sub"]
    for name, row in rows.items():
        whole = name in ("plain_full", "stochastic_depth")
        assert row["num_blocks"] == (4 if whole else 2), name
        assert [row[key] for key in ("macs", "parameters")] == [
            (full if whole else sub)[key] for key in ("macs", "parameters")
        ]
        # No arm trains for more than the whole network does; those that are cut on the way for less.
        cheaper = name in ("plain_sub", "control_cut", "ours_cut") or name.endswith("_finetuned")
        assert (row["training_macs"] < full["training_macs"]) == cheaper, name
    # One epoch with 4 blocks and one with 2, whether it is a cut in a training or after a first one.
    costs = {rows[name]["training_macs"] for name in ("control_cut", "ours_cut", "ours_finetuned")}
    assert costs == {(full["training_macs"] + sub["training_macs"]) // 2}


def test_what_is_finished_is_read_and_not_done_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = peers.ARMS[1:2]
    first = rows_by_arm(context, one, monkeypatch)
    monkeypatch.setattr(peers, "trained_run", None)  # would fail if it were called
    assert rows_by_arm(context, one, monkeypatch) == first
    (file,) = (context.work / "outcomes").glob("plain_sub-*-seed0.json")
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "outcomes": [{"num_blocks": 2}]}))
    with pytest.raises(StageCostError, match=r"plain_sub-\w+-seed0.json is no outcome.*delete it"):
        rows_by_arm(context, one, monkeypatch)
    file.write_text(content)


def test_an_arm_that_was_changed_is_made_anew(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> list[Outcome]:
        made.append(1)
        return [replace(Outcome(2, 90.0, 91.0, 100, 1000, 5000, 1.0), macs=len(made))]

    for definition in ({"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}):
        (found,) = cached(tmp_path, "arm", 0, definition, make)
    assert (len(made), found.macs) == (2, 2)


def test_a_missing_package_is_named_with_the_remedy(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "is_installed", lambda package: False)
    said: list[str] = []
    arms = [arm for arm in peers.ARMS if arm.package == "earlyon"]
    assert rows_by_arm(replace(context, report=said.append), arms, monkeypatch) == {}
    assert said == ["earlyon is left out: pip install 'stagecost[peers]' to compare with it"]


def test_a_plain_twin_becomes_the_network_again() -> None:
    network = build("homogeneous").eval()
    again = network_of_twin(plain_twin(network))
    torch.testing.assert_close(again(images()), network(images()))
    assert count_macs(again, (3, 16, 16)) == count_macs(network, (3, 16, 16))


def test_channels_are_pruned_to_the_macs_of_the_blocks(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both counters agree on what is left, and all blocks are still there."""
    if not is_installed("torch-pruning"):
        pytest.skip("the extra `peers` is not installed")
    network = build("homogeneous", width=16, num_classes=10).eval()
    target = count_macs(build("homogeneous", width=16, num_blocks=2, num_classes=10), (3, 16, 16))
    for ranking in ("uniform", "global"):
        small = peers.with_fewer_channels(network, (3, 16, 16), 2, ranking)
        macs = count_macs(small, (3, 16, 16))
        assert macs == module_macs(plain_twin(small), images())
        assert (1 - SMALL_MACS) * target <= macs <= target
        assert small.num_blocks == 4
    arms = [arm for arm in peers.ARMS if arm.package == "torch-pruning"]
    rows = rows_by_arm(context, [peers.ARMS[1], *arms], monkeypatch)
    for name in ("torch_pruning", "torch_pruning_global"):
        assert rows[name]["num_blocks"] == 4
        assert rows[name]["macs"] <= rows["plain_sub"]["macs"]


def test_exits_leave_behind_block_m_or_by_their_policy(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_installed("earlyon"):
        pytest.skip("the extra `peers` is not installed")
    rows = rows_by_arm(context, [peers.ARMS[1], peers.ARMS[9]], monkeypatch)
    at_m, policy, sub = rows["earlyon"], rows["earlyon_policy"], rows["plain_sub"]
    assert (at_m["num_blocks"], policy["num_blocks"]) == (2, 4)
    head = 8 * 128 + 128 * 10  # earlyon's own, in place of the network's
    assert at_m["macs"] == sub["macs"] - 8 * 10 + head
    assert at_m["parameters"] == policy["parameters"]
    assert at_m["training_macs"] == policy["training_macs"]


def test_the_policy_is_earlyons_own(context: Context) -> None:
    """Accuracy and MACs are those of its router, image by image."""
    if not is_installed("earlyon"):
        pytest.skip("the extra `peers` is not installed")
    from earlyon.benchmarking import evaluate

    protocol = Protocol.of("quick", "digits")
    trained = trained_run(context, "plain-first", protocol.trainings()["plain-first"], 0).open()
    model = exits.train_exits(trained, protocol)
    costs = exits.ExitCosts(trained, model, protocol)
    model.config.confidence_thresholds = [0.2, 0.2, 0.2]
    model.config.enabled_exits = [False, True, True]
    accuracy, macs = exits.routed(model, trained, "test", costs)
    report = evaluate(model, list(trained.batches("test")))
    assert accuracy == pytest.approx(100 * report.overall_accuracy)
    _, second, third = costs.heads
    by_hand = {
        "exit_1": sum(costs.parts[:3]) + second,
        "exit_2": sum(costs.parts[:4]) + second + third,
        "final": sum(costs.parts) + second + third,
    }
    expected = sum(part * by_hand[label] for label, part in report.exit_distribution.items())
    assert macs == pytest.approx(expected, abs=1)


def test_the_best_arm_comes_first(tmp_path: Path) -> None:
    row: Row = {"dataset": "mnist", "val_accuracies": [91.0], "num_blocks": 4, "seconds": 3.0}
    row |= {"parameters": 10, "macs": 50, "training_macs": 200}
    means = {"plain_full": 95.0, "ours_cut": 97.5, "torch_pruning": 96.0}
    rows = [
        {**row, "arm": n, "mean": m, "test_accuracies": [m - 0.5, m + 0.5]} for n, m in means.items()
    ]
    rows[0] |= {"macs": 100, "training_macs": 800}
    _, table = peers.section([Record(tmp_path / "cpu-mnist.json", {"rows": rows})])
    lines = table.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| ours_cut", "| torch_pruning", "| plain_full"]
    assert "| 97.50 ± 0.71 | 91.00 | 4 | 10 | 0.500× | 0.25× | 3 s |" in lines[0]
