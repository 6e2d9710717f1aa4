"""The catalogue of networks by name, and loading what `save_pretrained` wrote."""

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.models import native  # the native builders enter themselves
from stagecost.models.registry import Builder, catalogue, find_builder
from stagecost.models.weights import load_matching, read_weights
from stagecost.network import CONFIG_FILE, WEIGHTS_FILE, NetworkDescription, ResidualNetwork
from stagecost.storage import read_json, read_tensors


def list_models(pattern: str = "*") -> list[str]:
    """List the names in the catalogue that match a shell pattern such as `"*resnet*"`.

    A pattern with a slash, such as `"timm/*resnet*"`, lists models of other libraries.
    """
    if "/" in pattern:
        from stagecost.models.adapters.libraries import library_names

        return sorted(fnmatch.filter(library_names(), pattern))
    return sorted(fnmatch.filter(catalogue, pattern))


def create_model(name: str, *, weights: str | Path | None = None, **arguments: Any) -> ResidualNetwork:
    """Build a network by name, with random weights or with those of a file.

    Args:
        name: one of `list_models()`, or of another library, such as "timm/resnet18".
        weights: a file of safetensors or of `torch.save`; "pretrained" for those of the library's hub.
        arguments: the builder's keyword arguments, such as `num_blocks`, `width`, `num_classes`.

    Raises:
        StageCostError: the name or an argument is unknown, a size is impossible, or the weights do not
            fit.
    """
    builder = find_builder(name)
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        known = ", ".join(inspect.signature(builder).parameters)
        raise StageCostError(f"model {name!r}: {error}; it takes {known}") from None
    network = builder(**arguments)
    network.description = NetworkDescription(name, _complete(builder, arguments))
    if weights is not None:
        tensors = _pretrained(name, arguments) if weights == "pretrained" else read_weights(weights)
        load_matching(network, tensors, network.description.arguments.get("num_classes"))
    return network


def _pretrained(name: str, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if "/" not in name:
        raise StageCostError(f"model {name!r} has no pretrained weights: give a file")
    from stagecost.models.adapters.libraries import LibraryBuilder

    return LibraryBuilder(name).pretrained(**arguments)


def _complete(builder: Builder, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments with their defaults: a saved network must not depend on later ones."""
    bound = inspect.signature(builder).bind(**arguments)
    bound.apply_defaults()
    complete = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            complete |= complete.pop(parameter.name)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in complete.items()}


def rebuild(description: NetworkDescription) -> ResidualNetwork:
    """Build the structure that a description names, without moving torch's random numbers.

    The weights mean nothing: load a state dict next.
    """
    arguments = description.arguments
    if find_builder(description.name).__module__ == native.__name__:
        with torch.device("meta"):
            network = create_model(description.name, **arguments)
        network = network.to_empty(device="cpu")
    else:  # buffers that no state dict holds have to be computed
        with torch.random.fork_rng(devices=[]):
            network = create_model(description.name, **arguments)
    if description.kept_blocks is not None:
        network.remove_all_but(_cut_to(network, description.kept_blocks))
    return network


def _cut_to(network: ResidualNetwork, kept_blocks: Sequence[int]) -> Cut:
    """Return the cut in which the blocks with these paper's indices act.

    Raises:
        StageCostError: the network does not have them, in this order.
    """
    present = network.block_indices
    if not set(kept_blocks) <= set(present) or sorted(set(kept_blocks)) != list(kept_blocks):
        raise StageCostError(
            f"blocks {list(kept_blocks)} cannot be kept: choose some of {list(present)}, in order"
        )
    return Cut(tuple(present.index(k) for k in kept_blocks))


def load(folder: str | Path) -> ResidualNetwork:
    """Load a network that was saved with `save_pretrained`, in eval mode, on the CPU.

    Nothing is unpickled: weights come from safetensors, the structure from JSON.

    Raises:
        StageCostError: the folder holds no saved network, or its files are damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise StageCostError(
            f"{folder} holds no saved network ({CONFIG_FILE} is missing): give a folder that "
            "`stagecost prune` or save_pretrained wrote"
        )
    config = read_json(folder / CONFIG_FILE)
    tensors, metadata = read_tensors(folder / WEIGHTS_FILE)
    description = read_description(config, folder / CONFIG_FILE)
    if metadata.get("description", description.to_json()) != description.to_json():
        raise StageCostError(
            f"{folder / CONFIG_FILE} and {WEIGHTS_FILE} describe different networks: save it again"
        )
    network = restore(description, tensors, source=folder / WEIGHTS_FILE)
    return network.eval()


def read_description(content: Any, source: Path) -> NetworkDescription:
    """Read a description from parsed JSON.

    Raises:
        StageCostError: a key is missing or has the wrong type.
    """
    try:
        kept = content["kept_blocks"]
        return NetworkDescription(
            str(content["name"]),
            dict(content["arguments"]),
            None if kept is None else tuple(int(k) for k in kept),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StageCostError(
            f"{source} does not describe a stagecost network ({error!r}): restore it from a copy"
        ) from None


def load_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict; unlike torch's own way, refuse one without BatchNorm's counters as well.

    Raises:
        RuntimeError: a tensor is missing, unknown, or of another shape.
    """
    if missing := sorted(set(module.state_dict()) - set(tensors)):
        raise RuntimeError(f"{missing[0]} is missing")
    module.load_state_dict(tensors)


def restore(
    description: NetworkDescription, tensors: Mapping[str, torch.Tensor], source: Path
) -> ResidualNetwork:
    """Rebuild a network and give it its weights.

    Raises:
        StageCostError: the weights do not fit the structure.
    """
    network = rebuild(description)
    try:
        load_weights(network, tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise StageCostError(
            f"{source} does not fit its description ({reason}): restore it from a copy"
        ) from None
    return network
