"""Short texts made of plain values, for messages, reports and what is printed."""

import shlex
from collections.abc import Iterable, Sequence
from html import escape


def one_line(error: BaseException) -> str:
    """Return the message of `error`, squeezed into one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def shell_path(path: object) -> str:
    """Write a path as a shell takes it; one that begins with a dash would be taken for a flag."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def counted(count: int, noun: str) -> str:
    """Write a number of things: 1 block, 1,000 images, 2 classes."""
    plural = noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {plural}"


def format_indices(indices: Sequence[int]) -> str:
    """Write ascending block indices shortly: "0-3, 9, 18-20"."""
    runs: list[list[int]] = []
    for k in indices:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table as HTML, as notebooks show it."""
    lines = [f"<table><caption>{escape(caption)}</caption>"]
    for mark, row in (("th", header), *(("td", row) for row in rows)):
        cells = "".join(f"<{mark}>{escape(str(cell))}</{mark}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table as Markdown; cells are squeezed into one line."""
    lines = (header, ["---"] * len(header), *rows)
    cells = ([" ".join(str(cell).split()).replace("|", "/") for cell in row] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
