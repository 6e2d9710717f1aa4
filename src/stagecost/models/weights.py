"""Weights that others trained, put into a network by the names of its tensors."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stagecost.errors import StageCostError, refusing
from stagecost.network import ResidualNetwork
from stagecost.storage import check_readable


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of tensors without running code from it: safetensors, or what `torch.save` wrote.

    Raises:
        StageCostError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    check_readable(path)
    with refusing(f"{path} is no file of weights", "give another one", Exception):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise StageCostError(f"{path} holds no state dict: give a file of tensors by name")
    return dict(content)


def load_matching(
    network: ResidualNetwork, tensors: Mapping[str, Tensor], num_classes: int | None
) -> tuple[str, ...]:
    """Load weights by name; all but a classifier of other classes must fit.

    Args:
        network: is changed.
        tensors: of the same network, maybe with a classifier for other classes, or without one.
        num_classes: of the network: a matrix of so many rows in its head, and its bias, are its
            classifier.

    Returns:
        The names of the classifier's tensors, if it stays as it is.

    Raises:
        StageCostError: the tensors are those of another network; the message names them.
    """
    wanted = network.state_dict(keep_vars=True)
    own = _classifier(network.head, num_classes)
    classifier = {name for name, tensor in wanted.items() if id(tensor) in own}
    absent = wanted.keys() - tensors.keys()
    others = {n for n in wanted.keys() & tensors.keys() if tensors[n].shape != wanted[n].shape}
    resized = {n for n in others & classifier if tensors[n].shape[1:] == wanted[n].shape[1:]}
    layers = {name.rpartition(".")[0] for name in resized | classifier & absent}
    fresh = {name for name in classifier if name.rpartition(".")[0] in layers}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = {
        "missing": absent - fresh - counters,
        "unknown": tensors.keys() - wanted.keys(),
        "of another shape": others - resized,
    }
    if any(wrong.values()):
        said = "; ".join(f"{_some(names)} {what}" for what, names in wrong.items() if names)
        raise StageCostError(f"the weights are of another network: {said}")
    stays = fresh | absent
    wanted.update({name: tensors[name] for name in wanted.keys() - stays})
    network.load_state_dict(wanted)  # which also says in what versions modules name their tensors
    return tuple(sorted(fresh))


def _classifier(head: nn.Module, num_classes: int | None) -> set[int]:
    """Return the ids of a classifier's parameters; a norm as wide as there are classes is none."""
    found = set[int]()
    for module in head.modules():
        rows = [p for p in module.parameters(recurse=False) if p.shape[:1] == (num_classes,)]
        if any(parameter.dim() > 1 for parameter in rows):
            found.update(map(id, rows))
    return found


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
