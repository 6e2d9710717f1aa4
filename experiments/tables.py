"""The one writer of tables: Markdown, for `show` and for results/README.md alike."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.records import Record, Row

if TYPE_CHECKING:
    from experiments.runner import Experiment

INTRODUCTION = """\
# Recorded results

`python -m experiments tables` writes this page from the JSON files in this folder. `python -m
experiments show NAME` prints a section, `run NAME` measures anew. Each record names its command,
commit, seeds, machine, threads and versions; a command that is no more, `stagecost reproduce …` or
`python scripts/…`, is one of the commit named beside it. Settings are chosen on validation images; test
images are read once, at the end. Accuracies are in percent, mean ± sample standard deviation over the
seeds."""
SUPERSEDED = "Superseded: the commit named below has what made this record."

Column = str | Callable[[Row], object]
"""A format string over the entries of a row, such as "{mean:.2f}", or a function of the row."""
Columns = dict[str, Column]


def page(sections: Iterable[tuple["Experiment", Sequence[Record]]], folder: Path) -> str:
    """Return results/README.md, in this folder, from experiments with their records."""
    parts = [part for experiment, records in sections for part in section(experiment, records, folder)]
    return "\n\n".join([INTRODUCTION, *parts]) + "\n"


def section(experiment: "Experiment", records: Sequence[Record], folder: Path) -> list[str]:
    """Return the paragraphs about one experiment: tables, figures, circumstances."""
    verb, note = ("show", f" {SUPERSEDED}") if experiment.run is None else ("run", "")
    command = f"`python -m experiments {verb} {experiment.name}`.{note}"

    def link(file: Path) -> str:
        return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()

    figures = [f"![{file.stem}]({link(file)})" for record in records for file in record.figures()]
    about = [_about(record, link(record.file)) for record in records]
    parts = [f"## {experiment.title}", command, *experiment.section(records)]
    return [*parts, *([" ".join(figures)] if figures else []), "\n".join(about)]


def _about(record: Record, link: str) -> str:
    parts = [
        f"; {', '.join(part['arms'])} by {_made(part)}" for part in record.content.get("before", [])
    ]
    return f"- [{link}]({link}): {_made(record.content)}{''.join(parts)}."


def _made(about: Mapping[str, Any]) -> str:
    seeds, torch = ", ".join(map(str, about["seeds"])), about["versions"]["torch"]
    return (
        f"`{about['command']}`; seeds {seeds}; commit {about['commit']}, "
        f"{about['machine']}, {about['threads']} thread(s), torch {torch}"
    )


class _Cells(dict[str, object]):
    """The entries of a row; what is missing or None is an empty text in any format."""

    def __missing__(self, key: str) -> object:
        return _BLANK


class _Blank:
    def __format__(self, form: str) -> str:
        return ""


_BLANK = _Blank()


def table(rows: Iterable[Row], columns: Columns) -> str:
    """Return a table: a line for each row, a cell for each column."""

    def cell(column: Column, row: Row) -> object:
        if not isinstance(column, str):
            return column(row)
        return column.format_map(_Cells({k: v for k, v in row.items() if v is not None}))

    lines: list[list[object]] = [[*columns], ["---"] * len(columns)]
    lines += [[cell(column, row) for column in columns.values()] for row in rows]
    return "\n".join(map(_line, lines))


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def rows_of(records: Iterable[Record], name: str = "rows") -> list[Row]:
    """Return the rows of several records; `record` names tier and data set, `data` the data set."""
    pairs = [(record, row) for record in records for row in record.lists().get(name, [])]
    return [{**row, "record": record.name, "data": record.dataset} for record, row in pairs]


def grouped(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Return one row for each value of some entries: these, and lists of what the others hold."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return [
        {**{k: [row.get(k) for row in group] for k in group[0]}, **dict(zip(keys, values, strict=True))}
        for values, group in groups.items()
    ]


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """Return the mean and, of several values, the sample standard deviation."""
    found = [value for value in values if value is not None]
    if len(found) < 2:
        return f"{found[0]:.{digits}f}" if found else ""
    return f"{statistics.mean(found):.{digits}f} ± {statistics.stdev(found):.{digits}f}"


def accuracy(row: Row) -> str:
    """Return the test accuracies of a row in short."""
    return spread(row["test_accuracies"])


def at_depths(key: str, depths: Iterable[int], digits: int = 1) -> Columns:
    """Return columns of some depths, of a list of curves; empty where a network is not as deep."""

    def column(depth: int) -> Column:
        return lambda row: spread([curve[depth] for curve in row[key] if depth < len(curve)], digits)

    return {f"depth {depth}": column(depth) for depth in depths}


def quartiles(value: float, between: Sequence[float] | None) -> str:
    """Return a median with its quartiles in brackets."""
    return f"{value:.3f}" + (f" [{between[0]:.3f}, {between[1]:.3f}]" if between else "")
