"""Experiments on their quick tier, for real: rows say what the networks of the runs really do."""

import csv
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.layer_pruning import trainings as pruning_trainings
from experiments.peers.packages import is_installed
from experiments.pretrained.case import Case
from experiments.pretrained.channels import with_fewer_channels
from experiments.pretrained.choice import SEED_OF_CHOICE, best, stretches
from experiments.pretrained.files import by_order
from experiments.records import Record
from experiments.runner import Context, answer, run, show
from experiments.staged import COMPARED
from experiments.tables import section
from experiments.targets import trainings as targets_of
from experiments.theory import TRAININGS
from experiments.trainings import macs_of_cuts, trained_run
from safetensors.torch import save_file

from experiments import tuning
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches
from stagecost.errors import StageCostError
from stagecost.macs import count_macs
from stagecost.models.adapters.libraries import library_model
from stagecost.models.catalogue import create_model
from stagecost.trajectory import loss_trajectory, terminal_score

Quick = Any
ROW_KEYS = {"dataset", "arm", "num_blocks", "test_accuracies", "mean", "std", "paper"}
ROW_KEYS |= {"seeds", "training_macs", "seconds", "val_accuracies", "parameters", "macs"}
KEYS = {"experiment", "title", "tier", "rows", "figures", "records"}
RECORD_KEYS = {"path", "dataset", "seeds", "command", "commit", "machine", "threads", "versions"}


def shown(name: str, records: list[Record]) -> str:
    """What is read back is what the run returned, and what a person sees of it."""
    results = records[0].file.parents[1]
    experiment, again = show(name, "quick", results=results)
    assert [record.content for record in again] == [record.content for record in records]
    return "\n".join(section(experiment, again, results))


def test_layer_pruning(quick: Quick, context: Context) -> None:
    found, records = quick("layer-pruning", 0, 1)
    assert set(found) == KEYS | {"other_rows", "differences"}
    assert [row["arm"] for row in found["rows"]] == [
        "plain_full",
        "plain_sub",
        "stage_full",
        "stage_pruned",
    ]
    assert [row["num_blocks"] for row in found["rows"]] == [4, 2, 4, 2]
    for row in (*found["rows"], *found["other_rows"]):
        assert set(row) - {"schedule"} == ROW_KEYS
        assert len(row["test_accuracies"]) == len(row["val_accuracies"]) == len(row["seeds"]) == 2
        assert row["mean"] == pytest.approx(statistics.mean(row["test_accuracies"]))
        assert row["std"] == pytest.approx(statistics.stdev(row["test_accuracies"]))
    ends = [(row["arm"], row["schedule"]) for row in (*found["rows"][2:], *found["other_rows"])]
    assert ends[:2] == [("stage_full", "full-depth"), ("stage_pruned", "pruned")]
    assert ends[2:] == [("stage_pruned", "full-depth"), ("stage_full", "pruned")]
    mean = {row["arm"]: row["mean"] for row in found["rows"]}
    (differences,) = found["differences"]
    assert differences["full_depth"] == pytest.approx(mean["stage_full"] - mean["plain_full"])
    assert differences["pruned"] == pytest.approx(mean["stage_pruned"] - mean["plain_sub"])
    # The pruned network's accuracy is what the run's trajectory tells of that depth, untrained.
    training = pruning_trainings("quick", "digits")["pruned"]
    trained = trained_run(context, "pruned", training, 1).open()
    accuracies = loss_trajectory(trained.network, trained.batches("test")).accuracies
    assert found["rows"][3]["test_accuracies"][1] == pytest.approx(accuracies[2])
    text = shown("layer-pruning", records)
    assert f"| quick, digits | stage_pruned, pruned | 2 | {mean['stage_pruned']:.2f} ± " in text
    assert "| (stage_full, pruned) | 4 |" in text
    (record,) = found["records"]
    assert set(record) == RECORD_KEYS
    command = "python -m experiments run layer-pruning --tier quick --dataset digits --seeds 0,1"
    assert record["command"] == command


def test_a_run_is_not_repeated_and_goes_on(quick: Quick, work: Path, monkeypatch: Any) -> None:
    from experiments import trainings

    first, _ = quick("loss-trajectory")
    before = {path: path.stat().st_mtime_ns for path in work.glob("*/*/last.safetensors")}
    labels: list[str] = []
    real = trainings.train
    monkeypatch.setattr(
        trainings, "train", lambda *given, **more: labels.append(more["label"]) or real(*given, **more)
    )
    assert quick("loss-trajectory")[0]["rows"] == first["rows"]
    assert labels == ["digits plain 0", "digits stage 0"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_loss_trajectory(quick: Quick) -> None:
    found, records = quick("loss-trajectory", 0)
    assert [row["arm"] for row in found["rows"]] == ["plain", "stage"]
    for row in found["rows"]:
        assert row["stage_starts"] == [0, 2]
        loss = row["losses"]
        assert row["jump"] == pytest.approx(loss[2] - loss[3])
        assert row["plateau"] == pytest.approx((loss[1] - loss[2] + loss[3] - loss[4]) / 2)
    assert [Path(figure).name for figure in found["figures"]] == [
        "quick-digits-accuracy.svg",
        "quick-digits-loss.svg",
    ]
    assert all("with a stage cost" in Path(figure).read_text() for figure in found["figures"])
    assert "](loss-trajectory/quick-digits-loss.svg)" in shown("loss-trajectory", records)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar10-long", "cifar10-staged"])
def test_one_training_for_three_networks_costs_no_more_than_three(dataset: str) -> None:
    kinds = targets_of("cpu", dataset)
    joint, plain = (kinds[kind].settings for kind in ("joint", "alone"))
    staged = dataset.endswith("staged")
    sizes = [27, 10, 16] if staged else [12, 4, 8]
    assert (joint.get("target_norms") == "own") == staged
    # Each target then goes through all of its blocks by itself, and one of the two is drawn.
    passes = 27 + (10 + 16) / 2 if staged else max(sizes)
    assert joint["epochs"] == sum(sizes) * plain["epochs"] // passes


def test_staged(quick: Quick) -> None:
    found, records = quick("staged")
    rows = {row["arm"]: row for row in found["rows"]}
    assert [row["num_blocks"] for row in found["rows"]] == [6, 3, 3, 3, 6, 3, 3]
    assert all(set(row) == ROW_KEYS and row["paper"] is None for row in found["rows"])
    small = ("stage_cut", "control_cut", "plain_final", "vector_pruned", "plain_pruned")
    assert len({rows[arm]["macs"] for arm in small}) == 1
    assert rows["vector_pruned"]["training_macs"] > rows["plain_pruned"]["training_macs"]
    assert rows["plain_pruned"]["training_macs"] == rows["plain_full"]["training_macs"]
    whole, cut = rows["plain_full"], rows["stage_cut"]
    assert rows["plain_final"]["training_macs"] < cut["training_macs"] < whole["training_macs"]
    assert [row["arm"] for row in found["differences"]] == list(COMPARED)
    assert found["differences"][0]["to_plain_full"] == pytest.approx(cut["mean"] - whole["mean"])
    assert found["differences"][0]["macs_saved"] == pytest.approx(1 - cut["macs"] / whole["macs"])
    assert "| quick, digits | plain_full | 6 |" in shown("staged", records)


def test_bound(quick: Quick) -> None:
    found, records = quick("bound")
    assert [(row["num_blocks"], row["sub_blocks"]) for row in found["rows"]] == [(4, 1), (4, 2)]
    for row in found["rows"]:
        assert row["holds"] == (row["objective"] <= row["right_hand_side"])
        assert (row["gamma"], row["weight_decay"], row["seed"]) == (1 / 4, 5e-4, 0)
        # Both sides over 1 + gamma·N = 2, less the weight decay, which only adds to them.
        assert row["normalized_loss"] < row["objective"] / 2
        assert row["normalized_bound"] < row["right_hand_side"] / 2
    assert {each["augment"] for each in records[0]["settings"].values()} == {"none"}
    text = shown("bound", records)
    assert text.count("no, optimisation fell short") == sum(not row["holds"] for row in found["rows"])


def test_a_warm_start_is_the_point_of_the_bound(quick: Quick) -> None:
    found, records = quick("bound-training")
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == ["standard", "longer", "more_decay", "zero_last", "warm_start"]
    assert all(row["losses"] + row["decay"] == pytest.approx(row["objective"]) for row in rows.values())
    assert rows["warm_start"]["idle_decay"] == 0 < rows["standard"]["idle_decay"]
    assert rows["warm_start"]["tightness"] <= 1
    assert "| quick, digits | warm_start | 2 of 4 |" in shown("bound-training", records)


def test_targets(quick: Quick) -> None:
    found, records = quick("targets")
    arms = [(row["arm"], row["cut"], row["num_blocks"]) for row in found["rows"]]
    assert arms == [
        ("joint", "whole", 4),
        ("joint", "2", 2),
        ("joint_answers", "whole", 4),
        ("alone", "whole", 4),
        ("alone", "2", 2),
        ("plain_long", "whole", 4),
        ("cut_first", "2", 2),
    ]
    rows = dict(zip([(arm, cut) for arm, cut, _ in arms], found["rows"], strict=True))
    joint = rows["joint", "whole"]["training_macs"]
    together = sum(rows["alone", cut]["training_macs"] for cut in ("whole", "2"))
    assert joint <= together  # at no more compute than the separate trainings
    assert rows["plain_long", "whole"]["training_macs"] == joint
    assert {row["num_test"] for row in found["rows"]} == {100}
    assert "| quick, digits | joint | whole |" in shown("targets", records)


def test_a_record_grows_by_arms(tmp_path: Path, work: Path, quick: Quick) -> None:
    """Rows of other arms stay, with their circumstances, unless they rest on other settings or seeds."""
    _, (record,) = quick("targets")

    def grow(arms: str, *seeds: int) -> Record:
        options = {"arms": arms}
        _, (grown,) = run(
            "targets", "quick", seeds=seeds or (0,), work=work, results=tmp_path, options=options
        )
        return grown

    assert "before" not in grow("alone,plain_long").content
    content = grow("cut_first,plain_long").content
    assert [row["arm"] for row in content["rows"]] == ["alone", "alone", "plain_long", "cut_first"]
    assert set(content["settings"]) == {"alone", "alone-2", "plain_long", "cut_first-2"}
    (part,) = content["before"]
    assert part["arms"] == ["alone"]
    assert part["command"].endswith("--arms alone,plain_long")
    rows = {(row["arm"], row["cut"]): row["mean"] for row in record["rows"]}
    assert {(row["arm"], row["cut"]): row["mean"] for row in content["rows"]}.items() <= rows.items()
    file = tmp_path / "targets" / "quick-digits.json"
    assert "; alone by `python -m experiments run targets" in shown("targets", [Record.read(file)])
    with pytest.raises(ValueError, match="rests on other seeds: name all arms"):
        grow("joint", 0, 1)
    file.write_text(file.read_text().replace('"epochs"', '"lr": 1.0, "epochs"', 1))
    with pytest.raises(ValueError, match="rests on other settings of alone: name all arms"):
        grow("joint")


def test_exits(quick: Quick) -> None:
    found, records = quick("exits")
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows)[:4] == ["whole", "cut-2", "drop", "time"]
    assert rows["whole"]["mean_macs_ratio"] == [1.0]
    assert rows["cut-2"]["mean_macs_ratio"][0] < 0.7
    for arm in ("drop", "time"):
        assert len(rows[arm]["time_ratios"][0]) == 2
        assert rows[arm]["mean_macs_ratio"][0] < 1.1
    assert "| quick, digits | drop |" in shown("exits", records)


def test_ablation(quick: Quick) -> None:
    found, _ = quick("ablation")
    names = [run["variant"] for run in found["runs"]]
    assert len(names) == len(set(names)) == 19
    assert {"plain", "plain-2-blocks", "hinged", "strong-group-lasso", "staged-average"} <= set(names)
    curves = {run["variant"]: run["val_accuracies"] for run in found["runs"]}
    assert [len(curves[name]) for name in ("plain", "plain-2-blocks")] == [5, 3]
    losses = {run["variant"]: run["settings"] for run in found["runs"]}
    assert losses["growing"]["stage_cost"]["factors"] == [0.25, 0.5, 0.75, 1.0]


def test_what_theory_predicts_and_what_is_measured(quick: Quick) -> None:
    found, records = quick("predicted-depth")
    assert len(found["points"]) == 2
    for point in found["points"]:
        sides = {int(m): side for m, side in point["right_hand_sides"].items()}
        assert point["predicted"]["separate"] == min(sides, key=lambda m: sides[m])
        assert point["truncation_right_hand_sides"]["3"] == pytest.approx(point["objective"])
        losses = point["full"]["losses"]
        needed = point["measured"]["needed"]
        assert losses[needed] <= losses[-1] + 0.05 < min(losses[1:needed], default=99)
    assert len(found["rank_correlations"]) == 12
    assert "active blocks" in records[0].figures()[0].read_text()
    found, records = quick("saturation")
    assert [run["training"] for run in found["runs"]] == list(TRAININGS) * 2
    assert len(records[0].figures()) == 2
    found, _ = quick("importance")
    for each in found["runs"]:
        assert [len(each[key]) for key in ("costate", "removal", "weight_norm")] == [3, 3, 3]
        assert -1 <= each["rank_correlations"]["costate"] <= 1


def test_a_search_goes_on_where_it_stopped(quick: Quick, work: Path) -> None:
    first, _ = quick("tuning", trials=2, set=["epochs=1"])
    found, records = quick("tuning", trials=4, set=["epochs=1"])
    assert found["rows"][0] | {"pareto": None} == first["rows"][0] | {"pareto": None}
    assert [row["number"] for row in found["rows"]] == [0, 1, 2, 3]
    plain, *others = found["rows"]
    assert plain["gamma"] == 0
    low, high = tuning.STRENGTHS
    for row in others:
        assert low <= row["gamma"] * (4 - row["first_depth"]) <= high * (1 + 1e-9)
        assert tuning.DECAYS[0] <= row["weight_decay"] <= tuning.DECAYS[1]
        with (Path(row["run"]) / "metrics.csv").open() as file:
            (last,) = csv.DictReader(file)
        assert float(last["val_accuracy"]) == row["val_accuracy"]
    points = {r["number"]: (r["needed_blocks"], -r["val_accuracy"]) for r in found["rows"]}
    beaten = {
        n for n, p in points.items() for o in points.values() if o != p and o[0] <= p[0] and o[1] <= p[1]
    }
    assert {row["number"] for row in found["rows"] if row["pareto"]} == set(points) - beaten
    assert "needed blocks" in records[0].figures()[0].read_text()


@pytest.mark.parametrize(
    "given", [["gamma=1"], ["model=staged"], ["val_fraction=0"]], ids=lambda given: given[0]
)
def test_impossible_searches_are_refused(quick: Quick, given: list[str]) -> None:
    with pytest.raises(ValueError, match="tuning varies gamma of a homogeneous network"):
        quick("tuning", set=given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"set": ["foo=1"]}, "foo"),
        ({"set": ["lr=-1"]}, "lr"),
        ({"trials": 0}, "--trials is 0: give at least 1"),
    ],
)
def test_a_search_of_nothing_is_refused(quick: Quick, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quick("tuning", **options)


def test_the_whole_way(quick: Quick) -> None:
    found, records = quick("runs")
    (record,) = found["records"]
    pruning = record["prune"]
    assert pruning["accuracy_after"] == pruning["accuracy_predicted"]
    assert pruning["accuracy_before"] - pruning["accuracy_after"] <= 1 + 1e-9
    assert record["test_pruned"]["num_blocks"] == len(pruning["kept_blocks"])
    assert f"| digits-homogeneous | {len(pruning['kept_blocks'])} of 4 |" in shown("runs", records)


def test_macs_of_cuts_count_shared_beginnings_once() -> None:
    parts = [100, 1, 2, 4, 8, 1000]
    whole = Cut((0, 1, 2, 3))
    assert macs_of_cuts(parts, [whole]) == sum(parts)
    assert macs_of_cuts(parts, [whole, Cut.first(2)]) == sum(parts)
    assert macs_of_cuts(parts, [whole, Cut((0, 2))]) == sum(parts) + 4  # block 2 once more, on x_1


def test_a_record_of_fewer_seeds_replaces_none(quick: Quick, work: Path) -> None:
    quick("bound", 0)
    with pytest.raises(ValueError, match="holds seed 0, which a record of the seeds 1 would lose"):
        run("bound", "quick", seeds=(1,), work=work)


def test_two_data_sets_are_joined(tmp_path: Path, quick: Quick) -> None:
    """An answer holds the rows of all records, in order."""
    _, (record,) = quick("bound")
    folder = tmp_path / "bound"
    folder.mkdir()
    for name in ("cifar10", "mnist"):
        (folder / f"cpu-{name}.json").write_text(record.file.read_text())
    experiment, records = show("bound", results=tmp_path)
    assert [each["dataset"] for each in answer(experiment, records)["records"]] == ["mnist", "cifar10"]
    assert answer(experiment, records)["rows"] == [*record["rows"], *record["rows"]]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a folder with the weights of the quick tier, which are random."""
    torch.manual_seed(0)
    save_file(library_model("timm/test_resnet").state_dict(), tmp_path / "test_resnet.safetensors")
    return tmp_path


def test_pretrained(quick: Quick, weights: Path) -> None:
    found, records = quick("pretrained", weights=weights)
    rows = {(row["arm"], row["cut"] == "whole"): row for row in found["rows"]}
    assert set(rows) == {
        *((arm, whole) for arm in ("linear", "whole", "joint") for whole in (True, False)),
        ("cut_first", False),
        ("cut_first_taught", False),
    }
    whole = rows["whole", True]
    for (_, is_whole), row in rows.items():
        assert row["num_test"] == 60
        low, high = row["interval"]
        assert low <= row["difference_to_whole"] <= high
        assert row["difference_to_whole"] == pytest.approx(row["mean"] - whole["mean"])
        assert is_whole == (row["macs"] == whole["macs"])
        assert is_whole or row["macs"] <= 0.67 * whole["macs"]
        assert row["latency_ms"] > 0
    assert rows["joint", True]["training_macs"] > whole["training_macs"]
    first, taught = rows["cut_first", False], rows["cut_first_taught", False]
    assert first["training_macs"] < taught["training_macs"] < whole["training_macs"]
    assert taught["training_macs"] - first["training_macs"] == whole["training_macs"] // 3
    assert found["search"][0]["macs"] == 1
    blocks = found["search"][0]["blocks"]
    for trajectory in found["trajectories"]:
        assert trajectory["arm"] in ("whole", "joint")
        assert len(trajectory["accuracies"]) == len(blocks) + 1
    assert "above whole" in shown("pretrained", records)


def test_some_arms_of_pretrained(weights: Path, tmp_path: Path, work: Path) -> None:
    """What has nothing to be compared with is told alone; comparisons are never lost."""

    def of_arms(arms: str, results: Path = tmp_path / "none") -> list[Record]:
        options = {"weights": weights, "arms": arms}
        return run("pretrained", "quick", seeds=(0,), work=work, results=results, options=options)[1]

    some = tmp_path / "some"
    records = of_arms("joint,cut_first", some)
    assert {(row["arm"], row["difference_to_whole"]) for row in records[0]["rows"]} == {
        ("joint", None),
        ("cut_first", None),
    }
    pairs = [(row["first"], row["second"]) for row in records[0]["comparisons"]]
    assert pairs == [("joint, cut", "joint, whole"), ("joint, cut", "cut_first, cut")]
    assert "joint, cut | cut_first, cut" in shown("pretrained", records)
    with pytest.raises(StageCostError, match="compares cut_first with other arms"):
        of_arms("joint", some)
    with pytest.raises(StageCostError, match="learns from whole"):
        of_arms("cut_first_taught")
    with pytest.raises(StageCostError, match="choose from linear, whole, joint"):
        of_arms("joint_norms")


def test_stretches_are_judged_with_heads_of_their_own(
    context: Context, weights: Path, tmp_path: Path
) -> None:
    options = {"weights": weights}
    case = Case.of(replace(context, dataset="digits-tiny", work=tmp_path / "work", options=options))
    scores = stretches(case)
    num_blocks = case.network(case.fitted(SEED_OF_CHOICE)).num_blocks
    gone = math.ceil(num_blocks / 3)
    assert [set(range(num_blocks)) - set(score.cut.blocks) for score in scores] == [
        set(range(first, first + gone)) for first in range(num_blocks - gone + 1)
    ]
    fitted = case.network(case.fitted(SEED_OF_CHOICE, scores[1].cut))
    bundle = case.bundle(SEED_OF_CHOICE)
    score = terminal_score(fitted, eval_batches(bundle.splits["val"], bundle.format))
    assert (score.loss, score.accuracy) == pytest.approx((scores[1].loss, scores[1].accuracy))
    blocks, other = score.cut.to_json(), scores[0].cut.to_json()
    tried = [(blocks, 5.0, 0.5), (other, 9.0, 0.1), (other, 1.0, 0.7)]
    assert (
        best([dict(zip(("blocks", "loss", "macs"), each, strict=True)) for each in tried]) == score.cut
    )


@pytest.mark.skipif(not is_installed("torch-pruning"), reason="needs the extra peers")
def test_channels_go_until_the_macs_are_those_of_the_cut() -> None:
    shape, network = (3, 32, 32), create_model("cifar_resnet", blocks_per_stage=(2, 2, 2))
    whole, cut = count_macs(network, shape), network.resolve(Cut.stages(1, 1, 1))
    small = with_fewer_channels(network, shape, cut)
    assert (
        0.9 * count_macs(network, shape, cut)
        < count_macs(small, shape)
        <= count_macs(network, shape, cut)
    )
    assert small.num_blocks == 6
    assert small(torch.zeros(2, *shape)).shape == (2, 10)
    assert count_macs(network, shape) == whole


def test_models_from_scratch(quick: Quick) -> None:
    found, records = quick("from-scratch")
    (row,) = found["rows"]
    assert len(row["trajectory"]) == row["num_blocks"] + 1
    assert row["trajectory"][-1] == pytest.approx(row["val_accuracy_before"])
    assert row["val_accuracy_after"] >= row["val_accuracy_before"] - 2
    cut = len(row["kept_blocks"]) < row["num_blocks"]
    assert cut == (row["macs_after"] < row["macs_before"])
    assert row["num_test"] == 60
    assert "test_resnet" in shown("from-scratch", records)


def test_order_gives_names_only_where_the_shapes_are_those() -> None:
    names = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    tensors = {"x": torch.ones(2, 3), "y": torch.ones(4)}
    named = by_order(tensors, names)
    assert list(named) == ["a", "b"]
    assert torch.equal(named["b"], tensors["y"])
    with pytest.raises(StageCostError, match="map them by name"):
        by_order({"x": torch.ones(3, 2), "y": torch.ones(4)}, names)


def test_the_resnets_of_cifar_are_adapted() -> None:
    network = create_model("cifar_resnet", blocks_per_stage=(2, 2, 2))
    assert network.blocks_per_stage == (2, 2, 2)
    assert "layer3.1.bn2.weight" in network.state_dict()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(images), network.get_submodule("model")(images))


def test_steps_of_adapted_models(quick: Quick) -> None:
    found, records = quick("adapted-steps", rounds=3)
    arms = [row["arm"] for row in found["rows"]]
    assert arms == ["one output", "three outputs", "one output in a sixteenth of the steps"]
    for row in found["rows"]:
        low, high = row["quartiles"]
        assert 0.3 < low <= row["ratio"] <= high < 10
    assert "timm/test_vit" in shown("adapted-steps", records)


def test_what_is_run_again_is_compared_with_its_record(quick: Quick, work: Path) -> None:
    """The same code and the same seed: the same numbers."""
    quick("importance")
    _, records = run("again", "quick", dataset="importance-digits", work=work)
    rows = records[0]["rows"]
    assert [row["row"] for row in rows] == ["stage cost", "plain"]
    assert all(row["again"] == row["same_seeds"] == row["recorded"] for row in rows)
    assert "| importance-digits | stage cost | rank correlation | " in shown("again", records)


def test_what_cannot_be_compared_is_refused_before_it_is_run(tmp_path: Path) -> None:
    dataset = "importance-digits"
    with pytest.raises(StageCostError, match="make it by `python -m experiments run importance"):
        run("again", "quick", dataset=dataset, work=tmp_path)
    run("importance", "quick", seeds=(0, 3), work=tmp_path)
    with pytest.raises(StageCostError, match="has no seed 7 to compare with: give --seeds of 0,3"):
        run("again", "quick", dataset=dataset, seeds=(3, 7), work=tmp_path)
