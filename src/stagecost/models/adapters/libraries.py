"""Models of timm and torchvision by name: "timm/vit_tiny_patch16_224", "torchvision/resnet18"."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from stagecost.errors import StageCostError

LIBRARIES = "timm", "torchvision"


def names_in_libraries() -> list[str]:
    """Return the names of all classifiers of the libraries that are installed."""
    names = []
    if find_spec("timm"):
        names += [f"timm/{name}" for name in import_module("timm").list_models()]
    if find_spec("torchvision"):
        models = import_module("torchvision.models")
        names += [f"torchvision/{name}" for name in models.list_models(module=models)]
    return names


def build(name: str, **options: Any) -> nn.Module:
    """Build a library's model with random weights.

    Raises:
        StageCostError: the library is not installed.
    """
    library, _, model = name.partition("/")
    if library not in LIBRARIES or not find_spec(library):
        raise StageCostError(f"model {name!r} needs {library}: pip install {library}")
    built: nn.Module
    if library == "timm":
        built = import_module("timm").create_model(model, pretrained=False, **options)
    else:
        built = import_module("torchvision.models").get_model(model, weights=None, **options)
    return built
