"""What the verbs tell, on real runs: typed results, JSON with the keys of the documentation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs.conftest import TINY, Trained
from stagecost.calibration import calibrate_outputs
from stagecost.cli.main import main
from stagecost.cli.views import show
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches
from stagecost.data.images import normalise
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost
from stagecost.runs.analysis import analyze
from stagecost.runs.bound import bound
from stagecost.runs.certainty import wilson
from stagecost.runs.evaluation import evaluate
from stagecost.runs.folder import RunFolder
from stagecost.runs.pruning import finetune_settings, prune
from stagecost.runs.reporting import report
from stagecost.runs.results import Result
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train
from stagecost.search import search_cuts
from stagecost.storage import read_tensors, write_tensors
from stagecost.train.recipe import Moment
from stagecost.trajectory import Loader, Score, loss_trajectory, suggest_targets

ANALYZE = (
    "num_blocks split num_samples losses accuracies residual_ratios weight_norms stage_starts tolerance "
    "needed_blocks cuts target_norms warnings"
)
PRUNE = (
    "kept_blocks num_blocks_before accuracy_before accuracy_predicted accuracy_after parameters_before "
    "parameters_after macs_before macs_after path network finetune_epochs interval drop_interval "
    "warnings accuracy_before_finetuning loss_before loss_after latency_ms_before latency_ms_after "
    "weights"
)

TRAIN = "run epochs val_accuracy val_loss num_blocks kept_blocks gamma cuts suggested_targets seconds"
EVALUATE = "accuracy loss num_blocks parameters macs split warnings"
BOUND = (
    "objective gamma weight_decay num_blocks trained_variant normalized_loss bounds predicted_blocks "
    "truncation_predicted_blocks warnings"
)


def strict(result: Result) -> dict[str, object]:
    """Send a result through JSON as the standard has it, which knows no NaN."""
    text = json.dumps(result.to_json(), allow_nan=False)
    content = json.loads(text)
    assert content == result.to_json()
    return dict(content)


def test_json_keys(trained: Trained, tmp_path: Path) -> None:
    results: dict[str, Result] = {
        f"{TRAIN} num_images interval": train({}, copied(trained.two, tmp_path / "two"), resume=True),
        f"{ANALYZE} num_images intervals needed_cut": analyze(trained.three),
        f"{PRUNE} num_images": prune(trained.three, tmp_path / "small", keep=2),
        f"{EVALUATE} num_images interval": evaluate(trained.saved),
        f"{BOUND} num_images": bound(trained.three, [trained.two]),
        "run report needed_blocks warnings": report(copied(trained.two, tmp_path / "again")),
    }
    for keys, result in results.items():
        assert set(strict(result)) == set(keys.split())


def copied(run: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(run, to)
    return to


def test_every_accuracy_has_its_number_of_images_and_its_interval(
    trained: Trained, tmp_path: Path
) -> None:
    found = analyze(trained.three, split="test")
    assert found.num_images == found.to_json()["num_samples"] == 200
    assert found.intervals == tuple(wilson(a, 200) for a in found.accuracies)
    whole = evaluate(trained.three)
    assert (whole.num_images, whole.accuracy) == (200, found.accuracies[-1])
    assert whole.interval == found.intervals[-1]
    pruning = prune(trained.three, tmp_path / "small", keep=1)
    drop = pruning.accuracy_before - pruning.accuracy_after
    assert pruning.num_images == 60
    assert pruning.drop_interval[0] <= drop * 60 / 62 <= pruning.drop_interval[1]


def test_all_images_are_those_of_all_splits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train({"data": "digits", "num_blocks": 1, "width": 4, "epochs": 1, "device": "cpu"}, run)
    parts = [evaluate(run, split=split) for split in ("train", "val", "test")]
    together = evaluate(run, split="all")
    assert together.num_images == sum(part.num_images for part in parts) == 1797
    expected = sum(part.accuracy * part.num_images for part in parts) / 1797
    assert together.accuracy == pytest.approx(expected)
    assert together.warnings == (
        f"{parts[0].num_images:,} of these 1,797 images were trained on, which flatters",
    )


def test_images_that_changed_are_told_and_trained_ones_refused(tmp_path: Path) -> None:
    """Images of the training that turn up as test images would be judged as if they were new."""
    import shutil

    data = tmp_path / "images"
    for seed, (split, count) in enumerate((("train", 40), ("test", 12))):
        class_folders(data / split, count, seed=seed)
    run = tmp_path / "run"
    given = {"data": str(data), "num_blocks": 1, "width": 4, "batch_size": 16, "device": "cpu"}
    train({**given, "epochs": 2}, run)
    assert evaluate(run).warnings == ()
    (data / "test" / "a" / "0003.png").unlink()
    said = evaluate(run).warnings
    assert len(said) == 1
    assert "the test images have changed since the run: 24 then, 23 now" in said[0]
    for i in range(6):
        shutil.copy(data / "train" / "a" / f"{i:04d}.png", data / "test" / "a" / f"new{i}.png")
    with pytest.raises(StageCostError, match=r"of the 29 test images of .* were trained on"):
        evaluate(run)
    assert evaluate(run, allow_trained=True).num_images == 29
    (data / "train" / "b" / "0000.png").unlink()
    with pytest.raises(StageCostError, match="a run goes on with the images that it began with"):
        train({}, run, resume=True)
    with pytest.raises(StageCostError, match=r"val images of .* were trained on"):
        prune(run, tmp_path / "small", keep=1)  # they were drawn anew from the images that are left
    prune(run, tmp_path / "small", keep=1, allow_trained=True)
    with pytest.raises(StageCostError, match="were trained on"):
        evaluate(tmp_path / "small")


def test_what_helps_where_there_are_no_validation_images(tmp_path: Path) -> None:
    """What is advised can be done, and helps: `prune` has no --split."""
    data, run = class_folders(tmp_path / "images", 40), tmp_path / "run"
    given = {"data": str(data), "num_blocks": 1, "width": 4, "batch_size": 16, "device": "cpu"}
    train({**given, "epochs": 1, "val_fraction": 0.0}, run)
    advice = r"without validation images: train with --val-fraction 0\.1, or give images .* by --data"
    with pytest.raises(StageCostError, match=rf"{advice}$"):
        prune(run, tmp_path / "small", keep=1)
    with pytest.raises(StageCostError, match=rf"{advice}, or ask for another --split$"):
        analyze(run)
    for seed, split in enumerate(("train", "val"), 1):
        class_folders(tmp_path / "others" / split, 12, seed=seed)
    pruning = prune(run, tmp_path / "small", keep=1, data=str(tmp_path / "others"))
    assert pruning.num_images == analyze(run, data=str(tmp_path / "others")).num_images == 24


def test_what_makes_a_choice_doubtful_is_said(trained: Trained, tmp_path: Path) -> None:
    """60 validation images, and a network that has learned next to nothing."""
    run = tmp_path / "untrained"
    train({**TINY, "num_blocks": 2, "width": 4, "lr": 1e-9, "epochs": 1}, run)
    said = analyze(run).warnings
    assert any("one image of 60 is 1.67 points" in line for line in said)
    assert any("hardly above" in line for line in said)
    assert prune(run, tmp_path / "small", max_drop=0.5).warnings == said
    assert not any("one image" in line for line in analyze(run, tolerance=2.0).warnings)


@pytest.mark.parametrize("tolerance", [0.0, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("name", ["three", "staged"])
def test_analysis_and_pruning_agree(
    trained: Trained, tmp_path: Path, name: str, tolerance: float
) -> None:
    """What is needed is said of cuts that can be made, by the rule that makes them."""
    run = getattr(trained, name)
    found = analyze(run, tolerance=tolerance)
    pruning = prune(run, tmp_path / "small", max_drop=tolerance)
    (needed,) = (cut for cut in found.cuts if cut.cut == found.needed_cut)
    assert needed.kept_blocks == pruning.kept_blocks
    assert len(needed.kept_blocks) == found.needed_blocks
    assert needed.accuracy == pruning.accuracy_predicted
    assert needed.macs == pruning.macs_after
    for cut in found.cuts:  # each is that of the network which the cut leaves
        kept = tuple(open_trained(run).network.block_indices.index(k) for k in cut.kept_blocks)
        smaller = open_trained(run).network.keep(Cut(kept)).eval()
        opened = open_trained(run)
        score = loss_trajectory(smaller, opened.batches("val"), loss=opened.loss).whole
        assert score.accuracy == pytest.approx(cut.accuracy)
        assert score.loss == pytest.approx(cut.loss, rel=1e-5)


def test_the_cuts_of_a_homogeneous_network_are_its_outputs(trained: Trained) -> None:
    found = analyze(trained.three)
    assert [cut.cut for cut in found.cuts] == ["1", "2", "3"]
    assert [cut.accuracy for cut in found.cuts] == list(found.accuracies[1:])


def test_cuts_are_searched_on_512_images_and_judged_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 600 validation images."""
    few = {"num_blocks": 3, "width": 4, "epochs": 1, "limit_train": 1200, "val_fraction": 0.5}
    train({**TINY, **few}, tmp_path / "run")
    searched: list[int] = []

    def search(network: ResidualNetwork, loader: Loader, **settings: Any) -> list[Score]:
        searched.append(sum(len(targets) for _, targets in loader))
        return search_cuts(network, loader, **settings)

    monkeypatch.setattr("stagecost.runs.planning.search_cuts", search)
    pruning = prune(tmp_path / "run", tmp_path / "small", keep=2, search=True)
    assert searched == [512]
    assert pruning.num_images == 600


def test_what_was_trained_after_a_cut_is_known(trained: Trained, tmp_path: Path) -> None:
    run = copied(trained.three, tmp_path / "run")
    for epochs in (0, 1):
        pruning = prune(run, tmp_path / f"small{epochs}", keep=2, finetune_epochs=epochs)
        assert pruning.finetune_epochs == epochs
        stored = json.loads(RunFolder(run).pruning.read_text())
        assert stored["finetune_epochs"] == epochs
        saved = json.loads((tmp_path / f"small{epochs}" / "config.json").read_text())
        assert saved["pruning"] == stored
    weights = [open_trained(tmp_path / f"small{epochs}").network.stem.weight for epochs in (0, 1)]
    assert not torch.equal(*weights)
    assert torch.equal(weights[0], open_trained(run).network.stem.weight)


@pytest.mark.parametrize(("normalized", "decay"), [(True, 0.01 / (1 + 2 * 3.0)), (False, 0.01)])
def test_training_after_a_cut_keeps_the_decay_of_the_run(
    tmp_path: Path, normalized: bool, decay: float
) -> None:
    """Or a lambda that was raised for a normalised objective would be far too large without it."""
    given = {**TINY, "limit_train": 100, "num_blocks": 2, "width": 4}
    stage = {"gamma": 3.0, "normalize_objective": normalized, "weight_decay": 0.01, "cut_at": "1:1"}
    train({**given, **stage}, tmp_path / "run")
    after = finetune_settings(open_trained(tmp_path / "run"), epochs=1).training
    assert after.weight_decay == pytest.approx(decay)
    assert after.gamma == 0
    assert not after.normalize_objective


def test_fine_tuning_goes_on_from_the_optimiser_at_a_tenth_of_the_rate(
    trained: Trained, tmp_path: Path
) -> None:
    run, still = trained.three, copied(trained.three, tmp_path / "run")
    opened = open_trained(run)
    assert finetune_settings(opened, epochs=1).training.lr == pytest.approx(0.01)  # of 0.1
    tensors, about = read_tensors(still / "last.safetensors")
    momenta = {name: torch.zeros_like(t) for name, t in tensors.items() if name.startswith("optimizer.")}
    assert momenta
    write_tensors(still / "last.safetensors", tensors | momenta, about)
    tuned = []
    for name, of in (("moving", run), ("again", run), ("from rest", still)):
        prune(of, tmp_path / name, keep=2, finetune_epochs=1)
        tuned.append(open_trained(tmp_path / name).network.stem.weight)
    assert torch.equal(tuned[0], tuned[1])
    assert not torch.equal(tuned[0], tuned[2])


def test_fine_tuning_is_where_the_network_was_opened(trained: Trained) -> None:
    opened = open_trained(trained.two, device="cpu")
    for precision, wanted in (("fp16", "32"), ("bf16", "bf16"), ("32", "32")):
        elsewhere = opened.settings.with_training(device="cuda", precision=precision)
        training = finetune_settings(replace(opened, settings=elsewhere), epochs=1).training
        assert (training.device, training.precision) == ("cpu", wanted)


def test_fine_tuning_compiles_where_that_works(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run may have been trained on another machine, and `prune` has no --compile to leave out."""
    opened = open_trained(trained.three, device="cpu")
    compiled = replace(opened, settings=opened.settings.with_training(compile=True))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert finetune_settings(compiled, epochs=1).training.compile
    assert not finetune_settings(opened, epochs=1).training.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: None)  # which cannot be called
    assert not finetune_settings(compiled, epochs=1).training.compile


def test_bound_says_when_something_else_was_minimised(trained: Trained, tmp_path: Path) -> None:
    plain = bound(trained.three, [trained.two])
    assert (plain.trained_variant, plain.warnings) == (False, ())
    for name, value in {"first_depth": 1, "optimizer": "adamw"}.items():
        train({**TINY, "num_blocks": 3, "width": 6, name: value}, tmp_path / name)
        assert bound(tmp_path / name, [trained.two]).trained_variant
    (note,) = bound(tmp_path / "optimizer", [trained.two]).warnings
    apart = "optimizer sgd and not adamw, peak_lr 0.1 and not 0.002"
    assert note == f"{trained.two} was trained by another recipe: {apart}"
    callers = tmp_path / "callers"
    train({**TINY, "num_blocks": 3, "width": 6}, callers, stage_cost=StageCost.uniform(3, 0.1))
    assert bound(callers, [trained.two]).trained_variant


def test_bound_refuses_a_loss_that_is_no_number(trained: Trained, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained.two, broken)
    tensors, about = read_tensors(broken / "last.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("head.linear.weight"):
            tensor.fill_(3e38)
    write_tensors(broken / "last.safetensors", tensors, about)
    for run, subs in ((trained.three, [broken]), (broken, [])):
        with pytest.raises(StageCostError, match=r"broken at depth \d is (nan|inf), .* lower --lr"):
            bound(run, subs)


def test_losses_of_zero_bound_by_zero(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that are easily told apart leave no loss in float32, and lambda may be zero."""

    def nothing(opened: Any, *_: object) -> tuple[tuple[float, ...], list[float]]:
        n = opened.network.num_blocks
        return (0.0,) * (n + 1), [0.0] * n

    monkeypatch.setattr("stagecost.runs.bound._measure", nothing)
    found = bound(trained.three, [trained.two])
    (row,) = found.bounds
    assert (found.objective, row.right_hand_side, row.holds) == (0.0, 0.0, True)
    assert found.to_json()["bounds"][0]["tightness"] is None
    main(["bound", str(trained.three), "--sub", str(trained.two)])
    assert "nan" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# Statistics from random images


def class_folders(folder: Path, count: int, size: int = 8, seed: int = 0) -> Path:
    """Write images of two classes that their brightness tells apart; on disk they lie class by class."""
    draw = np.random.default_rng(seed)
    for level, name in ((90, "a"), (150, "b")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(draw.normal(level, 25, (size, size)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:04d}.png")
    return folder


def test_statistics_do_not_depend_on_how_the_images_lie(tmp_path: Path) -> None:
    """More images than are taken: the first of them would be of one class."""
    data = class_folders(tmp_path / "images", 1700)
    given = {"data": str(data), "gamma": 0.0, "num_blocks": 2, "width": 4, "epochs": 1, "batch_size": 64}
    train({**given, "augment": "none", "device": "cpu"}, tmp_path / "run")
    opened = open_trained(tmp_path / "run")
    train_split = opened.load("train").splits["train"]
    assert len(train_split) > 2048
    everything = eval_batches(train_split, opened.image_format)
    norm = opened.network.head.norm
    means = norm.running_mean.clone()
    calibrate_outputs(opened.network, everything, [0, 1])
    off = (means - norm.running_mean).abs() / norm.running_var.sqrt()
    assert off[:2].max() < 0.05  # a sample of 2048; that of one class would be off by about one


@pytest.mark.parametrize("count", [256, 257, 300, 513])
def test_every_image_counts_alike(tmp_path: Path, count: int) -> None:
    """Running means of outputs that training does not visit are those of all images together."""
    run = tmp_path / "run"
    given = {"data": "digits", "val_fraction": 0.0, "limit_train": count, "gamma": 0.0, "epochs": 1}
    train({**given, "batch_size": 32, "num_blocks": 2, "width": 4, "device": "cpu"}, run)
    opened = open_trained(run)
    x = normalise(opened.load("train").splits["train"].images, opened.image_format)
    norm = opened.network.head.norm
    with torch.no_grad():
        for k, state in enumerate(opened.network.states(x)):
            if k < 2:
                torch.testing.assert_close(norm.running_mean[k], state.mean((0, 2, 3)))
                variance = state.transpose(0, 1).flatten(1).var(dim=1)
                torch.testing.assert_close(norm.running_var[k], variance, rtol=1e-2, atol=1e-4)


def test_states_of_one_pixel_and_a_last_batch_of_one_image(tmp_path: Path) -> None:
    """257 images to calibrate with, and a staged network whose last states are of one pixel."""
    staged = {"model": "staged", "widths": [4, 4, 8], "stem_stride": 2, "blocks_per_stage": [1, 2, 2]}
    given = {"data": "digits", "limit_train": 286, "batch_size": 32, "epochs": 1, "device": "cpu"}
    train({**given, **staged, "gamma": 0.0}, tmp_path / "run")
    pruning = prune(tmp_path / "run", tmp_path / "small", keep=Cut.stages(1, 1, 1))
    assert pruning.kept_blocks == (0, 1, 3)


@pytest.mark.parametrize(
    ("shape", "target", "keep"),
    [
        ({"num_blocks": 3, "width": 6}, "2", 2),
        ({"model": "staged", "blocks_per_stage": [2, 2], "widths": [6, 8]}, "1+1", Cut.stages(1, 1)),
        ({"model": "timm/test_resnet", "image_size": 32}, "[0 2]", Cut((0, 2))),
    ],
)
def test_norms_of_a_target_are_known_to_every_verb(
    tmp_path: Path, shape: dict[str, object], target: str, keep: Cut | int
) -> None:
    """What is analysed is what is pruned: the target with norms of its own, exactly."""
    run = tmp_path / "run"
    train({**TINY, **shape, "targets": [target], "target_norms": "own"}, run)
    found, small = analyze(run), prune(run, tmp_path / "small", keep=keep)
    assert found.target_norms == (str(Cut.parse(target)),)
    (score,) = [cut for cut in found.cuts if cut.cut in found.target_norms]
    assert (small.accuracy_predicted, small.macs_after) == (score.accuracy, score.macs)
    assert small.accuracy_after >= score.accuracy  # statistics are estimated anew where that helps
    network, saved = open_trained(run).network, open_trained(tmp_path / "small").network
    assert not saved.targets
    assert evaluate(run, split="val").parameters == small.parameters_before
    assert small.parameters_before - small.parameters_after == sum(
        p.numel() for part in (network.blocks, network.head) for p in part.parameters()
    ) - sum(p.numel() for part in (saved.blocks, saved.head) for p in part.parameters())
    report(run)
    assert "have norms of their own" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("shape", "target", "kept"),
    [
        ({"num_blocks": 4, "width": 4}, "[0 3]", (0, 3)),
        ({"model": "staged", "blocks_per_stage": [6, 6], "widths": [4, 4]}, "2+4", (0, 1, 6, 7, 8, 9)),
    ],
)
def test_targets_without_norms_of_their_own_are_measured_too(
    tmp_path: Path, shape: dict[str, object], target: str, kept: tuple[int, ...]
) -> None:
    train({**TINY, **shape, "targets": [target], "epochs": 1}, tmp_path / "run")
    found = {cut.cut: cut for cut in analyze(tmp_path / "run").cuts}
    assert found[target].kept_blocks == kept
    small = prune(tmp_path / "run", tmp_path / "small", max_drop=100)
    assert small.macs_after <= found[target].macs
    other = {**TINY, "num_blocks": 4, "width": 4, "epochs": 2, "targets": ["[0 3]"], "cut_at": "1:2"}
    train(other, tmp_path / "cut")
    assert [cut.cut for cut in analyze(tmp_path / "cut").cuts] == ["1", "2"]


def test_the_needed_cut_is_named_where_it_is_no_depth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"num_blocks": 3, "width": 4, "targets": ["[0 2]"], "epochs": 1}
    train({**TINY, **shape}, tmp_path)
    show("analyze", replace(analyze(tmp_path), needed_cut="[0 2]", needed_blocks=2))
    shown = capsys.readouterr().out
    assert "2 of 3 blocks ([0 2]) are needed" in shown
    assert shown.count("[0 2]") == 2  # in the table of cuts, too


def test_depths_worth_training_for(tmp_path: Path) -> None:
    assert suggest_targets([10, 88, 88.5, 89.6, 90]) == (1, 3)
    assert suggest_targets([10, 20, 90]) == ()
    assert (
        train(
            {**TINY, "width": 6, "num_blocks": 3, "epochs": 1, "gamma": 0.0}, tmp_path
        ).suggested_targets
        == ()
    )


@pytest.mark.parametrize("stage_cost", [StageCost(), StageCost.uniform(3, 0.5, first=1)])
def test_depths_are_told_of_by_the_stage_cost_that_acted(tmp_path: Path, stage_cost: StageCost) -> None:
    """That of the caller, not of the settings; whose rule counts by what it says in the end."""
    settings = {**TINY, "num_blocks": 3, "epochs": 1}
    assert not train(settings, tmp_path / "a", stage_cost=stage_cost).suggested_targets

    def late(moment: Moment) -> StageCost:
        return StageCost.uniform(3, 0.5 if moment.batch else 0.0)

    told = train({**settings, "gamma": 0.0}, tmp_path / "b", stage_cost=late)
    assert told.suggested_targets == suggest_targets(told.history[-1].val_accuracies or ()) != ()


def test_statistics_are_estimated_anew_within_the_limits_alone(tmp_path: Path) -> None:
    """They may help accuracy and harm the loss: a cut within the limits is never refused for them."""
    staged = {"model": "staged", "blocks_per_stage": [2, 2], "widths": [6, 8]}
    train({**TINY, **staged, "data": "digits", "gamma": 0.0}, tmp_path / "run")
    pruning = prune(tmp_path / "run", tmp_path / "a", keep=Cut.stages(2, 2), max_loss_increase=0.0)
    assert (pruning.loss_after, pruning.accuracy_after) == (pruning.loss_before, pruning.accuracy_before)


def test_limits_are_of_the_network_that_is_saved(tmp_path: Path) -> None:
    """A cut that is asked for may lose more before statistics are estimated anew."""
    run, keep = tmp_path / "run", Cut.stages(1, 1)
    staged = {"model": "staged", "blocks_per_stage": [2, 2], "widths": [8, 16]}
    train({**TINY, **staged, "limit_train": None, "epochs": 3}, run)
    free = prune(run, tmp_path / "free", keep=keep)
    drop = free.accuracy_before - free.accuracy_after
    assert free.accuracy_before - free.accuracy_predicted > drop > 0
    within = prune(run, tmp_path / "within", keep=keep, max_drop=drop)
    assert (within.kept_blocks, within.accuracy_after) == (free.kept_blocks, free.accuracy_after)
    with pytest.raises(StageCostError, match=r"the pruned network has .* more than --max-drop"):
        prune(run, tmp_path / "less", keep=keep, max_drop=drop - 0.1)
    assert not (tmp_path / "less").exists()
