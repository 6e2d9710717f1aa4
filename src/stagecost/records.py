"""Dataclasses to JSON, and back strictly by their declared types: nothing is guessed or converted.

What a file says is refused unless it is just what would be written. Numbers that are not finite, which
JSON does not have, are the texts "nan", "inf" and "-inf".
"""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
JsonObject = dict[str, Any]
"""Plain types by name, as JSON holds them: at the edge alone, where results are written."""
LARGEST = 2.0**63  # in absolute value


def read_record(kind: type[Kind], content: Any, *, name: str = "") -> Kind:
    """Build a dataclass from a mapping of its fields.

    Args:
        kind: the dataclass; its fields are int, float, bool, str, `Literal`, tuples and dataclasses of
            these, or one of these or None. A field with a default may be missing.
        content: parsed JSON.
        name: of the value, for messages.

    Raises:
        ValueError: a field is missing, unknown, or not of its type; says which.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{name or kind.__name__} is {_shown(content)}, not a mapping")
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    older = getattr(kind, "aliases", {})  # further words for fields, or for what follows from them
    content = {
        older.get(k, k): v for k, v in content.items() if k not in older or older[k] not in content
    }
    if unknown := [key for key in content if key not in known]:
        raise ValueError(f"{name + '.' if name else ''}{_shown(unknown[0])} is unknown")
    needed = [k for k, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in needed if key not in content]:
        raise ValueError(f"{name + '.' if name else ''}{missing[0]} is missing")
    start = f"{name}." if name else ""
    return kind(**{key: read_typed(hints[key], value, start + key) for key, value in content.items()})


def read_typed(kind: Any, value: Any, name: str) -> Any:
    """Return a parsed value as a declared type has it.

    Raises:
        ValueError: it is something else.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kind = next(a for a in arguments if a is not type(None))
        return None if value is None else read_typed(kind, value, name)
    if is_dataclass(kind):
        return read_record(kind, value, name=name)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        items = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(items) == len(value):
            return tuple(read_typed(item, part, name) for item, part in zip(items, value, strict=True))
    if origin is list and isinstance(value, list):
        return [read_typed(arguments[0], part, name) for part in value]
    if not _fits(kind, value):
        raise ValueError(f"{name} is {_shown(value)}")
    return float(NOT_FINITE.get(value, value)) if kind is float else value


def _fits(kind: Any, value: Any) -> bool:
    """Tell whether a value is of a simple type."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is float and isinstance(value, str):
        return value in NOT_FINITE
    if kind in (int, float):
        number = isinstance(value, kind | int) and not isinstance(value, bool)
        return number and (abs(value) < LARGEST if kind is int else math.isfinite(value))
    return type(value) is (get_origin(kind) or kind)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def writable(value: Any, not_finite: Callable[[float], object] = repr) -> Any:
    """Return a value as JSON can hold it; of a dataclass the fields and its `aliases`, by their names.

    Args:
        value: plain values and dataclasses, in one another.
        not_finite: what stands for a number that is not finite; by default its text.
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = {field.name: field.name for field in fields(value)} | getattr(value, "aliases", {})
        value = {key: getattr(value, name) for key, name in names.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return not_finite(value)
    if isinstance(value, Mapping):
        return {str(key): writable(item, not_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item, not_finite) for item in value]
    return value
