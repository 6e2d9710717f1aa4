"""Settings from plain values, such as those of a YAML file or a command line, by their declared types.

A value is what its type says, or a text that says such a value. Nothing heavy is imported here.
"""

import difflib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stagecost.data.config import DataConfig
from stagecost.errors import StageCostError
from stagecost.train.settings import (
    ModelSettings,
    RunSettings,
    StageCostSettings,
    TrainingSettings,
    flag,
)

PARTS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelSettings,
    "training": TrainingSettings,
    "stage": StageCostSettings,
}
GONE = {
    **dict.fromkeys(("constant_head", "group_lasso", "depth_weights", "gamma_schedule"), "leave it out"),
    **dict.fromkeys(("shrink", "shrink_tolerance", "shrink_patience", "shrink_after"), "use --cut-at"),
    **dict.fromkeys(("gamma_reference", "gamma_epsilon", "fused", "head_statistics"), "leave it out"),
    "depth_vector": "use --targets, such as 3+3+4",
}
"""Settings of earlier versions, and what to do instead."""

_BEYOND = 2**63


@cache
def setting_types() -> Mapping[str, Any]:
    """Return the declared type of every setting, by its name."""
    return {name: kind for part in PARTS.values() for name, kind in get_type_hints(part).items()}


def parse_settings(flat: Mapping[str, Any]) -> RunSettings:
    """Build settings from setting names and values; what is missing takes its default.

    Raises:
        StageCostError: a name is unknown, or a value is not of its type.
    """
    kinds = setting_types()
    for name in flat:
        if name not in kinds:
            raise StageCostError(_unknown(str(name)))
    read = {name: read_value(flag(name), kinds[name], value) for name, value in flat.items()}
    built = {
        key: part(**{f.name: read[f.name] for f in fields(part) if f.name in read})
        for key, part in PARTS.items()
    }
    return RunSettings(**built)


def _unknown(name: str) -> str:
    if name in GONE:
        return f"setting {name!r} is one of an earlier version: {GONE[name]}, and train anew"
    near = difflib.get_close_matches(name, setting_types(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "remove it from the configuration"
    return f"setting {name!r} is unknown: {hint}"


def read_value(name: str, kind: Any, value: object) -> Any:
    """Read one value.

    Args:
        name: for messages, such as --num-blocks.
        kind: int, float, bool, str, a `Literal` of texts, a tuple of ints or of texts; or one of these
            or None.
        value: of that type, or a text that says it.

    Raises:
        StageCostError: it is something else.
    """
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    reader, wanted = _READERS[get_origin(kind) or kind]
    try:
        return reader(value, *get_args(kind))
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        if isinstance(error, OverflowError):
            wanted += " below 2^63"
        shown = "null" if value is None else repr(value)
        shown = shown if len(shown) <= 80 else shown[:79] + "…"
        if get_origin(kind) is tuple:
            wanted = {int: "numbers like 16,32,64", float: "numbers like 0.5,0.5,0.5"}.get(
                get_args(kind)[0], "texts like 4,8"
            )
        choices = ", ".join(map(repr, get_args(kind)))
        raise StageCostError(f"{name} is {shown}: give {wanted or f'one of {choices}'}") from None


def _text(value: object) -> str:
    """Refuse what is no plain value; JSON and YAML may give numbers where texts are meant."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return str(value)


def _whole(value: object) -> int:
    if isinstance(value, float):
        raise ValueError
    number = int(_text(value))
    if abs(number) >= _BEYOND:
        raise OverflowError
    return number


def _number(value: object) -> float:
    number = float(_text(value))
    if math.isnan(number):
        raise ValueError
    return number


def _switch(value: object) -> bool:
    return value if isinstance(value, bool) else {"true": True, "false": False}[_text(value).lower()]


def _choice(value: object, *choices: str) -> str:
    text = _text(value)
    if text not in choices:
        raise ValueError
    return text


def _several(value: object, item: Any, *more: object) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value else []
    if not isinstance(value, list | tuple):
        raise ValueError
    read, _ = _READERS[item]
    return tuple(map(read, value))


_READERS: dict[Any, tuple[Callable[..., Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_switch, "true or false"),
    str: (_text, "text"),
    Literal: (_choice, ""),
    tuple: (_several, ""),
}
