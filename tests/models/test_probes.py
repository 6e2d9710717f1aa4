"""Linear heads that are fitted: the classifier of a network, and one on each state."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import stagecost as sc
from helpers import build, images, labels
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.probes import fit_classifier, fit_linear, linear_probes, pooled

NAME = "timm/test_resnet"


def test_a_head_is_fitted_to_several_cuts_alike() -> None:
    network = sc.create_model("homogeneous", num_blocks=2, width=6, num_classes=3, in_channels=1)
    data = [(torch.randn(9, 1, 8, 8), torch.arange(9) % 3) for _ in range(2)]
    cuts, seen = (Cut.whole(), Cut.first(1)), []
    fit_classifier(network, data, 3, cuts)
    hook = network.head.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.eval()
    with torch.no_grad():
        for cut in cuts:
            for images, _ in data:
                network(images, cut)
    hook.remove()
    targets = torch.cat([labels for _, labels in data] * 2)
    fitted = fit_linear(torch.cat(seen), targets)
    images = torch.cat(seen)
    assert torch.allclose(network.head.linear(images), fitted(images), atol=1e-2)
    fit_classifier(network, data, 3)
    assert not torch.allclose(network.head.linear(images), fitted(images), atol=0.1)


def test_a_fitted_head_reads_what_is_there_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator) * torch.tensor([1.0, 1, 1, 1, 1, 50]) + 3
    targets = (features[:, 5] > 3).long() + 2 * (features[:, 2] > 3).long()
    fitted = fit_linear(features, targets)
    assert float((fitted(features).argmax(dim=1) == targets).float().mean()) > 0.9
    for other in (features * 1e-8, features * 1e6, features + 3e4):  # scale and place do not matter
        answers = fit_linear(other, targets)(other).argmax(dim=1)
        assert float((answers == fitted(features).argmax(dim=1)).float().mean()) > 0.98
    shuffled = targets[torch.randperm(300, generator=generator)]
    blind = fit_linear(features[:150], shuffled[:150])(features[150:]).argmax(dim=1)
    assert float((blind == shuffled[150:]).float().mean()) < 0.6
    network = sc.create_model(NAME, num_classes=3, image_size=32).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fit_classifier(network, [(torch.randn(9, 3, 32, 32), torch.arange(9) % 3)], 3)
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.full((9,), 7), "give whole numbers from 0 to 2"),
        (torch.full((9,), -1), "give whole numbers from 0 to 2"),
        (torch.rand(9), "give whole numbers from 0 to 2"),
        (torch.arange(9) > 2, "give whole numbers from 0 to 2"),
        (torch.zeros(9, 1, dtype=torch.long), "give whole numbers from 0 to 2"),
    ],
)
def test_a_classifier_is_fitted_to_labels_alone(labels: torch.Tensor, words: str) -> None:
    network = sc.create_model("homogeneous", num_blocks=1, width=4, num_classes=3)
    with pytest.raises(StageCostError, match=words):
        fit_classifier(network, [(torch.randn(9, 3, 8, 8), labels)], 3)


def test_a_classifier_without_a_bias_is_not_fitted() -> None:
    network = sc.create_model("homogeneous", num_blocks=1, width=4, num_classes=3)
    network.head.linear = nn.Linear(4, 3, bias=False)
    with pytest.raises(StageCostError, match="has no bias"):
        fit_classifier(network, [(torch.randn(9, 3, 8, 8), torch.arange(9) % 3)], 3)


def test_linear_probes_refuse_what_they_cannot_read() -> None:
    network, y = build("homogeneous"), labels(8)
    square, wide, state = images(8, 6), torch.randn(8, 3, 6, 16), torch.get_rng_state()
    # Classes that are seen later alone, and samples without a class, are no reason to stop.
    score = linear_probes(network, [(square, y % 2)], [(square, y.masked_fill(y == 4, -100))])[-1]
    assert math.isfinite(score.loss)
    assert math.isnan(score.accuracy)
    for x, targets, reason in (
        (wide, y, "do not tell channels from places"),
        (square, y.float(), "fitted to classes"),
        (square, y > 2, "fitted to classes"),
        (square, y - 9, "numbers from 0 on"),
        (square * math.nan, y, "no finite number"),
    ):
        with pytest.raises(StageCostError, match=reason):
            linear_probes(network, [(x, targets)], [(square, y)])
    with pytest.raises(StageCostError, match="numbers from 0 on for both"):
        linear_probes(network, [(square, y)], [(square, y.masked_fill(y == 4, -1))])
    assert linear_probes(network, [(square, y.int())], [(square, y.int())])
    assert torch.equal(pooled(square.movedim(1, 3), square), square.mean(dim=(2, 3)))
    assert torch.equal(torch.get_rng_state(), state), "the heads begin with no random number"


def test_heads_are_fitted_in_full_precision_under_autocast() -> None:
    class Head(nn.Module):
        def forward(self, state: torch.Tensor, depth: int) -> torch.Tensor:
            return state

    network = sc.ResidualNetwork(nn.Identity(), [sc.ResidualBlock(nn.Tanh())], Head())
    data = [(torch.randn(60, 6), torch.arange(60) % 3)]
    scores = linear_probes(network, data, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_probes(network, data, data) == scores


@pytest.mark.parametrize(
    "measure",
    [
        lambda network, data: sc.block_importance(network, data, 0.5),
        lambda network, data: linear_probes(network, data, data),
        lambda network, data: fit_classifier(network, data, network.head.linear.out_features),
    ],
)
def test_what_needs_gradients_says_so_in_inference_mode(measure: Any) -> None:
    network, data = build("homogeneous"), [(images(), labels())]
    with torch.inference_mode(), pytest.raises(StageCostError, match=r"use torch.no_grad\(\)"):
        measure(network, data)
    with torch.no_grad():
        measure(network, data)


@pytest.mark.parametrize(
    ("state", "given", "places"),
    [
        ((4, 6, 20), (4, 2, 20), 2),  # a signal
        ((4, 20, 6), (4, 20, 2), 1),  # rows of tokens
        ((4, 21, 6), (4, 20), 1),  # tokens by number, and a class token
        ((4, 10, 6), (4, 3, 8, 8), 1),  # patches of images
        ((4, 10, 6), (4, 3, 2, 8, 8), 1),  # and of films
        ((4, 6, 10), (4, 2, 20), None),  # a signal that gets shorter
        ((4, 20, 6), (4, 20, 6), 1),  # tokens as wide as before
        ((4, 6, 20), (4, 20), None),
    ],
)
def test_states_are_pooled_over_their_places(
    state: tuple[int, ...], given: tuple[int, ...], places: int | None
) -> None:
    values, inputs = torch.randn(state), torch.zeros(given)
    if places is None:
        with pytest.raises(StageCostError, match="do not tell channels from places"):
            pooled(values, inputs)
    else:
        assert torch.equal(pooled(values, inputs), values.mean(dim=places))
