"""Trials of recipes for the experiment `pretrained`, on validation images of a seed of their own.

    python -m experiments.pretrained.trials flowers-1500-lite0 joint lr=0.001 --weights DIR

trains one arm with some settings changed, and adds a line to results/pretrained/trials.jsonl. A third of
the training images are held out; test images are not read.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.pretrained.case import Case
from experiments.pretrained.choice import SEED_OF_CHOICE
from experiments.pretrained.experiment import TRIALS
from experiments.records import RESULTS
from experiments.runner import TIERS, WORK, Context
from stagecost.calibration import recalibrate
from stagecost.data.batches import eval_batches
from stagecost.network import ResidualNetwork
from stagecost.train.validation import CALIBRATION_IMAGES
from stagecost.trajectory import terminal_score

FILE = RESULTS / "pretrained" / TRIALS
SEED = SEED_OF_CHOICE
SHOWN = ("optimizer", "lr", "layer_decay", "freeze_norms", "epochs", "image_size")


def trial(case: Case, arm: str) -> dict[str, float]:
    """Train an arm, and return validation accuracies of its networks in percent."""
    bundle = case.bundle(SEED)
    batches = eval_batches(bundle.splits["val"], bundle.format)

    def accuracy(network: ResidualNetwork) -> float:
        return round(terminal_score(network, batches).accuracy, 2)

    if arm == "linear":
        cuts = {"whole": None, "cut": case.cut}
        return {name: accuracy(case.network(case.fitted(SEED, cut))) for name, cut in cuts.items()}
    trained = case.run(arm, SEED).open()
    if arm == "cut_first":
        return {"cut": accuracy(trained.network)}
    kept, anew = (trained.network.keep(case.cut) for _ in range(2))
    recalibrate(anew, trained.random_images(bundle, CALIBRATION_IMAGES))
    return {"whole": accuracy(trained.network), "cut": accuracy(kept), "cut, norms anew": accuracy(anew)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pretrained.trials")
    parser.add_argument("name")
    parser.add_argument("arm")
    parser.add_argument("set", nargs="*", help="settings that are changed, such as lr=0.001")
    parser.add_argument("--tier", choices=TIERS, default="cpu")
    for flag in ("--weights", "--data-root", "--work"):
        parser.add_argument(flag, type=Path)
    given = parser.parse_args(arguments)
    changed = {k: _value(text) for k, _, text in (each.partition("=") for each in given.set)}
    options = {} if given.weights is None else {"weights": given.weights}
    work = (given.work or WORK) / f"trials-{given.name}-{changed.get('image_size', '')}"
    say = lambda words: print(words, file=sys.stderr)  # noqa: E731
    context = Context(given.tier, given.name, (SEED,), work, given.data_root, say, options)
    case = Case.of(context)
    case = replace(case, settings={**case.settings_of_choice, **changed})
    line = {
        "dataset": given.name,
        "arm": given.arm,
        "blocks": case.cut.to_json(),
        "settings": {key: case.settings[key] for key in (*SHOWN, *changed) if key in case.settings},
        "val_accuracy": trial(case, given.arm),
        "num_val": len(case.bundle(SEED).splits["val"]),
    }
    print(json.dumps(line))
    with FILE.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
