"""The search itself: trials are asked for and told here alone, and trained wherever a pool trains them.

The study is a journal in the output folder, so a search that was killed goes on: finished trials are
kept, and one that was under way goes on with the values and the checkpoint that it had.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from stagecost.errors import StageCostError
from stagecost.text import one_line
from stagecost.training.interruption import StoppedError
from stagecost.tuning.space import Objective, Score, sampled_settings, score

JOURNAL = "study.log"
NAME = "stagecost"


@dataclass(frozen=True)
class Search:
    """What a search is about.

    Attributes:
        folder: of the search.
        given: settings that all trials share, by flag name.
        num_blocks: N.
        seed: of the search.
        objective: which accuracy stands against the depth.
        tolerance: points of accuracy that may be missing to the full depth.
    """

    folder: Path
    given: Mapping[str, Any]
    num_blocks: int
    seed: int
    objective: Objective
    tolerance: float

    def run(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / "trials" / f"{number:03d}"


def open_study(search: Search) -> optuna.Study:
    """Open the study of a search, or begin it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Random at first, then where the front may move; the seed moves on with the trials that are there.
    storage = JournalStorage(JournalFileBackend(str(search.folder / JOURNAL)))
    study = optuna.create_study(
        storage=storage,
        study_name=NAME,
        directions=["minimize", "maximize"],
        load_if_exists=True,
    )
    seed = search.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
    return study


def run_trials(
    search: Search, trials: int, jobs: int, report: Callable[[FrozenTrial], None]
) -> list[FrozenTrial]:
    """Train until so many trials have ended, and return all of them.

    Args:
        search: what is searched.
        trials: how many there are to be, with those that had ended before.
        jobs: processes that train at the same time.
        report: is told each trial that has ended.

    Raises:
        StageCostError: the search was interrupted; what has ended is kept.
    """
    study = open_study(search)
    # By its id a trial of the storage can be had back with the values that were drawn for it.
    waiting = [
        optuna.Trial(study, trial._trial_id)
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.RUNNING
    ]
    running: dict[Future[Score], optuna.Trial] = {}
    try:
        with _Pool(min(jobs, trials)) as pool:
            while True:
                while len(running) < jobs and (trial := _next(study, waiting, trials)) is not None:
                    running[pool.submit(_settings_of(search, trial), search, trial.number)] = trial
                if not running:
                    return study.get_trials()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    trial = running.pop(future)
                    _tell(study, search, trial, future)
                    report(study.get_trials()[trial.number])
    except (KeyboardInterrupt, StoppedError):
        raise StageCostError(
            f"interrupted, everything is saved: go on with `stagecost tune --resume --output "
            f"{search.folder}`"
        ) from None


def _next(study: optuna.Study, waiting: list[optuna.Trial], trials: int) -> optuna.Trial | None:
    if waiting:
        return waiting.pop(0)
    return study.ask() if len(study.get_trials(deepcopy=False)) < trials else None


def _settings_of(search: Search, trial: optuna.Trial) -> dict[str, Any]:
    chosen = sampled_settings(trial, search.given, search.num_blocks)
    trial.set_user_attr("gamma", chosen["gamma"])
    return {**search.given, "normalize_objective": True, **chosen}


def _tell(study: optuna.Study, search: Search, trial: optuna.Trial, future: "Future[Score]") -> None:
    """Enter what a trial has brought; one that came to nothing is entered as failed, with the reason."""
    try:
        found = future.result()
    except StoppedError:
        raise
    except StageCostError as error:
        trial.set_user_attr("reason", one_line(error))
        study.tell(trial.number, state=TrialState.FAIL)
        return
    for name, value in asdict(found).items():
        trial.set_user_attr(name, value)
    study.tell(trial.number, list(found.values(search.objective)))


def train_trial(settings: dict[str, Any], folder: Path, number: int, tolerance: float) -> Score:
    """Train a trial, or go on with it.

    Raises:
        StageCostError: a loss that is no number, or an interruption.
    """
    from stagecost.training.loop import train

    result = train(settings, folder, resume=True, label=f"trial {number}")
    return score(result.history[-1]["val_accuracies"], tolerance)


class _Pool:
    """Processes that train; a single one is this process, which needs no start."""

    def __init__(self, jobs: int) -> None:
        self.executor = None
        if jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // jobs)
            self.executor = ProcessPoolExecutor(
                jobs, get_context("spawn"), initializer=_prepare_worker, initargs=(threads,)
            )

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def submit(self, settings: dict[str, Any], search: Search, number: int) -> "Future[Score]":
        arguments = (settings, search.run(number), number, search.tolerance)
        if self.executor is not None:
            return self.executor.submit(train_trial, *arguments)
        future: Future[Score] = Future()
        try:
            future.set_result(train_trial(*arguments))
        except StageCostError as error:
            future.set_exception(error)
        return future


def _prepare_worker(threads: int) -> None:
    """Share the cores, and end with the process that gives out the trials: another would redo them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
