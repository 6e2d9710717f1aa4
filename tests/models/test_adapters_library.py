"""Models of other libraries by name: building, saving, loading, weights that others trained; pruning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stagecost as sc
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.models.adapters.libraries import library_model, preprocessing
from stagecost.models.catalogue import list_models
from stagecost.models.weights import load_matching
from stagecost.runs.models import models
from stagecost.runs.pruning import prune
from stagecost.runs.training import train
from stagecost.storage import read_json

VIT = {"image_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [("timm/test_convnext", {"image_size": 32}), ("timm/vit_tiny_patch16_224", VIT)],
)
def test_what_is_cut_and_saved_is_loaded_as_it_was(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    network = sc.create_model(name, num_classes=4, **options)
    small, images = network.keep(Cut.without(1)).eval(), torch.randn(2, 3, 32, 32)
    small.save_pretrained(tmp_path / "small", note="mine")
    before = torch.get_rng_state()
    loaded = sc.load(tmp_path / "small")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded(images), small(images))
    assert torch.equal(loaded.model(images), small(images))
    assert loaded.block_indices == small.block_indices
    assert loaded.state_dict().keys() < network.state_dict().keys()
    content = read_json(tmp_path / "small" / "config.json")
    assert (content["name"], content["note"]) == (name, "mine")
    assert content["kept_blocks"] == list(small.block_indices)
    assert content["preprocessing"] == preprocessing(name).to_json()
    assert list(content["library"]) == ["timm"]


def test_a_damaged_description_of_a_view_is_refused(tmp_path: Path) -> None:
    network = sc.create_model("timm/test_convnext", num_classes=4, image_size=32)
    network.save_pretrained(tmp_path / "net")
    config = (tmp_path / "net" / "config.json").read_text()
    (tmp_path / "net" / "config.json").write_text(config.replace("test_convnext", "test_resnet"))
    with pytest.raises(StageCostError, match="different networks"):
        sc.load(tmp_path / "net")


def test_weights_come_by_name_and_the_classifier_may_be_another(tmp_path: Path) -> None:
    other = library_model("timm/test_resnet", num_classes=7)
    tensors = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    save_file(tensors, tmp_path / "names.safetensors")
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    torch.save({"state_dict": headless}, tmp_path / "headless.pth")
    for file in ("names.safetensors", "headless.pth"):
        network = sc.create_model(
            "timm/test_resnet", num_classes=3, image_size=32, weights=tmp_path / file
        )
        equal = [n for n, t in network.state_dict().items() if torch.equal(t, tensors[n])]
        assert set(tensors) - set(equal) == {"fc.weight", "fc.bias"}


def test_a_layer_as_wide_as_there_are_classes_is_no_classifier_where_it_fits() -> None:
    class Head(nn.Sequential):
        def forward(self, state: torch.Tensor, depth: int) -> torch.Tensor:
            return super().forward(state)

    def network_of(classes: int) -> sc.ResidualNetwork:
        head = Head(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, classes))
        return sc.ResidualNetwork(nn.Linear(5, 6), [sc.ResidualBlock(nn.Linear(6, 6))], head)

    network, others = network_of(4), network_of(7).state_dict()
    assert load_matching(network, others, 4) == ("head.2.bias", "head.2.weight")
    assert torch.equal(network.state_dict()["head.0.weight"], others["head.0.weight"])


def test_weights_of_another_network_are_refused_by_their_names(tmp_path: Path) -> None:
    tensors = dict(library_model("timm/test_resnet", num_classes=3).state_dict())
    wrong = {f"x.{name}" if name == "conv1.0.weight" else name: t for name, t in tensors.items()}
    wrong["fc.weight"] = torch.zeros(3, 5)
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(StageCostError) as caught:
        sc.create_model("timm/test_resnet", num_classes=3, image_size=32, weights=tmp_path / "wrong.pth")
    for said in ("conv1.0.weight is missing", "x.conv1.0.weight is unknown", "fc.weight is of another"):
        assert said in str(caught.value)
    (tmp_path / "bad.pt").write_bytes(b"no tensors")
    with pytest.raises(StageCostError, match="no file of weights"):
        sc.create_model("timm/test_resnet", image_size=32, weights=tmp_path / "bad.pt")


def test_tables_of_positions_are_resized_as_timm_does(tmp_path: Path) -> None:
    large = library_model("timm/test_vit", img_size=64, num_classes=3)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    network = sc.create_model(
        "timm/test_vit", num_classes=3, image_size=32, weights=tmp_path / "large.pth"
    )
    assert network.state_dict()["pos_embed"].shape != large.state_dict()["pos_embed"].shape
    assert torch.equal(network.state_dict()["norm.weight"], large.state_dict()["norm.weight"])


def test_a_saved_network_is_a_start_with_its_cut(tmp_path: Path) -> None:
    network = sc.create_model("timm/test_resnet", num_classes=3, image_size=32)
    small = network.keep(Cut.without(1, 3))
    small.save_pretrained(tmp_path / "small")
    again = sc.create_model("timm/test_resnet", num_classes=5, weights=tmp_path / "small")
    assert again.block_indices == small.block_indices
    assert again.description is not None
    assert again.description.arguments["image_size"] == 32
    left = [n for n, t in again.state_dict().items() if not torch.equal(t, small.state_dict()[n])]
    assert left == ["fc.weight", "fc.bias"]
    with pytest.raises(StageCostError, match="give it as --model"):
        sc.create_model("timm/test_vit", weights=tmp_path / "small")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("timm/resnet1888", {}, "did you mean"),
        ("keras/resnet18", {}, "begin with timm or torchvision"),
        ("timm/test_resnet", {"image_size": 32, "colour": 3}, "colour"),
        ("torchvision/resnet18", {"in_channels": 1}, "3 channels"),
        ("homogeneous", {"weights": "pretrained"}, "no pretrained weights"),
    ],
)
def test_impossible_requests_are_refused_in_a_line(
    name: str, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(StageCostError, match=reason) as caught:
        sc.create_model(name, **options)
    assert "\n" not in str(caught.value)


def test_names_of_libraries_are_listed_by_pattern() -> None:
    assert "timm/vit_tiny_patch16_224" in list_models("timm/vit_tiny*")
    assert "torchvision/resnet18" in list_models("*/resnet18")
    assert not any("/" in name for name in list_models("*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "x.json"}, "--output"),
        ({"limit": 3}, "--limit"),
        ({"max_parameters": 5.0}, "--max-parameters"),
        ({"check": True, "limit": 0}, "0"),
    ],
)
def test_what_is_said_of_a_check_needs_one(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StageCostError, match=f"{words}.*: give"):
        models("timm/test_vit", **options)
    with pytest.raises(StageCostError, match=r"no model is called 'nothing\*'"):
        models("nothing*")


def test_numbers_of_a_plan_are_those_of_the_model_without_the_blocks() -> None:
    network = sc.create_model("timm/test_resnet", num_classes=3, image_size=32).eval()
    loader = [(torch.randn(6, 3, 32, 32), torch.randint(3, (6,)))]
    trajectory = sc.loss_trajectory(network, loader)
    plan = sc.plan_pruning(network, trajectory, keep=Cut.without(1, 3), loader=loader)
    small = plan.apply(network)
    assert plan.parameters_after == sc.count_parameters(small)
    assert plan.macs_after == sc.count_macs(small, (3, 32, 32))
    assert plan.loss_predicted == pytest.approx(sc.loss_trajectory(small, loader).losses[-1])


def test_residual_norms_and_block_importance_are_those_of_a_view() -> None:
    network = sc.create_model("timm/test_convnext", num_classes=3, image_size=32).eval()
    loader = [(torch.randn(6, 3, 32, 32), torch.randint(3, (6,)))]
    trajectory = sc.loss_trajectory(network, loader)
    assert len(trajectory.weight_norms) == network.num_blocks
    assert all(norm > 0 for norm in trajectory.weight_norms)
    assert len(sc.block_importance(network, loader, 0.0)) == network.num_blocks


def test_a_registered_view_is_saved_and_loaded(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table = torch.nn.Buffer(torch.arange(width) / 7, persistent=False)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))

        def forward(self, state: torch.Tensor) -> torch.Tensor:
            state = state * self.table
            for layer in self.layers:
                state = state + layer(state).tanh()
            return state

    @sc.register_model("a-net-of-the-test")
    def net(*, width: int = 4) -> sc.ResidualNetwork:
        return sc.adapt(Net(width), torch.zeros(1, width))

    small = sc.create_model("a-net-of-the-test", width=5).keep(Cut.without(1))
    small.save_pretrained(tmp_path / "net")
    loaded, x = sc.load(tmp_path / "net"), torch.randn(3, 5)
    assert loaded.block_indices == (0, 2)
    assert torch.equal(loaded(x), small.eval()(x))


def test_a_library_model_is_trained_and_cut_like_any_other(tmp_path: Path) -> None:
    settings = {"model": "timm/test_resnet", "data": "digits", "limit_train": 300, "limit_test": 60}
    settings |= {"epochs": 1, "batch_size": 32, "device": "cpu"}
    result = train(settings, tmp_path / "run")
    pruning = prune(tmp_path / "run", tmp_path / "small", keep=2, device="cpu")
    assert result.num_blocks == 4
    assert len(pruning.kept_blocks) == 2
    assert sc.load(tmp_path / "small").block_indices == pruning.kept_blocks
