"""Flags of a verb: declared with a type and a sentence, read from texts into values.

Nothing heavy is imported here, so that the command line can show its help at once.
"""

import difflib
import re
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from stagecost.errors import StageCostError
from stagecost.train.parsing import PARTS, read_value, setting_types


@dataclass(frozen=True)
class Flag:
    """One argument of a verb."""

    name: str  #: num_blocks for --num-blocks; of a positional argument, as it is shown
    kind: Any  #: the type of its value: int, float, bool, str, a `Literal` of texts, a tuple of these
    text: str  #: what it does, in a phrase
    default: object = None  #: as shown; nothing is passed on for a flag that is not given
    positional: bool = False  #: whether it is given by its place, without a name
    required: bool = False  #: whether it must be given
    several: bool = False  #: whether it takes several values, parted by spaces
    often: bool = True  #: whether --help shows it, and not --help-all alone
    group: str = ""  #: title under which it is shown

    @property
    def option(self) -> str:
        """As it is typed."""
        return self.name if self.positional else "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What its value looks like: a plain type, or the choices."""
        return "PATH" if self.several or self.name in PATHS else _shape(self.kind)

    @property
    def help(self) -> str:
        """Its sentence, with its default."""
        shown = "" if self.default in (None, ()) or self.default is False else _shown(self.default)
        text = self.text.rstrip(".") + (f" (default {shown})" if shown else "")
        return text.replace("%", "%%").replace("…", "...")


PATHS = ("output", "config", "csv")


def _shape(kind: Any) -> str:
    """Write a type as a person reads it: N, NUMBER, {a,b}, N,N,..."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) in (Union, UnionType):
        return _shape(parts[0])
    if get_origin(kind) is Literal:
        return "{" + ",".join(parts) + "}"
    if get_origin(kind) is tuple:
        return f"{_shape(parts[0])},{_shape(parts[0])},..."
    return {int: "N", float: "NUMBER"}.get(kind, "TEXT")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def setting_flags(often: Sequence[str]) -> tuple[Flag, ...]:
    """Return a flag for every setting of a training; --help shows those that are named."""
    flags = []
    kinds = setting_types()
    for title, part in PARTS.items():
        texts = argument_texts(part.__doc__ or "")
        for item in fields(part):
            default = None if item.default is MISSING else item.default
            text, shown = texts.get(item.name, ""), item.name in often
            group = f"{title} settings"
            flags.append(Flag(item.name, kinds[item.name], text, default, often=shown, group=group))
    return tuple(flags)


def argument_texts(doc: str) -> dict[str, str]:
    """Read the section "Args:" of a docstring: name → text in one line."""
    section = doc.partition("Args:\n")[2]
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        begins = re.match(r"\s{4,8}(\w+): (.*)", line)
        if begins and not line.startswith(" " * 9):
            name, texts[begins[1]] = begins[1], begins[2]
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return texts


class VerbParser(ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Turn a message of argparse into the one error of the project."""
        text = message.replace("argument ", "", 1).replace(
            "the following arguments are required", "missing"
        )
        raise StageCostError(f"{text} (see `{self.prog} --help`)")


def build_parser(prog: str, summary: str, flags: Sequence[Flag], *, everything: bool) -> VerbParser:
    """Build the parser of a verb; `everything` shows what --help-all shows."""
    parser = VerbParser(
        prog=prog,
        description=summary,
        allow_abbrev=False,
        argument_default=SUPPRESS,
        add_help=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    places = [flag.name if flag.required else f"[{flag.name}]" for flag in flags if flag.positional]
    musts = [f"{flag.option} {flag.metavar}" for flag in flags if flag.required and not flag.positional]
    parser.usage = " ".join([prog, *places, *musts, "[flags]"])
    groups: dict[str, Any] = {"": parser}
    for flag in flags:
        title = flag.group if everything else ""
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        text = flag.help if flag.often or everything else SUPPRESS
        if flag.positional:
            number = "+" if flag.several else None if flag.required else "?"
            parser.add_argument(flag.name, help=text, nargs=number)
        elif flag.kind is bool:
            group.add_argument(
                flag.option, dest=flag.name, action="store_const", const="true", help=text
            )
        else:
            group.add_argument(
                flag.option,
                dest=flag.name,
                required=flag.required,
                nargs="+" if flag.several else None,
                metavar=flag.metavar,
                help=text,
            )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("-h", "--help", action="help", default=SUPPRESS, help="show this")
    if not all(flag.often for flag in flags):
        parser.add_argument("--help-all", action="store_true", help="show all flags")
    return parser


def read_flags(parser: VerbParser, flags: Sequence[Flag], arguments: Sequence[str]) -> dict[str, Any]:
    """Read the arguments of a verb: the values of what was given, by name.

    Raises:
        StageCostError: an unknown flag, a missing one, or a value that is not of its type.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)  # of the flags
    dashed = [*map(_with_dashes, arguments[:end]), *arguments[end:]]
    _refuse_unknown(flags, dashed[:end])
    given = vars(parser.parse_args(dashed))
    kinds = {flag.name: flag for flag in flags}
    return {name: _value(kinds.get(name), value) for name, value in given.items()}


def _with_dashes(argument: str) -> str:
    """Take --num_blocks for --num-blocks."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _value(flag: Flag | None, value: Any) -> Any:
    if flag is None or flag.several:
        return value
    return read_value(flag.option, flag.kind, value)


def _refuse_unknown(flags: Sequence[Flag], arguments: Sequence[str]) -> None:
    """Refuse a flag that is unknown, and offer the nearest."""
    known = [flag.option for flag in flags if not flag.positional]
    known += ["--json", "--help", "--help-all", "-h"]
    for argument in arguments:
        name = argument.partition("=")[0]
        if re.fullmatch(r"--[a-zA-Z][\w-]*", name) and name not in known:
            near = difflib.get_close_matches(name.strip("-"), [one.strip("-") for one in known], n=1)
            hint = f"did you mean --{near[0]}?" if near else "see --help"
            raise StageCostError(f"{name} is unknown: {hint}")
