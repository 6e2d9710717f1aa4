"""The catalogue of networks by name, and loading what `save_pretrained` wrote."""

import fnmatch
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stagecost.cut import Cut
from stagecost.errors import StageCostError, refusing
from stagecost.models import native  # the native builders enter themselves
from stagecost.models.registry import Builder, catalogue, find_builder
from stagecost.models.weights import load_matching, read_weights
from stagecost.network import NetworkDescription, ResidualNetwork
from stagecost.records import read_typed, writable
from stagecost.saved import CONFIG_FILE, RESERVED, WEIGHTS_FILE, read_saved
from stagecost.text import one_line

if TYPE_CHECKING:
    from stagecost.models.adapters.libraries import LibraryBuilder


def list_models(pattern: str = "*") -> list[str]:
    """List the names in the catalogue that match a shell pattern such as `"*resnet*"`.

    A pattern with a slash, such as `"timm/*resnet*"`, lists models of other libraries.

    Example:
        >>> "homogeneous" in sc.list_models()
        True
    """
    if "/" in pattern:
        from stagecost.models.adapters.libraries import library_names

        return sorted(fnmatch.filter(library_names(), pattern))
    return sorted(fnmatch.filter(catalogue, pattern))


def create_model(name: str, *, weights: str | Path | None = None, **arguments: Any) -> ResidualNetwork:
    """Build a network by name, with random weights or with those of a file.

    Args:
        name: one of `list_models()`, or of another library, such as "timm/resnet18".
        weights: a file of safetensors or of `torch.save`; the folder of a saved network, whose
            arguments and cut are taken over; "pretrained" for those of the library's hub. A classifier
            of other classes stays random.
        arguments: the builder's keyword arguments, such as `num_blocks`, `width`, `num_classes`.

    Raises:
        StageCostError: the name or an argument is unknown, a size is impossible, or the weights do not
            fit.

    Example:
        >>> sc.create_model("staged", blocks_per_stage=(2, 2), widths=(4, 8), num_classes=3).stages
        ((0, 1), (2, 3))
    """
    if weights is None:
        return _build(name, arguments)
    return pretrained_model(name, weights, **arguments)[0]


def pretrained_model(
    name: str, weights: str | Path, **arguments: Any
) -> tuple[ResidualNetwork, tuple[str, ...]]:
    """Build a network with given weights; the arguments are those of `create_model`.

    Returns:
        The network, and the names of its classifier's tensors if that stayed random.

    Raises:
        StageCostError: as of `create_model`.
    """
    kept_blocks = None
    if weights == "pretrained":
        if "/" not in name:
            raise StageCostError(f"model {name!r} has no pretrained weights: give a file")
        tensors = _library(name).pretrained(**arguments)
    elif Path(weights).is_dir():
        saved, tensors = _saved(Path(weights), name, arguments)
        arguments, kept_blocks = {**saved.arguments, **arguments}, saved.kept_blocks
    else:
        tensors = read_weights(weights)
        check_finite(tensors, Path(weights))
    network = _build(name, arguments)
    assert network.description is not None
    if kept_blocks is not None:
        network.remove_all_but(cut_to(network, kept_blocks))
    if "/" in name and kept_blocks is None:
        tensors = _library(name).fitted(network.get_submodule("model"), tensors)
    classes = network.description.arguments.get("num_classes")
    return network, load_matching(network, tensors, classes)


def _saved(
    folder: Path, name: str, arguments: Mapping[str, Any]
) -> tuple[NetworkDescription, dict[str, torch.Tensor]]:
    """Read a saved network that others are to start from."""
    config, tensors, _ = read_saved(folder)
    saved = read_description(config, folder / CONFIG_FILE)
    check_name(saved, name, folder)
    given = writable(arguments)
    for key in given.keys() & saved.arguments.keys() & {"num_blocks", "blocks_per_stage"}:
        if given[key] != saved.arguments[key]:  # of other arguments the shapes tell
            raise StageCostError(
                f"{folder} was cut from a network of {key} {saved.arguments[key]}, not "
                f"{given[key]}: leave --{key.replace('_', '-')} out"
            )
    return saved, tensors


def check_name(saved: NetworkDescription, name: str, folder: Path) -> None:
    """Refuse a saved network of another model, by a StageCostError."""
    if saved.name != name:
        raise StageCostError(f"{folder} holds a network {saved.name!r}: give it as --model")


def _build(name: str, arguments: Mapping[str, Any]) -> ResidualNetwork:
    """Build a network, described by all arguments: a saved one must not depend on later defaults."""
    builder, arguments = find_builder(name), {key: _plain(value) for key, value in arguments.items()}
    signature = inspect.signature(builder)
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        raise StageCostError(
            f"model {name!r}: {error}; it takes {', '.join(signature.parameters)}"
        ) from None
    network = builder(**arguments)
    if "/" not in name and (unsaved := _unsaved_buffers(network)):
        with torch.random.fork_rng(devices=[]):
            _check_built_alike(name, unsaved, builder(**arguments))
    bound.apply_defaults()
    complete = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            complete |= complete.pop(parameter.name)
    network.description = NetworkDescription(name, dict(writable(complete)))
    return network


def _unsaved_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that no state dict holds: loading computes them anew."""
    state = network.state_dict()
    return {name: buffer for name, buffer in network.named_buffers() if name not in state}


def _check_built_alike(name: str, unsaved: Mapping[str, torch.Tensor], again: nn.Module) -> None:
    """Refuse random buffers that no file would hold: a network that is loaded would have other ones."""
    buffers = dict(again.named_buffers())
    for key, buffer in unsaved.items():
        if not torch.allclose(buffer, buffers[key], equal_nan=True):
            raise StageCostError(
                f"model {name!r} has a buffer {key} that is other numbers each time it is built, and "
                "that no file holds: register it without persistent=False"
            )


def _plain(value: Any) -> Any:
    """Return whole numbers of NumPy, which JSON does not hold, as Python's own."""
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _library(name: str) -> "LibraryBuilder":
    from stagecost.models.adapters.libraries import LibraryBuilder

    return LibraryBuilder(name)


def rebuild(description: NetworkDescription, numbers: int) -> ResidualNetwork:
    """Build the structure that a description names, without moving torch's random numbers.

    Args:
        description: of the network.
        numbers: that there are weights for: a builder that asks for far more is stopped.

    Returns:
        The network; a native one on torch's device "meta", without any numbers, and others with some
        that mean nothing, as buffers that no state dict holds have to be computed.

    Raises:
        StageCostError: there is no such network.
    """
    builder, arguments = find_builder(description.name), description.arguments
    what = f"model {description.name!r} cannot be built from its description"
    errors = ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, OSError
    with refusing(what, "restore the files from a copy", *errors):
        if _is_native(builder):
            with torch.device("meta"):
                network = _build(description.name, arguments)
        else:
            _check_arguments(arguments)
            with torch.random.fork_rng(devices=[]), _at_most(64 * numbers + SPARE_NUMBERS):
                network = _build(description.name, arguments)
    if description.kept_blocks is not None:
        network.remove_all_but(cut_to(network, description.kept_blocks))
    if description.target_norms:
        network.give_norms(*(cut_to(network, kept) for kept in description.target_norms))
    return network


# Of a library's model; in a description they would make it fetch or open other files.
_FETCHING = ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
             "weights", "weights_backbone")  # fmt: skip
SPARE_NUMBERS = 2**24
LARGEST_EXAMPLE = 1024  # side of the images for which a model of a library is built, in pixels


def _is_native(builder: Builder) -> bool:
    return builder.__module__ == native.__name__


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what a description of a library's model must not say: opening files, or unusual sizes."""
    if fetching := [name for name in _FETCHING if arguments.get(name)]:
        raise StageCostError(
            f"the description of a saved network has {fetching[0]}, which opens other files: leave it "
            "out"
        )
    size = arguments.get("image_size") or 1
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_EXAMPLE:
        raise StageCostError(
            f"the description of a saved network has image_size {size!r}: give 1 to {LARGEST_EXAMPLE}"
        )


@contextmanager
def _at_most(numbers: int) -> Iterator[None]:
    """Stop what builds modules with more numbers, before it fills them."""
    left = numbers

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise StageCostError(
                f"a network of more than {numbers:,} numbers is described, and the file has far fewer: "
                "restore the files from a copy"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def cut_to(network: ResidualNetwork, kept_blocks: Sequence[int]) -> Cut:
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

    Nothing is unpickled: weights come from safetensors, the structure from JSON. Numbers have the
    precision that the builder gives them, single as a rule, in whatever they were saved.

    Raises:
        StageCostError: the folder holds no saved network, or its files are damaged, or a weight is no
            finite number.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> with TemporaryDirectory() as folder:
        ...     net.save_pretrained(folder)
        ...     loaded = sc.load(folder)
        >>> loaded.num_blocks
        4
    """
    folder = Path(folder)
    config, tensors, carried = read_saved(folder)
    description = read_description(config, folder / CONFIG_FILE)
    if carried not in (None, description.to_json()):
        raise StageCostError(
            f"{folder / CONFIG_FILE} and {WEIGHTS_FILE} describe different networks: save it again"
        )
    details = {key: value for key, value in config.items() if key not in RESERVED}
    network = restore(description, tensors, source=folder / WEIGHTS_FILE)
    # Its pruning is a record of these weights, and another training may follow.
    network.details |= {key: value for key, value in details.items() if key != "pruning"}
    return network.eval()


def read_description(content: Any, source: Path) -> NetworkDescription:
    """Read a description from parsed JSON.

    Raises:
        StageCostError: a key is missing or has the wrong type.
    """
    try:
        return NetworkDescription(
            read_typed(str, content["name"], "name"),
            read_typed(dict[str, Any], content["arguments"], "arguments"),
            read_typed(tuple[int, ...] | None, content["kept_blocks"], "kept_blocks"),
            read_typed(tuple[tuple[int, ...], ...], content.get("target_norms", []), "target_norms"),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise StageCostError(
            f"{source} does not describe a stagecost network ({reason}): restore it from a copy"
        ) from None


def check_fit(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are not those of a module; it may be on the device "meta".

    Unlike torch's own way, it refuses tensors without BatchNorm's counters as well.

    Raises:
        StageCostError: a tensor is missing, unknown, or of another shape or kind.
    """
    state = module.state_dict()
    if missing := sorted(state.keys() - tensors.keys()):
        raise StageCostError(f"{missing[0]} is missing")
    if unknown := sorted(tensors.keys() - state.keys()):
        raise StageCostError(f"{unknown[0]} is unknown")
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise StageCostError(
                f"{name} has shape {tuple(tensor.shape)}, not {tuple(state[name].shape)}"
            )
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise StageCostError(f"{name} has numbers of type {tensor.dtype}, not {state[name].dtype}")


def check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are no finite numbers, and variances below 0."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor.float()).all()):
            raise StageCostError(
                f"{path} has a weight that is no finite number ({name}): restore it from a copy, or "
                "train anew with a lower --lr"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise StageCostError(f"{path} has a variance below 0 ({name}): restore it from a copy")


def restore(
    description: NetworkDescription, tensors: Mapping[str, torch.Tensor], source: Path
) -> ResidualNetwork:
    """Rebuild a network and give it its weights; memory is taken for no more than these.

    Raises:
        StageCostError: the weights do not fit the structure, or are no finite numbers.
    """
    network = rebuild(description, sum(tensor.numel() for tensor in tensors.values()))
    what, remedy = f"{source} does not fit its description", "restore it from a copy"
    with refusing(what, remedy, StageCostError):
        check_fit(network, tensors)
    check_finite(tensors, source)
    state = network.state_dict()
    if not _is_native(find_builder(description.name)):
        state.update(tensors)  # it also says in what versions modules name their tensors
        network.load_state_dict(state)
        return network
    network.load_state_dict(
        {name: tensor.to(state[name].dtype, copy=True) for name, tensor in tensors.items()}, assign=True
    )
    return network
