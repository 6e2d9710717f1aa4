"""Cuts in a running training: what they leave behind, and which are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import STAGED, TINY, fitted, setup_of

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.objective import StageCost
from stagecost.runs.training import train
from stagecost.train.checkpoint import optimizer_tensors, read_checkpoint
from stagecost.train.cutting import cut_network
from stagecost.train.history import EpochRecord
from stagecost.train.loop import Epoch, fit
from stagecost.train.parsing import parse_settings
from stagecost.train.recipe import Moment
from stagecost.train.setup import Setup
from stagecost.train.stage_cost import after_cuts
from stagecost.train.state import State

NO_SIZES = {"num_blocks": None, "width": None}


class CutOnce:
    """Cuts after the first epoch, as `stagecost.runs.training` does, and keeps what was recorded."""

    def __init__(self, setup: Setup, cut: Cut) -> None:
        self.setup, self.cut, self.records = setup, cut, list[EpochRecord]()

    def __call__(self, state: State, epoch: Epoch) -> None:
        validation = self.setup.validation
        record = validation.record(state, epoch, self.setup.recipe)
        if epoch.number == 1:
            training = self.setup.settings.training
            record = cut_network(state, self.cut, record, validation, training)
        self.records.append(record)


@pytest.mark.parametrize("gamma", [0.0, 0.25])
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_cut_costs_exactly_what_validation_said(gamma: float, ema_decay: float) -> None:
    setup = setup_of(num_blocks=4, epochs=1, gamma=gamma, ema_decay=ema_decay)
    state = setup.start()
    cutter = CutOnce(setup, Cut.first(2))
    fit(state, setup.batches, setup.stage_cost, setup.recipe, on_epoch=cutter)
    (record,) = cutter.records
    assert record.cut is not None
    assert (record.cut.num_blocks_before, record.cut.kept_blocks) == (4, (0, 1))
    after = setup.validation.trajectory(state.evaluated)
    assert after is not None
    assert record.val_losses is not None
    assert after.whole.loss == record.cut.val_loss_after == record.val_losses[2]
    assert after.whole.accuracy == record.cut.val_accuracy_after


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("normalized", [False, True])
def test_what_stays_keeps_its_optimiser_state(optimizer: str, normalized: bool) -> None:
    given = {"num_blocks": 4, "epochs": 1, "optimizer": optimizer, "normalize_objective": normalized}
    setups = [setup_of(**given) for _ in range(2)]
    whole, state = fitted(setups[0]), fitted(setups[1], on_epoch=CutOnce(setups[1], Cut.first(2)))
    before = optimizer_tensors(whole.optimizer, whole.network)
    after = optimizer_tensors(state.optimizer, state.network)
    gone = {key for key in before if key.startswith(("blocks.2.", "blocks.3."))}
    assert gone
    assert after.keys() == before.keys() - gone
    assert all(torch.equal(after[key], before[key]) for key in after)
    held = [p for group in state.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in state.network.parameters()}
    assert {id(p) for p in state.model.parameters()} == {id(p) for p in held}
    decays = [[group["weight_decay"] for group in s.optimizer.param_groups] for s in (whole, state)]
    assert decays[0] == decays[1]  # lambda, and the scale that it is divided by, are those of the start


def test_the_average_goes_along() -> None:
    setup = setup_of(num_blocks=4, ema_decay=0.5)
    counts, weights = [], []

    cutter = CutOnce(setup, Cut.first(2))

    def on_epoch(state: State, epoch: Epoch) -> None:
        cutter(state, epoch)
        assert state.average is not None
        counts.append(int(state.average.n_averaged))
        weights.append([p.clone() for p in state.evaluated.parameters()])

    state = fitted(setup, on_epoch=on_epoch)
    assert counts == [len(setup.batches), 2 * len(setup.batches)]
    assert state.evaluated.state_dict().keys() == state.network.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_behind_a_cut_the_average_follows_statistics_that_the_network_has() -> None:
    """Plain training has visited the new last output never, and only the average was calibrated."""
    setups = [setup_of(num_blocks=4, gamma=0.0, ema_decay=ema) for ema in (0.0, 0.9)]
    alone, averaged = (
        fitted(setup, on_epoch=CutOnce(setup, Cut.first(2))).network.state_dict() for setup in setups
    )
    assert alone.keys() == averaged.keys()
    for name, tensor in alone.items():
        row = slice(-1, None) if name.startswith("head.norm.") else slice(None)
        assert tensor.dim() == 0 or torch.allclose(tensor[row], averaged[name][row]), name


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    "change", [{}, {"first_depth": 1}, {"stage_loss": "distilled"}, {"targets": ["TARGET"]}]
)
@pytest.mark.parametrize(("base", "keep"), [(TINY, "2"), (STAGED, "1+2")], ids=["homogeneous", "staged"])
def test_the_objective_stays_the_same(
    base: dict[str, Any], keep: str, change: dict[str, Any], normalized: bool
) -> None:
    """A block that leaves counts as one that does nothing: before and after, J_N is the same."""
    if "targets" in change:
        change = {"targets": [keep]}
    size = {"num_blocks": 4} if base is TINY else NO_SIZES
    settings = {**base, **size, **change, "gamma": 0.3, "normalize_objective": normalized}
    setup = setup_of(**settings)
    state = setup.start()
    cut = state.network.resolve(Cut.parse(keep))
    with torch.no_grad():
        for k, block in enumerate(state.network.blocks.values()):
            if not cut.acts(k):
                for parameter in block.residual.parameters():
                    parameter.zero_()
    x, y = next(iter(setup.batches.epoch(0)))
    # Without running statistics in the way: outputs by the statistics of the batch.
    before = setup.stage_cost(state.outputs(x, setup.stage_cost.outputs, setup.recipe.how), y)
    smaller = state.network.keep(cut).train()
    stage_cost = after_cuts(setup.stage_cost, state.stages, cut.blocks)
    after = stage_cost(smaller(x, stage_cost.outputs), y)
    torch.testing.assert_close(after.total, before.total)
    assert len(stage_cost.cuts) < len(setup.stage_cost.cuts)


@pytest.mark.parametrize("normalized", [False, True])
def test_training_goes_on_plainly_after_the_last_cut(tmp_path: Path, normalized: bool) -> None:
    """With a target that is the cut itself, and when the stage cost ends: the same weights."""
    given = {**STAGED, "targets": ["1+2"], "gamma": 2.0, "cut_at": "1:1+2"}
    given["normalize_objective"] = normalized
    ours = train(given, tmp_path / "run")
    plain = train({**given, "plain_after_cuts": True}, tmp_path / "plain")
    assert ours.kept_blocks == plain.kept_blocks == (0, 2, 3)
    weights = [
        read_checkpoint(tmp_path / name / "last.safetensors").tensors for name in ("run", "plain")
    ]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


@pytest.mark.parametrize(("normalized", "last"), [(False, 1 + 2 * 0.3), (True, 1.0)])
def test_the_stage_cost_ends_with_the_last_cut_if_asked_to(
    tmp_path: Path, normalized: bool, last: float
) -> None:
    """Then the terminal loss is all, with the weight of the two outputs that came to equal it, or 1."""
    given = {**TINY, "num_blocks": 4, "gamma": 0.3, "cut_at": "1:2", "sampled_depths": 0}
    given["normalize_objective"] = normalized
    before = StageCost.uniform(4, 0.3, normalized=normalized)

    def ending(moment: Moment) -> StageCost:
        return before if moment.epoch == 0 else StageCost(terminal_weight=last)

    plain = train({**given, "plain_after_cuts": True}, tmp_path / "plain")
    train(given, tmp_path / "ending", stage_cost=ending)
    train(given, tmp_path / "on")
    assert [*(entry.gamma for entry in plain.history), plain.gamma] == [0.3, 0.0, 0.0]
    files = (tmp_path / name / "last.safetensors" for name in ("plain", "ending", "on"))
    ours, wanted, other = (read_checkpoint(file).network().state_dict() for file in files)
    assert all(torch.equal(ours[name], tensor) for name, tensor in wanted.items())
    assert not torch.equal(ours["stem.weight"], other["stem.weight"])


@pytest.mark.parametrize("schedule", ["1:3,2:1", "1:3", "3:2"])
def test_cuts_of_a_schedule_are_made_when_they_are_due(tmp_path: Path, schedule: str) -> None:
    result = train({**TINY, "num_blocks": 4, "epochs": 4, "cut_at": schedule}, tmp_path / "run")
    planned = parse_settings({"cut_at": schedule}).stage.schedule()
    assert [cut.epoch for cut in result.cuts] == list(planned)
    assert [len(cut.kept_blocks) for cut in result.cuts] == [len(cut.blocks) for cut in planned.values()]
    network = read_checkpoint(tmp_path / "run" / "last.safetensors").network()
    assert network.block_indices == result.kept_blocks
    blocks = [entry.num_blocks for entry in result.history]
    assert blocks == sorted(blocks, reverse=True)


def test_without_a_schedule_nothing_is_cut(tmp_path: Path) -> None:
    result = train({**TINY, "num_blocks": 4}, tmp_path / "run")
    assert (result.num_blocks, result.kept_blocks, result.cuts) == (4, (0, 1, 2, 3), ())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cut_at": ""}, "--cut-at is ''"),
        ({"cut_at": "1:2,1:1"}, "each epoch once"),
        ({"cut_at": "1"}, "--cut-at is '1'"),
        ({"cut_at": "1:-2"}, "--cut-at is '1:-2'"),
        ({"cut_at": "0:2"}, "epoch 0 of 4"),
        ({"cut_at": "4:2"}, "epoch 4 of 4"),
        ({"cut_at": "1:4"}, "keeps 4 blocks of 4"),
        ({"cut_at": "1:9"}, "keeps 9 blocks of 4"),
        ({"cut_at": "1:0"}, "keeps 0 blocks of 4"),
        ({"cut_at": "1:whole"}, "--cut-at"),
        ({"cut_at": "2:3,1:2"}, "keeps 3 blocks of 2 after epoch 2"),
        ({"cut_at": "1:2+1"}, r"keeps 2\+1 blocks of 4"),
        ({"plain_after_cuts": True}, "nothing is cut"),
        ({"first_depth": 4}, "--first-depth is 4"),
        ({"first_depth": -1}, "--first-depth is -1"),
        ({"sampled_depths": -1}, "--sampled-depths is -1"),
        ({"drop_path": 1.0}, "--drop-path is 1.0"),
        ({"drop_path": -0.1}, "--drop-path is -0.1"),
        ({"targets": "4"}, "--targets 4 is the whole network"),
        ({"targets": "5"}, "block 4 is impossible"),
        ({"targets": "1+2"}, "impossible in stages"),
        ({"targets": "2,[0-1]"}, "names a cut twice"),
        ({"targets": "x"}, "--targets is 'x'"),
        ({"targets": "2,[0 2]", "gate": 0.5}, r"--targets 2,\[0 2\] do not: leave one"),
        ({"targets": "2", "first_depth": 1}, "--first-depth is about"),
        ({"compile": True, "sampled_depths": 2}, "leave one of them out"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(StageCostError, match=match):
        train({**TINY, "num_blocks": 4, "epochs": 4, **change}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
