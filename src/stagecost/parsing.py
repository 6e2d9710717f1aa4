"""Settings to and from plain values, checked by the types that their dataclasses declare."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from stagecost.data_config import DataConfig
from stagecost.errors import StageCostError
from stagecost.settings import ModelSettings, RunSettings, Sizes, TrainingSettings

register_type(Sizes, serializer=list, deserializer=Sizes.parse)

_PARTS: dict[str, type] = {"data": DataConfig, "model": ModelSettings, "training": TrainingSettings}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Sizes": "numbers like 16,32,64",
}


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise StageCostError(plain_words(message))


def parse_settings(flat: Mapping[str, Any]) -> RunSettings:
    """Build settings from setting names and values; what is missing takes its default.

    Raises:
        StageCostError: a name is unknown, or a value is not of its type.
    """
    known = {f.name for part in _PARTS.values() for f in fields(part)}
    if unknown := sorted(set(flat) - known):
        raise StageCostError(f"setting {unknown[0]!r} is unknown: remove it from the configuration")
    parser = _Parser()
    for part in _PARTS.values():
        parser.add_class_arguments(part)
    values = parser.parse_object(dict(flat)).as_dict()
    built = {key: part(**{f.name: values[f.name] for f in fields(part)}) for key, part in _PARTS.items()}
    return RunSettings(**built)


def plain_words(message: str) -> str:
    """Say what a parser found wrong with a value, in one line and without its talk of types."""
    text = " ".join(message.split())
    value = re.search(r'Parser key "([^"]+)".*Given value: (.*)', text) or re.search(
        r'Parser key "([^"]+)".*Got value: (.*)', text
    )
    if not value:
        return text.replace("Parser key ", "")
    choices = re.search(r"Literal\[(.*?)\]", text)
    kinds = [words for kind, words in _KINDS.items() if re.search(rf"(class '|type ){kind}\b", text)]
    expected = f"one of {choices[1]}" if choices else " or ".join(kinds) or "another value"
    flag = value[1].split(".")[-1].replace("_", "-")
    return f"--{flag} is {value[2]!r}: give {expected}"
