"""What notebooks show, the Hub, scikit-learn."""

import json
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import stagecost as sc
from helpers import build, images, loader
from stagecost.errors import StageCostError
from stagecost.integrations.hub import HubNetwork
from stagecost.integrations.scikit import StageCostClassifier


def test_notebooks_show_network_plan_and_trajectory() -> None:
    network, batches = build("homogeneous"), loader()
    trajectory = sc.loss_trajectory(network, batches)
    plan = sc.plan_pruning(network, trajectory, keep=2)
    shown = network._repr_html_()
    assert "homogeneous: 4 blocks" in shown
    assert "<td>0-3</td>" in shown
    assert f"<td>{trajectory.losses[3]:.4g}</td>" in trajectory._repr_html_()
    assert f"<td>{plan.parameters_after:,}</td>" in plan._repr_html_()
    chart = trajectory.plot()
    assert "accuracy" in chart.title
    assert chart._repr_svg_().startswith("<svg")
    assert chart.png().startswith(b"\x89PNG")


def test_without_accuracies_the_loss_is_shown() -> None:
    network = build("homogeneous")
    batches = [(x, torch.zeros(len(x), 5)) for x, _ in loader()]
    trajectory = sc.loss_trajectory(network, batches, loss=torch.nn.functional.mse_loss)
    assert trajectory.plot().title == "loss"
    assert "nan" not in trajectory._repr_html_().lower()


def test_a_network_goes_to_the_hub_with_a_card_that_is_filled_in(tmp_path: Path) -> None:
    network, batches = build("homogeneous"), loader()
    trajectory = sc.loss_trajectory(network, batches)
    plan = sc.plan_pruning(network, trajectory, keep=2)
    told = HubNetwork(
        network,
        trajectory=trajectory,
        plan=plan,
        controls={"trained alone": 51.25},
        data="noise",
        licence="mit",
    )
    sent = {}

    def upload_folder(**call: object) -> str:
        sent.update({p.name: p.read_bytes() for p in Path(str(call["folder_path"])).iterdir()})
        return "https://example.org"

    with mock.patch("huggingface_hub.hub_mixin.HfApi") as api:
        api.return_value.create_repo.return_value.repo_id = "me/net"
        api.return_value.upload_folder = upload_folder
        told.push_to_hub("me/net")
    assert sent.keys() == {"model.safetensors", "config.json", "README.md", "depth.png"}
    card = ModelCard(sent["README.md"].decode())
    assert {"license": "mit", "library_name": "stagecost"}.items() <= card.data.to_dict().items()
    for k in range(5):
        assert f"| {k} | {trajectory.losses[k]:.4g} | {trajectory.accuracies[k]:.2f} % |" in card.text
    told_of_plan = f"Not cut; a plan could: {plan.summary}"
    for text in ("trained alone | 51.25 %", "Data: noise", told_of_plan, "(depth.png)"):
        assert text in card.text
    assert "unknown" not in card.text
    for name, content in sent.items():
        (tmp_path / name).write_bytes(content)
    files = mock.patch("stagecost.integrations.hub.snapshot_download", return_value=tmp_path)
    with files as fetch:
        again = HubNetwork.from_pretrained("me/net").network
    assert fetch.call_args.args == ("me/net",)
    assert torch.equal(again(images()), network.eval()(images()))


def test_a_card_says_which_depths_it_has_and_what_its_figure_shows() -> None:
    network = build("homogeneous", num_blocks=20)
    batches = [(x, torch.zeros(len(x), 5)) for x, _ in loader()]
    trajectory = sc.loss_trajectory(network, batches, loss=torch.nn.functional.mse_loss)
    card = str(HubNetwork(network, trajectory=trajectory).generate_model_card())
    assert "17 of 21 depths, on 13 samples" in card
    assert "![loss over depth" in card.lower()
    assert "Every depth" not in card


def test_what_is_not_known_is_said_to_be_unknown(tmp_path: Path) -> None:
    network = build("homogeneous")
    HubNetwork(network).save_pretrained(tmp_path / "net")
    card = (tmp_path / "net" / "README.md").read_text()
    for text in ("Not measured", "None was trained", "Licence: not stated"):
        assert text in card
    again = HubNetwork.from_pretrained(tmp_path / "net").network
    assert torch.equal(again(images()), network.eval()(images()))
    other = sc.loss_trajectory(build("homogeneous"), loader())
    with pytest.raises(StageCostError, match="of 4 blocks, and the network has 3"):
        HubNetwork(again.keep(sc.Cut.first(3)), trajectory=other)
    plan = sc.plan_pruning(build("homogeneous"), other, keep=2)
    with pytest.raises(StageCostError, match="plan keeps the blocks 0-1, and the network has 0-2"):
        HubNetwork(again.keep(sc.Cut.first(3)), plan=plan)
    HubNetwork(network.keep(plan.cut), plan=plan).save_pretrained(tmp_path / "small")
    assert f"Cut by a plan: {plan.summary}" in (tmp_path / "small" / "README.md").read_text()
    for error in (OSError("offline"), Exception("407 Proxy Authentication Required")):
        offline = mock.patch("stagecost.integrations.hub.snapshot_download", side_effect=error)
        with offline, pytest.raises(StageCostError, match="me/net cannot be loaded from the Hub"):
            HubNetwork.from_pretrained("me/net")


@pytest.mark.parametrize("content", ["[]", "null", "5", "[" * 100_000])
def test_a_folder_of_the_hub_that_is_damaged(content: str, tmp_path: Path) -> None:
    build("homogeneous").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(StageCostError, match=r"config\.json"):
        HubNetwork.from_pretrained(tmp_path)


def test_details_may_be_called_as_what_a_card_tells(tmp_path: Path) -> None:
    network, details = build("homogeneous"), {"data": "digits", "licence": "mit", "plan": {"keep": 2}}
    network.save_pretrained(tmp_path, **details)
    files = mock.patch("stagecost.integrations.hub.snapshot_download", autospec=True)
    with files as fetch:
        fetch.return_value = str(tmp_path)
        for name in ("me/net", tmp_path):
            again = HubNetwork.from_pretrained(name).network
            assert again.details == details
            assert torch.equal(again(images()), network.eval()(images()))


def test_what_the_hub_does_not_get_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    network, batches = build("homogeneous"), loader()
    trajectory = sc.loss_trajectory(network, batches)
    HubNetwork(network, trajectory=trajectory, data="first").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    odd, narrow = build("homogeneous"), sc.create_model("homogeneous", num_blocks=4, in_channels=1)
    odd.details["share"] = float("nan")
    for told, words in (
        (HubNetwork(odd, data="second"), "details are no JSON"),
        (HubNetwork(narrow, trajectory=trajectory), "images have 3 channels"),
    ):
        with pytest.raises(StageCostError, match=words):
            told.save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(StageCostError, match=r"controls are no accuracies .*give percents by name"):
        HubNetwork(network, controls={"alone": "none"})  # type: ignore[dict-item]
    HubNetwork(network, data="third").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Data: third" in card
    assert "Not measured" in card
    assert not (tmp_path / "depth.png").exists()  # it showed the first


def test_what_was_found_of_an_earlier_network_goes_with_it(tmp_path: Path) -> None:
    names = {"images.json", "latency.json", "exit.json", "exit_policy.json", "own.txt"}
    for name in names:
        (tmp_path / name).write_text("{}")

    def left() -> set[str]:
        return names & {path.name for path in tmp_path.iterdir()}

    HubNetwork(build("homogeneous")).save_pretrained(tmp_path)
    for _ in range(8):  # a card for the same network; no file is twice the same, to the last byte
        HubNetwork(sc.load(tmp_path)).save_pretrained(tmp_path)
    assert left() == names
    other = sc.load(tmp_path)
    with torch.no_grad():
        other.head.linear.bias[0] += 1
    HubNetwork(other).save_pretrained(tmp_path)
    assert left() == {"own.txt"}


def test_a_damaged_file_of_weights_is_that_of_another_network(tmp_path: Path) -> None:
    for name in ("model.safetensors", "latency.json"):
        (tmp_path / name).write_text("{}")
    HubNetwork(build("staged")).save_pretrained(tmp_path)
    assert not (tmp_path / "latency.json").exists()


SMALL = {"num_blocks": 3, "width": 8, "epochs": 8, "lr": 0.02}


def test_a_classifier_keeps_the_rules_of_scikit_learn() -> None:
    classifier = StageCostClassifier(num_blocks=2, width=8, epochs=8, lr=0.04, batch_size=16)
    check_estimator(classifier, on_skip=None)


def test_rows_are_learned_in_a_pipeline_and_blocks_go(tmp_path: Path) -> None:
    rows, classes = load_breast_cancer(return_X_y=True)
    names = np.array(["bad", "good"])[classes]
    classifier = make_pipeline(StandardScaler(), StageCostClassifier(max_drop=1.0, **SMALL))
    assert clone(classifier[-1]).get_params() == classifier[-1].get_params()
    assert cross_val_score(classifier, rows, names, cv=2).min() > 0.93
    fitted = classifier.fit(rows, names)[-1]
    assert fitted.network_.num_blocks == len(fitted.plan_.kept_blocks) < 3
    again = pickle.loads(pickle.dumps(classifier))
    assert (again.predict(rows) == classifier.predict(rows)).all()
    fitted.save_pretrained(tmp_path / "table")
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"config.json", "model.safetensors"}
    loaded = StageCostClassifier.from_pretrained(tmp_path / "table")
    scaled = classifier[0].transform(rows)
    assert loaded.get_params() == fitted.get_params()
    assert (loaded.predict_proba(scaled) == fitted.predict_proba(scaled)).all()
    assert (loaded.predict(scaled) == classifier.predict(rows)).all()
    build("homogeneous").save_pretrained(tmp_path / "network")
    for folder, reason in (("network", "holds no classifier"), ("none", "holds no saved network")):
        with pytest.raises(StageCostError, match=reason):
            StageCostClassifier.from_pretrained(tmp_path / folder)


def test_images_have_the_size_of_fit(tmp_path: Path) -> None:
    pictures, classes = np.random.default_rng(0).random((20, 1, 8, 8)), np.arange(20) % 2
    fitted = StageCostClassifier(**SMALL | {"epochs": 1}).fit(pictures, classes)
    fitted.save_pretrained(tmp_path)
    for classifier in (fitted, StageCostClassifier.from_pretrained(tmp_path)):
        assert classifier.predict(pictures).shape == (20,)
        with pytest.raises(StageCostError, match=r"samples of \(1, 9, 8\), not \(1, 8, 8\) as in fit"):
            classifier.predict(np.ones((3, 1, 9, 8)))


@pytest.mark.parametrize("change", [{"labels": [0, 1]}, {"labels": 5}, {"spread": [[1.0, 1.0, 1.0]]}])
def test_a_classifier_of_other_labels_or_columns_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    StageCostClassifier(**SMALL | {"epochs": 1}).fit(*load_iris(return_X_y=True)).save_pretrained(
        tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["classifier"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageCostError, match=r"holds no classifier \(labels, means or spreads"):
        StageCostClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize(("unit", "offset"), [(1e-9, 0.0), (1.0, 1.7e9)])
def test_the_unit_of_a_feature_does_not_matter(unit: float, offset: float) -> None:
    rows, classes = load_iris(return_X_y=True)
    rows = rows * unit + offset
    options = {"num_blocks": 2, "width": 16, "epochs": 15, "lr": 5e-3}
    assert StageCostClassifier(**options).fit(rows, classes).score(rows, classes) > 0.85


def test_columns_of_a_loaded_classifier_are_told_by_name(tmp_path: Path) -> None:
    frame, classes = load_iris(return_X_y=True, as_frame=True)
    fitted = StageCostClassifier(**SMALL | {"epochs": 1}, random_state=None).fit(frame, classes)
    fitted.save_pretrained(tmp_path)
    loaded = StageCostClassifier.from_pretrained(tmp_path)
    assert (loaded.predict(frame) == fitted.predict(frame)).all()
    with pytest.raises(ValueError, match="same order"):
        loaded.predict(frame[frame.columns[::-1]])
    with pytest.raises(StageCostError, match="too far from what was fitted"):
        loaded.predict(frame * 1e200)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("width", 2.5),
        ("validation_fraction", 0),
        ("lr", 0),
        ("device", "x"),
        ("device", "meta"),
        ("device", None),
        ("max_drop", "a"),
        ("gamma", "a"),
        ("weight_decay", None),
    ],
)
def test_impossible_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(StageCostError, match=f"^{name} is {value!r}: give "):
        StageCostClassifier(**SMALL | {name: value}).fit(np.eye(4), [0, 1, 0, 1])


def test_a_classifier_is_loaded_where_its_device_is_not(tmp_path: Path) -> None:
    rows, classes = load_iris(return_X_y=True)
    fitted = StageCostClassifier(**SMALL).fit(rows, classes)
    fitted.set_params(device="meta").save_pretrained(tmp_path)  # in the place of an absent one
    loaded = StageCostClassifier.from_pretrained(tmp_path)
    assert loaded.device == "cpu"
    assert (loaded.predict(rows) == fitted.set_params(device="cpu").predict(rows)).all()


def test_parameters_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    """As searches of scikit-learn hand them out."""
    rows, classes = load_iris(return_X_y=True)
    sizes = {name: np.int64(2) for name in ("num_blocks", "width", "epochs")} | {
        "batch_size": np.int64(32)
    }
    fitted = StageCostClassifier(**sizes, validation_fraction=np.float32(0.25)).fit(rows, classes)
    fitted.save_pretrained(tmp_path)
    assert (StageCostClassifier.from_pretrained(tmp_path).predict(rows) == fitted.predict(rows)).all()


def test_more_samples_may_be_kept_apart_than_trained_on() -> None:
    rows, classes = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 10
    small = SMALL | {"validation_fraction": 0.6}
    assert len(StageCostClassifier(**small).fit(rows, classes).predict(rows)) == 20


def test_images_are_learned() -> None:
    digits = load_digits()
    pictures = digits.images[:600, None]
    classifier = StageCostClassifier(**SMALL, batch_size=16).fit(pictures, digits.target[:600])
    assert classifier.score(digits.images[600:900, None], digits.target[600:900]) > 0.8
    assert classifier.network_.description.name == "homogeneous"
    with pytest.raises(ValueError, match="64 features"):
        classifier.predict(digits.data[:5])


@pytest.mark.parametrize(
    ("rows", "labels", "reason"),
    [
        (np.zeros((4, 2, 2)), [0, 1, 0, 1], "images"),
        (np.zeros((4, 2)), [1] * 4, "one class"),
        (np.eye(4) * 1e300, [0, 1, 0, 1], "squares are infinite"),
    ],
)
def test_what_cannot_be_learned_is_refused(rows: object, labels: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StageCostClassifier(**SMALL).fit(rows, labels)


def test_a_fit_that_is_refused_leaves_nothing_that_answers() -> None:
    rows, classes = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 2
    classifier = StageCostClassifier(**SMALL | {"epochs": 1}).fit(rows, classes)
    with pytest.raises(StageCostError, match="lr is -1"):
        classifier.set_params(lr=-1).fit(100 + 50 * rows, np.where(classes == 1, "a", "b"))
    with pytest.raises(NotFittedError):
        classifier.predict(rows)
    assert not hasattr(classifier, "plan_")
