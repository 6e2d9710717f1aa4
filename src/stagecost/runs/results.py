"""Typed results of the verbs, and their JSON: the one place where they become plain values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from stagecost.records import JsonObject


@dataclass(frozen=True)
class Result:
    """What a verb tells; every field is a key of its JSON object."""

    #: further key → the field or property that it repeats: two words for one thing, for one release
    aliases: ClassVar[Mapping[str, str]] = {}

    def to_json(self) -> JsonObject:
        """Return plain types for JSON; a number that is not finite is null there."""
        values: JsonObject = plain(self)
        return values


def plain(value: Any) -> Any:
    """Return a value as JSON holds it."""
    if is_dataclass(value) and not isinstance(value, type):
        values = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        older: Mapping[str, str] = getattr(value, "aliases", {})
        return values | {key: plain(getattr(value, name)) for key, name in older.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
