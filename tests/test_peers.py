"""The comparison with peers on a few digits: every arm's row, equal costs, what is kept and left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers import build, images
from stagecost.benchmark.plain_twin import module_macs, network_of_twin, plain_twin
from stagecost.errors import StageCostError
from stagecost.macs import count_macs
from stagecost_recipes import peers, tiers
from stagecost_recipes.experiment import Context, Row
from stagecost_recipes.peer_arms.outcome import cached
from stagecost_recipes.peer_arms.protocol import Protocol
from stagecost_recipes.peers_view import show
from stagecost_recipes.runs import trained_run

TINY: dict[str, Any] = {
    "model": "homogeneous",
    "num_blocks": 4,
    "width": 16,
    "val_fraction": 1 / 6,
    "epochs": 2,
    "batch_size": 32,
    "limit_test": 100,
    "device": "cpu",
    "fused": "no",
}
SMALL_MACS = 0.15
"""How far below the MACs of M blocks a network of width 16 may come: one channel less is much."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "_CPU", TINY)
    monkeypatch.setitem(tiers.SUB_BLOCKS, "cpu", 2)


def context(work: Path, said: list[str] | None = None) -> Context:
    report = [].append if said is None else said.append
    return Context("cpu", "digits", "digits", (0,), work, report)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


def rows_by_arm(work: Path) -> dict[str, Row]:
    return {row["arm"]: row for row in peers.run(context(work))}


def test_the_arms_of_this_library(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ARMS", [arm for arm in peers.ARMS if arm.package is None])
    rows = rows_by_arm(work)
    assert list(rows) == [arm.rows[0] for arm in peers.ARMS]
    full, sub = rows["plain_full"], rows["plain_sub"]
    for name, row in rows.items():
        whole = name in ("plain_full", "stochastic_depth")
        assert row["num_blocks"] == (4 if whole else 2), name
        for key in ("macs", "parameters"):
            assert row[key] == (full if whole else sub)[key], name
        assert 0 <= row["mean"] <= 100
        assert row["paper"] is None
        assert len(row["test_accuracies"]) == len(row["val_accuracies"]) == 1
        # No arm trains for more than the whole network does; those that are cut on the way for less.
        cheaper = name in ("plain_sub", "control_cut", "ours_cut") or name.endswith("_finetuned")
        assert (row["training_macs"] < full["training_macs"]) == cheaper, name
    # One epoch with 4 blocks and one with 2, whether it is a cut in a training or after a first one.
    costs = {rows[name]["training_macs"] for name in ("control_cut", "ours_cut", "ours_finetuned")}
    assert costs == {(full["training_macs"] + sub["training_macs"]) // 2}
    assert rows["plain_cut_finetuned"]["training_macs"] in costs


def test_what_is_finished_is_read_and_not_done_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = peers.ARMS[1]
    assert one.rows == ("plain_sub",)
    monkeypatch.setattr(peers, "ARMS", [one])
    first = peers.run(context(work))
    monkeypatch.setattr(peers, "trained_run", None)  # would fail if it were called
    assert peers.run(context(work)) == first
    (file,) = (work / "outcomes").glob("plain_sub-*-seed0.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "outcomes": [{"num_blocks": 2}]}))
    with pytest.raises(StageCostError, match=r"plain_sub-\w+-seed0.json is no outcome.*delete it"):
        peers.run(context(work))
    file.unlink()


def test_an_arm_that_was_changed_is_made_anew(tmp_path: Path) -> None:
    outcome = peers.Outcome(2, 90.0, 91.0, 100, 1000, 5000, 1.0)
    made: list[int] = []

    def make() -> list[peers.Outcome]:
        made.append(1)
        return [replace(outcome, macs=len(made))]

    for definition in ({"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}):
        (found,) = cached(tmp_path, "arm", 0, definition, make)
    assert (len(made), found.macs) == (2, 2)


def test_a_missing_package_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(peers, "ARMS", [arm for arm in peers.ARMS if arm.package == "earlyon"])
    said: list[str] = []
    assert peers.run(context(tmp_path, said)) == []
    (line,) = said
    assert "earlyon is left out: pip install 'stagecost[peers]'" in line


def test_a_plain_twin_becomes_the_network_again() -> None:
    network = build("homogeneous").eval()
    again = network_of_twin(plain_twin(network))
    assert torch.equal(again(images()), plain_twin(network)(images()))
    torch.testing.assert_close(again(images()), network(images()))
    shape = (3, 16, 16)
    assert count_macs(again, shape) == count_macs(network, shape)


def test_channels_are_pruned_to_the_macs_of_the_blocks(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both counters agree on what is left, and all blocks are still there."""
    pytest.importorskip("torch_pruning", reason="the extra `peers` is not installed")
    from stagecost_recipes.peer_arms.channels import with_fewer_channels

    network = build("homogeneous", width=16, num_classes=10).eval()
    whole = count_macs(network, (3, 16, 16))
    for ranking in ("uniform", "global"):
        small = with_fewer_channels(network, (3, 16, 16), 2, ranking)
        macs = count_macs(small, (3, 16, 16))
        assert macs == module_macs(plain_twin(small), images())
        target = count_macs(build("homogeneous", width=16, num_blocks=2, num_classes=10), (3, 16, 16))
        assert (1 - SMALL_MACS) * target <= macs <= target
        assert small.num_blocks == 4
        assert count_macs(network, (3, 16, 16)) == whole
    arms = [arm for arm in peers.ARMS if arm.package == "torch-pruning"]
    monkeypatch.setattr(peers, "ARMS", [peers.ARMS[1], *arms])
    rows = rows_by_arm(work)
    for name in ("torch_pruning", "torch_pruning_global"):
        assert rows[name]["num_blocks"] == 4
        assert (1 - SMALL_MACS) <= rows[name]["macs"] / rows["plain_sub"]["macs"] <= 1


def test_exits_leave_behind_block_m_or_by_their_policy(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("earlyon", reason="the extra `peers` is not installed")
    monkeypatch.setattr(peers, "ARMS", [peers.ARMS[1], peers.ARMS[9]])
    rows = rows_by_arm(work)
    at_m, policy, sub = rows["earlyon"], rows["earlyon_policy"], rows["plain_sub"]
    assert (at_m["num_blocks"], policy["num_blocks"]) == (2, 4)
    head = 16 * 128 + 128 * 10  # earlyon's own, in place of the network's
    assert at_m["macs"] == sub["macs"] - 16 * 10 + head
    assert at_m["parameters"] == policy["parameters"]
    assert at_m["training_macs"] == policy["training_macs"]


def test_the_policy_is_earlyons_own(work: Path) -> None:
    """Accuracy and MACs are those of its router, image by image."""
    pytest.importorskip("earlyon", reason="the extra `peers` is not installed")
    from earlyon.benchmarking import evaluate

    from stagecost_recipes.peer_arms import exits

    protocol = Protocol.of("cpu", "digits")
    kind = protocol.trainings()["plain-first"]
    trained = trained_run(context(work), "plain-first", kind, 0).open()
    model = exits.train_exits(trained, trained.load("train", "val"), protocol)
    costs = exits.ExitCosts(trained, model, protocol)
    model.config.confidence_thresholds = [0.2, 0.2, 0.2]
    model.config.enabled_exits = [False, True, True]
    accuracy, macs = exits.routed(model, trained, "test", costs)
    report = evaluate(model, list(trained.batches("test")))
    assert accuracy == pytest.approx(100 * report.overall_accuracy)
    first, second, third = costs.heads
    blocks = exits.network_macs(trained)
    by_hand = {
        "exit_1": sum(blocks[:3]) + second,
        "exit_2": sum(blocks[:4]) + second + third,
        "final": sum(blocks) + second + third,
    }
    expected = sum(part * by_hand[label] for label, part in report.exit_distribution.items())
    assert macs == pytest.approx(expected, abs=1)
    assert first == second == third


def test_the_best_arm_comes_first() -> None:
    row = {"dataset": "mnist", "std": None, "val_accuracies": [91.0], "num_blocks": 4, "seconds": 3.0}
    row |= {"parameters": 10, "macs": 50, "training_macs": 200}
    names = {"plain_full": 95.0, "ours_cut": 97.5, "torch_pruning": 96.0}
    rows = [{**row, "arm": name, "mean": mean} for name, mean in names.items()]
    rows[0] |= {"macs": 100, "training_macs": 800, "std": 0.25}
    console = Console(width=140, record=True)
    show(console, rows)
    lines = console.export_text().splitlines()
    places = [next(i for i, line in enumerate(lines) if name in line) for name in names]
    assert places[1] < places[2] < places[0]
    assert "95.00 ± 0.25" in lines[places[0]]
    assert "0.500×" in lines[places[1]]
    assert "0.25×" in lines[places[1]]
