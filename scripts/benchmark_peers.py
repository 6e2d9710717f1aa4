"""Record Torch-Pruning and earlyon beside the truncation of a homogeneous network, 54 → 12 blocks.

    pip install 'stagecost[peers]'
    python scripts/benchmark_peers.py [--threads 1] [--rounds 9] [--results DIR]

Command     OMP_NUM_THREADS=1 taskset -c 0 python scripts/benchmark_peers.py
Machine     the JSON file names it
Runtime     about five minutes on one core
Seeds       0

Each package is used as its own examples use it, to the MACs of the truncation, counted by our counter.
Time and MACs are compared, not accuracies: the weights are the initial ones. What is measured and how is
in `stagecost.benchmark.peer_channels` and `stagecost.benchmark.peer_exits`.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

import torch
from circumstances import ROOT, circumstances

from stagecost.allocator import keep_freed_memory
from stagecost.benchmark.configurations import CONFIGURATIONS
from stagecost.benchmark.peers import compare_packages


def main() -> None:
    """Measure and write one file."""
    parser = argparse.ArgumentParser(description="Record the peers beside truncation.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    figures = compare_packages(CONFIGURATIONS, torch.device("cpu"), options.rounds, _say)
    if missing := [figure.peer for figure in figures if not figure.configuration]:
        sys.exit(f"{missing[0]} is not installed: pip install 'stagecost[peers]'")
    about = circumstances("python scripts/benchmark_peers.py")
    peers = {name: importlib.metadata.version(name) for name in ("torch-pruning", "earlyon")}
    content = {
        "name": "peers",
        "seeds": [0],
        **about,
        "threads": options.threads,
        "versions": {**about["versions"], **peers},
        "rounds": options.rounds,
        "peers": [figure.row() for figure in figures],
    }
    target = options.results / "benchmark" / "peers.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"recorded {target}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
