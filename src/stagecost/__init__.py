"""Train residual networks with a stage cost, see how many blocks they need, cut off the rest.

Names are imported when they are first used, so that `import stagecost` answers at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from stagecost.errors import StageCostError, missing_extra

if TYPE_CHECKING:
    from stagecost.calibration import calibrate_outputs, recalibrate
    from stagecost.cut import Cut
    from stagecost.dynamics import Pass, ResidualBlock
    from stagecost.exits.curve import ExitCurve, exit_curve
    from stagecost.exits.engine import EarlyExit, run_with_exits
    from stagecost.exits.policy import ExitPolicy
    from stagecost.head import OutputHead
    from stagecost.importance import block_importance, removal_cost
    from stagecost.latency import Latency, measure_latency
    from stagecost.macs import count_macs, count_parameters
    from stagecost.models.adapters.view import AdaptedNetwork, adapt, cut_model
    from stagecost.models.catalogue import create_model, list_models, load
    from stagecost.models.registry import register_model
    from stagecost.network import ResidualNetwork
    from stagecost.objective import StageCost, mean_log_probabilities, parameter_groups
    from stagecost.prune import PruningPlan, carry_optimizer, plan_pruning
    from stagecost.search import search_cuts
    from stagecost.trajectory import Trajectory, loss_trajectory, needed_blocks

__version__ = version("stagecost")

_HOMES = {
    "AdaptedNetwork": "models.adapters.view",
    "Cut": "cut",
    "Latency": "latency",
    "EarlyExit": "exits.engine",
    "ExitCurve": "exits.curve",
    "ExitPolicy": "exits.policy",
    "OutputHead": "head",
    "Pass": "dynamics",
    "PruningPlan": "prune",
    "ResidualBlock": "dynamics",
    "ResidualNetwork": "network",
    "StageCost": "objective",
    "Trajectory": "trajectory",
    "adapt": "models.adapters.view",
    "block_importance": "importance",
    "calibrate_outputs": "calibration",
    "carry_optimizer": "prune",
    "count_macs": "macs",
    "count_parameters": "macs",
    "create_model": "models.catalogue",
    "cut_model": "models.adapters.view",
    "exit_curve": "exits.curve",
    "list_models": "models.catalogue",
    "load": "models.catalogue",
    "loss_trajectory": "trajectory",
    "mean_log_probabilities": "objective",
    "measure_latency": "latency",
    "needed_blocks": "trajectory",
    "parameter_groups": "objective",
    "plan_pruning": "prune",
    "recalibrate": "calibration",
    "register_model": "models.registry",
    "removal_cost": "importance",
    "run_with_exits": "exits.engine",
    "search_cuts": "search",
}

__all__ = [
    "AdaptedNetwork",
    "Cut",
    "EarlyExit",
    "ExitCurve",
    "ExitPolicy",
    "Latency",
    "OutputHead",
    "Pass",
    "PruningPlan",
    "ResidualBlock",
    "ResidualNetwork",
    "StageCost",
    "StageCostError",
    "Trajectory",
    "__version__",
    "adapt",
    "block_importance",
    "calibrate_outputs",
    "carry_optimizer",
    "count_macs",
    "count_parameters",
    "create_model",
    "cut_model",
    "exit_curve",
    "list_models",
    "load",
    "loss_trajectory",
    "mean_log_probabilities",
    "measure_latency",
    "needed_blocks",
    "parameter_groups",
    "plan_pruning",
    "recalibrate",
    "register_model",
    "removal_cost",
    "run_with_exits",
    "search_cuts",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            return getattr(import_module(f"stagecost.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            raise missing_extra(error) from None
    raise AttributeError(f"module 'stagecost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
