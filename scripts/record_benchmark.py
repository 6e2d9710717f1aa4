"""Record what a stage cost costs on this machine: `stagecost benchmark --json`, and its figures.

    python scripts/record_benchmark.py [--threads 1] [--rounds 15] [--results DIR]

Command     OMP_NUM_THREADS=1 taskset -c 0 python scripts/record_benchmark.py
Machine     the JSON file names it; record on a quiet one
Runtime     about ten minutes on one core
Seeds       0

What was recorded of shrinking is left out: it has records of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances


def main() -> None:
    """Run the verb and write its answer and the figures of growing N."""
    parser = argparse.ArgumentParser(description="Record what a stage cost costs on this machine.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    flags = ["--threads", str(options.threads), "--rounds", str(options.rounds)]
    answer = _stagecost("benchmark", *flags, "--device", options.device)
    del answer["shrink"]  # recorded elsewhere, by what trained it
    record(answer, options.threads, options.results / "benchmark" / f"{options.device}.json")


def record(answer: dict[str, Any], threads: int, target: Path) -> None:
    """Write an answer with its circumstances, and the figures beside it."""
    from stagecost.benchmark.figures import scaling_figures

    about = circumstances("python scripts/record_benchmark.py")
    content = {"name": target.stem, "seeds": [0], **about, **answer, "threads": threads}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")
    for name, svg in scaling_figures(answer["scale"]).items():
        (target.parent / f"scale-{name}-{target.stem}.svg").write_text(svg + "\n")
    print(f"recorded {target}", file=sys.stderr)


def _stagecost(*arguments: str) -> Any:
    command = [sys.executable, "-m", "stagecost.cli", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
