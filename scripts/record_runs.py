"""Record the whole way on real images: train, analyze, prune, evaluate, one JSON file a recipe.

    python scripts/record_runs.py [RECIPE …] [--data-root DIR] [--work DIR] [--results DIR]

Command     python scripts/record_runs.py
Machine     the JSON files name it; the recorded ones come from two CPU cores, one thread a run
Runtime     about three quarters of an hour on one core, resumable
Seeds       0

Each file holds the verbs' own `--json` objects beside the commands, the commit, the machine and the
versions that produced them. `--data-root` names a folder with local copies (mnist, cifar10, …); without
it the data sets come from their hub by name.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

HOMOGENEOUS = ["--model", "homogeneous", "--num-blocks", "12", "--width", "16", "--stem-stride", "2"]
STAGED = [
    "--model",
    "staged",
    "--blocks-per-stage",
    "4,4,4",
    "--widths",
    "16,32,64",
    "--stem-stride",
    "2",
]
GREY = ["--limit-train", "20000", "--epochs", "6"]
COLOUR = ["--epochs", "10"]
RECIPES: dict[str, list[str]] = {
    "mnist-homogeneous": ["--data", "mnist", *HOMOGENEOUS, *GREY],
    "mnist-staged": ["--data", "mnist", *STAGED, *GREY],
    "fashion-mnist-homogeneous": ["--data", "fashion-mnist", *HOMOGENEOUS, *GREY],
    "cifar10-homogeneous": ["--data", "cifar10", *HOMOGENEOUS, *COLOUR],
    "cifar10-staged": ["--data", "cifar10", *STAGED, *COLOUR],
}
MAX_DROP = "1.0"


def main() -> None:
    """Record the recipes asked for."""
    parser = argparse.ArgumentParser(description="Record the whole way on real images.")
    parser.add_argument("recipes", nargs="*", choices=[*RECIPES, []], default=[])
    parser.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "recorded")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "runs")
    options = parser.parse_args()
    for name in options.recipes or RECIPES:
        record(name, options.data_root, options.work / name, options.results / f"{name}.json")


def record(name: str, data_root: Path | None, work: Path, target: Path) -> None:
    """Run every verb for one recipe and write what they printed."""
    commands: list[str] = []

    def verb(*arguments: str) -> Any:
        commands.append(" ".join(["stagecost", *arguments]).replace(f"{work}/", ""))
        return _stagecost(_with_local_data(arguments, data_root))

    run, small = str(work / "run"), work / "pruned"
    shutil.rmtree(small, ignore_errors=True)
    recorded: dict[str, Any] = {
        "name": name,
        "seeds": [0],
        **circumstances("python scripts/record_runs.py"),
    }
    recorded["train"] = verb("train", *RECIPES[name], "--seed", "0", "--output", run, "--resume")
    recorded["analyze"] = verb("analyze", run, "--tolerance", MAX_DROP)
    recorded["prune"] = verb("prune", run, "--max-drop", MAX_DROP, "--output", str(small))
    recorded["test_full"] = verb("evaluate", run)
    recorded["test_pruned"] = verb("evaluate", str(small))
    verb("report", run)
    recorded["commands"] = commands
    text = json.dumps(recorded, indent=1).replace(f"{work}/", "")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n")
    print(f"recorded {target}", file=sys.stderr)


def _with_local_data(arguments: tuple[str, ...], data_root: Path | None) -> list[str]:
    given = list(arguments)
    if data_root is not None and "--data" in given:
        place = given.index("--data") + 1
        local = data_root / given[place]
        given[place] = str(local) if local.is_dir() else given[place]
    return given


def _stagecost(arguments: list[str]) -> Any:
    command = [sys.executable, "-m", "stagecost.cli", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
