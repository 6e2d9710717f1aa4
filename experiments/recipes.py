"""The network and the training of each tier on a data set: what all arms of a comparison share.

cpu    two cores, one thread a run, one to three minutes each: 12 blocks of width 16 behind a stride of 2
gpu    one GPU of 16 GiB or more, the paper's size: 54 blocks of width 32 at full resolution
quick  seconds: 4 blocks of width 8 on a few digits
"""

from collections.abc import Mapping
from typing import Any

from experiments.runner import Tier
from stagecost.train.settings import TrainingSettings

Settings = dict[str, Any]
"""Settings of a training by flag name, without data and seed."""

SUB_BLOCKS: dict[Tier, int] = {"cpu": 4, "gpu": 12, "quick": 2}
"""M, the blocks that the pruned network keeps."""
STAGED: dict[Tier, Settings] = {
    "cpu": {"blocks_per_stage": [4, 4, 4], "widths": [16, 32, 64]},
    "gpu": {"blocks_per_stage": [18, 18, 18], "widths": [16, 32, 64]},
    "quick": {"blocks_per_stage": [2, 2], "widths": [4, 6]},
}
_RECIPES: dict[Tier, Settings] = {
    "cpu": {
        "model": "homogeneous",
        "num_blocks": 12,
        "width": 16,
        "stem_stride": 2,
        "val_fraction": 1 / 6,
        "epochs": 10,
        "batch_size": 64,
        "device": "cpu",
    },
    "gpu": {
        "model": "homogeneous",
        "num_blocks": 54,
        "width": 32,
        "val_fraction": 0.1,
        "epochs": 160,
        "device": "cuda",
        "precision": "bf16",
        "compile": True,
        "data_on_device": True,
        "checkpoint_minutes": 5.0,
    },
    "quick": {
        "model": "homogeneous",
        "num_blocks": 4,
        "width": 8,
        "stem_stride": 2,
        "val_fraction": 1 / 6,
        "epochs": 2,
        "batch_size": 32,
        "limit_train": 300,
        "limit_test": 100,
        "device": "cpu",
    },
}
_CPU_IMAGES = 12_000
"""Images of the CPU tier, a sixth of them for validation."""
_MORE_CPU_IMAGES = {"cifar10": 24_000, "cifar100": 24_000}
"""Where so few let the seeds differ by more than the arms of a comparison do."""


def base_recipe(tier: Tier, dataset: str) -> Settings:
    """Return the settings of plain training at full depth."""
    images = {"limit_train": _MORE_CPU_IMAGES.get(dataset, _CPU_IMAGES)} if tier == "cpu" else {}
    # Every output bears the stage cost, as when the records were made; `train` samples some by default.
    return {**_RECIPES[tier], **images, "sampled_depths": 0, "gamma": 0.0}


def staged_recipe(tier: Tier, dataset: str, shape: Mapping[str, Any] | None = None) -> Settings:
    """Return the same for a staged network of a shape, that of `STAGED` if none is given."""
    base = {k: v for k, v in base_recipe(tier, dataset).items() if k not in {"num_blocks", "width"}}
    return {**base, "model": "staged", **(STAGED[tier] if shape is None else shape)}


def normalized_stage_cost(gamma: float, outputs: int) -> Settings:
    """Return a normalised stage cost on so many outputs whose weight decay is that of plain training.

    J/(1 + c) with c = gamma·outputs has the decay lambda/(1 + c) too. With lambda·(1 + c) it is that of
    the plain arms, so that what differs is the stage cost and not the decay.
    """
    decay = TrainingSettings.weight_decay * (1 + gamma * outputs)
    return {"gamma": gamma, "normalize_objective": True, "weight_decay": decay}
