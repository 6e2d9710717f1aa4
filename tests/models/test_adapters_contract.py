"""The contract over models of other libraries, one of each kind of block, by an independent oracle."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from stagecost.errors import StageCostError
from stagecost.models.adapters.check import ModelCheck, check_models
from stagecost.models.adapters.contract import violations
from stagecost.models.adapters.libraries import library_model
from stagecost.storage import read_json

VIT = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2}
SWIN = {
    "img_size": 64,
    "embed_dim": 12,
    "depths": (2, 1, 1, 2),
    "num_heads": (1, 1, 2, 2),
    "window_size": 2,
}

MODELS: list[tuple[str, dict[str, object], int]] = [
    ("timm/test_resnet", {}, 32),  # relu after the sum
    ("timm/test_convnext", {}, 32),  # transitions between stages
    ("timm/mobilenetv2_035", {}, 32),  # modules without a skip between blocks
    ("timm/resnetv2_18", {"channels": (8, 16, 24, 32)}, 32),  # projections of normalised states
    ("timm/vit_tiny_patch16_224", VIT, 32),  # a class token
    ("timm/beit_base_patch16_224", VIT, 32),  # tables of relative positions
    (
        "timm/eva02_tiny_patch14_224",
        {**VIT, "img_size": 28},
        28,
    ),  # rotary embeddings, which blocks share
    ("timm/cait_xxs24_224", {**VIT, "depth": 2}, 32),  # states of two tensors
    ("timm/swin_tiny_patch4_window7_224", SWIN, 64),
    ("timm/rexnet_100", {"width_mult": 0.3}, 32),  # parts of a concatenation
    ("torchvision/mobilenet_v3_small", {"width_mult": 0.2}, 32),  # dropout in the head
]


@pytest.mark.parametrize(("name", "options", "size"), MODELS, ids=[name for name, *_ in MODELS])
def test_views_keep_the_contract(name: str, options: dict[str, object], size: int) -> None:
    model = library_model(name, num_classes=5, **options)
    assert list(violations(model, (torch.zeros(1, 3, size, size),))) == []


def test_the_contract_can_be_broken() -> None:
    model = library_model("timm/test_convnext", num_classes=5)
    example = (torch.zeros(1, 3, 32, 32),)
    nothing_is_zero = list(violations(model, example, lambda positions: nullcontext()))
    assert any("is off by" in one for one in nothing_is_zero)


def test_sums_of_terms_that_are_alike_are_refused() -> None:
    model = library_model("timm/repvgg_a0")
    reason = "ambiguous: the terms of the sum in stages.0.0 are alike"
    with pytest.raises(StageCostError, match=reason):
        list(violations(model, (torch.zeros(1, 3, 64, 64),)))


def test_a_check_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    names = ["timm/test_convnext", "torchvision/squeezenet1_1"]
    seen: list[str] = []

    def note(name: str, outcome: str, seconds: float) -> None:
        seen.append(name)

    check_models("timm/*", path=path, names=names, observe=note)
    outcome = check_models("*", path=path, names=names, observe=note)
    assert seen == names
    assert outcome.supported == ["timm/test_convnext"]
    assert "no residual block" in outcome.refused["torchvision/squeezenet1_1"]
    assert not outcome.wrong
    assert ModelCheck.from_json(outcome.to_json()) == outcome
    table = outcome.to_markdown()
    assert "| 1 | 0 | 0 | 0 |" in table
    assert "torchvision/squeezenet1_1" in table


@pytest.mark.parametrize("content", ['{"runs": 1}', "[]", '{"supported": 3}', "{"])
def test_another_file_than_a_check_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "check.json"
    path.write_text(content)
    with pytest.raises(StageCostError, match="holds no check of models"):
        check_models("*", path=path, names=["timm/test_convnext"])
    assert path.read_text() == content


def test_what_was_too_large_is_tried_where_more_is_allowed(tmp_path: Path) -> None:
    path, names = tmp_path / "check.json", ["timm/test_convnext"]
    outcome = check_models("*", path=path, names=names, max_parameters=1e3)
    assert "more than 1000 parameters" in outcome.unchecked["timm/test_convnext"]
    outcome = check_models("*", path=path, names=names)
    assert (outcome.supported, outcome.unchecked) == (names, {})


def test_the_documents_show_what_is_recorded() -> None:
    root = Path(__file__).parents[2]
    recorded = ModelCheck.from_json(read_json(root / "results" / "models" / "cpu-timm.json"))
    assert recorded.to_markdown() in (root / "docs" / "models.md").read_text()
    ambiguous = [name for name, reason in recorded.refused.items() if "ambiguous" in reason]
    with_sums = len(recorded.supported) + len(ambiguous)
    assert not recorded.wrong
    assert len(recorded.supported) >= 0.9 * with_sums
