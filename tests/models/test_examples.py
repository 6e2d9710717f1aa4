"""The examples of own modules: each learns, and is cut by what it measures."""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import stagecost as sc

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    torch.manual_seed(0)
    module = importlib.import_module(request.param)
    yield module
    sys.modules.pop(request.param)


@pytest.mark.parametrize("example", ["table_mlp"], indirect=True)
def test_a_table_is_learned_and_the_model_cut_by_accuracy(example: ModuleType) -> None:
    plan, model = example.train_and_cut(*example.breast_cancer(), epochs=5)
    assert plan.accuracy_before > 90
    assert plan.accuracy_predicted >= plan.accuracy_before - 1.0 - 1e-9
    assert len(model.branches._modules) == len(plan.kept_blocks) < plan.num_blocks


@pytest.mark.parametrize("example", ["regression"], indirect=True)
def test_a_regression_is_cut_by_its_loss(example: ModuleType) -> None:
    plan, model = example.train_and_cut(*example.diabetes(), epochs=10)
    assert plan.loss_before < 1.0  # the mean alone has 1
    assert plan.loss_predicted <= plan.loss_before + 0.02 + 1e-9
    assert math.isnan(plan.accuracy_before)
    assert plan.to_json()["accuracy_before"] is None
    assert "nan" not in str(plan).lower()
    assert len(model.branches._modules) == len(plan.kept_blocks)


@pytest.mark.parametrize("example", ["char_transformer"], indirect=True)
def test_characters_are_learned_and_layers_go(example: ModuleType) -> None:
    text = example.numbered("to be or not to be, that is the question. " * 60)
    plan, model = example.train_and_cut(text, steps=40)
    assert plan.loss_before < math.log(int(text.max()) + 1) - 1
    assert "nan" not in str(plan).lower()
    assert len(model.layers._modules) == len(plan.kept_blocks) < plan.num_blocks
    assert model(text[None, : example.LENGTH]).shape == (1, example.LENGTH, int(text.max()) + 1)


@pytest.mark.parametrize("example", ["plain_loop"], indirect=True)
def test_a_plain_loop_trains_a_model_of_another_library(example: ModuleType) -> None:
    plan, model = example.train_and_cut(*example.digits(count=400), epochs=2)
    assert plan.accuracy_before > 30  # a tenth by chance
    assert type(model).__module__.startswith("timm.")
    assert sum(p.numel() for p in model.parameters()) == plan.parameters_after < plan.parameters_before


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("example", ["lightning_loop"], indirect=True)
def test_lightning_is_told_what_every_depth_is_worth(example: ModuleType) -> None:
    train, val = example.digits(size=8, count=600)
    trainer, plan, small = example.train_and_cut(train, val, epochs=3)
    assert plan.accuracy_before > 30  # a tenth by chance
    logged = trainer.callback_metrics
    assert logged["needed_blocks"] == len(plan.kept_blocks) == small.num_blocks
    assert logged["loss_at_4"] == pytest.approx(float(logged["val_loss"]))
    measured = sc.loss_trajectory(small, [val]).accuracies[-1]
    assert measured == pytest.approx(plan.accuracy_predicted)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning", "ignore:.*shuffling")
@pytest.mark.parametrize(("precision", "rounding"), [("64-true", 1e-6), ("bf16-mixed", 1e-3)])
@pytest.mark.parametrize("example", ["lightning_loop"], indirect=True)
def test_the_callback_sees_what_the_module_sees_and_draws_nothing(
    example: ModuleType, precision: str, rounding: float
) -> None:
    """Batches as the module prepares them, in its precision; the training goes on as without it."""

    class Bright(example.Classifier):
        def on_before_batch_transfer(self, batch: list[torch.Tensor], _: int) -> list[torch.Tensor]:
            return [2 * batch[0], batch[1]]

        def on_after_batch_transfer(self, batch: list[torch.Tensor], _: int) -> list[torch.Tensor]:
            return [batch[0] + 1, batch[1]]

    parts = map(example.TensorDataset, *zip(*example.digits(8, 96), strict=True))
    loaders = [example.DataLoader(part, 32, shuffle=True) for part in parts]
    trained = {}
    for callbacks in ([], [example.DepthCallback()]):
        torch.manual_seed(0)
        module, kinds = Bright(), set()
        module.network.register_forward_hook(lambda *seen: kinds.add(seen[2].dtype))  # noqa: B023
        trainer = example.Trainer(
            max_epochs=2, callbacks=callbacks, accelerator="cpu", precision=precision, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, *loaders)
        trained[len(callbacks)] = list(module.parameters())
    assert all(map(torch.equal, trained[0], trained[1]))
    assert len(kinds) == 1
    logged = trainer.callback_metrics
    assert float(logged["loss_at_4"]) == pytest.approx(float(logged["val_loss"]), rel=rounding)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("example", ["lightning_loop"], indirect=True)
def test_the_callback_measures_as_many_batches_as_the_trainer(example: ModuleType) -> None:
    parts = map(example.TensorDataset, *zip(*example.digits(8, 96), strict=True))
    train, val = (example.DataLoader(part, 8) for part in parts)
    depths = example.DepthCallback()
    trainer = example.Trainer(callbacks=[depths], accelerator="cpu", fast_dev_run=2)
    trainer.fit(example.Classifier(), train, {"first": val})
    assert depths.trajectory.num_samples == 16
    logged = trainer.callback_metrics
    assert float(logged["loss_at_4"]) == pytest.approx(float(logged["val_loss"]))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning", "ignore:.*shuffling")
@pytest.mark.parametrize("example", ["lightning_loop"], indirect=True)
def test_cuts_of_stages_are_planned_by_the_images_that_the_depths_were_measured_on(
    example: ModuleType,
) -> None:
    parts = map(example.TensorDataset, *zip(*example.digits(8, 96), strict=True))
    train, val = (example.DataLoader(part, 8, shuffle=True) for part in parts)
    module, depths = example.Classifier(), example.DepthCallback(max_drop=100.0)
    module.network = sc.create_model("staged", blocks_per_stage=(2, 2), widths=(4, 8), in_channels=1)
    example.Trainer(callbacks=[depths], accelerator="cpu", fast_dev_run=2).fit(module, train, val)
    rows = {row.cut: row for row in depths.trajectory.rows}
    assert depths.plan.cut == sc.Cut((0, 2))
    assert depths.plan.accuracy_predicted == rows[depths.plan.cut].accuracy


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("example", ["lightning_loop"], indirect=True)
def test_a_network_that_the_module_does_not_have_is_told_before_the_training(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = map(example.TensorDataset, *zip(*example.digits(8, 16), strict=True))
    train, val = (example.DataLoader(part, 8) for part in parts)
    monkeypatch.setattr(example.Classifier, "training_step", lambda *_: pytest.fail("it trains"))
    trainer = example.Trainer(
        max_epochs=1, callbacks=[example.DepthCallback("net")], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(sc.StageCostError, match=r"no network 'net' .*: give the name of its attribute"):
        trainer.fit(example.Classifier(), train, val)


@pytest.mark.parametrize("example", ["trainer_loop"], indirect=True)
def test_the_trainer_of_transformers_minimises_a_stage_cost(example: ModuleType) -> None:
    plan, model = example.train_and_cut(*example.digits(count=400), epochs=4)
    assert plan.accuracy_before > 30  # a tenth by chance
    assert type(model).__module__.startswith("transformers.")
    assert sum(p.numel() for p in model.parameters()) == plan.parameters_after
