"""Answers for single images: the pixels are those of an evaluation, whatever kind of image is given."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stagecost as sc
from helpers import build
from processes import CommandLine
from stagecost.prediction import ClassProbability, Prediction, decode, image_format_of, predict
from stagecost.runs.prediction import predict_files
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train

CLASSES = ("dark", "bright")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of several kinds and sizes; those of the splits are in folders of their own."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for place, name in enumerate(CLASSES):
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(count):
                size = (24 + number % 3, 24 + number % 5, 3)
                pixels = rng.integers(100 * place, 100 * place + 150, size, dtype=np.uint8)
                picture = Image.fromarray(pixels)
                if number % 4 == 0:
                    picture.putalpha(128)
                if number % 6 == 1:
                    exif = Image.Exif()
                    exif[0x0112] = 6
                    picture.save(target / f"{number:02}.jpg", exif=exif)
                else:
                    picture.save(target / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = {"num_blocks": 2, "width": 4, "epochs": 2, "batch_size": 16, "image_size": 20}
    train({"data": str(photos), "device": "cpu", **settings}, folder)
    return folder


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "small"
    trained = open_trained(run)
    trained.network.keep(sc.Cut.first(1)).save_pretrained(folder)
    return folder


def test_the_outputs_are_those_of_an_evaluation(photos: Path, run: Path) -> None:
    trained = open_trained(run, device="cpu")
    expected = torch.cat([trained.network(batch) for batch, _ in trained.batches("test")]).softmax(1)
    answer = predict_files(run, [photos / "test"], top_k=2, device="cpu")
    assert answer.class_names == ("bright", "dark")
    assert answer.num_images == len(expected) == 24
    given = [{one.label: one.probability for one in row.top} for row in answer.predictions]
    assert [[row["bright"], row["dark"]] for row in given] == expected.tolist()
    assert [row.label for row in answer.predictions] == [
        answer.class_names[k] for k in expected.argmax(1).tolist()
    ]
    assert [row.path for row in answer.predictions] == [
        str(path) for path in sorted((photos / "test").rglob("*.*"))
    ]


def test_a_saved_network_carries_what_it_needs(photos: Path, small: Path) -> None:
    network = sc.load(small)
    path = photos / "test" / "dark" / "02.png"
    one = network.predict(path, top_k=1)
    assert one == network.predict(str(path), top_k=1)
    assert one == Prediction(str(path), one.label, one.probability, one.top)
    assert one.top == (ClassProbability(one.label, one.probability),)
    # The same picture, open already, and its bytes.
    with Image.open(path) as picture:
        several = network.predict([path, picture, np.asarray(picture)], top_k=1)
        assert picture.size == (26, 26)
    assert [each.path for each in several] == [str(path), "image 1", "image 2"]
    assert len({each.probability for each in several}) == 1
    again = network.keep(sc.Cut.whole()).predict(path, top_k=1)
    assert again.probability == pytest.approx(one.probability, abs=1e-6)


def test_broken_images_are_named_together_or_left_out(photos: Path, small: Path, tmp_path: Path) -> None:
    good, text, deep = photos / "test" / "dark" / "02.png", tmp_path / "notes.png", tmp_path / "deep.png"
    text.write_text("no picture")
    Image.fromarray(np.full((20, 20), 9000, np.uint16)).save(deep)
    paths = [good, text, tmp_path / "gone.png", deep]
    with pytest.raises(sc.StageCostError) as refused:
        sc.load(small).predict(paths)
    message = str(refused.value)
    assert message.startswith("3 images cannot be decoded")
    for part in ("notes.png", "gone.png (there is no such file)", "deep.png (more than 8 bits"):
        assert part in message
    answer = predict_files(small, paths, skip_broken=True, device="cpu")
    assert [row.path for row in answer.predictions] == [str(good)]
    assert len(answer.warnings) == 3
    # What is left does not depend on what was left out beside it.
    (alone,) = predict_files(small, [good], device="cpu").predictions
    assert answer.predictions[0] == alone
    with pytest.raises(sc.StageCostError, match=r"cannot be decoded: .*, or give one that can$"):
        predict_files(small, [text], skip_broken=True, device="cpu")


def test_a_pipe_gets_the_rows_and_stays(photos: Path, small: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "rows"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    predict_files(small, [photos / "test" / "dark" / "02.png"], csv_file=pipe, device="cpu")
    assert os.read(reader, 4096).startswith(b"path,label,probability,")
    os.close(reader)
    assert pipe.is_fifo()


def test_rows_replace_earlier_rows_and_nothing_else(photos: Path, small: Path, tmp_path: Path) -> None:
    image = Path(shutil.copy(photos / "test" / "dark" / "02.png", tmp_path))
    rows, content = tmp_path / "rows.csv", image.read_bytes()
    rows.touch()
    for _ in range(2):
        predict_files(small, [image], csv_file=rows, device="cpu")
    with pytest.raises(sc.StageCostError, match=r"02\.png holds something else already"):
        predict_files(small, [image], csv_file=image, device="cpu")  # as of --csv *.png
    assert image.read_bytes() == content


def test_images_of_more_bits_are_scaled_as_in_training() -> None:
    network = build("homogeneous", in_channels=1, num_classes=2)
    numbers = {"channels": 1, "size": 4, "mean": [0.5], "std": [0.5]}
    network.details["image_format"] = {**numbers, "class_names": ["a", "b"], "levels": [0, 4095]}
    pictures = [np.full((4, 4), 4095, np.uint16), np.full((4, 4), 2048, np.uint16)]
    pixels = decode(pictures, image_format_of(network))
    assert pixels.array[:, 0, 0, 0].tolist() == [255, 128]
    assert (pixels.kept.tolist(), pixels.broken) == ([0, 1], ())
    assert predict(network, pictures)[1] == []
    with pytest.warns(UserWarning, match="some have brighter or darker pixels"):
        network.predict(np.full((4, 4), 9000, np.uint16))
    network.details["image_format"]["class_names"] = ["a", "b", "c"]
    with pytest.raises(sc.StageCostError, match="has 2 outputs, and its image format names 3 classes"):
        predict(network, pictures)
    network.details["image_format"]["class_names"] = ["a", "b"]
    network.head.linear.bias.data.fill_(torch.inf)
    with pytest.raises(sc.StageCostError, match="are no numbers"):
        predict(network, pictures)


@pytest.mark.parametrize(
    "image",
    [
        *(None, 7, torch.zeros(3, 4, 4), np.zeros((2, 3, 4, 5), np.uint8)),
        *(np.zeros((0, 4), np.uint8), Image.new("RGB", (0, 5))),
    ],
)
def test_what_is_no_image_is_refused(small: Path, image: object) -> None:
    with pytest.raises(sc.StageCostError, match="cannot be decoded: image 0"):
        sc.load(small).predict(image)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_answers(precision: torch.dtype) -> None:
    network, picture = build("homogeneous"), np.full((16, 16, 3), 9, np.uint8)
    network.details["image_format"] = {
        "channels": 3, "size": 16, "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": list("abcde"),
    }  # fmt: skip
    single = network.predict(picture)
    assert network.to(precision).predict(picture).probability == pytest.approx(
        single.probability, rel=0.05
    )


def test_of_equal_classes_the_first_is_the_answer() -> None:
    """As in an evaluation: in bfloat16 outputs are often equal."""
    network, names = build("homogeneous", num_classes=10), [f"class {k}" for k in range(10)]
    network.details["image_format"] = {
        "channels": 3, "size": 16, "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": names,
    }  # fmt: skip
    network.head.linear.weight.data.zero_()
    network.head.linear.bias.data.copy_(torch.tensor([0.0, 0, 1, 0, 1, 1, 0, 1, 1, 1]))
    answer = network.predict(np.full((16, 16, 3), 9, np.uint8), top_k=7)
    assert [int(one.label[-1]) for one in answer.top] == [2, 4, 5, 7, 8, 9, 0]


def test_a_network_that_does_not_know_its_images_says_so() -> None:
    with pytest.raises(sc.StageCostError, match="does not say how its images are prepared"):
        build("homogeneous").predict("cat.jpg")


def test_the_command_line(photos: Path, small: Path, cli: CommandLine, tmp_path: Path) -> None:
    folder, table = photos / "test" / "bright", tmp_path / "answers" / "all.csv"
    answer = cli("predict", small, folder, "--top-k", 2, "--csv", table, "--json").answer
    assert list(answer) == ["predictions", "num_images", "class_names", "warnings", "classes"]
    assert list(answer["predictions"][0]) == ["path", "label", "probability", "top"]
    assert list(answer["predictions"][0]["top"][0]) == ["label", "probability"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["path", "label", "probability", "label_2", "probability_2"]
    assert [row["label"] for row in rows] == [one["label"] for one in answer["predictions"]]
    assert float(rows[0]["probability"]) == answer["predictions"][0]["probability"]
    shown = cli("predict", small, folder / "02.png", "--top-k", 1)
    assert shown.stdout.split()[0].endswith("02.png")
    assert shown.stdout.split()[-1] == "%"


def test_paths_come_from_standard_input(
    photos: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    from stagecost.cli.main import main

    path = photos / "test" / "bright" / "02.png"
    monkeypatch.setattr("sys.stdin", None)  # as Python has it where it was closed
    with pytest.raises(SystemExit) as refused:
        main(["predict", str(small), "-"])
    assert refused.value.code == 2
    assert "standard input is closed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{path}\n\n{path}\r\n"))
    main(["predict", str(small), "-", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["num_images"] == 3
    for listed, words in {"\n": "names no image", "a" * 5000: "name is too long"}.items():
        monkeypatch.setattr("sys.stdin", io.StringIO(listed))
        with pytest.raises(SystemExit):
            main(["predict", str(small), "-", "--json"])
        assert words in json.loads(capsys.readouterr().out)["error"]


def test_refusals_are_one_line(small: Path, cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no image files" in cli("predict", small, tmp_path / "empty").refusal
    assert "--top-k is 0" in cli("predict", small, tmp_path / "x.png", "--top-k", 0).refusal
    assert "there is no such file" in cli("predict", small, tmp_path / "x.png").refusal
    assert "--c_d.png (there is no such file)" in cli("predict", small, "--", "--c_d.png").refusal
    assert "missing: images" in cli("predict", small).refusal
    assert "path of an image is empty" in cli("predict", small, "").refusal
    assert "is no folder" in cli("predict", tmp_path / "none", tmp_path / "x.png").refusal
