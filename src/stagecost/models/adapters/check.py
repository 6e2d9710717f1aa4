"""The contract over libraries of models, with random weights: which can be viewed, which not and why."""

import fnmatch
import gc
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stagecost.errors import StageCostError, refusing
from stagecost.models.adapters.contract import UnknownBranchesError, violations
from stagecost.models.adapters.libraries import family, library_model, library_names
from stagecost.records import JsonObject, read_record
from stagecost.storage import read_json, write_json
from stagecost.text import markdown_table, one_line

SMALL = re.compile("atto|femto|pico|nano|tiny|xx?s|small|mini|lite|test|_[st](_|$)|_0[0-9]|1[048]|26")
"""What the names of small models have."""
MAX_PARAMETERS, TOO_LARGE = 9e7, "has more than"
SHRUNK = {"depth": 4, "embed_dim": 48, "num_heads": 3}
VARIANTS: list[tuple[dict[str, Any], int]] = [
    ({"img_size": 64}, 64),
    *(({}, size) for size in (64, 96, 128, 160, 224, 240, 256)),
    *(({"img_size": size, **SHRUNK}, size) for size in (64, 56, 96)),
    *((SHRUNK, size) for size in (64, 96)),
]
"""Arguments of a model and sizes of its images, in the order in which they are tried."""


@dataclass
class ModelCheck:
    """What the contract says of the models of a list."""

    supported: list[str] = field(default_factory=list)  #: names of those that keep it
    refused: dict[str, str] = field(default_factory=dict)  #: name → why it cannot be viewed
    #: name → what it does not keep, or the error that it ended in
    wrong: dict[str, str] = field(default_factory=dict)
    #: name → why it was not tried: too large, or no oracle for its blocks
    unchecked: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  #: of the libraries

    def __contains__(self, name: str) -> bool:
        """Tell whether a model was looked at."""
        return any(name in names for names in (self.supported, self.refused, self.wrong, self.unchecked))

    @property
    def num_checked(self) -> int:
        """How many models were tried."""
        return len(self.supported) + len(self.refused) + len(self.wrong)

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        return dict(vars(self))

    def to_markdown(self) -> str:
        """Return a table of numbers, one line a library, and the refused models by their reasons."""
        groups = (self.supported, self.refused, self.wrong, self.unchecked)
        names = [name for group in groups for name in group]
        rows: list[list[object]] = []
        for library in sorted({name.partition("/")[0] for name in names}):
            counts = [sum(name.startswith(f"{library}/") for name in group) for group in groups]
            rows.append([f"{library} {self.versions.get(library, '')}".strip(), *counts])
        lines = [markdown_table(["library", "supported", "refused", "wrong", "not checked"], rows)]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.refused.items():
            short = "ambiguous sums" if "ambiguous" in reason else reason.partition(": ")[2]
            reasons.setdefault(short, []).append(name)
        lines += [f"\nRefused ({reason}): {', '.join(sorted(n))}." for reason, n in reasons.items()]
        return "\n".join(lines)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ModelCheck":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        return read_record(cls, content)


def check_models(
    pattern: str = "*",
    *,
    path: Path | None = None,
    max_parameters: float = MAX_PARAMETERS,
    limit: int | None = None,
    observe: Callable[[str, str, float], None] = lambda *_: None,
    names: Sequence[str] | None = None,
) -> ModelCheck:
    """Run the contract over the models of other libraries, each with small inputs where it takes them.

    Args:
        pattern: of names such as "timm/resnet18"; a shell pattern.
        path: a JSON file that is written after each model; those in it already are not tried again,
            unless they were too large.
        max_parameters: larger models are left out, and tried where a later check allows more.
        limit: how many models are looked at in all, those in the file included; large ones do not count.
        observe: is told name, outcome and seconds of each model.
        names: in this order, instead of all that the libraries have, in which families take turns.

    Raises:
        StageCostError: no library has a model of this name, or the file holds something else.
    """
    wanted = fnmatch.filter(names or in_turns(library_names()), pattern)
    if not wanted:
        raise StageCostError(
            f"no model is called {pattern!r}: install timm or torchvision, or see list_models"
        )
    outcome = ModelCheck()
    if path is not None and path.exists():
        with refusing(f"{path} holds no check of models", "give another --output", ValueError):
            outcome = ModelCheck.from_json(read_json(path))
    outcome.versions |= {
        name: version(name) for name in ("torch", *{n.partition("/")[0] for n in wanted})
    }
    for name in wanted:
        if name in outcome and TOO_LARGE not in outcome.unchecked.get(name, ""):
            continue
        if limit is not None and outcome.num_checked >= limit:
            break
        begun = time.monotonic()
        said = _check(name, outcome, max_parameters)
        observe(name, said, time.monotonic() - begun)
        if path is not None:
            write_json(path, outcome.to_json())
        gc.collect()
    return outcome


def _check(name: str, outcome: ModelCheck, max_parameters: float) -> str:
    """Try a model, and enter what came of it."""
    outcome.unchecked.pop(name, None)
    try:
        model, size = small_model(name, max_parameters)
        found = list(violations(model, (torch.zeros(1, 3, size, size),)))
    except UnknownBranchesError as error:
        outcome.unchecked[name] = str(error)
        return f"unchecked: {error}"
    except StageCostError as error:
        outcome.refused[name] = str(error)
        return f"refused: {error}"
    except Exception as error:
        found = [f"{type(error).__name__}: {one_line(error)}"]
    if found:
        outcome.wrong[name] = "; ".join(found)
        return f"wrong: {outcome.wrong[name]}"
    outcome.supported.append(name)
    return "supported"


def in_turns(names: Iterable[str]) -> list[str]:
    """Order models so that families, the modules that define them, take turns, small ones first."""
    families: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: SMALL.search(name) is None):
        families.setdefault(family(name), []).append(name)
    rounds = zip_longest(*families.values())
    return [name for one in rounds for name in one if name is not None]


def small_model(name: str, max_parameters: float) -> tuple[nn.Module, int]:
    """Build a model with random weights, for images as small as it takes.

    Returns:
        It and the width of its images.

    Raises:
        UnknownBranchesError: it has too many parameters, or takes no images of a size that was tried.
    """
    reason = "takes no images of a size that was tried"
    for options, size in VARIANTS:
        with suppress(Exception):
            if _num_parameters(name, options) > max_parameters:
                reason = f"{TOO_LARGE} {max_parameters:.0f} parameters"
                continue
            model = library_model(name, **options).eval()
            with torch.no_grad():
                model(torch.zeros(2, 3, size, size))
            return model, size
    raise UnknownBranchesError(f"{name} {reason}")


def _num_parameters(name: str, options: Mapping[str, Any]) -> int:
    """Count parameters without memory for them; 0 where a model cannot be built so."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return sum(p.numel() for p in library_model(name, **options).parameters())
    except Exception:
        return 0
