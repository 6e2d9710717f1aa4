"""The stages of the GPU tier: the pilot, which chooses on validation images, then the data sets."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments.gpu_tier.images import Splits, load_splits
from experiments.gpu_tier.job import Job
from experiments.gpu_tier.plan import (
    ARMS,
    LEARNING_RATES,
    PILOT_EPOCHS,
    PILOT_SEEDS,
    PLAN,
    SEEDS,
    VARIANTS,
    Recipe,
    images_of,
)
from experiments.gpu_tier.session import Session


def fastest(session: Session, recipe: Recipe, splits: Splits) -> Recipe:
    """Measure jobs at once and compiled blocks; return the recipe to go on with."""
    best, least = recipe, math.inf
    for compiled in (False, True):
        try:
            trial = replace(recipe, compiled=compiled)
            begun = time.monotonic()
            jobs = [Job("plain_full", seed, 1, trial, splits) for seed in range(6)]
            for job in jobs:
                job.capture()
            prepared = time.monotonic() - begun
            seconds = {at_once: seconds_a_step(jobs[:at_once]) for at_once in (1, 3, 6)}
        except Exception as error:  # whatever a compiler may raise: go on without
            session.write("fastest", compiled=compiled, error=str(error)[:500])
            continue
        session.write("fastest", compiled=compiled, preparation=prepared, seconds=seconds)
        at_once = 6 if seconds[6] < 0.95 * seconds[3] else 3
        if seconds[at_once] < 0.97 * least:
            best, least = replace(trial, at_once=at_once), seconds[at_once]
    return best


def seconds_a_step(jobs: Sequence[Job], steps: int = 24) -> float:
    """Return seconds for a step of one job when these train at once; they begin anew."""
    steps = min(steps, jobs[0].steps) if jobs[0].stream else 1
    begun = 0.0
    for _ in ("warm", "measured"):
        for job in jobs:
            job.done = 0
            job.counter.zero_()
        begun = time.monotonic()
        while any(job.done < steps for job in jobs) or not all(job.idle for job in jobs):
            for job in jobs:
                if job.idle and job.done < steps:
                    job.advance(min(8, steps))
    return (time.monotonic() - begun) / (steps * len(jobs))


def pilot(session: Session, recipe: Recipe, splits: Splits) -> Recipe:
    """Choose speed, learning rate and the joint arm's variant on validation images.

    The learning rate is the one with the best mean of plain_full and plain_sub; the variant the one with
    the best mean of both depths.
    """
    recipe = fastest(session, recipe, splits)
    plain, (first, *others) = ("plain_full", "plain_sub"), PILOT_SEEDS
    trials = [replace(recipe, learning_rate=rate) for rate in LEARNING_RATES]
    planned = [(arm, first, PILOT_EPOCHS, trial) for arm in plain for trial in trials]
    lines = session.train_all("pilot", planned, splits)
    recipe = max(trials, key=lambda trial: mean_validation(lines, trial))
    variants = [replace(recipe, distilled=distilled, beta=beta) for distilled, beta in VARIANTS]
    planned = [("joint", seed, PILOT_EPOCHS, variant) for seed in PILOT_SEEDS for variant in variants]
    planned += [(arm, seed, PILOT_EPOCHS, recipe) for seed in others for arm in plain]
    lines = [line for line in session.train_all("pilot", planned, splits) if line["arm"] == "joint"]
    chosen = max(variants, key=lambda variant: mean_validation(lines, variant))
    session.write("choice", recipe=asdict(chosen))
    return chosen


def mean_validation(lines: Sequence[Mapping[str, Any]], recipe: Recipe) -> float:
    """Return the mean validation accuracy of all networks that a recipe yielded, −1 if none."""
    chosen = [line for line in lines if line["recipe"] == asdict(recipe)]
    values = [network["val"] for line in chosen for network in line["networks"].values()]
    return statistics.mean(values) if values else -1.0


def train(
    session: Session, images: Path, stages: Sequence[str], recipe: Recipe, only: Sequence[str] = ARMS
) -> None:
    """Do the stages in the order given; what the pilot chooses holds for the data sets after it."""
    for stage in stages:
        name, file = ("cifar10", stage) if stage == "pilot" else (stage, images_of(stage))
        splits = load_splits(name, images / f"{file}.safetensors", session.device)
        if stage == "pilot":
            recipe = pilot(session, recipe, splits)
            continue
        plan = PLAN[stage]
        changed = replace(recipe, **plan.changes)
        arms = [arm for arm in plan.arms if arm in only]
        session.train_all(
            "main", [(arm, seed, plan.epochs, changed) for arm in arms for seed in SEEDS], splits
        )
