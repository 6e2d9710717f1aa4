"""The names of classes: how they are written, and how those of two data sets correspond.

Classes correspond by their names, never by their places. Names are compared in Unicode's composed form
(NFC). Where a list says which classes there are, that of `--classes` or of a trained network, copies may
differ from it in case, spaces and punctuation ('T - shirt / top').
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from stagecost.errors import StageCostError


def class_name(value: object) -> str:
    """Return a class name in composed form; bytes that are no UTF-8, as in a file name, written out."""
    text = str(value)
    from_path = not re.search("[\ud800-\udc7f\udd00-\udfff]", text)
    content = text.encode("utf-8", "surrogateescape" if from_path else "surrogatepass")
    return unicodedata.normalize("NFC", content.decode("utf-8", "backslashreplace"))


def number_name(number: int) -> str:
    """Return the name of a class that has only a number."""
    return f"class {number}"


def class_number(name: str) -> int | None:
    """Return the number of a class that has only a number ('class 7'), or None."""
    match = re.fullmatch(r"class (\d+)", name)
    return int(match[1]) if match else None


def parse_classes(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """Read the list of `--classes`: names with commas between them, or already apart; none for None.

    Raises:
        StageCostError: a name is empty, or is there twice.
    """
    try:
        given = [*csv.reader([text], skipinitialspace=True)] if isinstance(text, str) else [text or ()]
    except csv.Error:  # as of a line break within a name
        given = []
    names = [class_name(name.strip()) for row in given for name in row]
    if text is not None and (not names or "" in names or len(names) > len({*names})):
        raise StageCostError(
            f"--classes {shown(text)} has an empty name or one twice: give names such as cat,dog"
        )
    return tuple(names)


def places(names: Iterable[str], known: Sequence[str]) -> list[int | None]:
    """Return the place of each name in the list `known`; None for a name that is not in it.

    A name is looked for as it is, then by its `name_key`. 'class 7' and '7' are one. Of two names with
    one place, that which is not written as in the list is none of it.
    """
    exact = {name: place for place, name in enumerate(known)}
    keys = [name_key(name) for name in known]
    counts = Counter(keys)
    loose = {key: place for place, key in enumerate(keys) if key and counts[key] == 1}
    given = list(names)
    found = [exact.get(name, loose.get(name_key(name))) for name in given]
    several = Counter(found)
    return [
        None if several[place] > 1 and name not in exact else place
        for place, name in zip(found, given, strict=True)
    ]


def name_key(name: str) -> str:
    """Reduce a class name to what copies of a data set agree on: letters and digits.

    Signs that make other names are left: between digits ('1.5', '10-20'), before one ('-1'), and at the
    end ('A+', 'C#').
    """
    if (number := class_number(name)) is not None:
        return str(number)
    return "".join("".join(part.split()) or " " for part in _PARTS.findall(name.casefold().strip()))


_PARTS = re.compile(
    r"""[^\W_]+                     # letters and digits
    | (?<=\d) [\W_]+ (?=\d)        # what stands between digits
    | (?: ^ | (?<=\s) ) [+-] (?=\d) # the sign of a number
    | (?<=[^\W_]) [+\#-]+ $        # signs at the end""",
    re.VERBOSE,
)


def shown(text: object) -> str:
    """Return a name or path for a message: on one line, whatever characters are in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in class_name(text))


def listed(names: Collection[str], most: int = 8) -> str:
    """List names for a message, the first ones of many."""
    first = ", ".join(shown(name) for name in list(names)[:most])
    return first if len(names) <= most else f"{first}, … ({len(names)} in all)"


def classes_flag(names: Sequence[str]) -> str:
    """Write the flag by which the user may say that these are the classes."""
    return f"--classes {','.join(map(shown, names[:2]))}{',…' if len(names) > 2 else ''}"
