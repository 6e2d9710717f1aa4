"""What blocks are worth in a staged network: whole, of the final shape alone, and cut in the training.

    python scripts/staged_trials.py [--data-root DIR] [--work DIR] [--results DIR]

Machine     one of two CPU cores, one thread
Runtime     half a minute to seven minutes a run, twenty runs; resumable
Seeds       10, which is not among those of the recorded comparison

CIFAR-10, by the recipe of `stagecost reproduce staged` and with other widths, images and epochs.
Validation accuracy alone; test images are not read. Most trainings are plain (gamma = 0): the question
is how much there is to save between the whole network and its final shape trained alone. The last ones
have a stage cost on the output of a vector of depths, and are cut to it when they are finished, without
training after the cut; with gamma = 0 this shows what such a cut costs otherwise. One JSON file goes to
results/staged-trials.
"""

import argparse
from pathlib import Path
from typing import Any

from circumstances import ROOT, circumstances

SEED = 10
NARROW, WIDE = [8, 16, 32], [16, 32, 64]
WHOLE = [9, 9, 9]
TRIALS: list[dict[str, Any]] = [
    *({"blocks": b} for b in (WHOLE, [3, 3, 4], [2, 3, 5], [4, 3, 3], [1, 2, 7])),
    *({"blocks": b, "epochs": 30} for b in (WHOLE, [3, 3, 4])),
    *({"blocks": b, "widths": WIDE} for b in (WHOLE, [3, 3, 4], [2, 3, 5])),
    {"blocks": WHOLE, "widths": WIDE, "cut_at": "2:3+3+4"},
    *({"blocks": b, "widths": WIDE, "images": 12_000} for b in (WHOLE, [3, 3, 4], [2, 3, 5])),
    *(
        {"blocks": WHOLE, "widths": WIDE, "images": 12_000, "cut_at": f"2:{c}"}
        for c in ("3+3+4", "2+3+5")
    ),
    *(
        {"blocks": WHOLE, "keep": [3, 3, 4], "gamma": gamma, **more}
        for gamma, more in (
            (0.0, {}),
            (1.0, {"stage_loss": "distilled"}),
            (1.0, {"stage_loss": "distilled", "gamma_schedule": "early"}),
            (3.0, {"stage_loss": "distilled", "gamma_schedule": "early"}),
            (30.0, {"gamma_schedule": "early"}),
        )
    ),
]
"""`keep`: blocks of each stage that a finished network is cut to; its stage cost, if any, is on them."""


def settings_of(trial: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial, by flag name, without data and seed."""
    from stagecost_recipes.schedules import normalized_stage_cost
    from stagecost_recipes.staged import trainings

    settings = {
        **trainings("cpu", "cifar10")["plain"],
        "blocks_per_stage": trial["blocks"],
        "widths": trial.get("widths", NARROW),
    }
    taken = ("epochs", "cut_at", "stage_loss", "gamma_schedule")
    settings |= {key: trial[key] for key in taken if key in trial}
    if trial.get("gamma"):
        settings |= {**normalized_stage_cost(trial["gamma"], 1), "depth_vector": trial["keep"]}
    return settings | ({"limit_train": trial["images"]} if "images" in trial else {})


def after_the_cut(run: Path, keep: list[int]) -> float:
    """Return the validation accuracy of a finished network cut to so many blocks of each stage."""
    from stagecost.training.trained import open_trained
    from stagecost.verbs.summaries import evaluation
    from stagecost_recipes.cuts import first_of_each_stage

    small = first_of_each_stage(open_trained(run, device="cpu"), keep)
    return float(evaluation(small, "val")["accuracy"])


def main() -> None:
    """Train what is missing, and record all trials."""
    parser = argparse.ArgumentParser(description="What blocks are worth in a staged network.")
    parser.add_argument("--data-root", type=Path, help="folder with local copies of the data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "staged-trials")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "staged-trials")
    options = parser.parse_args()
    import torch

    from stagecost.storage import write_json
    from stagecost.training.loop import train
    from stagecost_recipes.runs import digest

    torch.set_num_threads(1)
    local = options.data_root is not None and (options.data_root / "cifar10").is_dir()
    data, runs = str(options.data_root / "cifar10") if local else "cifar10", []
    for trial in TRIALS:
        settings = settings_of(trial)
        given = {**settings, "data": data, "seed": SEED}
        found = train(
            given,
            options.work / digest(settings),
            resume=True,
            label="x".join(map(str, trial["blocks"])),
        )
        run = {"settings": settings, "num_blocks": found.num_blocks, "val_accuracy": found.val_accuracy}
        if keep := trial.get("keep"):
            run |= {"keep": keep, "cut_val_accuracy": after_the_cut(Path(found.run), keep)}
        runs.append(run)
    about = circumstances("python scripts/staged_trials.py")
    write_json(
        options.results / "cifar10.json", {"name": "cifar10", "seeds": [SEED], **about, "runs": runs}
    )


if __name__ == "__main__":
    main()
