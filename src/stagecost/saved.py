"""The folder of a saved network: weights in `model.safetensors`, structure and details in `config.json`.

The weights carry all of it in their header, too, and both files a digest of the details: whatever a
crash leaves, the two cannot be mixed up, and a config that was edited by hand is read all the same.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stagecost.errors import StageCostError, refusing
from stagecost.storage import check_nesting, read_json, read_tensors, write_json, write_tensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
RESERVED = {"format", "name", "arguments", "kept_blocks", "target_norms", "description", "saving"}
"""What no detail of a saved network may be called."""


def write_saved(
    folder: Path,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    details: Mapping[str, Any],
) -> None:
    """Write a network's weights, what rebuilds its structure, and JSON values beside it.

    Raises:
        StageCostError: a detail has the name of a part of the structure, or is no JSON.
    """
    if taken := sorted(RESERVED & details.keys()):
        raise StageCostError(f"{taken[0]} is a part of the structure, and no detail: rename it")
    with refusing("the details are no JSON", "give plain, finite values", TypeError, ValueError):
        text = json.dumps(details, sort_keys=True, allow_nan=False)
        check_nesting(json.loads(text))
    saving = {"saving": hashlib.sha256(text.encode()).hexdigest()[:16]}
    write_tensors(folder / WEIGHTS_FILE, tensors, {**details, "description": description, **saving})
    write_json(folder / CONFIG_FILE, {"format": "stagecost", **description, **details, **saving})


def read_config(folder: Path) -> Any:
    """Read the JSON that describes a saved network.

    Raises:
        StageCostError: the folder holds none.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise StageCostError(
            f"{folder} holds no saved network ({CONFIG_FILE} is missing): give a folder that "
            "`stagecost prune` or save_pretrained wrote"
        )
    return read_json(folder / CONFIG_FILE)


def read_saved(folder: Path) -> tuple[Any, dict[str, Tensor], Any]:
    """Read the config of a saved network, its weights, and the description that these carry, if any.

    Raises:
        StageCostError: a file is missing or damaged, or the two are of two savings.
    """
    config = read_config(folder)
    tensors, header = read_tensors(folder / WEIGHTS_FILE)
    if isinstance(config, dict) and config.get("saving") != header.get("saving"):
        both = f"{folder / CONFIG_FILE} and {WEIGHTS_FILE}"
        raise StageCostError(f"{both} are of two savings: restore both together")
    return config, tensors, header.get("description")
