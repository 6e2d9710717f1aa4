"""The command line: `python -m experiments list | run NAME | show NAME | tables`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from experiments import guide
from experiments.records import RESULTS, Record
from experiments.runner import (
    EXPERIMENTS,
    TIERS,
    WORK,
    Experiment,
    answer,
    draw,
    find_experiment,
    render,
    run,
    show,
)
from experiments.tables import section
from stagecost.cli.main import describe
from stagecost.errors import StageCostError
from stagecost.storage import write_atomically

OPTIONS = ("rounds", "trials", "set", "weights", "arms")
"""Flags that some experiments alone heed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StageCostError(f"{message} (see --help)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; what is impossible is said in one line."""
    try:
        given = _parser().parse_args(arguments)
        {"run": _run, "show": _show, "list": _list, "tables": _tables}[given.verb](given)
        sys.stdout.flush()
    except StageCostError as error:
        print(f"experiments: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # a reader that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"experiments: {StageCostError(describe(error))}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m experiments", description="Run or show what is recorded.")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    verbs.add_parser("list", help="name the experiments")
    verbs.add_parser(
        "tables", help="write results/README.md, figures and the guide anew from the records"
    )
    for verb, words in {
        "run": "measure what is missing, and record it",
        "show": "print records",
    }.items():
        each = verbs.add_parser(verb, help=words)
        each.add_argument("name", help="of the experiment, see list")
        each.add_argument("--tier", choices=TIERS, default="cpu")
        each.add_argument("--dataset", help="one data set; all of the tier if not given")
        each.add_argument("--results", type=Path, help="folder of the records (the repository's)")
        each.add_argument("--json", action="store_true", help="print one JSON object")
        if verb == "run":
            _add_flags(each)
    return parser


def _add_flags(add: argparse.ArgumentParser) -> None:
    add.add_argument("--seeds", type=_numbers, help="such as 0,1,2; the experiment's own if not given")
    add.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    add.add_argument("--work", type=Path, default=WORK, help="folder of the trainings")
    quick = "the quick tier: tiny networks on digits; of benchmark, less than two minutes"
    add.add_argument("--quick", action="store_const", const="quick", dest="tier", help=quick)
    add.add_argument("--threads", type=int, default=1, choices=range(1, 257), metavar="N")
    add.add_argument("--rounds", type=int, help="of a benchmark's measurements")
    add.add_argument("--trials", type=int, help="of a search")
    add.add_argument("--weights", type=Path, help="folder with weights that others trained")
    add.add_argument("--arms", help="of a comparison, such as joint,alone; its usual ones if not given")
    add.add_argument("--set", action="append", metavar="NAME=VALUE", help="a setting of a search's runs")


def _numbers(written: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in written.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{written!r}: give numbers such as 0,1,2") from None


def _run(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    if given.tier == "gpu":
        torch.set_float32_matmul_precision("high")
    found = run(
        given.name,
        given.tier,
        dataset=given.dataset,
        seeds=given.seeds,
        data_root=given.data_root,
        work=given.work,
        results=given.results,
        options={key: getattr(given, key) for key in OPTIONS if getattr(given, key) is not None},
        report=lambda words: print(words, file=sys.stderr, flush=True),
    )
    _print(given, *found)


def _show(given: argparse.Namespace) -> None:
    _print(given, *show(given.name, given.tier, given.dataset, given.results or RESULTS))


def _print(given: argparse.Namespace, experiment: Experiment, records: list[Record]) -> None:
    if given.json:
        print(json.dumps(answer(experiment, records), indent=2))
    else:
        print("\n\n".join(section(experiment, records, RESULTS)))


def _list(given: argparse.Namespace) -> None:
    for name in EXPERIMENTS:
        experiment = find_experiment(name)
        recorded = ", ".join(record.name for record in experiment.records(RESULTS)) or "nothing"
        print(f"{name:30} {experiment.title} (recorded: {recorded})")


def _tables(given: argparse.Namespace) -> None:
    for experiment in map(find_experiment, EXPERIMENTS):
        for record in experiment.records(RESULTS):
            draw(experiment, record)
    write_atomically(RESULTS / "README.md", render())
    write_atomically(guide.PAGE, guide.page(guide.PAGE.read_text()))


if __name__ == "__main__":
    main()
