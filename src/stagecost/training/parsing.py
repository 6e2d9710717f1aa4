"""Settings to and from plain values, checked by the types that their dataclasses declare."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from stagecost.data.config import DataConfig
from stagecost.errors import StageCostError
from stagecost.training.gamma_control import GammaSettings
from stagecost.training.settings import (
    ModelSettings,
    RunSettings,
    Sizes,
    TrainingSettings,
    VariantSettings,
)
from stagecost.training.shrink import ShrinkSettings

register_type(Sizes, serializer=list, deserializer=Sizes.parse)

_PARTS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelSettings,
    "training": TrainingSettings,
    "variant": VariantSettings,
    "shrink": ShrinkSettings,
    "control": GammaSettings,
}
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
    known = {f.name: f.default for part in _PARTS.values() for f in fields(part)}
    if unknown := sorted(set(flat) - set(known)):
        raise StageCostError(f"setting {unknown[0]!r} is unknown: remove it from the configuration")
    for name, value in flat.items():  # the parser itself takes null for anything
        if value is None and known[name] is not None:
            raise StageCostError(f"{name} is null: give a value, or leave it out for {known[name]}")
    parser = _Parser()
    for part in _PARTS.values():
        parser.add_class_arguments(part)
    values = parser.parse_object(dict(flat)).as_dict()
    built = {key: part(**{f.name: values[f.name] for f in fields(part)}) for key, part in _PARTS.items()}
    return RunSettings(**built)


_WHOLE = (
    (r".*File does not exist: '(.*)'", r"configuration \1 does not exist: check the path"),
    (r".*Path is not a file: '(.*)'", r"configuration \1 is no file: give a YAML file"),
    (
        r".*Unexpected config: ?(.*)",
        r"configuration '\1' is no mapping of settings to values: rewrite it",
    ),
    (r"Problems parsing config: (.*)", r"the configuration is not valid YAML (\1): correct it"),
    (
        r"Subcommand '(\w+)' does not accept option '(.*)'",
        r"setting '\2' is unknown: `stagecost \1 --help` shows all",
    ),
    (r"unrecognized arguments: (.*)", r"arguments that are unknown: \1 (see --help)"),
    (r"the following arguments are required: (.*)", r"missing: \1 (see --help)"),
    (r"argument (--[\w-]+): (expected .*)", r"\1: \2; a value that begins with - is given as \1=VALUE"),
)


def _plain_words_on_the_whole(text: str) -> str:
    for pattern, words in _WHOLE:
        if found := re.fullmatch(pattern, text):
            return found.expand(words)
    return text.replace("Parser key ", "")


def plain_words(message: str) -> str:
    """Say what a parser found wrong with a value, in one line and without its talk of types."""
    text = " ".join(message.split())
    value = re.search(r'Parser key "([^"]+)".*(?:Given|Got) value: ?(.*)', text)
    if not value:
        return _plain_words_on_the_whole(text)
    choices = re.search(r"Literal\[(.*?)\]", text)
    # What comes after "Given value type" is the type that was found, not one that would do.
    wanted = text.split("Given value type:")[0]
    kinds = [words for kind, words in _KINDS.items() if re.search(rf"(class '|type ){kind}\b", wanted)]
    if "Sizes" in wanted:
        kinds = [_KINDS["Sizes"]]
    expected = f"one of {choices[1]}" if choices else " or ".join(kinds) or "another value"
    if choices and kinds:
        expected = f"{' or '.join(kinds)}, or {choices[1].strip(chr(39))}"
    flag = value[1].split(".")[-1].replace("_", "-")
    return f"--{flag} is {value[2]!r}: give {expected}"
