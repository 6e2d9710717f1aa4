"""Typed results of the verbs, and their JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from stagecost.records import JsonObject, writable


@dataclass(frozen=True)
class Result:
    """What a verb tells; every field is a key of its JSON object."""

    #: further key → the field or property that it repeats: two words for one thing, for one release
    aliases: ClassVar[Mapping[str, str]] = {}

    def to_json(self) -> JsonObject:
        """Return plain types for JSON; a number that is not finite is null there."""
        return dict(writable(self, lambda _: None))
