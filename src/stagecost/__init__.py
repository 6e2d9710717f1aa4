"""Train residual networks with a stage cost, see how many blocks they need, cut off the rest.

Names are imported when they are first used, so that `import stagecost` answers at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from stagecost.errors import StageCostError

if TYPE_CHECKING:
    from stagecost.block import ResidualBlock
    from stagecost.calibration import calibrate_outputs, recalibrate
    from stagecost.head import OutputHead
    from stagecost.importance import block_importance, removal_cost
    from stagecost.macs import count_macs, count_parameters
    from stagecost.models import create_model, list_models, load
    from stagecost.network import ResidualNetwork
    from stagecost.objective import parameter_groups, stage_cost_objective
    from stagecost.prune import PruningPlan, carry_optimizer, plan_pruning
    from stagecost.registry import register_model
    from stagecost.training.loop import train
    from stagecost.trajectory import Trajectory, loss_trajectory, needed_blocks

__version__ = version("stagecost")

_HOMES = {
    "OutputHead": "head",
    "PruningPlan": "prune",
    "ResidualBlock": "block",
    "ResidualNetwork": "network",
    "Trajectory": "trajectory",
    "block_importance": "importance",
    "calibrate_outputs": "calibration",
    "carry_optimizer": "prune",
    "count_macs": "macs",
    "count_parameters": "macs",
    "create_model": "models",
    "list_models": "models",
    "load": "models",
    "loss_trajectory": "trajectory",
    "needed_blocks": "trajectory",
    "parameter_groups": "objective",
    "plan_pruning": "prune",
    "recalibrate": "calibration",
    "register_model": "registry",
    "removal_cost": "importance",
    "stage_cost_objective": "objective",
    "train": "training.loop",
}

__all__ = [
    "OutputHead",
    "PruningPlan",
    "ResidualBlock",
    "ResidualNetwork",
    "StageCostError",
    "Trajectory",
    "__version__",
    "block_importance",
    "calibrate_outputs",
    "carry_optimizer",
    "count_macs",
    "count_parameters",
    "create_model",
    "list_models",
    "load",
    "loss_trajectory",
    "needed_blocks",
    "parameter_groups",
    "plan_pruning",
    "recalibrate",
    "register_model",
    "removal_cost",
    "stage_cost_objective",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"stagecost.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'stagecost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
