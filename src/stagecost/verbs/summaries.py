"""The objects that the verbs print and the report shows, made from what was measured."""

from collections.abc import Sequence
from typing import Any

from stagecost import __version__
from stagecost.macs import count_macs, count_parameters
from stagecost.report.data import ReportData
from stagecost.report.page import write_report
from stagecost.storage import read_json
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.folder import RunFolder
from stagecost.training.trained import Trained
from stagecost.trajectory import Trajectory, terminal_score


def analysis(trajectory: Trajectory, split: str, tolerance: float) -> dict[str, Any]:
    """Return the object that `analyze` prints."""
    return {
        "num_blocks": trajectory.num_blocks,
        "split": split,
        "num_samples": trajectory.num_samples,
        "losses": list(trajectory.losses),
        "accuracies": list(trajectory.accuracies),
        "residual_ratios": list(trajectory.residual_ratios),
        "weight_norms": list(trajectory.weight_norms),
        "stage_starts": list(trajectory.stage_starts),
        "tolerance": tolerance,
        "needed_blocks": trajectory.needed_blocks(tolerance),
    }


def evaluation(trained: Trained, split: str, data: str | None = None) -> dict[str, Any]:
    """Return the object that `evaluate` prints."""
    network, shape = trained.network, trained.image_format
    accuracy, loss = terminal_score(network, trained.batches(split, data), loss=trained.loss)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "num_blocks": network.num_blocks,
        "parameters": count_parameters(network),
        "macs": count_macs(network, (shape.channels, shape.size, shape.size)),
        "split": split,
    }


def write_run_report(
    run: RunFolder, found: dict[str, Any], test: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Write the report of a run from its analysis, its history and its latest pruning."""
    checkpoint = read_checkpoint(run.last)
    settings = {**run.settings().to_flat(), "gamma": checkpoint.gamma}
    content = {
        "run": str(run.path),
        "settings": {**settings, "num_blocks": found["num_blocks"]},
        "analysis": found,
        "history": checkpoint.progress.history,
        "pruning": read_json(run.pruning) if run.pruning.is_file() else None,
        "test": test,
        "version": __version__,
    }
    write_report(ReportData.from_json(content), run.report)
    return {"run": str(run.path), "report": str(run.report), "needed_blocks": found["needed_blocks"]}
