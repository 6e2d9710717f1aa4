"""`stagecost report` and `compare`: pages on runs, from what their folders hold and their images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from stagecost import __version__
from stagecost.errors import StageCostError, refusing
from stagecost.exits.costs import mac_costs
from stagecost.macs import count_macs
from stagecost.records import JsonObject, read_record
from stagecost.report.data import ReportData
from stagecost.report.page import page_start, write_comparison, write_report
from stagecost.runs.analysis import Analysis, measure, summarise
from stagecost.runs.certainty import Interval, check_points
from stagecost.runs.evaluation import Evaluation
from stagecost.runs.exiting import ExitRow, Exits, OracleRow, saved_exits
from stagecost.runs.folder import RunFolder
from stagecost.runs.measuring import Measurements, Timing, measure_opened
from stagecost.runs.mistakes import mistakes_of, saved_network
from stagecost.runs.pruning import Pruning
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Judged, Split, Trained, open_trained
from stagecost.storage import check_replaceable, check_writable, read_json
from stagecost.text import shell_path

Kind = TypeVar("Kind", Pruning, Measurements)
QUICK = 0.05
"""Seconds for the time of each depth, if `stagecost measure` has not measured them."""


@dataclass(frozen=True)
class Report(Result):
    """Where a report is."""

    run: str  #: that it is on
    report: str  #: the page
    needed_blocks: int  #: that it tells of
    warnings: tuple[str, ...]  #: what makes them doubtful


@dataclass(frozen=True)
class NamedEvaluation(Evaluation):
    """An evaluation in a row of several."""

    name: str  #: of the network


@dataclass(frozen=True)
class ComparedRun:
    """A run beside others."""

    run: str  #: its folder
    num_blocks: int  #: N
    needed_blocks: int  #: blocks of the cheapest cut within the tolerance
    needed_cut: str  #: this cut, as printed
    split: Split  #: the images
    num_images: int  #: how many
    accuracy: float  #: percent, of the whole network
    interval: Interval | None  #: Wilson's, of it
    accuracy_needed: float  #: percent, of the needed cut
    macs: int  #: of the whole network, for one image
    macs_needed: int  #: of the needed cut
    warnings: tuple[str, ...]  #: what makes it doubtful


@dataclass(frozen=True)
class Comparison(Result):
    """Where a page on several runs is."""

    report: str  #: the page
    tolerance: float  #: points of accuracy that may be missing
    runs: tuple[ComparedRun, ...]  #: what it tells of each


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
        data: where the images of the training are now, if they moved.
        allow_trained: go on where images of the validation split were trained on.

    Raises:
        StageCostError: nothing trained is there, or its images are not.
    """
    check_points("--tolerance", tolerance)
    trained = open_trained(run, checkpoint=checkpoint, device=device)
    trained.run_checkpoint()  # or say that this is no run
    check_writable(RunFolder(trained.path).report)
    analysis, images = _judged(trained, tolerance, data, allow_trained=allow_trained)
    flags = {
        f"--checkpoint {checkpoint}": checkpoint != "last",
        f"--data {shell_path(data)}": data is not None,
        "--allow-trained": allow_trained,
    }
    options = " ".join(flag for flag, is_given in flags.items() if is_given)
    return write_run_report(trained, analysis, images=images, options=options)


def compare(
    runs: Sequence[str | Path],
    output: str | Path = "comparison.html",
    *,
    tolerance: float = 0.5,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    data: str | None = None,
    allow_trained: bool = False,
) -> Comparison:
    """Write one page on several runs: their curves beside each other, and the settings that differ.

    Args:
        runs: their folders, two or more.
        output: the page.
        tolerance: points of accuracy that may be missing to the full depth of each run.
        data: where the images of the trainings are now, if they moved.
        allow_trained: go on where images of the validation split were trained on.

    Raises:
        StageCostError: fewer than two runs, one of them is not there, or the output is no page.
    """
    check_points("--tolerance", tolerance)
    if len(runs) < 2:
        raise StageCostError(f"{len(runs)} run is nothing to compare: give two runs or more")
    check_replaceable(Path(output), page_start())
    contents, rows = [], []
    first: tuple[str, str] | None = None
    for run in runs:
        trained = open_trained(run, checkpoint=checkpoint, device=device)
        trained.run_checkpoint()  # or say that this is no run
        analysis, judged = _judged(trained, tolerance, data, allow_trained=allow_trained)
        images = f"{analysis.split} images of {trained.moved(data).settings.data.data}"
        first = first or (images, judged.digest)
        if (images, judged.digest) != first:
            other = first[0] if images != first[0] else f"those of {runs[0]}"
            note = f"these are {images}, not {other}: accuracies on other images do not compare"
            analysis = replace(analysis, warnings=(*analysis.warnings, note))
        contents.append(ReportData.from_json(_content(trained, analysis)))
        rows.append(_compared(trained, analysis))
    write_comparison(contents, Path(output))
    return Comparison(str(output), tolerance, tuple(rows))


def _compared(trained: Trained, analysis: Analysis) -> ComparedRun:
    return ComparedRun(
        run=str(trained.path),
        num_blocks=analysis.num_blocks,
        needed_blocks=analysis.needed_blocks,
        needed_cut=analysis.needed_cut,
        split=analysis.split,
        num_images=analysis.num_images,
        accuracy=analysis.accuracies[-1],
        interval=analysis.intervals[-1],
        accuracy_needed=analysis.needed.accuracy,
        macs=count_macs(trained.network, trained.image_shape),
        macs_needed=analysis.needed.macs,
        warnings=analysis.warnings,
    )


def _judged(
    trained: Trained, tolerance: float, data: str | None, *, allow_trained: bool
) -> tuple[Analysis, Judged]:
    """Analyse a network on its validation images, or the training images where it had none."""
    # The report says which split it shows.
    split: Split = "val" if trained.has_validation(data) else "train"
    judged = trained.judged(split, data, allow_trained=allow_trained)
    analysis = summarise(trained, measure(trained, judged), judged, split, tolerance)
    if split == "train":
        note = "there are no validation images: these are the training images, which flatters"
        analysis = replace(analysis, warnings=(note, *analysis.warnings))
    return analysis, judged


def write_run_report(
    trained: Trained,
    analysis: Analysis,
    test: Sequence[NamedEvaluation] = (),
    images: Judged | None = None,
    options: str = "",
) -> Report:
    """Write the report of an opened run; with images, of wrong answers and of its times, too.

    The commands of the page repeat the options.
    """
    if images is not None and not _times(trained)[1]:
        opened, threads = {str(trained.path): trained}, torch.get_num_threads()
        measure_opened(opened, (1,), threads, ("eager",), QUICK, depths=True)
    data = replace(report_data(trained, analysis, test), options=options)
    if images is not None:
        data = with_images(data, trained, analysis, images)
    file = RunFolder(trained.path).report
    write_report(data, file)
    return Report(str(trained.path), str(file), analysis.needed_blocks, analysis.warnings)


def report_data(
    trained: Trained, analysis: Analysis, test: Sequence[NamedEvaluation] = ()
) -> ReportData:
    """Return what a report tells of an opened run."""
    pruning, exits = _record(RunFolder(trained.path).pruning, Pruning, trained), saved_exits(trained)
    whole = count_macs(trained.network, trained.image_shape)
    content = {
        **_content(trained, analysis),
        "pruning": None if pruning is None else pruning.to_json(),
        "test": [row.to_json() for row in test],
        "points": [] if exits is None else exit_points(exits, whole, test),
        "exits": None if exits is None else exits.to_json(),
    }
    return ReportData.from_json(content)


def _content(trained: Trained, analysis: Analysis) -> JsonObject:
    """Return what every page tells of an opened run."""
    checkpoint = trained.run_checkpoint()
    began = len(checkpoint.initial_blocks or range(analysis.num_blocks))
    settings = {**trained.settings.to_flat(), "gamma": checkpoint.gamma, "num_blocks": began}
    measured, times = _times(trained)
    return {
        "run": str(trained.path),
        "settings": settings,
        "analysis": {
            **analysis.to_json(),
            "macs": mac_costs(trained.network, trained.image_shape).cuts,
            "latencies": [row.latency_ms / 1000 for row in times],
            "measured": _where(measured, times),
        },
        "history": [entry.to_json() for entry in checkpoint.progress.history],
        "version": __version__,
    }


def _times(trained: Trained) -> tuple[Measurements | None, tuple[Timing, ...]]:
    """Return what `measure` has kept of a run, and of that the times of all depths, if there."""
    measured = _record(RunFolder(trained.path).latency, Measurements, trained)
    return measured, () if measured is None else measured.of_depths(trained)


def _where(measured: Measurements | None, times: Sequence[Timing]) -> str:
    """Say where times were measured, and how."""
    if measured is None or not times:
        return ""
    machine, row = measured.machine, times[0]
    batch = f"batches of {row.batch_size}" if row.batch_size > 1 else "one image at a time"
    threads = f"{row.threads} thread{'s' * (row.threads > 1)} of {machine.processor}"
    place = threads if measured.device == "cpu" else measured.device
    return f"{batch}, {place}, torch {machine.torch}"


def with_images(data: ReportData, trained: Trained, analysis: Analysis, images: Judged) -> ReportData:
    """Add what needs the images: what the cut gets wrong."""
    kept, saved = analysis.needed.kept_blocks, ""
    if data.pruning is not None:
        kept, saved = data.pruning.kept_blocks, data.pruning.network
        # Elsewhere statistics may have been estimated anew.
        first = tuple(kept) == tuple(range(len(kept))) and trained.network.is_homogeneous
        exact = first and not data.pruning.finetune_epochs
        if not exact and saved_network(saved, trained, kept) is None:
            return data  # only the small network itself could say, and it is not there
    return replace(data, **vars(mistakes_of(trained, images.batches, kept, saved)))


def exit_points(exits: Exits, macs: float, test: Sequence[NamedEvaluation]) -> list[JsonObject]:
    """Return cuts, exits, the oracle and networks that were trained alone, all on test images."""

    def share(row: ExitRow | OracleRow) -> tuple[float, float]:
        return row.accuracy, row.mean_macs_ratio * macs

    rows = [
        *(("cuts", f"{row.depths[0]} blocks", *share(row)) for row in exits.cuts),
        *(("early exits", f"exits at {', '.join(map(str, r.depths))}", *share(r)) for r in exits.curve),
        *(("oracle", f"first right depth, {r.depth} at the latest", *share(r)) for r in exits.oracle),
        *(("trained alone", row.name, row.accuracy, row.macs) for row in test),
    ]
    return [dict(zip(("series", "name", "accuracy", "macs"), row, strict=True)) for row in rows]


def _record(file: Path, kind: type[Kind], trained: Trained) -> Kind | None:
    """Read the outcome of the latest verb of a kind, if there is one, and if it is of this network."""
    if not file.is_file():
        return None
    words, verb = ("a pruning", "prune") if kind is Pruning else ("times", "measure")
    what = f"{file} does not tell of {words} of this network"
    remedy = f"{verb} again, name the --checkpoint that it was for, or delete it"
    with refusing(what, remedy, ValueError):
        record = read_record(kind, read_json(file))
        record.check(trained)
        return record
