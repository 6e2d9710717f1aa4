"""The command line of the GPU tier: decode images, train, write the records."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.gpu_tier.images import decode
from experiments.gpu_tier.plan import ARMS, PLAN, Recipe
from experiments.gpu_tier.records import write_records
from experiments.gpu_tier.session import Session
from experiments.gpu_tier.stages import train


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode images, train, or write the records."""
    parser = argparse.ArgumentParser("python -m experiments.gpu_tier", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("decode")
    verb.add_argument("--parquet", type=Path, required=True)
    verb.add_argument("--file", type=Path, required=True)
    verb = verbs.add_parser("train")
    verb.add_argument("stages", nargs="+", choices=("pilot", *PLAN))
    verb.add_argument("--images", type=Path, required=True)
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--seconds", type=float, default=math.inf)
    verb.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    verb = verbs.add_parser("records")
    verb.add_argument("--lines", type=Path, required=True)
    verb.add_argument("--results", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.verb == "decode":
        decode(given.parquet, given.file)
    elif given.verb == "records":
        write_records(given.lines, given.results)
    else:
        torch.backends.cudnn.benchmark = True
        train(Session(given.out, given.seconds), given.images, given.stages, Recipe(), given.arms)


if __name__ == "__main__":
    main()
