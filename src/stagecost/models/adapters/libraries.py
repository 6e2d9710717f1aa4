"""Models of timm and torchvision by name: "timm/vit_tiny_patch16_224", "torchvision/resnet18".

They enter the catalogue through `LibraryBuilder`: `create_model("timm/resnet18", num_classes=10)` is a
view of timm's model with random weights.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.errors import StageCostError, refusing
from stagecost.models.adapters.view import AdaptedNetwork, adapt
from stagecost.records import JsonObject, writable
from stagecost.text import one_line

SIZE_ARGUMENTS = {"timm": "img_size", "torchvision": "image_size"}


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images, by its library's own configuration."""

    size: int  #: side of the square images, in pixels
    mean: tuple[float, ...]  #: of each channel, for pixels in [0, 1]
    std: tuple[float, ...]  #: of each channel, for pixels in [0, 1]
    interpolation: str  #: by which images are resized, such as bicubic
    crop: float  #: part of the resized image's side that the middle crop has

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        return dict(writable(self))


@cache
def library_names() -> tuple[str, ...]:
    """Return the names of all classifiers of the libraries that are installed."""
    names: list[str] = []
    if find_spec("timm"):
        names += [f"timm/{name}" for name in import_module("timm").list_models()]
    if find_spec("torchvision"):
        models = import_module("torchvision.models")
        names += [f"torchvision/{name}" for name in models.list_models(module=models)]
    return tuple(names)


def family(name: str) -> str:
    """Return the module that defines a library's model, such as "timm.models.resnet"."""
    library, _, model = name.partition("/")
    find = {"timm": "model_entrypoint", "torchvision": "get_model_builder"}[library]
    return str(getattr(import_module(f"{library}.models"), find)(model).__module__)


def split_name(name: str) -> tuple[str, str]:
    """Return library and model of a name such as "timm/resnet18" or "timm/resnet18.a1_in1k".

    Raises:
        StageCostError: the library is not installed, or has no such model.
    """
    library, _, model = name.partition("/")
    if library not in SIZE_ARGUMENTS:
        raise StageCostError(
            f"model {name!r} is unknown: names with a slash begin with {' or '.join(SIZE_ARGUMENTS)}"
        )
    if not find_spec(library):
        raise StageCostError(f"model {name!r} needs {library}: pip install {library}")
    if name.partition(".")[0] not in library_names():
        near = difflib.get_close_matches(name, library_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see list_models"
        raise StageCostError(f"{library} has no model {model!r}: {hint}")
    return library, model


def library_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a library's model by a name such as "timm/resnet18", with the library's own arguments.

    With `pretrained` it has the library's own weights, which are fetched from its hub.

    Raises:
        StageCostError: the library is not installed, or has no such model.
    """
    library, model = split_name(name)
    create: Callable[..., nn.Module]
    if library == "timm":
        create = import_module("timm").create_model
        return create(model, pretrained=pretrained, **options)
    create = import_module("torchvision.models").get_model
    return create(model, weights="DEFAULT" if pretrained else None, **options)


def preprocessing(name: str) -> Preprocessing:
    """Return how a library's model wants its images.

    Raises:
        StageCostError: the library is not installed, or has no such model.
    """
    library, model = split_name(name)
    if library == "timm":
        configuration = import_module("timm").get_pretrained_cfg(model).to_dict()
        size = configuration["input_size"][-1]
        numbers = tuple(configuration["mean"]), tuple(configuration["std"])
        return Preprocessing(size, *numbers, configuration["interpolation"], configuration["crop_pct"])
    weights = import_module("torchvision.models").get_model_weights(model).DEFAULT
    transforms = weights.transforms()
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    numbers = tuple(transforms.mean), tuple(transforms.std)
    return Preprocessing(size, *numbers, transforms.interpolation.value, size / resized)


class LibraryBuilder:
    """Builds views of one model: what the catalogue holds for a name with a slash."""

    def __init__(self, name: str) -> None:
        """Take a name.

        Raises:
            StageCostError: the library is not installed, or has no such model.
        """
        self.name = name
        self.package, _ = split_name(name)

    def __call__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int | None = None,
        split_branches: bool = False,
        **options: Any,
    ) -> AdaptedNetwork:
        """Build the model with random weights, and view it.

        Args:
            num_classes: outputs of its head.
            in_channels: channels of the images; torchvision's models take 3.
            image_size: side of the square images; by default what the model was made for.
            split_branches: count attention and MLP of a block as two blocks.
            options: arguments of the library's own model.

        Raises:
            StageCostError: an impossible argument, or a model that cannot be viewed.
        """
        prepared = preprocessing(self.name)
        size = prepared.size if image_size is None else image_size
        if size < 1:
            raise StageCostError(f"image_size is {size}: give at least 1, or leave it out")
        model = self._build(size, num_classes=num_classes, in_channels=in_channels, **options)
        example = torch.zeros(1, in_channels, size, size)
        network = adapt(model, example, split_branches=split_branches)
        network.details = {
            "library": {self.package: version(self.package)},
            "preprocessing": prepared.to_json(),
        }
        return network

    def pretrained(self, image_size: int | None = None, **arguments: Any) -> dict[str, Tensor]:
        """Return the library's own weights, fetched from its hub; a head for other classes is random.

        Raises:
            StageCostError: there are none, or the hub cannot be reached.
        """
        arguments.pop("split_branches", None)
        if self.package == "torchvision":
            arguments.pop("num_classes", None)
        size = image_size or preprocessing(self.name).size
        what, errors = f"no pretrained weights of {self.name}", (OSError, RuntimeError, ValueError)
        with refusing(what, "give a file of weights", *errors):
            return dict(self._build(size, pretrained=True, **arguments).state_dict())

    def fitted(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights as timm itself would rename and resize them for a model: tables of positions …

        Raises:
            StageCostError: they are of another network.
        """
        rule = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
        if rule is None or self.package != "timm":
            return dict(tensors)
        try:
            return dict(rule(dict(tensors), model))
        except (AttributeError, LookupError, RuntimeError, ValueError) as error:
            raise StageCostError(
                f"the weights are of another network than {self.name}: {one_line(error)}"
            ) from None

    def _build(
        self, size: int, *, num_classes: int = 1000, in_channels: int = 3, **options: Any
    ) -> nn.Module:
        if self.package == "timm":
            options |= {"num_classes": num_classes, "in_chans": in_channels}
        elif in_channels == 3:
            options |= {"num_classes": num_classes}
        else:
            raise StageCostError(
                f"{self.name} takes images of 3 channels, not {in_channels}: take a model of timm"
            )
        # Only models that are made for one size take it as an argument.
        argument = SIZE_ARGUMENTS[self.package]
        try:
            try:
                return library_model(self.name, **(options | {argument: size}))
            except TypeError as error:
                if argument not in str(error):
                    raise
            return library_model(self.name, **options)
        except TypeError as error:
            raise StageCostError(f"{self.name}: {error}") from None
