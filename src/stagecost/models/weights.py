"""Weights that others trained, put into a network: from a file, by name or by order."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stagecost.errors import StageCostError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of tensors without running code from it: safetensors, or what `torch.save` wrote.

    Raises:
        StageCostError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise StageCostError(f"{path} does not exist: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StageCostError(f"{path} is no file of weights ({reason}): give another one") from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise StageCostError(f"{path} holds no state dict: give a file of tensors by name")
    return dict(content)


def load_matching(
    network: nn.Module, tensors: Mapping[str, Tensor], num_classes: int | None
) -> list[str]:
    """Load weights by name; by order where no name agrees and every shape does.

    Args:
        network: is changed.
        tensors: of the same network, maybe with a head for other classes.
        num_classes: of the network: a tensor whose first size it is, and whose other sizes agree, may
            stand in the file with another number of classes.

    Returns:
        The names of the tensors of that head, which stay as they are.

    Raises:
        StageCostError: the tensors are those of another network.
    """
    wanted = dict(network.state_dict())
    given = dict(tensors)
    if not wanted.keys() & given.keys() and len(wanted) == len(given):
        given = dict(zip(wanted, given.values(), strict=True))
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    if missing := sorted(wanted.keys() - given.keys() - counters):
        raise StageCostError(f"the weights are of another network: {missing[0]} is missing")
    head = []
    for name, tensor in wanted.items():
        other = given.setdefault(name, tensor)
        if other.shape == tensor.shape:
            continue
        if not (tensor.shape[:1] == (num_classes,) and tensor.shape[1:] == other.shape[1:]):
            raise StageCostError(
                f"the weights are of another network: {name} has shape {tuple(other.shape)}, not "
                f"{tuple(tensor.shape)}"
            )
        head.append(name)
    network.load_state_dict(
        {name: tensor if name in head else given[name] for name, tensor in wanted.items()}
    )
    return head
