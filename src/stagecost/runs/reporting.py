"""`stagecost report`: report.html of a run, from its analysis, its history and its latest pruning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecost import __version__
from stagecost.errors import StageCostError
from stagecost.macs import macs_by_part
from stagecost.records import JsonObject, read_record
from stagecost.report.data import ReportData
from stagecost.report.page import write_report
from stagecost.runs.analysis import Analysis, analysis_of
from stagecost.runs.certainty import check_points
from stagecost.runs.evaluation import Evaluation
from stagecost.runs.folder import RunFolder
from stagecost.runs.pruning import Pruning
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Split, Trained, open_trained
from stagecost.storage import read_json


@dataclass(frozen=True)
class Report(Result):
    """Where a report is.

    Attributes:
        run: that it is on.
        report: the page.
        needed_blocks: that it tells of.
    """

    run: str
    report: str
    needed_blocks: int


@dataclass(frozen=True)
class NamedEvaluation(Evaluation):
    """An evaluation in a row of several.

    Attributes:
        name: of the network.
    """

    name: str


def report(
    run: str | Path,
    *,
    tolerance: float = 0.5,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    data: str | None = None,
    allow_trained: bool = False,
) -> Report:
    """Write report.html into a run folder: figures, tables, and how to use the result.

    Args:
        run: its folder.
        tolerance: points of accuracy that may be missing to the full depth.
        checkpoint: of the run.
        device: where to compute.
        data: where the images of the training are now, if they moved.
        allow_trained: go on where images of the validation split were trained on.

    Raises:
        StageCostError: nothing trained is there, or its images are not.
    """
    check_points("--tolerance", tolerance)
    trained = open_trained(run, checkpoint=checkpoint, device=device)
    # Without a validation split the training images stand in; the report says which split it shows.
    split: Split = "val" if trained.settings.data.val_fraction > 0 else "train"
    analysis = analysis_of(trained, split, tolerance, data, allow_trained=allow_trained)
    return write_run_report(trained, analysis)


def write_run_report(
    trained: Trained, analysis: Analysis, test: Sequence[NamedEvaluation] = ()
) -> Report:
    """Write the report of an opened run."""
    checkpoint, run = trained.checkpoint, RunFolder(trained.path)
    if checkpoint is None:
        raise StageCostError(f"{trained.path} is a saved network: give the run that it was pruned from")
    settings = {**trained.settings.to_flat(), "gamma": checkpoint.gamma}
    macs = macs_by_part(trained.network, trained.image_shape)
    depths = range(analysis.num_blocks + 1)
    content = {
        "run": str(run.path),
        "settings": {**settings, "num_blocks": analysis.num_blocks},
        "analysis": {
            **analysis.to_json(),
            "macs": [macs[0] + sum(macs[1 : 1 + k]) + macs[-1] for k in depths],
        },
        "history": [entry.to_json() for entry in checkpoint.progress.history],
        "pruning": _pruning(run),
        "test": [row.to_json() for row in test],
        "version": __version__,
    }
    write_report(ReportData.from_json(content), run.report)
    return Report(str(run.path), str(run.report), analysis.needed_blocks)


def _pruning(run: RunFolder) -> JsonObject | None:
    """Read the outcome of the latest pruning of a run, if there is one."""
    if not run.pruning.is_file():
        return None
    try:
        content = read_json(run.pruning)
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key not in Pruning.aliases}
        return read_record(Pruning, content).to_json()
    except ValueError as error:
        raise StageCostError(
            f"{run.pruning} does not tell of a pruning ({error}): prune again, or delete it"
        ) from None
