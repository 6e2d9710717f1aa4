"""`--gamma auto`: the rule that steers gamma, and runs that it steers."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import DATA
from processes import CommandLine
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.gamma_control import (
    FALL,
    LEAST,
    MOST,
    QUIET,
    RISE,
    START,
    add_to_pieces,
    complete_pieces,
    gap,
    next_strength,
    pieces_of,
    strength_after,
)
from stagecost.training.loop import train
from stagecost.training.trained import open_trained

GUESS = math.log(10)
losses = st.floats(0, 3)
epsilons = st.floats(0.001, 0.5)
strengths = st.floats(LEAST, MOST)
shares = st.floats(1e-3, 1)


# ---------------------------------------------------------------------------------------------
# The rule


@given(
    strength=strengths,
    epsilon=epsilons,
    gaps=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    share=shares,
)
def test_a_larger_gap_never_gives_a_larger_strength(
    strength: float, epsilon: float, gaps: tuple[float, float], share: float
) -> None:
    small, large = sorted(gaps)
    after = next_strength(strength, large, epsilon, share)
    assert after <= next_strength(strength, small, epsilon, share)
    assert LEAST <= after <= MOST
    assert -share * FALL - 1e-9 <= math.log(after / strength) <= share * RISE + 1e-9


@given(strength=strengths, epsilon=epsilons, share=shares)
def test_the_allowed_gap_is_the_fixed_point(strength: float, epsilon: float, share: float) -> None:
    assert next_strength(strength, epsilon, epsilon, share) == pytest.approx(strength)
    inside = min(max(strength, 1.01 * LEAST), 0.99 * MOST)
    assert next_strength(inside, 0.9 * epsilon, epsilon, share) > inside
    assert next_strength(inside, 1.1 * epsilon, epsilon, share) < inside


@given(pairs=st.lists(st.tuples(losses, losses), max_size=40), rise=st.floats(0, 1), epsilon=epsilons)
def test_the_whole_rule_is_monotone_and_bounded(
    pairs: list[tuple[float, float]], rise: float, epsilon: float
) -> None:
    own, reference = [a for a, _ in pairs], [b for _, b in pairs]
    strength = strength_after(own, reference, GUESS, epsilon, 40)
    assert LEAST <= strength <= MOST
    worse = strength_after([loss + rise for loss in own], reference, GUESS, epsilon, 40)
    assert worse <= strength * (1 + 1e-9)


def test_the_rule_reaches_both_limits_and_begins_at_its_start() -> None:
    reference = [1.0] * 500
    assert strength_after([], reference, GUESS, 0.01, 500) == START
    quiet = round(QUIET * 500)
    assert strength_after([1.5] * quiet, reference, GUESS, 0.01, 500) == START
    assert strength_after([1.5] * (quiet + 1), reference, GUESS, 0.01, 500) < START
    assert strength_after([0.5] * 500, reference, GUESS, 0.01, 500) == pytest.approx(MOST)
    assert strength_after([0.5] * 100, reference, GUESS, 0.01, 500) < MOST  # no haste in long trainings
    assert strength_after([1.5] * 500, reference, GUESS, 0.01, 500) == LEAST


def test_the_gap_is_a_part_of_what_plain_training_has_gained() -> None:
    assert gap(1.1, 1.0, 2.0) == pytest.approx(0.1)
    assert gap(1.0, 1.0, 2.0) == 0
    assert gap(2.2, 2.0, 2.0) == pytest.approx(
        0.2 / 0.2
    )  # nothing gained yet: a tenth of a guess counts


@given(num_batches=st.integers(1, 60))
def test_pieces_are_means_of_their_steps(num_batches: int) -> None:
    pieces: list[float] = []
    for batch in range(num_batches):
        add_to_pieces(pieces, 3.0, batch, num_batches)
        done = complete_pieces(batch + 1, num_batches)
        assert len(pieces) - done in (0, 1)
        assert pieces[:done] == pytest.approx([3.0] * done)
    assert len(pieces) == pieces_of(num_batches) == min(10, num_batches)


# ---------------------------------------------------------------------------------------------
# Runs


TINY = {
    "data": "digits",
    "limit_train": 400,
    "num_blocks": 2,
    "width": 4,
    "batch_size": 32,
    "epochs": 2,
    "device": "cpu",
}
FLAGS = (*DATA, "--num-blocks", 2, "--width", 4, "--batch-size", 32, "--epochs", 2)


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gamma") / "steered"
    train({**TINY, "gamma": "auto"}, folder)
    return folder


def test_a_steered_run_follows_the_rule(steered: Path) -> None:
    checkpoint = read_checkpoint(steered / "last.safetensors")
    plain = read_checkpoint(steered / "plain" / "last.safetensors")
    assert plain.gamma == 0
    own = [loss for entry in checkpoint.progress.history for loss in entry["train_pieces"]]
    reference = [loss for entry in plain.progress.history for loss in entry["train_pieces"]]
    assert checkpoint.progress.reference == reference
    assert len(own) == len(reference)
    strength = strength_after(own, reference, GUESS, 0.01, len(own))
    assert strength != START
    assert checkpoint.gamma == checkpoint.progress.history[-1]["gamma"] == strength / 2
    settings = open_trained(steered).settings
    assert settings.training.gamma == "auto"
    header = (steered / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith(",gamma")


def test_the_reference_is_plain_training_of_the_same_settings(steered: Path, tmp_path: Path) -> None:
    train({**TINY, "gamma": 0.0}, tmp_path / "plain")
    alone = read_checkpoint(tmp_path / "plain" / "last.safetensors").tensors
    beside = read_checkpoint(steered / "plain" / "last.safetensors").tensors
    assert all(bool((alone[name] == beside[name]).all()) for name in alone)
    again = tmp_path / "again"
    train({**TINY, "gamma": "auto", "gamma_reference": str(tmp_path / "plain")}, again)
    assert not (again / "plain").exists()
    ours = read_checkpoint(again / "last.safetensors").tensors
    theirs = read_checkpoint(steered / "last.safetensors").tensors
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_lambda_follows_the_gamma_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stagecost.training import loop

    seen: list[tuple[float, float]] = []
    step = loop.train_step

    def watched(session, images, targets):  # type: ignore[no-untyped-def]
        decays = {group["name"]: group["weight_decay"] for group in session.optimizer.param_groups}
        assert decays["other"] == 0
        seen.append((session.current_gamma, decays["residual"]))
        return step(session, images, targets)

    monkeypatch.setattr(loop, "train_step", watched)
    train({**TINY, "gamma": "auto", "weight_decay": 0.01, "epochs": 1}, tmp_path / "run")
    steered = [(gamma, decay) for gamma, decay in seen if gamma]
    assert len({gamma for gamma, _ in steered}) > 3
    assert all(decay == pytest.approx(0.01 / (1 + 2 * gamma)) for gamma, decay in steered)


def test_verbs_cope_with_a_steered_run(steered: Path, cli: CommandLine, tmp_path: Path) -> None:
    assert cli("analyze", steered, "--json").answer["num_blocks"] == 2
    assert cli("report", steered, "--json").answer["run"] == str(steered)
    assert cli("prune", steered, "--keep-blocks", 1, "--output", tmp_path / "small", "--json").answer
    assert cli("evaluate", tmp_path / "small", "--json").answer["num_blocks"] == 1
    shallow = {**TINY, "gamma": 0.0, "num_blocks": 1}
    train(shallow, tmp_path / "shallow")
    bound = cli("bound", steered, "--sub", tmp_path / "shallow", "--json").answer
    assert bound["gamma"] == read_checkpoint(steered / "last.safetensors").gamma
    assert bound["trained_variant"]
    again = cli("train", "--resume", "--output", steered, "--json").answer
    assert again["gamma"] == bound["gamma"]
    changed = cli("train", "--resume", "--gamma", 0.5, "--output", steered)
    assert "gamma is auto" in changed.refusal


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gamma", "much"), "--gamma is 'much': give a number, or auto"),
        (
            ("--gamma", "auto", "--gamma-epsilon", 0),
            "gamma_epsilon is 0.0: give a number between 0 and 1",
        ),
        (("--gamma", "auto", "--gamma-schedule", "late"), "gamma auto follows no schedule"),
        (("--gamma", "auto", "--gamma-reference", "nowhere"), "holds no run"),
    ],
)
def test_impossible_settings_start_nothing(
    cli: CommandLine, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    outcome = cli("train", *FLAGS, *flags, "--output", tmp_path / "run")
    assert message in outcome.refusal
    assert not (tmp_path / "run").exists()


def test_references_that_do_not_fit_are_refused(steered: Path, cli: CommandLine, tmp_path: Path) -> None:
    arguments = ("train", *FLAGS, "--gamma", "auto", "--output", tmp_path / "run", "--gamma-reference")
    assert "was trained with gamma auto: give a plain run" in cli(*arguments, steered).refusal
    assert "limit_train is 400 in the reference" in cli(*arguments, steered / "plain").refusal
    started = tmp_path / "started"
    assert cli("train", *FLAGS, "--gamma", 0, "--output", started).status == 0
    (started / "last.safetensors").unlink()
    assert "has 0 of 2 epochs: let it finish" in cli(*arguments, started).refusal
