"""The turnpike example: run with few steps, and its network held to what the library promises."""

import sys
from pathlib import Path

import pytest
import torch

import stagecost as sc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import two_spirals  # noqa: E402


def test_the_example_runs_and_writes_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["two_spirals.py", "--steps", "3", "--output", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", arguments)
    two_spirals.main()
    printed = capsys.readouterr().out
    assert "plain: " in printed
    assert "stage cost: " in printed
    for name in ("loss", "control"):
        svg = (tmp_path / "new" / f"two-spirals-{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert ">plain<" in svg
        assert ">stage cost<" in svg


def test_truncation_and_trajectory_hold_for_its_network() -> None:
    torch.manual_seed(0)
    network = two_spirals.point_network(num_blocks=5).eval()
    points, labels = two_spirals.two_spirals(50, seed=3)
    found = sc.loss_trajectory(network, [(points, labels)])
    small = sc.plan_pruning(network, found, keep=2).apply(network)
    assert torch.equal(small(points), network(points, depths=2))
    assert sc.loss_trajectory(small, [(points, labels)]).losses == found.losses[:3]


def test_the_stage_cost_lowers_the_early_losses() -> None:
    """A few steps are enough for the objective to act on outputs that plain training leaves alone."""
    plain, staged = (two_spirals.train(gamma, 40, seed=0) for gamma in (0.0, 0.5))
    data = [two_spirals.two_spirals(200, seed=1)]
    assert sc.loss_trajectory(staged, data).losses[5] < sc.loss_trajectory(plain, data).losses[5]
