"""The same thing has the same word in the JSON of all verbs: one glossary, held against their types."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import stagecost.runs
from stagecost.runs.results import Result

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "command-line.md").read_text("utf-8").split("\n## JSON keys\n")[1].split("\n## ")[0]
GLOSSARY = PAGE.split("\n### Words\n")[1]


def in_code(text: str) -> list[str]:
    return re.findall(r"`([\w-]+)`", text)


def results(kind: type = Result) -> Iterator[type]:
    """Yield what the verbs return."""
    for other in kind.__subclasses__():
        yield from (other, *results(other))


def keys_of(kind: Any, seen: set[Any]) -> Iterator[tuple[str, str]]:
    """Yield each key of a type's JSON, at every depth, with the plain type of its values."""
    for part in get_args(kind):
        yield from keys_of(part, seen)
    if dataclasses.is_dataclass(kind) and kind not in seen:
        seen.add(kind)
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name == "history":  # of a training; no part of its JSON
                continue
            yield field.name, plain(hints[field.name])
            yield from keys_of(hints[field.name], seen)


def plain(kind: Any) -> str:
    """Return what JSON knows of a type; a list with what it holds."""
    origin, parts = get_origin(kind), [part for part in get_args(kind) if part is not NoneType]
    if origin in (Union, UnionType):
        return plain(parts[0])
    if origin is tuple:
        return f"list of {plain(parts[0])}"
    if dataclasses.is_dataclass(kind) or origin is dict:
        return "object"
    return "str" if origin is Literal else str(kind.__name__)


def everything() -> tuple[set[tuple[str, str]], dict[str, str], set[type]]:
    """Return all keys with their types, older words → words, and all kinds."""
    for module in pkgutil.iter_modules(stagecost.runs.__path__):
        importlib.import_module(f"stagecost.runs.{module.name}")
    seen: set[Any] = set()
    keys = {pair for kind in results() for pair in keys_of(kind, seen)}
    older: dict[str, str] = {}
    for kind in seen:
        older |= getattr(kind, "aliases", {})
        known = {f.name for f in dataclasses.fields(kind)}
        known |= {name for name, value in vars(kind).items() if isinstance(value, property)}
        assert set(getattr(kind, "aliases", {}).values()) <= known
    return keys, older, seen


def test_a_word_is_of_one_type_in_all_verbs() -> None:
    keys, _, seen = everything()
    assert len(keys) > 100 < 10 * len(seen)
    for name in {name for name, _ in keys}:
        assert len({kind for other, kind in keys if other == name}) == 1, name


def test_every_key_is_made_of_words_of_the_glossary() -> None:
    keys, older, _ = everything()
    introduction, table = GLOSSARY.split("\n| word | what it is |\n")
    qualifiers = in_code(introduction)
    before = "|".join(word[:-1] for word in qualifiers if word.endswith("_"))
    after = "|".join(word[1:] for word in qualifiers if word.startswith("_"))
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    words = [word for row in rows for word in in_code(row)]
    assert len(words) == len(set(words))
    explained = {*words, *in_code(PAGE.replace(GLOSSARY, "").split("| key | what it is |")[1])}
    for name, _ in keys:
        bare = re.sub(rf"^({before})_|(_({after}))+$", "", name)
        bare = re.sub(rf"^({before})_|(_({after}))+$", "", bare)
        assert {name, bare} & explained, f"{name} is not in the glossary"
    used = {name for name, _ in keys} | {re.sub(rf"^({before})_|(_({after}))+$", "", n) for n, _ in keys}
    used |= {re.sub(rf"^({before})_|(_({after}))+$", "", name) for name in used}
    assert set(words) <= used, "a word that no verb uses"
    last = GLOSSARY[GLOSSARY.index("Older words") :]
    for old, new in older.items():
        assert {old, new} <= set(in_code(last)), old
