"""Models of other libraries, trained from scratch with a stage cost and cut: that the way works.

Command     python -m experiments run from-scratch [--data-root DIR]
Machine     one core, one thread
Runtime     five minutes on an idle core
Seeds       0

Ten classes of Tiny-ImageNet, 1,250 photographs for training and validation, and two epochs: far
too little to compare models by. Each is trained with a stage cost on three sampled outputs, cut by the
search to the smallest network that loses at most two points on validation images, and not trained on.
"""

import shutil
from collections.abc import Sequence
from typing import Any

from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, rows_of, table
from experiments.trainings import Training, trained_run
from stagecost.runs.evaluation import evaluate
from stagecost.runs.pruning import prune
from stagecost.storage import read_json, write_json
from stagecost.text import format_indices

MAX_DROP = 2.0
MODELS: dict[Tier, dict[str, str]] = {
    "cpu": {
        "resnet18": "torchvision/resnet18",
        "resnetv2": "timm/resnetv2_18",
        "convnext": "timm/convnext_atto",
        "regnet": "timm/regnetx_002",
        "mixer": "timm/mixer_s32_224",
    },
    "quick": {"resnet": "timm/test_resnet"},
}
RECIPES: dict[Tier, dict[str, Any]] = {
    "cpu": {"image_size": 64, "epochs": 2, "val_fraction": 0.2, "limit_train": 1250},
    "quick": {"image_size": 32, "epochs": 1, "limit_train": 150, "limit_test": 60},
}
TEXT = """\
Models of other libraries from random weights: trained shortly with a stage cost on three sampled
outputs, then cut by the search to the cheapest network within two points of the whole on validation
images, and not trained on. One seed, few images: it shows that the way works, not which model is better.
The trajectory is the validation accuracy of y_0 … y_N."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return the training of each model."""
    shared = {**RECIPES[tier], "device": "cpu", "batch_size": 32, "optimizer": "adamw", "lr": 1e-3}
    return {kind: Training({**shared, "model": model}) for kind, model in MODELS[tier].items()}


def run(context: Context) -> Row:
    """Train every model, cut it, and read the test images once."""
    kinds = trainings(context.tier, context.dataset)
    return {"rows": [_row(context, kind, training) for kind, training in kinds.items()]}


def _row(context: Context, kind: str, training: Training) -> Row:
    whole = trained_run(context, kind, training, context.seeds[0])
    small, file = whole.folder / "small", whole.folder / "row.json"
    if file.is_file():
        return dict(read_json(file))
    context.report(f"{context.dataset}: {kind} is cut")
    shutil.rmtree(small, ignore_errors=True)  # of a measurement that was stopped
    done = prune(whole.folder, small, max_drop=MAX_DROP, search=True, device="cpu")
    tests = {"before": evaluate(whole.folder, device="cpu"), "after": evaluate(small, device="cpu")}
    row = {
        "dataset": context.dataset,
        "model": training.settings["model"],
        "num_blocks": done.num_blocks_before,
        "kept_blocks": list(done.kept_blocks),
        "trajectory": whole.val_accuracies,
        "num_val": done.num_images,
        **{f"val_accuracy_{at}": getattr(done, f"accuracy_{at}") for at in tests},
        **{f"test_accuracy_{at}": each.accuracy for at, each in tests.items()},
        "num_test": tests["after"].num_images,
        **{f"macs_{at}": getattr(done, f"macs_{at}") for at in tests},
        **{f"latency_ms_{at}": getattr(done, f"latency_ms_{at}") for at in tests},
        "seconds": round(whole.seconds, 1),
    }
    write_json(file, row)
    return row


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""

    def curve(row: Row) -> str:
        return " ".join(f"{accuracy:.0f}" for accuracy in row["trajectory"])

    columns: Columns = {
        "model": "{model}",
        "trajectory": curve,
        "blocks that stay": lambda row: f"{format_indices(row['kept_blocks'])} of {row['num_blocks']}",
        "val accuracy": "{val_accuracy_before:.1f} → {val_accuracy_after:.1f}",
        "test accuracy": "{test_accuracy_before:.1f} → {test_accuracy_after:.1f}",
        "MACs": "{macs_before:,} → {macs_after:,}",
        "ms an image": "{latency_ms_before:.1f} → {latency_ms_after:.1f}",
        "test images": "{num_test}",
    }
    return [TEXT, table(rows_of(records), columns)]


FROM_SCRATCH = Experiment(
    name="from-scratch",
    title="Models of other libraries, from scratch",
    datasets={"cpu": ("tiny-imagenet-10",), "quick": ("digits",)},
    run=run,
    section=section,
    seeds=(0,),
    trainings=trainings,
)
