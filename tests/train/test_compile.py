"""A step whose network is compiled as a whole, and images that stay on the device."""

from pathlib import Path
from typing import Any

import pytest
from test_loop import TINY

from stagecost import ResidualNetwork
from stagecost.errors import StageCostError
from stagecost.runs.training import train
from stagecost.train.checkpoint import read_checkpoint


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trace as torch.compile does, but without a compiler; note the sizes that are compiled."""
    sizes: list[int] = []
    original = ResidualNetwork.compile

    def trace(network: ResidualNetwork, **options: Any) -> None:
        sizes.append(network.num_blocks)
        original(network, **options, backend="eager", fullgraph=True)

    monkeypatch.setattr(ResidualNetwork, "compile", trace)
    return sizes


@pytest.mark.parametrize("more", [{}, {"cut_at": "1:2"}, {"ema_decay": 0.5, "drop_path": 0.1}])
def test_a_compiled_training_is_the_same(
    compiled: list[int], more: dict[str, Any], tmp_path: Path
) -> None:
    plain = train({**TINY, **more, "sampled_depths": 0}, tmp_path / "plain")
    assert compiled == []
    found = train({**TINY, **more, "compile": True, "data_on_device": True}, tmp_path / "compiled")
    assert compiled == ([3, 2] if "cut_at" in more else [3])
    assert found.history[-1].val_losses == pytest.approx(plain.history[-1].val_losses, rel=1e-4)
    assert found.num_blocks == plain.num_blocks
    names = [
        list(read_checkpoint(tmp_path / run / "last.safetensors").network().state_dict())
        for run in ("plain", "compiled")
    ]
    assert names[0] == names[1]


def test_where_nothing_compiles_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch.compile", fail)
    with pytest.raises(StageCostError, match="nothing can be compiled for cpu here"):
        train({**TINY, "compile": True}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
