"""How a reproduced experiment looks on a terminal: its table, the paper's figures beside it."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from stagecost.training.progress import sparkline

Result = Mapping[str, Any]
Row = Mapping[str, Any]

_COUNTS = {"parameters": "parameters", "macs": "MACs an image", "training_macs": "MACs of training"}
_WIDE = 120
FELL_SHORT = (
    "Where J_N is above its bound, optimisation fell short: the training of N blocks has not found "
    "weights as good as those of M blocks followed by blocks that do nothing."
)


def show_reproduction(console: Console, result: Result) -> None:
    """Print the tables of an experiment, and how each data set was made."""
    views = {"bound": _bound, "loss-trajectory": _trajectory, "peers": _peers}
    views.get(result["experiment"], _accuracies)(console, result)
    for figure in result["figures"]:
        console.print(f"figure: {figure}", soft_wrap=True)
    for record in result["records"]:
        console.print(_about(record), style="dim", soft_wrap=True)


def _about(record: Row) -> str:
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"{record['dataset']}: seeds {seeds}, commit {record['commit']}, {record['machine']}, "
        f"{record['threads']} thread(s), torch {record['versions']['torch']}; {record['path']}"
    )


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=place < 2)
    return table


def _accuracies(console: Console, result: Result) -> None:
    wide = console.width >= _WIDE
    title = f"{result['title']}, {result['tier']} tier"
    console.print(_accuracy_table(title, result["rows"], wide))
    if result.get("other_rows"):
        title = "The schedules of the stage cost at their other ends"
        console.print(_accuracy_table(title, result["other_rows"], wide))
    if result.get("differences"):
        staged = result["experiment"] == "staged"
        table = _staged_differences if staged else _difference_table
        console.print(table(result["differences"]))
    if any(row.get("paper") is not None for row in result["rows"]):
        console.print(_about_the_paper(result["tier"]))


def _about_the_paper(tier: str) -> str:
    if tier == "cpu":
        return "The paper's figures are of other networks (54 and 12 blocks), whose recipe is unknown."
    return "The paper's networks have as many blocks; its recipe is unknown, so this is another one."


def _accuracy_table(title: str, rows: Sequence[Row], wide: bool) -> Table:
    """Show accuracies, and on a wide terminal also what each arm counts."""
    paper = any(row.get("paper") is not None for row in rows)
    counts = [key for key in _COUNTS if wide and all(row.get(key) is not None for row in rows)]
    heading = ["paper, 54 and 12 blocks"] if paper else []
    names = ("data set", "arm", "blocks", "accuracy", *heading, *(_COUNTS[key] for key in counts))
    table = _table(title, *names)
    table.columns[3].no_wrap = True
    for dataset, group in groupby(rows, key=lambda row: row["dataset"]):
        table.add_section()
        for place, row in enumerate(group):
            name = f"{row['arm']} ({row['schedule']})" if row.get("schedule") else row["arm"]
            cells = [dataset if place == 0 else "", name, _text(row["num_blocks"]), _accuracy(row)]
            cells += [_points(row.get("paper"))] if paper else []
            table.add_row(*cells, *(_count(row[key]) for key in counts))
    return table


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _accuracy(row: Row) -> str:
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    return f"{row['mean']:.2f}{spread}"


def _points(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.2f}"


def _count(value: float) -> str:
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _difference_table(rows: Sequence[Row]) -> Table:
    names = ("full depth", "in the paper", "pruned", "in the paper")
    table = _table("Points above plain training of the same depth", "data set", *names)
    table.columns[1].justify = "right"
    for row in rows:
        keys = ("full_depth", "paper_full_depth", "pruned", "paper_pruned")
        table.add_row(row["dataset"], *(_points(row[key], "+") for key in keys))
    return table


def _staged_differences(rows: Sequence[Row]) -> Table:
    names = ("plain, full", "plain, of its shape", "gamma = 0, cut alike", "MACs saved")
    table = _table("Points of the cut networks above", "data set", "arm", *names)
    for row in rows:
        keys = ("to_plain_full", "to_plain_final", "to_control_cut")
        saved = f"{100 * row['macs_saved']:.0f} %"
        table.add_row(row["dataset"], row["arm"], *(_points(row[key], "+") for key in keys), saved)
    return table


def _bound(console: Console, result: Result) -> None:
    names = ("seed", "M of N", "J_N", "bound", "J_N ≤ it", "J_N / it", "corollary")
    table = _table(f"{result['title']}, {result['tier']} tier", "data set", *names)
    for key, group in groupby(result["rows"], key=lambda row: (row["dataset"], row["seed"])):
        table.add_section()
        for place, row in enumerate(group):
            first = (key[0], str(key[1])) if place == 0 else ("", "")
            table.add_row(*first, *_bound_cells(row))
    console.print(table)
    console.print("corollary: the losses over 1 + gamma·N, and what bounds them for lambda = 0")
    for key, group in groupby(result["rows"], key=lambda row: (row["dataset"], row["seed"])):
        console.print(
            f"predicted depth, {key[0]} seed {key[1]}: {next(group)['predicted_blocks']} blocks"
        )
    if not all(row["holds"] for row in result["rows"]):
        console.print(FELL_SHORT)


def _bound_cells(row: Row) -> list[str]:
    holds = "[green]yes[/green]" if row["holds"] else "[yellow]no[/yellow]"
    return [
        f"{row['sub_blocks']} of {row['num_blocks']}",
        f"{row['objective']:.4f}",
        f"{row['right_hand_side']:.4f}",
        holds,
        f"{row['tightness']:.3f}",
        f"{row['normalized_loss']:.4f} / {row['normalized_bound']:.4f}",
    ]


def _peers(console: Console, result: Result) -> None:
    from stagecost_recipes.peers_view import show

    console.print(f"{result['title']}, {result['tier']} tier", style="bold")
    show(console, result["rows"])


def _trajectory(console: Console, result: Result) -> None:
    names = (
        "seed",
        "loss over k",
        "L_N",
        "accuracy",
        "fall within stages",
        "at a stage's start",
    )
    table = _table(f"{result['title']}, {result['tier']} tier", "data set", "arm", *names)
    table.columns[3].no_wrap = True
    for key, group in groupby(result["rows"], key=lambda row: (row["dataset"], row["arm"])):
        table.add_section()
        for place, row in enumerate(group):
            first = key if place == 0 else ("", "")
            table.add_row(
                *first,
                str(row["seed"]),
                sparkline(row["losses"]),
                f"{row['losses'][-1]:.4f}",
                f"{row['accuracies'][-1]:.2f}",
                f"{row['plateau']:.4f}",
                f"{row['jump']:.4f}",
            )
    console.print(table)
    starts = ", ".join(map(str, result["rows"][0]["stage_starts"]))
    console.print(f"stages begin at blocks {starts}; falls are means of L_k − L_(k+1)")
