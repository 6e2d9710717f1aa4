"""`stagecost tune`: what is tried, what is kept, and what is refused."""

import csv
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import DATA
from processes import CommandLine
from stagecost.training.settings import VariantSettings
from stagecost.tuning import study
from stagecost.tuning.space import DECAYS, STRENGTHS, sampled_settings, score
from stagecost.verbs.commands import tune
from stagecost.verbs.tune import pareto_front

TINY: dict[str, Any] = {
    "data": "digits",
    "limit_train": 300,
    "num_blocks": 2,
    "width": 4,
    "batch_size": 64,
    "epochs": 1,
    "device": "cpu",
}
FLAGS = (*DATA, "--num-blocks", 2, "--width", 4, "--epochs", 1)
points = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([10.0, 20.0, 30.0, 40.0])), max_size=12)


@given(points=points)
def test_the_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    beaten = {
        place
        for place, (depth, accuracy) in enumerate(points)
        for other in points
        if other != (depth, accuracy) and other[0] <= depth and other[1] >= accuracy
    }
    chosen = [points[place] for place in front]
    assert set(chosen) == {point for place, point in enumerate(points) if place not in beaten}
    assert len(chosen) == len(set(chosen))
    assert chosen == sorted(chosen)


def test_a_score_is_read_off_the_trajectory() -> None:
    found = score([10.0, 70.0, 79.6, 80.0], tolerance=0.5)
    assert (found.needed_blocks, found.val_accuracy, found.pruned_val_accuracy) == (2, 80.0, 79.6)
    assert found.values("full") == (2.0, 80.0)
    assert found.values("pruned") == (2.0, 79.6)


@pytest.mark.parametrize("given_too", [{}, {"depth_weights": "growing"}, {"depth_weights": "first"}])
def test_c_is_the_weight_of_all_stage_costs(given_too: dict[str, Any]) -> None:
    drawn = {"c": 0.6, "weight_decay": 1e-3, "gamma_schedule": "late", "first_depth": 2}
    trial = optuna.trial.FixedTrial(drawn, number=1)
    chosen = sampled_settings(trial, given_too, 8)  # type: ignore[arg-type]
    variant = VariantSettings(first_depth=2, **given_too)
    assert chosen["gamma"] * sum(variant.weights(8)) == pytest.approx(0.6)
    others = {key: value for key, value in drawn.items() if key != "c"}
    assert others == {key: chosen[key] for key in others}


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    train_trial = study.train_trial

    def killed(settings: dict[str, Any], folder: Path, number: int, tolerance: float) -> Any:
        found = train_trial(settings, folder, number, tolerance)
        if number == 1:
            raise KilledError  # trained, but not entered yet
        return found

    monkeypatch.setattr(study, "train_trial", killed)
    with pytest.raises(KilledError):
        tune(str(tmp_path / "search"), trials=3, **TINY)
    monkeypatch.setattr(study, "train_trial", train_trial)
    run = tmp_path / "search" / "trials" / "001" / "last.safetensors"
    before = run.stat().st_mtime_ns
    result = tune(str(tmp_path / "search"), trials=3, resume=True)
    assert run.stat().st_mtime_ns == before  # it was not trained again
    assert [row["number"] for row in result["trials"]] == [0, 1, 2]
    assert {row["state"] for row in result["trials"]} == {"complete"}
    more = tune(str(tmp_path / "search"), trials=4, resume=True)
    assert more["trials"][:3] == result["trials"]
    check_outcome(more, tmp_path / "search")


def check_outcome(result: dict[str, Any], folder: Path) -> None:
    plain, *others = result["trials"]
    assert plain["gamma"] == 0
    assert plain == result["baseline"]
    for row in others:
        assert STRENGTHS[0] <= row["gamma"] * (2 - row["first_depth"]) <= STRENGTHS[1] * (1 + 1e-9)
        assert DECAYS[0] <= row["weight_decay"] <= DECAYS[1]
        settings = (Path(row["run"]) / "config.yaml").read_text()
        assert f"gamma: {row['gamma']}\n" in settings
        assert "normalize_objective: true" in settings
    values = [(row["needed_blocks"], row["val_accuracy"]) for row in result["trials"]]
    assert result["pareto"] == pareto_front(values)
    with (folder / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["gamma"]) for row in table] == [row["gamma"] for row in result["trials"]]
    figure = (folder / "pareto.svg").read_text()
    assert "needed blocks" in figure
    assert "plain training" in figure


def test_trials_that_fail_are_recorded_and_do_not_stop_the_search(tmp_path: Path) -> None:
    result = tune(str(tmp_path / "search"), trials=2, **{**TINY, "lr": 1e30})
    assert [row["state"] for row in result["trials"]] == ["failed", "failed"]
    assert all("lower --lr" in row["reason"] for row in result["trials"])
    assert (result["pareto"], result["baseline"]) == ([], None)


def test_settings_that_are_given_are_not_varied(tmp_path: Path, cli: CommandLine) -> None:
    fixed = ("--weight-decay", 0.001, "--gamma-schedule", "warmup", "--first-depth", 1)
    flags = (*FLAGS, *fixed, "--trials", 2, "--objective", "pruned")
    result = cli("tune", *flags, "--output", tmp_path / "search", "--json").answer
    shared = {"weight_decay": 0.001, "gamma_schedule": "warmup", "first_depth": 1}
    assert all(shared.items() <= row.items() for row in result["trials"])
    assert result["objective"] == "pruned"
    shown = cli("tune", "--resume", "--trials", 2, "--output", tmp_path / "search")
    assert "Pareto front of 2 trials" in shown.stdout
    refused = cli("tune", "--output", tmp_path / "search", *FLAGS).refusal
    assert "already holds a search" in refused
    refused = cli("tune", "--resume", "--width", 8, "--output", tmp_path / "search").refusal
    assert "width is 4" in refused
    assert cli("tune", "--resume", "--tolerance", 1, "--output", tmp_path / "search").status == 2


@pytest.mark.slow
def test_two_processes_find_what_they_are_asked_for(tmp_path: Path) -> None:
    result = tune(str(tmp_path / "search"), trials=3, jobs=2, **TINY)
    assert [row["state"] for row in result["trials"]] == ["complete"] * 3
    check_outcome(result, tmp_path / "search")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--trials", 0), "trials is 0: give at least 1"),
        (("--jobs", 0), "jobs is 0: give at least 1"),
        (("--gamma", 0.5), "gamma is 0.5, but tune varies it: leave it out"),
        (("--val-fraction", 0), "tune needs validation images"),
        (("--tolerance", -1), "tolerance"),
        (("--first-depth", 2), "first_depth is 2, but there are 2 blocks"),
        (("--objective", "best"), "--objective is 'best': give one of 'full', 'pruned'"),
    ],
)
def test_impossible_searches_are_refused(
    cli: CommandLine, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    outcome = cli("tune", *FLAGS, *flags, "--output", tmp_path / "search")
    assert message in outcome.refusal
    assert not (tmp_path / "search").exists()


def test_staged_networks_are_refused(cli: CommandLine, tmp_path: Path) -> None:
    staged = ("--model", "staged", "--blocks-per-stage", "1,1", "--widths", "4,6")
    refused = cli("tune", *DATA, *staged, "--output", tmp_path / "search").refusal
    assert "staged has 2 stages: use --model homogeneous" in refused
