"""The table of docs/targets.md: what one has, what one wants, what to use, and what that has cost.

`python -m experiments tables` writes it anew from the records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.records import ROOT, Record, Row
from experiments.runner import find_experiment
from experiments.tables import Columns, table
from stagecost.errors import StageCostError

PAGE = ROOT / "docs" / "targets.md"
BEGIN, END = "<!-- written by `python -m experiments tables` -->\n", "<!-- end -->"
Pair = tuple[str, str]
"""A row and the one that it is compared with: their arms, or "arm cut" where an arm has several."""


@dataclass(frozen=True)
class Advice:
    """A line of the table.

    Attributes:
        have: what one has, and wants.
        use: what to do.
        experiment: where it was measured.
        tier: of the records.
        datasets: of the records; all if empty.
        whole: of the whole network; None where there is none.
        small: of the networks that are cut; several are taken together.
        cost: of the training, beside that of plain training of the whole network.
    """

    have: str
    use: str
    experiment: str
    tier: str
    datasets: tuple[str, ...]
    whole: Pair | None
    small: tuple[Pair, ...]
    cost: Pair


ADVICE = (
    Advice(
        "images; which depth is enough?",
        "train as it is by default, then `stagecost analyze`",
        *("layer-pruning", "gpu", ()),
        ("stage_full", "plain_full"),
        (("stage_pruned", "plain_sub"),),
        ("stage_full", "plain_full"),
    ),
    Advice(
        "images; several depths from one file, each as good as alone",
        "`--targets 4,8`, for as many epochs as the separate trainings take together",
        *("targets", "cpu", ("mnist", "fashion-mnist", "cifar10", "cifar100")),
        ("joint whole", "alone whole"),
        (("joint 4", "alone 4"), ("joint 8", "alone 8")),
        ("joint whole", "alone whole"),
    ),
    Advice(
        "the same, in the time of one plain training",
        "`--targets 4,8`, for the epochs of one",
        *("targets", "cpu", ("mnist", "fashion-mnist", "cifar10", "cifar100")),
        ("joint_short whole", "alone whole"),
        (("joint_short 4", "alone 4"), ("joint_short 8", "alone 8")),
        ("joint_short whole", "alone whole"),
    ),
    Advice(
        "the same, a pass of its own for each",
        "`--targets 4,8 --target-norms own`",
        *("targets", "cpu", ("mnist", "fashion-mnist", "cifar10", "cifar100")),
        ("joint_norms whole", "alone whole"),
        (("joint_norms 4", "alone 4"), ("joint_norms 8", "alone 8")),
        ("joint_norms whole", "alone whole"),
    ),
    Advice(
        "images and stages; several shapes from one file",
        "`--targets 3+3+4,5+5+6 --target-norms own --sampled-depths 1 --gamma 0.5`",
        *("targets", "cpu", ("cifar10-staged",)),
        ("joint whole", "alone whole"),
        (("joint 3+3+4", "alone 3+3+4"), ("joint 5+5+6", "alone 5+5+6")),
        ("joint whole", "alone whole"),
    ),
    Advice(
        "images and stages; one shape beside the whole network",
        "`--targets 3+3+4`, norms shared",
        *("staged", "cpu", ()),
        ("vector_full", "plain_full"),
        (("vector_pruned", "plain_final"),),
        ("vector_full", "plain_full"),
    ),
    Advice(
        "images; one depth, and the small network is all that is needed",
        "train it alone",
        *("layer-pruning", "cpu", ()),
        None,
        (("plain_sub", "plain_sub"),),
        ("plain_sub", "plain_full"),
    ),
    Advice(
        "a large network under way; one smaller shape",
        "cut it early and train on: `--cut-at`, or `prune --finetune-epochs`",
        *("staged", "cpu", ()),
        None,
        (("control_cut", "plain_final"),),
        ("control_cut", "plain_full"),
    ),
)


def guide() -> str:
    """Return the table, from what is recorded; advice that nothing was measured of is left out."""
    columns: Columns = {
        "what you have and want": "{have}",
        "what to use": "{use}",
        "whole network − plain": "{whole}",
        "cut − alone": "{small}",
        "training × plain": "{cost}",
        "measured on": "{data}",
    }
    return table([row for row in map(_line, ADVICE) if row], columns)


def _line(advice: Advice) -> Row:
    records = find_experiment(advice.experiment).records(ROOT / "results", advice.tier)
    rows = [r for r in map(_by_arm, records) if all(key in r for key in advice.cost)]
    known = [r for r in rows if not advice.datasets or r["dataset"]["name"] in advice.datasets]
    if not known:
        return {}
    small = [_points(r, pair) for r in known for pair in advice.small if set(pair) <= set(r)]
    whole = [] if advice.whole is None else [_points(r, advice.whole) for r in known]
    one, other = advice.cost
    costs = [r[one]["training_macs"] / r[other]["training_macs"] for r in known]
    data = ", ".join(r["dataset"]["name"] for r in known)
    seeds = min(len(r[one]["test_accuracies"]) for r in known)
    data += f"; {seeds} seed{'s' * (seeds > 1)}"
    return {
        "have": advice.have,
        "use": advice.use,
        "whole": _range(whole, "+.2f"),
        "small": _range(small, "+.2f"),
        "cost": _range(costs, ".2f"),
        "data": f"{data} ({advice.tier}, `{advice.experiment}`)",
    }


def _by_arm(record: Record) -> dict[str, Row]:
    """Return the rows of a record by their arms, and by arm and cut."""
    rows = {f"{row['arm']} {row['cut']}" if "cut" in row else row["arm"]: row for row in record["rows"]}
    return {**rows, "dataset": {"name": record.dataset}}


def _points(rows: dict[str, Row], pair: Pair) -> float:
    return float(rows[pair[0]]["mean"] - rows[pair[1]]["mean"])


def _range(values: Sequence[float], form: str) -> str:
    shown = list(dict.fromkeys(format(value + 0.0, form) for value in sorted(values)))
    return "" if not shown else shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def page(text: str) -> str:
    """Return the page with the table written anew.

    Raises:
        StageCostError: the page has no place for it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise StageCostError(f"{Path(PAGE).name} has no place for its table: restore it from a copy")
    return f"{before}{begin}{guide()}\n{end}{after}"
