"""Depth that shrinks during training: the rule, what a cut leaves behind, and the verbs on such runs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import DATA, RECIPE
from helpers import build, images
from processes import CommandLine
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.surgery import keep_blocks
from stagecost.training import cutting
from stagecost.training.checkpoint import optimizer_tensors, read_checkpoint
from stagecost.training.cutting import cut_if_due
from stagecost.training.loop import _objective, finish_epoch, train, train_epoch, validate
from stagecost.training.parsing import parse_settings
from stagecost.training.progress import TrainingDisplay
from stagecost.training.session import Session, start_session
from stagecost.training.shrink import (
    ShrinkSettings,
    allowed_loss,
    at_most_half,
    enough_blocks,
    may_shrink,
    missing_part,
    next_cut,
    tolerance_left,
)
from test_cli import answer, really_run

TINY: dict[str, Any] = {
    "data": "digits",
    "num_blocks": 4,
    "width": 4,
    "epochs": 4,
    "limit_train": 300,
    "batch_size": 64,
    "device": "cpu",
}
STAGED: dict[str, Any] = {
    **{k: v for k, v in TINY.items() if k not in ("num_blocks", "width")},
    "model": "staged",
    "blocks_per_stage": [2, 3],
    "widths": [4, 6],
}
losses_over_depth = st.lists(st.floats(0, 10), min_size=2, max_size=9)
part = st.floats(0, 0.99)


# ---------------------------------------------------------------------------------------------
# The rule


def test_the_blocks_that_stay_do_nearly_all_of_the_work() -> None:
    losses, guess = [2.5, 1.5, 1.1, 1.0], 2.0
    assert allowed_loss(1.0, 0.1, guess) == pytest.approx(1.1)
    parts = (0, 0.101, 0.501, 0.99)
    enough = [enough_blocks(losses, [allowed_loss(1.0, part, guess)] * 4) for part in parts]
    assert enough == [3, 2, 1, 1]
    assert enough_blocks(losses, [9.0] * 4, least=2) == 2
    assert enough_blocks(losses, [9.0, 1.4, 1.2, 1.0]) == 2  # each depth has its own limit


def test_where_blocks_do_harm_fewer_are_enough() -> None:
    assert enough_blocks([2.0, 1.8, 3.0, 2.9], [allowed_loss(2.9, 0.1, 2.3)] * 4) == 1


@given(losses=losses_over_depth, tolerance=part)
def test_the_least_number_of_blocks_is_found(losses: list[float], tolerance: float) -> None:
    most = allowed_loss(losses[-1], tolerance, 2.3)
    found = enough_blocks(losses, [most] * len(losses))
    assert 1 <= found < len(losses)
    assert losses[found] <= most
    assert all(loss > most for loss in losses[1:found])


@given(losses=losses_over_depth, tolerances=st.tuples(part, part))
def test_a_greater_tolerance_never_asks_for_more_blocks(
    losses: list[float], tolerances: tuple[float, float]
) -> None:
    most = [allowed_loss(losses[-1], tolerance, 2.3) for tolerance in sorted(tolerances)]
    strict, lenient = (enough_blocks(losses, [loss] * len(losses)) for loss in most)
    assert lenient <= strict


@given(pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1))
def test_no_stage_loses_more_than_half_at_once(pairs: list[tuple[int, int]]) -> None:
    wanted, sizes = [min(pair) for pair in pairs], [max(pair) for pair in pairs]
    for want, keep, size in zip(wanted, at_most_half(wanted, sizes), sizes, strict=True):
        assert want <= keep <= size
        assert 2 * keep >= size


def entry(loss: float, wanted: list[int] | None = None, after: float | None = None) -> dict[str, Any]:
    """Return what an epoch brought; `after` is the loss behind the cut that followed it."""
    cut = None if after is None else {"made": True, "val_loss_after": after, "missing": 0.25}
    return {"val_losses": [9.0, loss, loss], "wanted": wanted, "cut": cut}


SHRINK = ShrinkSettings(shrink=True, shrink_patience=2, shrink_after=0.25)


@pytest.mark.parametrize(
    ("history", "allowed"),
    [
        ([entry(1.0)], True),  # the first of two epochs, the second of which may cut
        ([entry(1.0)] * 2, True),
        ([entry(1.0)] * 3, True),
        ([entry(1.0)] * 4, False),  # half of the training has passed
        ([entry(math.nan)] * 2, False),
        ([entry(1.0), entry(0.9, after=0.95), entry(0.96)], False),  # the loss rose after the cut
        ([entry(0.9, after=0.95), entry(0.96), entry(0.94)], True),
        ([entry(1.9)] * 2, True),  # little has been learned, but nothing has left
        ([entry(1.9, after=1.9), entry(1.1)], False),
        ([entry(1.9, after=1.9), entry(1.0)], True),
    ],
)
def test_which_epochs_may_let_blocks_leave(history: list[dict[str, Any]], allowed: bool) -> None:
    assert may_shrink(history, SHRINK, 8, guess=2.0) is allowed
    assert not may_shrink(history, ShrinkSettings(), 8, guess=2.0)  # off by default


@given(epochs=st.integers(1, 12), epoch=st.integers(0, 11))
def test_the_stage_cost_ends_when_no_cut_can_follow(epochs: int, epoch: int) -> None:
    later = range(epoch + 1, epochs + 1)
    soon = replace(SHRINK, shrink_patience=1, shrink_after=0.0)
    assert soon.presses(epoch, epochs) is any(
        may_shrink([entry(1.0)] * done, soon, epochs, guess=2.0) for done in later
    )
    cuts = ShrinkSettings(cut_at="2:3,5:1", plain_after_cuts=True)
    assert cuts.presses(epoch, epochs) is (epoch < 5)
    assert replace(cuts, plain_after_cuts=False).presses(epoch, epochs)
    assert ShrinkSettings().presses(epoch, epochs)


def test_when_the_first_blocks_may_leave() -> None:
    late = replace(SHRINK, shrink_after=0.4)
    assert [may_shrink([entry(1.0)] * done, late, 10, guess=2.0) for done in (2, 3)] == [False, True]
    assert next_cut([entry(1, [2])] * 3, late, 10, [4]) is None
    assert next_cut([entry(1, [2])] * 4, late, 10, [4]) == (2,)


@pytest.mark.parametrize(
    ("history", "keep"),
    [
        ([entry(1, [3])], None),  # once is not twice
        ([entry(1, [3]), entry(1, [2])], (3,)),  # the most that one of the epochs needed
        ([entry(1, [1]), entry(1, [1])], (2,)),  # half at most
        ([entry(1, [2]), entry(1), entry(1, [2])], None),  # not in a row
        (
            [entry(1, [2], after=1), entry(1, [2])],
            None,
        ),  # before the latest cut there was another network
        ([entry(1, [2], after=1), entry(1, [2]), entry(1, [2])], (2,)),
        ([entry(1, [4]), entry(1, [2])], None),  # one of them needed all
    ],
)
def test_what_stays(history: list[dict[str, Any]], keep: tuple[int, ...] | None) -> None:
    assert next_cut(history, SHRINK, 8, [4]) == keep


@given(loss=st.floats(0, 5), tolerance=part)
def test_what_is_missing_at_the_allowed_loss_is_the_tolerance(loss: float, tolerance: float) -> None:
    missing = missing_part(loss, allowed_loss(loss, tolerance, 2.0), 2.0)
    assert missing == pytest.approx(tolerance if loss < 1.999 else missing, abs=1e-9)
    assert 0 <= missing <= 1
    assert missing_part(loss, loss, 2.0) == missing_part(loss, 0.0, 2.0) == 0
    assert missing_part(loss, 9.0, 2.0) == 1


def test_what_one_cut_takes_is_not_there_for_the_next() -> None:
    assert tolerance_left([entry(1.0)], 0.4, 1.0) == 0.4
    assert tolerance_left([entry(1.0, after=1.1), entry(1.0)], 0.4, 1.0) == pytest.approx(0.15)
    assert tolerance_left([entry(1.0, after=1.1)] * 2, 0.4, 1.0) == 0


@given(gone=part, tolerance=part)
def test_tolerance_has_to_buy_depth(gone: float, tolerance: float) -> None:
    """All cuts together never take more of the tolerance than they took of the blocks."""
    history = [entry(1.0)]
    assert tolerance_left(history, tolerance, gone) == pytest.approx(gone * tolerance)
    spent = {"made": True, "val_loss_after": 1.0, "missing": gone * tolerance}
    assert tolerance_left([{**history[0], "cut": spent}], tolerance, gone) == pytest.approx(0, abs=1e-12)


def test_a_refused_cut_is_no_cut() -> None:
    refused = {**entry(1, [2]), "cut": {"made": False, "val_loss_after": 0.1}}
    history = [refused, entry(1, [2])]
    assert may_shrink(history, SHRINK, 8, guess=2.0)
    assert next_cut(history, SHRINK, 8, [4]) == (2,)


def test_stages_are_decided_one_by_one() -> None:
    history = [entry(1, [1, 3, 2]), entry(1, [2, 3, 1])]
    assert next_cut(history, SHRINK, 8, [4, 3, 4]) == (2, 3, 2)


cuts = st.dictionaries(
    st.integers(1, 99), st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple), max_size=4
)


@given(cuts=cuts)
def test_a_schedule_of_cuts_is_read_as_it_is_written(cuts: dict[int, tuple[int, ...]]) -> None:
    text = ",".join(f"{epoch}:{'+'.join(map(str, keep))}" for epoch, keep in cuts.items())
    settings = ShrinkSettings(cut_at=text or None)
    assert settings.schedule() == cuts
    assert parse_settings({"cut_at": settings.cut_at}).shrink == settings


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shrink_tolerance": 1.0}, "shrink_tolerance is 1.0"),
        ({"shrink_tolerance": float("nan")}, "shrink_tolerance"),
        ({"shrink_after": -0.1}, "shrink_after is -0.1"),
        ({"shrink_patience": 0}, "shrink_patience is 0"),
        ({"shrink": True, "cut_at": "1:2"}, "exclude each other"),
        ({"shrink": True, "val_fraction": 0.0}, "validation images"),
        ({"cut_at": ""}, "cut_at is ''"),
        ({"cut_at": "1:2,1:1"}, "each epoch once"),
        ({"cut_at": "1"}, "epoch:blocks"),
        ({"cut_at": "1:-2"}, "epoch:blocks"),
        ({"cut_at": "0:2"}, "epoch 0 of 4"),
        ({"cut_at": "4:2"}, "epoch 4 of 4"),
        ({"cut_at": "1:4"}, "keeps 4 blocks of 4"),
        ({"cut_at": "1:0"}, "keeps 0 blocks of 4"),
        ({"cut_at": "2:3,1:2"}, "keeps 3 blocks of 2 after epoch 2"),
        ({"cut_at": "1:2+1"}, r"keeps 2\+1 blocks of 4"),
        ({"plain_after_cuts": True}, "nothing is cut"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(StageCostError, match=match):
        train({**TINY, **change}, tmp_path / "run")


# ---------------------------------------------------------------------------------------------
# What a cut leaves behind


def session_of(settings: dict[str, Any]) -> Session:
    parsed = parse_settings(settings)
    data = load_data(parsed.data, seed=parsed.training.seed, splits=("train", "val"))
    return start_session(parsed, data)


def epoch(session: Session) -> dict[str, Any] | None:
    """Train an epoch as the loop does, and cut if a cut is due."""
    train_epoch(session, None, TrainingDisplay("test", 1, quiet=True))
    session.progress.history.append(finish_epoch(session))
    return cut_if_due(session)


def batch(session: Session) -> tuple[Tensor, Tensor]:
    return next(iter(session.calibration_batches()))


@pytest.mark.parametrize("gamma", [0.0, 0.25])
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_cut_costs_exactly_what_validation_said(gamma: float, ema_decay: float) -> None:
    session = session_of({**TINY, "cut_at": "1:2", "gamma": gamma, "ema_decay": ema_decay})
    cut = epoch(session)
    assert cut is not None
    assert (cut["num_blocks_before"], cut["kept_blocks"]) == (4, [0, 1])
    after = validate(session.evaluated, session)
    assert after is not None
    assert after.losses[-1] == cut["val_loss_after"] == session.progress.history[0]["val_losses"][2]
    assert after.accuracies[-1] == cut["val_accuracy_after"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("normalized", [False, True])
def test_what_stays_keeps_its_optimiser_state(optimizer: str, normalized: bool) -> None:
    settings = {**TINY, "cut_at": "1:2", "optimizer": optimizer, "normalize_objective": normalized}
    whole, session = session_of({**settings, "cut_at": None}), session_of(settings)
    epoch(whole)
    epoch(session)
    before = optimizer_tensors(whole.optimizer, whole.network)
    after = optimizer_tensors(session.optimizer, session.network)
    gone = {key for key in before if key.startswith(("blocks.2.", "blocks.3."))}
    assert gone
    assert after.keys() == before.keys() - gone
    assert all(torch.equal(after[key], before[key]) for key in after)
    held = [p for group in session.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in session.network.parameters()}
    assert {id(p) for p in session.model.parameters()} == {id(p) for p in held}
    decays = [[g["weight_decay"] for g in s.optimizer.param_groups] for s in (whole, session)]
    assert decays[0] == decays[1]  # lambda, and the scale that it is divided by, are those of the start


def test_the_average_goes_along() -> None:
    session = session_of({**TINY, "cut_at": "1:2", "ema_decay": 0.5})
    epoch(session)
    assert session.average is not None
    steps = int(session.average.n_averaged)
    assert steps == session.num_batches
    assert session.evaluated.state_dict().keys() == session.network.state_dict().keys()
    before = [p.clone() for p in session.evaluated.parameters()]
    epoch(session)
    assert int(session.average.n_averaged) == 2 * steps
    assert any(
        not torch.equal(a, b) for a, b in zip(before, session.evaluated.parameters(), strict=True)
    )


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("variant", [{}, {"depth_weights": "growing", "first_depth": 1}])
@pytest.mark.parametrize("base", [TINY, STAGED], ids=["homogeneous", "staged"])
def test_the_objective_stays_the_same(
    base: dict[str, Any], variant: dict[str, Any], normalized: bool
) -> None:
    """A block that leaves counts as one that does nothing: before and after, J_N is the same."""
    keep, gone = ("1:2", (2, 3)) if base is TINY else ("1:1+2", (1, 4))
    settings = {**base, **variant, "cut_at": keep, "gamma": 0.3, "normalize_objective": normalized}
    session = session_of({**settings, "head_statistics": "shared"})
    with torch.no_grad():
        for k in gone:
            for parameter in session.network.blocks[str(k)].residual.parameters():
                parameter.zero_()
    images, targets = batch(session)
    before, _ = _objective(session, images, targets)
    session.progress.epoch = 1
    session.progress.history.append({"val_losses": None, "val_loss": None, "val_accuracy": None})
    cut = cut_if_due(session)
    assert cut is not None
    assert session.network.block_indices == tuple(cut["kept_blocks"])
    assert not set(gone) & set(cut["kept_blocks"])
    session.progress.epoch = 0
    after, outputs = _objective(session, images, targets)
    torch.testing.assert_close(after.total, before.total)
    assert len(outputs) < len(before.losses)


def test_what_no_cut_can_reach_bears_no_stage_cost() -> None:
    session = session_of({**TINY, "shrink": True, "num_blocks": 5})
    assert session.depth_weights() == [0, 0, 0, 1, 1, 0]
    cutting._cut_to(session, {"val_losses": None, "val_loss": None, "val_accuracy": None}, (0, 1, 2))
    assert session.depth_weights() == [0, 0, 1, 2]
    assert session.terminal_weight() == pytest.approx(1 + 2 / 5)
    assert [depth for depth, _ in session.stage_depths()] == [2]
    session.progress.epoch = session.settings.epochs // 2
    assert session.depth_weights() == [0, 0, 0, 2]
    assert session.stage_depths() == []


@pytest.mark.parametrize("normalized", [False, True])
def test_training_goes_on_plainly_after_the_last_cut(normalized: bool) -> None:
    settings = {**TINY, "cut_at": "1:2", "plain_after_cuts": True, "normalize_objective": normalized}
    session = session_of(settings)
    assert len(session.stage_depths()) == 4
    assert epoch(session) is not None
    session.progress.epoch = 1
    terms, outputs = _objective(session, *batch(session))
    assert len(outputs) == 1
    # The two blocks that left still count as ones that do nothing.
    weight = 1.0 if normalized else 1 + 2 * session.gamma
    torch.testing.assert_close(terms.total, weight * terms.losses[-1])


def test_a_compiled_network_is_compiled_anew() -> None:
    session = session_of({**TINY, "cut_at": "1:2"})
    session.progress.epoch = 1
    session.progress.history.append({"val_losses": None, "val_loss": None, "val_accuracy": None})
    session.network.compile(backend="eager")
    cut_if_due(session)
    assert session.network._compiled_call_impl is not None  # lazily: nothing is compiled before a call


def test_a_compiled_network_notices_that_blocks_are_gone() -> None:
    network, twin = build("homogeneous").eval(), build("homogeneous").eval()
    keep_blocks(twin, (0, 1))
    network.compile(backend="eager")
    with torch.no_grad():
        assert network(images()).shape == (4, 5)
        keep_blocks(network, (0, 1))
        assert torch.equal(network(images()), twin(images()))


def test_a_staged_network_loses_the_tails_of_its_stages(tmp_path: Path) -> None:
    settings = {"shrink": True, "shrink_tolerance": 0.9, "shrink_after": 0.0}
    result = train({**STAGED, **settings, "epochs": 8, "batch_size": 16}, tmp_path / "run")
    assert result.cuts
    first = result.cuts[0]
    assert set(first["kept_blocks"]) < set(range(5))
    assert {0, 2} <= set(result.kept_blocks)  # the projection of the second stage is in block 2
    network = read_checkpoint(tmp_path / "run" / "last.safetensors").network()
    assert list(network.block_indices) == result.kept_blocks


def test_a_cut_that_costs_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of({**STAGED, "shrink": True, "shrink_tolerance": 0.9, "shrink_after": 0.0})
    monkeypatch.setattr(cutting, "_wanted_blocks", lambda *arguments: [1, 2])
    monkeypatch.setattr(cutting, "terminal_score", lambda *arguments, **options: (10.0, 99.0))
    network, optimizer = session.network, session.optimizer
    cut = epoch(session)
    assert cut is not None
    assert not cut["made"]
    assert cut["kept_blocks"] == [0, 2, 3]
    assert session.network is network
    assert session.optimizer is optimizer
    assert network.num_blocks == 5
    assert session.progress.history[-1]["cut"] == cut


def test_without_shrink_nothing_is_cut(tmp_path: Path) -> None:
    result = train({**TINY, "epochs": 2}, tmp_path / "run")
    assert (result.num_blocks, result.kept_blocks, result.cuts) == (4, [0, 1, 2, 3], [])
    network = read_checkpoint(tmp_path / "run" / "last.safetensors").network()
    assert isinstance(network, ResidualNetwork)
    assert network.description is not None
    assert network.description.kept_blocks is None


# ---------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(scope="module")
def shrunk(cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("shrunk") / "run"
    sizes = ("--num-blocks", 6, "--width", 6, "--epochs", 6, "--batch-size", 32)
    rule = ("--shrink", "--shrink-tolerance", 0.3, "--shrink-after", 0.2)
    outcome = cli("train", *DATA, *sizes, *rule, "--output", run, "--json")
    assert "cut from 6 blocks" in outcome.stderr
    return run, outcome.answer


def test_a_shrunk_run_tells_what_left(shrunk: tuple[Path, dict[str, Any]]) -> None:
    run, found = shrunk
    assert found["cuts"]
    assert found["num_blocks"] == len(found["kept_blocks"]) < 6
    assert found["kept_blocks"] == found["cuts"][-1]["kept_blocks"]
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    sizes = [int(row[header.index("num_blocks")]) for row in rows]
    assert sizes[0] == 6
    assert sizes[-1] == found["num_blocks"]
    assert sizes == sorted(sizes, reverse=True)
    depths = [int(line.split(",")[1]) for line in (run / "trajectory.csv").read_text().splitlines()[1:]]
    assert depths == [depth for size in sizes for depth in range(size + 1)]


def test_every_verb_reads_a_shrunk_run(
    cli: CommandLine, shrunk: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, found = shrunk
    analysis = cli("analyze", run, "--json").answer
    assert analysis["num_blocks"] == found["num_blocks"]
    assert analysis["losses"][-1] == pytest.approx(found["val_loss"])
    assert cli("report", run).status == 0
    assert cli("evaluate", run, "--json").answer["num_blocks"] == found["num_blocks"]
    assert cli("evaluate", run, "--checkpoint", "best").status == 0
    small = tmp_path / "small"
    cut = cli("prune", run, "--keep-blocks", 1, "--finetune-epochs", 1, "--output", small, "--json")
    assert cut.answer["num_blocks_before"] == found["num_blocks"]
    shallow = tmp_path / "shallow"
    sizes = ("--num-blocks", 1, "--width", 6, "--epochs", 1, "--batch-size", 32)
    assert cli("train", *DATA, *sizes, "--output", shallow).status == 0
    bound = cli("bound", run, "--sub", shallow, "--json").answer
    assert bound["num_blocks"] == found["num_blocks"]
    assert bound["trained_variant"] is True
    assert bound["gamma"] == pytest.approx(1 / 6)


def test_a_finished_shrunk_run_stays_as_it_is(
    cli: CommandLine, shrunk: tuple[Path, dict[str, Any]]
) -> None:
    run, found = shrunk
    assert cli("train", "--resume", "--output", run, "--json").answer == found
    assert (
        "shrink_tolerance is 0.3"
        in cli("train", "--resume", "--output", run, "--shrink-tolerance", 0.2).refusal
    )


def test_cuts_without_validation_images(cli: CommandLine, tmp_path: Path) -> None:
    arguments = (*RECIPE, "--num-blocks", 3, "--width", 4, "--val-fraction", 0, "--cut-at", "1:2")
    found = cli("train", *arguments, "--output", tmp_path / "run", "--json").answer
    assert found["num_blocks"] == 2
    assert found["cuts"][0]["val_loss_after"] is None


@pytest.mark.slow
def test_two_processes_cut_alike(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = ("--num-blocks", 4, "--width", 4, "--epochs", 3, "--num-processes", 2)
    arguments = ("train", *RECIPE, *sizes, "--ema-decay", 0.5, "--output", run, "--json")
    found = answer(really_run(*arguments, "--cut-at", "1:2,2:1"))
    assert found["kept_blocks"] == [0]
    assert [len(cut["kept_blocks"]) for cut in found["cuts"]] == [2, 1]
    assert json.loads(json.dumps(found)) == answer(really_run(*arguments, "--resume"))
