"""Initial weights: a function of the seed and of the place, whatever else the network has."""

import math
from typing import Any

import pytest
import torch

import stagecost as sc
from stagecost.network import ResidualNetwork


def built(name: str, seed: int = 0, **arguments: Any) -> ResidualNetwork:
    torch.manual_seed(seed)
    return sc.create_model(name, num_classes=5, **arguments)


def weights(network: ResidualNetwork) -> dict[str, torch.Tensor]:
    """Return the weights that are drawn, by stage and position instead of k."""
    places = {k: f"{s}.{p}" for s, stage in enumerate(network.stages) for p, k in enumerate(stage)}
    found = {}
    for name, parameter in network.named_parameters():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = places[int(parts[1])]
        found[".".join(parts)] = parameter
    return found


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("homogeneous", {"num_blocks": 2, "width": 6}, {"num_blocks": 5, "width": 6}),
        (
            "staged",
            {"blocks_per_stage": (1, 2), "widths": (4, 8)},
            {"blocks_per_stage": (3, 2), "widths": (4, 8)},
        ),
        (
            "staged",
            {"blocks_per_stage": (2, 1), "widths": (4, 8), "projection": "average"},
            {"blocks_per_stage": (2, 3), "widths": (4, 8), "projection": "average"},
        ),
    ],
)
def test_a_sub_network_begins_as_the_network_does(
    name: str, small: dict[str, Any], large: dict[str, Any]
) -> None:
    few, many = weights(built(name, **small)), weights(built(name, **large))
    assert set(few) < set(many)
    assert all(torch.equal(few[key], many[key]) for key in few)


def test_seeds_and_places_differ() -> None:
    first, other = built("homogeneous", 0, num_blocks=2), built("homogeneous", 1, num_blocks=2)
    torch.manual_seed(0)
    sc.create_model("homogeneous", num_blocks=2, num_classes=5)
    second = sc.create_model(
        "homogeneous", num_blocks=2, num_classes=5
    )  # goes on with the random numbers
    for name in ("stem.weight", "head.linear.weight", "blocks.0.residual.2.weight"):
        drawn = [dict(net.named_parameters())[name] for net in (first, other, second)]
        assert not torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
    own = dict(first.named_parameters())
    assert not torch.equal(own["blocks.0.residual.2.weight"], own["blocks.1.residual.2.weight"])
    assert not torch.equal(own["blocks.0.residual.2.weight"], own["blocks.0.residual.5.weight"])


def test_scale() -> None:
    network = built("homogeneous", num_blocks=1, width=64)
    parameters = dict(network.named_parameters())
    spread = float(parameters["blocks.0.residual.2.weight"].detach().std())
    assert spread == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    linear = parameters["head.linear.weight"].detach()
    assert float(linear.abs().max()) <= 1 / math.sqrt(64)
    assert float(linear.std()) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.15)


def test_another_device_gets_the_same_numbers() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        assert built("homogeneous", num_blocks=1).stem.weight.device.type == "meta"  # type: ignore[union-attr]
