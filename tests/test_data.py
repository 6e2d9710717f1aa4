"""Loading images, splitting them, and making batches of them."""

import gzip
import logging
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagecost.data import decoding, hub, idx, known, sources
from stagecost.data.augmentation import Augmentation
from stagecost.data.batches import epoch_batches, eval_batches, num_batches
from stagecost.data.config import DataConfig
from stagecost.data.images import ImageFormat, ImageSplit, normalise
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError

SHARED = Path(__file__).parents[2] / "shared" / "data"
GREY = ImageFormat(1, 4, (0.4,), (0.25,), ("a", "b"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def refuse(match: str, config: DataConfig, **options: Any) -> str:
    """Expect a one-line refusal."""
    with pytest.raises(StageCostError, match=match) as caught:
        load_data(config, **({"seed": 0} | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(first: ImageSplit, second: ImageSplit) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)


def rows_of(split: ImageSplit) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def numbered(count: int, channels: int = 1, size: int = 4) -> ImageSplit:
    """A split whose images and targets all tell their number, which is below 256."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, size, size)
    return ImageSplit(images.contiguous(), numbers)


# -- digits: sizes, splits, limits ------------------------------------------------------------


def test_digits() -> None:
    bundle = load_data(DataConfig("digits"), seed=0)
    assert {name: len(split) for name, split in bundle.splits.items()} == {
        "train": 1293,
        "val": 144,
        "test": 360,
    }
    train = bundle.splits["train"]
    assert train.images.shape == (1293, 1, 8, 8)
    assert (train.images.dtype, train.targets.dtype) == (torch.uint8, torch.int64)
    assert train.images.max() == 255
    assert (bundle.name, bundle.num_classes) == ("digits", 10)
    assert bundle.augmentation == Augmentation(pad=0, flip=False)
    assert bundle.splits["test"].targets.bincount().min() >= 34  # stratified


def test_statistics_are_those_of_the_training_images_whatever_is_held_out() -> None:
    without = load_data(DataConfig("digits", val_fraction=0), seed=0)
    pixels = without.splits["train"].images.double() / 255
    assert without.format.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert without.format.std[0] == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)
    assert load_data(DataConfig("digits", val_fraction=0.5), seed=3).format == without.format


def test_validation_depends_on_the_seed_and_test_does_not() -> None:
    first, again, other = (load_data(DataConfig("digits"), seed=seed).splits for seed in (1, 1, 2))
    assert all(same(first[name], again[name]) for name in first)
    assert same(first["test"], other["test"])
    assert rows_of(first["val"]) != rows_of(other["val"])


@pytest.mark.parametrize("splits", [("val",), ("train", "val"), ("test",), ("test", "train")])
def test_a_split_is_the_same_whatever_else_is_asked_for(splits: tuple[str, ...]) -> None:
    config = DataConfig("digits", limit_train=300, limit_test=50)
    everything = load_data(config, seed=5)
    some = load_data(config, seed=5, splits=splits)
    assert set(some.splits) == set(splits)
    assert some.format == everything.format
    assert all(same(some.splits[name], everything.splits[name]) for name in splits)
    like = load_data(config, seed=5, splits=splits, like=everything.format)
    assert all(same(like.splits[name], everything.splits[name]) for name in splits)


@settings(max_examples=25, deadline=None)
@given(
    fraction=st.floats(0, 0.99),
    limit=st.integers(1, 2000) | st.none(),
    seed=st.integers(0, 2**70),
)
def test_validation_is_disjoint_and_of_the_right_size(
    fraction: float, limit: int | None, seed: int
) -> None:
    from stagecost.data.sources import open_source
    from stagecost.data.splits import choose_rows

    config = DataConfig("digits", val_fraction=fraction, limit_train=limit)
    count = min(limit or 1437, 1437)
    held_out = round(fraction * count)
    if held_out == count:
        with pytest.raises(StageCostError, match="leaves none for training"):
            choose_rows(open_source("digits"), config, seed)
        return
    rows = {
        k: set(v.index.tolist()) for k, v in choose_rows(open_source("digits"), config, seed).items()
    }
    assert len(rows.get("val", ())) == held_out
    assert len(rows["train"]) == count - held_out
    assert len(rows["test"]) == 360
    assert not rows["train"] & rows.get("val", set())
    assert not (rows["train"] | rows.get("val", set())) & rows["test"]


def test_limits() -> None:
    bundle = load_data(
        DataConfig("digits", limit_train=100, limit_test=10**6, val_fraction=0.25), seed=0
    )
    assert [len(bundle.splits[name]) for name in ("train", "val", "test")] == [75, 25, 360]
    few = [load_data(DataConfig("digits", limit_test=7), seed=seed) for seed in (0, 1)]
    assert same(few[0].splits["test"], few[1].splits["test"])


def test_no_validation() -> None:
    config = DataConfig("digits", val_fraction=0)
    assert set(load_data(config, seed=0).splits) == {"train", "test"}
    refuse(r"--val-fraction 0\.1", config, splits=("val",))
    refuse(
        r"0\.1 of 4 .* leaves none for validation", DataConfig("digits", limit_train=4), splits=("val",)
    )


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (DataConfig(), "say which images to use: --data digits"),
        (DataConfig("digits", val_fraction=1.0), r"val_fraction 1\.0"),
        (DataConfig("digits", val_fraction=-0.1), r"val_fraction -0\.1"),
        (DataConfig("digits", val_fraction=float("nan")), "val_fraction nan"),
        (DataConfig("digits", limit_train=1, val_fraction=0.9), "none for training"),
        (DataConfig("digits", limit_train=0), "limit_train 0"),
        (DataConfig("digits", limit_test=-1), "limit_test -1"),
        (DataConfig("digits", image_size=0), "image_size 0"),
        (DataConfig("digits", augment="heavy"), "augment 'heavy'"),  # type: ignore[arg-type]
        (DataConfig("./nowhere"), "data folder ./nowhere does not exist"),
        (DataConfig("a/b/c"), "data folder a/b/c does not exist"),
        (DataConfig("~/no such folder"), "does not exist"),
        (DataConfig("digit"), "'digit' is not to be had from the Hugging Face Hub"),
        (DataConfig("nobody/nothing"), "'nobody/nothing' .* check the spelling and the network"),
    ],
)
def test_refusals(config: DataConfig, match: str) -> None:
    refuse(match, config)


def test_other_refusals() -> None:
    refuse("seed -1", DataConfig("digits"), seed=-1)
    refuse("split 'tset' is unknown", DataConfig("digits"), splits=("tset",))


def test_a_known_name_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("datasets.load_dataset", lambda path, **_: asked.append(path) or {})
    monkeypatch.setattr(sources, "FASHION_FOLDER", Path("/nonexistent"))
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100", "someone/something"):
        refuse("no split of a known name", DataConfig(name))
    assert asked == [*known.HUB_IDS.values(), "someone/something"]


# -- folders of class directories -------------------------------------------------------------


def save_images(folder: Path, count: int, sizes: list[tuple[int, int]], mode: str, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(folder).encode()))
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        shape = (height, width) if mode == "L" else (height, width, 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"test_{number}{suffix}")


def test_class_directories_with_images_of_all_sizes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    save_images(folder / "bus", 10, [(30, 20), (90, 70)], "RGB", ".jpg")
    save_images(folder / "train", 10, [(50, 80)], "L", ".png")  # a class, not a split
    (folder / "notes.txt").write_text("not an image")
    with caplog.at_level(logging.INFO, logger="stagecost"):
        bundle = load_data(DataConfig(str(folder)), seed=0)
    assert bundle.format.class_names == ("bus", "train")
    assert (bundle.format.channels, bundle.format.size) == (3, 64)
    assert "resized to 64×64 (change with --image-size)" in caplog.text
    assert {name: len(split) for name, split in bundle.splits.items()} == {
        "train": 14,
        "val": 2,
        "test": 4,
    }
    assert bundle.splits["test"].targets.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert bundle.augmentation == Augmentation(pad=8, flip=True)
    assert bundle.name == "photos"
    assert capsys.readouterr() == ("", "")
    small = load_data(DataConfig(str(folder), image_size=24, augment="none"), seed=0)
    assert small.splits["train"].images.shape[1:] == (3, 24, 24)
    assert small.augmentation == Augmentation(pad=0, flip=False)


@pytest.mark.parametrize("validation", [None, "validation", "val", "valid"])
def test_split_directories(tmp_path: Path, validation: str | None) -> None:
    counts = {"train": 10, "test": 3} | ({validation: 2} if validation else {})
    for split, count in counts.items():
        for name in ("cat", "dog"):
            save_images(tmp_path / "set" / split / name, count, [(12, 12)], "L", ".png")
    bundle = load_data(DataConfig(str(tmp_path / "set")), seed=0)
    assert (bundle.format.channels, bundle.format.size) == (1, 12)
    assert bundle.format.class_names == ("cat", "dog")
    sizes = {name: len(split) for name, split in bundle.splits.items()}
    if validation:  # its own validation split is used, and val_fraction is not
        assert sizes == {"train": 20, "val": 4, "test": 6}
        none = load_data(DataConfig(str(tmp_path / "set"), val_fraction=0), seed=0)
        assert len(none.splits["val"]) == 4
    else:
        assert sizes == {"train": 18, "val": 2, "test": 6}


def test_validation_without_test_is_not_the_test_split(tmp_path: Path) -> None:
    for split, count in {"train": 10, "val": 2}.items():
        for name in ("cat", "dog"):
            save_images(tmp_path / "set" / split / name, count, [(12, 12)], "L", ".png")
    splits = load_data(DataConfig(str(tmp_path / "set")), seed=0).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 16, "val": 4, "test": 4}
    assert not rows_of(splits["train"]) & rows_of(splits["test"])


def test_a_test_directory_alone_serves_a_trained_network(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save_images(tmp_path / "set" / "test" / name, 3, [(12, 12)], "L", ".png")
    config = DataConfig(str(tmp_path / "set"))
    like = ImageFormat(3, 8, (0.5,) * 3, (0.2,) * 3, ("dog", "cat"))
    bundle = load_data(config, seed=0, splits=("test",), like=like)
    assert bundle.format == like
    assert bundle.splits["test"].images.shape == (6, 3, 8, 8)
    assert bundle.splits["test"].targets.tolist() == [1, 1, 1, 0, 0, 0]  # in the network's order
    refuse("no training images", config, splits=("test",))
    refuse("has no train split", config, splits=("train",), like=like)
    refuse("--image-size", replace(config, image_size=9), splits=("test",), like=like)
    refuse("2 classes and the network tells 3", config, like=replace(like, class_names=("a", "b", "c")))
    refuse("not trained on", config, like=replace(like, class_names=("cat", "cow")))


def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    refuse("is empty", DataConfig(str(tmp_path / "empty")))
    (tmp_path / "file").write_text("x")
    refuse("is a file", DataConfig(str(tmp_path / "file")))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    refuse("no column of images", DataConfig(str(tmp_path / "text")))
    save_images(tmp_path / "one" / "cat", 3, [(8, 8)], "L", ".png")
    refuse("one class only \\(cat\\)", DataConfig(str(tmp_path / "one")))

    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    refuse("Permission denied.*check its permissions", DataConfig(str(tmp_path / "one")))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("cat", "dog"):
        save_images(tmp_path / "set" / name, 4, [(12, 12)], "L", ".png")
    (tmp_path / "set" / "dog" / "test_2.png").write_bytes(content)
    message = refuse(r"dog/test_2\.png\) cannot be decoded", DataConfig(str(tmp_path / "set")))
    assert "BytesIO" not in message


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save_images(tmp_path / "set" / name, 4, [(40, 40)], "RGB", ".jpg")
    path = tmp_path / "set" / "cat" / "test_1.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    refuse(r"cat/test_1\.jpg\) cannot be decoded \(.*truncated", DataConfig(str(tmp_path / "set")))


# -- decoding ---------------------------------------------------------------------------------


class Pictures:
    """Pictures that are held in a list."""

    def __init__(self, *pictures: Image.Image) -> None:
        self.pictures = pictures

    def records(self, rows: np.ndarray) -> list[Image.Image]:
        return [self.pictures[row] for row in rows]

    def open(self, record: Image.Image) -> Image.Image:
        return record

    def describe(self, row: int) -> str:
        return f"picture {row}"


def read(*pictures: Image.Image, **options: Any) -> np.ndarray:
    return decoding.read_pixels(Pictures(*pictures), np.arange(len(pictures)), **options)


def test_channels_and_size_follow_the_images() -> None:
    grey, colour = Image.new("L", (10, 10), 7), Image.new("RGB", (10, 10), (1, 2, 3))
    assert read(grey, grey).shape == (2, 1, 10, 10)
    both = read(grey, grey, colour)
    assert both.shape == (3, 3, 10, 10)
    assert both[0, :, 0, 0].tolist() == [7, 7, 7]
    assert both[2, :, 0, 0].tolist() == [1, 2, 3]
    assert read(grey, grey.resize((10, 11))).shape == (2, 1, 64, 64)
    assert read(grey.resize((64, 64)), grey, colour).shape == (3, 3, 64, 64)
    assert read(colour, channels=1, size=5).shape == (1, 1, 5, 5)


def test_resize_by_the_short_side_and_crop_the_middle() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200  # the middle third is all that is left
    assert (read(Image.fromarray(wide), size=10) == 200).all()
    assert (read(Image.fromarray(wide.T), size=10) == 200).all()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(np.full((4, 4), 0x8001, np.uint16)), [0x80]),
        (Image.new("1", (4, 4), 1), [255]),
        (Image.new("LA", (4, 4), (9, 0)), [9]),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 0)), [1, 2, 3]),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), [255, 255, 255]),
    ],
)
def test_modes(picture: Image.Image, expected: list[int]) -> None:
    assert read(picture)[0, :, 0, 0].tolist() == expected


def test_palette_with_transparency() -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.info["transparency"] = b"\x00\x00"
    assert read(picture)[0, :, 0, 0].tolist() == [10, 20, 30]


def test_camera_held_sideways(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    seen = read(Image.open(tmp_path / "a.png"))[0, 0]
    assert seen.tolist() == np.rot90(pixels, -1).tolist()


def test_large_images_are_decoded_by_threads() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (130, 130), dtype=np.uint8) for _ in range(300)]
    read_back = read(*map(Image.fromarray, arrays))
    assert (read_back[:, 0] == np.stack(arrays)).all()


# -- parquet ----------------------------------------------------------------------------------


def write_parquet(path: Path, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    with hub._quiet(bars=False):
        table.to_parquet(path)


def pictures(count: int, size: int = 8, mode: str = "L") -> list[Image.Image]:
    rng = np.random.default_rng(count)
    shape = (size, size) if mode == "L" else (size, size, 3)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def labels_of(count: int) -> list[int]:
    return [number % 2 for number in range(count)]


def test_parquet_with_several_label_columns(tmp_path: Path) -> None:
    import datasets

    features = {
        "id": datasets.Value("int64"),
        "coarse_label": datasets.ClassLabel(names=["x", "y"]),
        "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
        "img": datasets.Image(),
    }
    for split, count in {"train": 20, "test": 6}.items():
        columns = {
            "id": list(range(count)),
            "coarse_label": [0] * count,
            "fine_label": labels_of(count),
            "img": pictures(count),
        }
        write_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet", columns, features)
    bundle = load_data(DataConfig(str(tmp_path / "set"), val_fraction=0), seed=0)
    assert bundle.format.class_names == ("cat", "dog")
    assert bundle.splits["train"].targets.tolist() == labels_of(20)
    expected = np.stack([np.asarray(picture) for picture in pictures(6)])
    assert (bundle.splits["test"].images[:, 0].numpy() == expected).all()


@pytest.mark.parametrize(
    ("dtype", "values", "names"),
    [("string", ["dog", "cat"], ("cat", "dog")), ("int32", [7, 3], ("class 3", "class 7"))],
)
def test_labels_without_class_names(
    tmp_path: Path, dtype: str, values: list[Any], names: tuple[str, ...]
) -> None:
    import datasets

    features = {"image": datasets.Image(), "label": datasets.Value(dtype)}
    columns = {"image": pictures(10), "label": values * 5}
    write_parquet(tmp_path / "set" / "all.parquet", columns, features)
    config = DataConfig(str(tmp_path / "set"))
    bundle = load_data(config, seed=0)
    assert bundle.format.class_names == names
    assert sum(split.targets.sum().item() for split in bundle.splits.values()) == 5
    # Numbers that stand in for names agree with any names; names do not.
    like = replace(bundle.format, class_names=("p", "q"))
    if dtype == "int32":
        load_data(config, seed=0, like=like)
    else:
        refuse("not trained on", config, like=like)


def test_parquet_refusals(tmp_path: Path) -> None:
    import datasets

    image, kind = datasets.Image(), datasets.ClassLabel(names=["a", "b"])
    write_parquet(tmp_path / "1" / "a.parquet", {"x": pictures(3)}, {"x": image})
    refuse(r"no column of class labels \(its columns: x\)", DataConfig(str(tmp_path / "1")))
    write_parquet(tmp_path / "2" / "a.parquet", {"label": [0, 1]}, {"label": kind})
    refuse(r"no column of images \(its columns: label\)", DataConfig(str(tmp_path / "2")))
    columns = {"image": pictures(10), "label": [0, None] * 5}
    write_parquet(tmp_path / "3" / "a.parquet", columns, {"image": image, "label": kind})
    refuse("5 images without a 'label'", DataConfig(str(tmp_path / "3")))
    withheld = {"image": pictures(10), "label": [-1] * 10}
    write_parquet(tmp_path / "4" / "a.parquet", withheld, {"image": image, "label": kind})
    refuse("labels are withheld", DataConfig(str(tmp_path / "4")))
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "a.parquet").write_bytes(b"PAR1 not really")
    refuse("no images can be loaded from", DataConfig(str(tmp_path / "5")))
    missing = {"image": [*pictures(9), None], "label": labels_of(10)}
    write_parquet(tmp_path / "6" / "a.parquet", missing, {"image": image, "label": kind})
    refuse("image 9 of split 'train' cannot", DataConfig(str(tmp_path / "6")))


@pytest.mark.parametrize(
    ("names", "size", "mode", "expected"),
    [
        ([str(n) for n in range(10)], 28, "L", ("mnist", 0.1307, Augmentation(2, flip=False))),
        (
            [n.replace("/", " / ") for n in known.FASHION_NAMES],
            28,
            "L",
            ("fashion-mnist", 0.2860, Augmentation(2, flip=True)),
        ),
        (
            ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
            32,
            "RGB",
            ("cifar10", 0.49139968, Augmentation(4, flip=True)),
        ),
        ([str(n) for n in range(10)], 32, "RGB", ("set", None, Augmentation(4, flip=True))),
    ],
)
def test_known_data_sets_are_recognised(
    tmp_path: Path, names: list[str], size: int, mode: str, expected: tuple[str, float, Augmentation]
) -> None:
    import datasets

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    columns = {"image": pictures(20, size, mode), "label": list(range(10)) * 2}
    write_parquet(tmp_path / "set" / "train.parquet", columns, features)
    config = DataConfig(str(tmp_path / "set"), val_fraction=0)
    bundle = load_data(config, seed=0)
    name, mean, augmentation = expected
    assert (bundle.name, bundle.augmentation) == (name, augmentation)
    if mean is not None:
        assert bundle.format.mean[0] == mean
        double = load_data(replace(config, image_size=2 * size), seed=0)
        assert (double.format.size, double.format.mean[0]) == (2 * size, mean)
        assert double.augmentation.pad == 2 * augmentation.pad


# -- IDX --------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_folder(folder: Path, suffix: str, first: tuple[int, ...] = (0, 1)) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.array([*first, *range(10)] * 3)[: len(images)]
    for prefix, count in (("train", 30), ("t10k", 10)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images[:count])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels[:count])
    return images


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path: Path, suffix: str) -> None:
    images = write_idx_folder(tmp_path / "set", suffix)
    bundle = load_data(DataConfig(str(tmp_path / "set"), val_fraction=0), seed=0)
    assert (bundle.splits["train"].images[:, 0].numpy() == images).all()
    assert len(bundle.splits["test"]) == 10
    assert bundle.name == "set"
    assert bundle.format.class_names[:2] == ("class 0", "class 1")
    assert read_idx_colour(tmp_path / "set").shape == (30, 3, 14, 14)


def read_idx_colour(folder: Path) -> torch.Tensor:
    names = tuple("abcdefghij")
    like = ImageFormat(3, 14, (0.5,) * 3, (0.2,) * 3, names)
    config = DataConfig(str(folder), val_fraction=0)
    return load_data(config, seed=0, splits=("train",), like=like).splits["train"].images


def test_original_mnist_files_are_recognised(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "set", "", first=idx.FIRST_LABELS["mnist"])
    bundle = load_data(DataConfig(str(tmp_path / "set")), seed=0)
    assert (bundle.name, bundle.format.mean) == ("mnist", (0.1307,))
    assert bundle.format.class_names == tuple("0123456789")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def wrong_magic(path: Path) -> None:
    path.write_bytes(b"\x00\x00\x0d" + path.read_bytes()[3:])


@pytest.mark.parametrize(
    ("suffix", "damage", "match"),
    [
        ("", cut, "train-images-idx3-ubyte promises 30×28×28 bytes"),
        ("", wrong_magic, "train-images-idx3-ubyte is not an IDX file"),
        (".gz", cut, r"train-images-idx3-ubyte\.gz cannot be read"),
        (".gz", wrong_magic, r"train-images-idx3-ubyte\.gz cannot be read"),
    ],
)
def test_damaged_idx(tmp_path: Path, suffix: str, damage: Callable[[Path], None], match: str) -> None:
    write_idx_folder(tmp_path, suffix)
    damage(tmp_path / f"train-images-idx3-ubyte{suffix}")
    refuse(match, DataConfig(str(tmp_path)))


def test_incomplete_idx(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, "")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(9))
    refuse("10 images, but its label file has 9", DataConfig(str(tmp_path)))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    refuse("no label file beside it", DataConfig(str(tmp_path)))
    write_idx(tmp_path / "letters-train-images-idx3-ubyte", np.zeros((1, 2, 2)))
    refuse("two sets of train images", DataConfig(str(tmp_path)))


# -- real data, where present -----------------------------------------------------------------


@pytest.mark.skipif(not sources.FASHION_FOLDER.exists(), reason="dataset-fashion-mnist")
def test_fashion_mnist_of_debian() -> None:
    bundle = load_data(DataConfig("fashion-mnist"), seed=0)
    assert [len(bundle.splits[name]) for name in ("train", "val", "test")] == [54000, 6000, 10000]
    assert bundle.splits["test"].targets[:5].tolist() == [9, 2, 1, 1, 6]
    assert (bundle.splits["val"].targets.bincount() == 600).all()
    by_folder = load_data(DataConfig(str(sources.FASHION_FOLDER), limit_train=9), seed=0)
    assert by_folder.format == bundle.format


@pytest.mark.parametrize(
    ("name", "known", "channels", "size"),
    [("cifar10", "cifar10", 3, 32), ("mnist", "mnist", 1, 28), ("tiny-imagenet-10", None, 3, 64)],
)
def test_shared_data(name: str, known: str | None, channels: int, size: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"no {name} beside the repository")
    config = DataConfig(str(SHARED / name), limit_train=200, limit_test=50)
    bundle = load_data(config, seed=0)
    assert bundle.name == (known or name)
    assert (bundle.format.channels, bundle.format.size) == (channels, size)
    assert [len(bundle.splits[key]) for key in ("train", "val", "test")] == [180, 20, 50]
    assert bundle.num_classes == 10


# -- normalisation and formats ----------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3),
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
)
def test_normalise_is_undone_by_its_inverse(mean: list[float], std: list[float]) -> None:
    image_format = ImageFormat(3, 16, tuple(mean), tuple(std), ("a", "b"))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    out = normalise(pixels, image_format)
    assert out.dtype == torch.float32
    back = (out * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
    assert torch.equal(back.round().to(torch.uint8), pixels)


def test_format_survives_json() -> None:
    import json

    text = json.dumps(GREY.to_json())
    assert ImageFormat.from_json(json.loads(text)) == GREY
    with pytest.raises(StageCostError, match="no entry 'std'"):
        ImageFormat.from_json({k: v for k, v in GREY.to_json().items() if k != "std"})
    with pytest.raises(StageCostError, match="3 channels, 1 means"):
        ImageFormat.from_json(GREY.to_json() | {"channels": 3})


# -- augmentation -----------------------------------------------------------------------------


def crops(image: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    """All the images that an image may become, by brute force."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad, dtype=image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    found = [
        padded[:, y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)
    ]
    return found + ([crop.flip(-1) for crop in found] if flip else [])


@settings(deadline=None, max_examples=50)
@given(
    pad=st.integers(0, 3),
    flip=st.booleans(),
    count=st.integers(1, 5),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_augmented_images_are_crops_of_their_own_image(
    pad: int, flip: bool, count: int, height: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 2, height, width)
    images = torch.randint(256, shape, generator=generator).to(dtype)
    out = Augmentation(pad, flip)(images, generator)
    assert (out.shape, out.dtype) == (images.shape, dtype)
    for image, result in zip(images, out, strict=True):
        assert any(torch.equal(result, crop) for crop in crops(image, pad, flip))


def test_every_crop_occurs() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)
    out = Augmentation(1, flip=True)(image.expand(2000, -1, -1, -1), generator)
    assert rows_of(ImageSplit(out, torch.zeros(2000))) == {
        crop.contiguous().numpy().tobytes() for crop in crops(image[0], 1, flip=True)
    }


def test_no_augmentation_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    images = torch.ones(3, 1, 4, 4)
    assert Augmentation(0, flip=False)(images, generator) is images
    assert torch.equal(generator.get_state(), before)


# -- batches ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**65),
    epoch=st.integers(0, 10**6),
    first=st.integers(0, 5),
    world_size=st.integers(1, 3),
)
def test_batches_resume_and_divide_among_processes(
    count: int, batch_size: int, seed: int, epoch: int, first: int, world_size: int
) -> None:
    split = numbered(count)

    def batches(**options: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(
            epoch_batches(
                split,
                GREY,
                batch_size=batch_size,
                seed=seed,
                epoch=epoch,
                augmentation=Augmentation(1, flip=True),
                **options,
            )
        )

    whole = batches()
    assert len(whole) == num_batches(count, batch_size)
    assert {len(targets) for _, targets in whole} == {min(batch_size, count)}
    seen = torch.cat([targets for _, targets in whole]).tolist()
    assert len(set(seen)) == len(seen)
    for images, targets in whole:  # image and label stay together: a shift keeps some pixel
        highest = normalise(targets.to(torch.uint8).view(-1, 1, 1, 1), GREY)
        assert torch.equal(images.amax((1, 2, 3), keepdim=True), highest)
    for resumed, expected in zip(batches(first_batch=first), whole[first:], strict=True):
        assert all(map(torch.equal, resumed, expected))
    if min(batch_size, count) < world_size:
        with pytest.raises(StageCostError, match="cannot be shared"):
            batches(world_size=world_size)
        return
    parts = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, (images, targets) in enumerate(whole):
        for rank in range(world_size):
            assert torch.equal(parts[rank][number][0], images[rank::world_size])
            assert torch.equal(parts[rank][number][1], targets[rank::world_size])


def test_epochs_and_seeds_differ_and_the_global_state_is_left_alone() -> None:
    split, plain = numbered(50), Augmentation(0, flip=False)

    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(split, GREY, batch_size=25, seed=seed, epoch=epoch, augmentation=plain)
        return torch.cat([targets for _, targets in batches]).tolist()

    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(numbers) == list(range(50)) for numbers in orders)
    load_data(DataConfig("digits"), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_eval_batches_are_in_order_and_repeatable() -> None:
    batches = eval_batches(numbered(10), GREY, batch_size=4, device="cpu")
    assert len(batches) == 3
    for _ in range(2):
        assert [targets.tolist() for _, targets in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    images, targets = next(iter(batches))
    assert torch.equal(images[:, 0, 0, 0], (targets / 255 - 0.4) / 0.25)


def test_batch_sizes_below_one() -> None:
    with pytest.raises(StageCostError, match="batch size 0"):
        eval_batches(numbered(3), GREY, batch_size=0)
    with pytest.raises(StageCostError, match="batch size 0"):
        num_batches(3, 0)
    with pytest.raises(StageCostError, match="0 images has no batches"):
        num_batches(0, 3)


# -- the rest ---------------------------------------------------------------------------------


def test_the_configuration_is_light_to_import() -> None:
    code = (
        "import sys, stagecost.data.config; assert not {'torch', 'datasets', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_quiet_leaves_the_libraries_as_they_were() -> None:
    import datasets
    import huggingface_hub.utils as hub_utils

    def state() -> tuple[Any, ...]:
        levels = datasets.logging.get_verbosity(), hub_utils.logging.get_verbosity()
        return *levels, datasets.is_progress_bar_enabled(), hub_utils.are_progress_bars_disabled()

    before = state()
    with hub._quiet(bars=False):
        assert not datasets.is_progress_bar_enabled()
    assert state() == before
