"""The network and the training of each tier on a data set: what all arms of a comparison share.

Command     stagecost reproduce layer-pruning --tier cpu, and the other experiments
Machine     cpu: two cores, one thread a run; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to three minutes a run; gpu: not run yet
Seeds       0, 1, 2
"""

from typing import Any

from stagecost_recipes.experiment import Tier

SEEDS = (0, 1, 2)
SUB_BLOCKS: dict[Tier, int] = {"cpu": 4, "gpu": 12}
"""M, the blocks that the pruned network keeps."""

_CPU: dict[str, Any] = {
    "model": "homogeneous",
    "num_blocks": 12,
    "width": 16,
    "stem_stride": 2,
    "val_fraction": 1 / 6,
    "epochs": 10,
    "batch_size": 64,
    "device": "cpu",
    "fused": "no",
}
_CPU_IMAGES = 12_000
"""Images of the CPU tier, a sixth of them for validation."""
_MORE_CPU_IMAGES = {"cifar10": 24_000}
"""Where so few let the seeds differ by more than the arms of a comparison do."""
_GPU: dict[str, Any] = {
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
}


def base_recipe(tier: Tier, dataset: str) -> dict[str, Any]:
    """Return the settings of plain training at full depth, by flag name, without data and seed."""
    if tier == "gpu":
        return {**_GPU, "gamma": 0.0}
    return {**_CPU, "limit_train": _MORE_CPU_IMAGES.get(dataset, _CPU_IMAGES), "gamma": 0.0}
