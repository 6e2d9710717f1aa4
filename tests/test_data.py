"""Loading images, splitting them, and making batches of them."""

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from data_files import fill, load, parquet, png, refuse
from stagecost.data import hub, idx, known, sources
from stagecost.data.augmentation import Augmentation
from stagecost.data.batches import ImageBatches, eval_batches, num_batches, sample_batches
from stagecost.data.config import DataConfig
from stagecost.data.images import ImageFormat, ImageSplit, normalise
from stagecost.data.loading import load_data
from stagecost.data.splits import draw
from stagecost.errors import StageCostError

SHARED = Path(__file__).parents[2] / "shared" / "data"
GREY = ImageFormat(1, 4, (0.4,), (0.25,), ("a", "b"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


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
    part = load_data(config, seed=5, splits=splits)
    assert set(part.splits) == set(splits)
    assert part.format == everything.format
    assert all(same(part.splits[name], everything.splits[name]) for name in splits)
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
    source = open_source(config)
    count = min(limit or 1437, 1437)
    held_out = round(fraction * count)
    if held_out == count:
        with pytest.raises(StageCostError, match="leaves none for training"):
            choose_rows(source, config, seed)
        return
    rows = {k: set(v.index.tolist()) for k, v in choose_rows(source, config, seed).items()}
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
    whole = load_data(DataConfig("digits", limit_train=100), seed=0, splits=("all", "val"))
    assert {name: len(split) for name, split in whole.splits.items()} == {"val": 10, "all": 460}
    assert (
        len(load_data(DataConfig("digits", limit_train=9), seed=0, splits=["all"]).splits["all"]) == 1797
    )
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
        (DataConfig("digits", val_fraction=1.0), r"--val-fraction 1\.0"),
        (DataConfig("digits", val_fraction=-0.1), r"--val-fraction -0\.1"),
        (DataConfig("digits", val_fraction=float("nan")), "--val-fraction nan"),
        (DataConfig("digits", limit_train=1, val_fraction=0.9), "none for training"),
        (DataConfig("digits", limit_train=0), "--limit-train 0"),
        (DataConfig("digits", limit_test=-1), "--limit-test -1"),
        (DataConfig("digits", image_size=5000), "--image-size 5000 is above 4096"),
        (DataConfig("digits", image_size=0), "--image-size 0"),
        (DataConfig("digits", augment="heavy"), "--augment 'heavy'"),  # type: ignore[arg-type]
        (DataConfig("./nowhere"), "data folder ./nowhere does not exist"),
        (DataConfig("a/b/c"), "data folder a/b/c does not exist"),
        (DataConfig("~/no such folder"), "does not exist"),
        (DataConfig("digit"), "'digit' is not to be had from the Hugging Face Hub"),
        (DataConfig("nobody/nothing"), "'nobody/nothing' .* check the spelling and the network"),
    ],
)
def test_refusals(config: DataConfig, match: str) -> None:
    refuse(match, config)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_held_out_images_are_those_of_scikit_learn(labels: list[int], part: float, seed: int) -> None:
    """Runs were split by it before, and their fingerprints name the images."""
    labels = [0, 0, 1, 1, 2, 2, 3, 3, *labels]
    count = round(4 + part * (len(labels) - 8))  # both sides have an image of every class
    for strata in (None, np.array(labels)):
        places = np.arange(len(labels))
        _, held = train_test_split(places, test_size=count, random_state=seed, stratify=strata)
        assert sorted(draw(len(labels), count, seed, strata)) == sorted(held)


def test_digits_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    part = sources.open_source(DataConfig("digits")).parts["train"]
    assert np.array_equal(part.labels, digits.target)
    bundle = load_data(DataConfig("digits"), seed=0, splits=("all",))
    pixels = bundle.splits["all"].images[:, 0].numpy()
    assert np.array_equal(np.unique(pixels), np.rint(np.arange(17) * (255 / 16)))
    assert np.array_equal(
        np.sort(pixels.sum((1, 2))), np.sort(np.rint(digits.images * (255 / 16)).sum((1, 2)))
    )


@settings(max_examples=60)
@given(members=st.lists(st.integers(1, 30), min_size=2, max_size=12), fraction=st.floats(0, 0.5))
def test_held_out_images_are_stratified(members: list[int], fraction: float) -> None:
    from stagecost.data.encoded import Part, Source, array_images
    from stagecost.data.splits import choose_rows

    labels = np.repeat(np.arange(len(members)), members)
    images = array_images(np.zeros((len(labels), 2, 2), np.uint8), "none")
    names = tuple(f"c{number}" for number in range(len(members)))
    source = Source("made", names, {"train": Part(names, labels, images)})
    if set(members) == {1}:
        with pytest.raises(StageCostError, match="each of another class"):
            choose_rows(source, DataConfig("made"), 0)
        return
    rows = choose_rows(source, DataConfig("made", val_fraction=fraction), 0)
    index = np.concatenate([part.index for part in rows.values()])
    assert sorted(index.tolist()) == [*range(len(labels))]
    counts = {split: np.bincount(part.labels, minlength=len(members)) for split, part in rows.items()}
    held_out = len(rows["test"].index)
    assert held_out == -(-len(labels) // 5)
    several = np.array(members) > 1
    if several.sum() <= min(held_out, np.array(members)[several].sum() - held_out):  # a class with one
        expected = np.where(several, np.array(members) * held_out / np.array(members)[several].sum(), 0)
        assert (np.abs(counts["test"] - expected) < 1).all()  # image does not turn it off for the others
    if held_out <= len(labels) - len(members) - 1:
        assert (np.array(members) > counts["test"]).all()


def test_other_refusals() -> None:
    refuse("--seed -1", DataConfig("digits"), seed=-1)
    refuse("split 'tset' is unknown", DataConfig("digits"), splits=("tset",))


def test_a_known_name_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("datasets.load_dataset", lambda path, **_: asked.append(path) or {})
    monkeypatch.setattr(sources, "FASHION_FOLDER", Path("/nonexistent"))
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100", "someone/something"):
        refuse("no split of a known name", DataConfig(name))
    assert asked == [*known.HUB_IDS.values(), "someone/something"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(13, "Permission denied", "/cache"), "make its cache writable, .*HF_HOME"),
        (OSError(28, "No space left on device", "/cache"), "make its cache writable, .*HF_HOME"),
        (ConnectionError("no route"), "check the spelling and the network"),
    ],
)
def test_the_remedy_is_that_of_the_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    def failing(path: str, **_: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", failing)
    refuse(remedy, DataConfig("someone/something"))


# -- data sets that are known by name ---------------------------------------------------------

DIGITS, FASHION = known.DIGIT_NAMES, [name.replace("/", " / ") for name in known.FASHION_NAMES]
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(
    ("name", "names", "size", "channels", "augmentation"),
    [
        ("mnist", DIGITS, 28, 1, Augmentation(2, flip=False)),
        ("fashion-mnist", FASHION, 28, 1, Augmentation(2, flip=True)),
        ("cifar10", CIFAR, 32, 3, Augmentation(4, flip=True)),
        ("cifar10", CIFAR, 28, 3, Augmentation(3, flip=True)),  # not its size
        ("mnist", DIGITS, 28, 3, Augmentation(3, flip=True)),  # not its colours
    ],
)
@pytest.mark.parametrize("copy", [True, False])
def test_published_statistics(
    tmp_path: Path,
    name: str,
    names: list[str],
    size: int,
    channels: int,
    augmentation: Augmentation,
    copy: bool,
) -> None:
    """They are those of a copy; a folder of one's own with the same class names has its own."""
    facts = known.KNOWN[name]
    assert facts.statistics is not None
    mean, std = (np.resize(values, channels) for values in facts.statistics)
    rng = np.random.default_rng(0)
    shape = (200, size, size) if channels == 1 else (200, size, size, channels)
    bright = rng.random(shape) < mean**2 / (mean**2 + std**2)  # black, or of one brightness: so its
    pixels = (
        np.where(bright, (mean**2 + std**2) / mean if copy else 1, 0) * 255
    )  # mean and std are these
    files = [png(image) for image in np.rint(pixels).astype(np.uint8)]
    parquet(tmp_path / "set" / "train.parquet", [*range(10)] * 20, names=names, pictures=files)
    bundle = load_data(DataConfig(str(tmp_path / "set")), seed=0)
    assert (bundle.name, bundle.augmentation) == ("set", augmentation)
    published = copy and (channels, size) == (facts.channels, facts.size)
    assert (bundle.format.mean == facts.statistics[0]) == published
    assert (bundle.format.std == facts.statistics[1]) == published
    assert bundle.format.mean == pytest.approx(pixels.mean((0, 1, 2)).reshape(-1) / 255, abs=0.02)
    double = load_data(DataConfig(str(tmp_path / "set"), image_size=2 * size), seed=0)
    assert double.augmentation.flip == augmentation.flip
    if augmentation.pad != size // 8 or size == 32:
        assert double.augmentation.pad == 2 * augmentation.pad


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    labels = list(range(10)) * 2
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CIFAR)}
    shape = (20, 8, 8, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    columns = {"image": [{"bytes": png(image), "path": None} for image in pixels], "label": labels}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    splits = datasets.DatasetDict(train=table, test=table, eval=table, unsupervised=table)
    monkeypatch.setattr("datasets.load_dataset", lambda path, **_: splits)
    bundle = load_data(DataConfig("uoft-cs/cifar10", val_fraction=0), seed=0)
    assert (bundle.name, bundle.format.class_names) == ("cifar10", tuple(CIFAR))
    assert (bundle.splits["test"].images.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert bundle.splits["test"].targets.tolist() == labels
    left_out = "no known name, that of another one, or no images: eval (20), unsupervised (20)"
    assert any(left_out in text for text in bundle.warnings)


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
    write_idx(tmp_path / "set" / f"val-images-idx3-ubyte{suffix}", images[:5])
    write_idx(tmp_path / "set" / f"val-labels-idx1-ubyte{suffix}", np.arange(5))
    splits = load_data(DataConfig(str(tmp_path / "set")), seed=0).splits
    assert [len(splits[name]) for name in ("train", "val", "test")] == [30, 5, 10]


def read_idx_colour(folder: Path) -> torch.Tensor:
    names = tuple("abcdefghij")
    like = ImageFormat(3, 14, (0.5,) * 3, (0.2,) * 3, names)
    refuse("say by --classes what the numbers mean", DataConfig(str(folder)), like=like)
    config = DataConfig(str(folder), val_fraction=0, classes=",".join(names))
    return load_data(config, seed=0, splits=("train",), like=like).splits["train"].images


def test_a_class_that_the_training_images_lack(tmp_path: Path) -> None:
    for name, labels in (("train", [0, 1] * 20), ("test", [0, 1, 2] * 4)):
        write_idx(
            tmp_path / f"{name}-images-idx3-ubyte",
            np.random.default_rng(0).integers(0, 255, (len(labels), 6, 6), np.uint8),
        )
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.array(labels, np.uint8))
    refuse("test images of classes that its training images lack .class 2", DataConfig(str(tmp_path)))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_original_files_have_names_of_classes(tmp_path: Path, name: str) -> None:
    write_idx_folder(tmp_path / "set", "", idx.FIRST_LABELS[name])
    bundle = load_data(DataConfig(str(tmp_path / "set")), seed=0)
    assert bundle.format.class_names == idx.CLASS_NAMES[name]
    assert bundle.augmentation == known.KNOWN[name].augmentation
    assert bundle.format.mean[0] == pytest.approx(0.5, abs=0.01)  # of its own pixels


def test_labels_of_original_files_are_not_renumbered(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, "", first=idx.FIRST_LABELS["mnist"])
    for name in ("train", "t10k"):
        path = tmp_path / f"{name}-labels-idx1-ubyte"
        labels = np.frombuffer(path.read_bytes()[8:], np.uint8).copy()
        labels[10:][labels[10:] == 0] = 8
        labels[10:][labels[10:] == 7] = 8
        write_idx(path, labels)
    bundle = load_data(DataConfig(str(tmp_path), val_fraction=0), seed=0)
    assert bundle.splits["train"].targets[:10].tolist() == list(idx.FIRST_LABELS["mnist"])
    assert bundle.format.class_names == tuple("0123456789")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def wrong_magic(path: Path) -> None:
    path.write_bytes(b"\x00\x00\x0d" + path.read_bytes()[3:])


def unpacked_into_a_directory(path: Path) -> None:
    path.rename(path.with_name("inner"))
    path.mkdir()
    path.with_name("inner").rename(path / path.name)


@pytest.mark.parametrize(
    ("suffix", "damage", "match"),
    [
        ("", unpacked_into_a_directory, "train-images-idx3-ubyte is a directory"),
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


def test_idx_files_whose_names_tell_no_split_are_no_test_images(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, "")
    for name in ("extra", "devset", "train-test"):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", np.zeros((2, 2, 2)))
        words = "several splits" if name == "train-test" else "no split"
        refuse(f"{name}-images-idx3-ubyte tells {words} by its name: rename it to train-", tmp_path)
        (tmp_path / f"{name}-images-idx3-ubyte").unlink()
    for path in sorted(tmp_path.iterdir()):
        name = path.name.replace("train", "Train").replace("t10k", "letters-T10k")
        path.rename(path.with_name(name))
    assert len(load(tmp_path).splits["train"])


def test_colour_in_idx_files_is_said(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 4, 4, 3)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2))
    refuse(r"has 4 dimensions, where 3 are read \(grey images", tmp_path)


@pytest.mark.parametrize("flag", ["label_column", "image_column"])
def test_columns_of_what_is_no_table_are_refused(tmp_path: Path, flag: str) -> None:
    write_idx_folder(tmp_path / "idx", "")
    for name in ("cat", "dog"):
        fill(tmp_path / "pictures" / name, 0, 4)
    for data in ("digits", str(tmp_path / "idx"), str(tmp_path / "pictures")):
        with pytest.raises(StageCostError, match=f"no table: leave --{flag.replace('_', '-')} out"):
            load_data(DataConfig(data, **{flag: "x"}), seed=0)


def test_idx_files_beside_pictures(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, "")
    (tmp_path / "cover.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    refuse("holds 2 IDX files and 1 pictures", DataConfig(str(tmp_path)))


# -- real data, where present -----------------------------------------------------------------


@pytest.mark.skipif(not sources.FASHION_FOLDER.exists(), reason="dataset-fashion-mnist")
def test_fashion_mnist_of_debian() -> None:
    bundle = load_data(DataConfig("fashion-mnist"), seed=0)
    assert [len(bundle.splits[name]) for name in ("train", "val", "test")] == [54000, 6000, 10000]
    assert bundle.splits["test"].targets[:5].tolist() == [9, 2, 1, 1, 6]
    assert (bundle.splits["val"].targets.bincount() == 600).all()
    by_folder = load_data(DataConfig(str(sources.FASHION_FOLDER), limit_train=9), seed=0)
    mean, std = bundle.format.mean, bundle.format.std  # published; those of nine images are measured
    assert replace(by_folder.format, mean=mean, std=std) == bundle.format


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 0, "mean": [], "std": []},
        {"channels": 2, "mean": [0, 0], "std": [1, 1]},
        {"size": 0},
        {"size": 10**6},
        {"size": float("inf")},
        {"mean": [float("nan")]},
        {"std": [0.0]},
        {"std": [-1]},
        {"std": [float("inf")]},
        {"class_names": []},
        {"class_names": ["a", "a"]},
        {"class_names": 3},
        {"levels": [1, 1]},
        {"levels": [0, float("nan")]},
        {"levels": [0]},
        {"mean": "x"},
    ],
)
def test_impossible_formats_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StageCostError, match=r"the stored image format .*: save the network again"):
        ImageFormat.from_json(GREY.to_json() | wrong)


# -- augmentation -----------------------------------------------------------------------------


def crops(image: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    """All the images that an image may become, by brute force."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad, dtype=image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    every = [
        padded[:, y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)
    ]
    return every + ([crop.flip(-1) for crop in every] if flip else [])


def augmented(
    augmentation: Augmentation, images: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    return augmentation.apply(images, augmentation.draw(len(images), generator))


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
    out = augmented(Augmentation(pad, flip), images, generator)
    assert (out.shape, out.dtype) == (images.shape, dtype)
    for image, result in zip(images, out, strict=True):
        assert any(torch.equal(result, crop) for crop in crops(image, pad, flip))


def test_every_crop_occurs() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)
    out = augmented(Augmentation(1, flip=True), image.expand(2000, -1, -1, -1), generator)
    assert rows_of(ImageSplit(out, torch.zeros(2000))) == {
        crop.contiguous().numpy().tobytes() for crop in crops(image[0], 1, flip=True)
    }


def test_no_augmentation_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    images = torch.ones(3, 1, 4, 4)
    assert augmented(Augmentation(0, flip=False), images, generator) is images
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

    def batches(first_batch: int = 0, **options: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shifted = Augmentation(1, flip=True)
        every = ImageBatches(split, GREY, shifted, batch_size, seed, **options)
        return list(every.epoch(epoch, first_batch))

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
        batches = ImageBatches(split, GREY, plain, 25, seed)
        return torch.cat([targets for _, targets in batches.epoch(epoch)]).tolist()

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


@settings(max_examples=60)
@given(
    length=st.integers(1, 200),
    count=st.integers(1, 250),
    batch_size=st.integers(1, 70),
    seed=st.integers(0),
)
def test_samples(length: int, count: int, batch_size: int, seed: int) -> None:
    split = numbered(length)
    batches = sample_batches(split, GREY, count=count, seed=seed, batch_size=batch_size)
    again = sample_batches(split, GREY, count=count, seed=seed, batch_size=batch_size)
    drawn = [targets.tolist() for _, targets in batches]
    assert drawn == [targets.tolist() for _, targets in batches] == [t.tolist() for _, t in again]
    flat = [number for batch in drawn for number in batch]
    assert len(flat) == len(set(flat)) == min(count, length)
    sizes = [len(batch) for batch in drawn]
    assert len(batches) == len(sizes)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)
    assert min(sizes) > 1 or len(flat) == 1
    for images, targets in batches:
        assert torch.equal(images[:, 0, 0, 0], (targets / 255 - 0.4) / 0.25)


def test_a_sample_is_not_the_first_images() -> None:
    means = [
        torch.cat([t for _, t in sample_batches(numbered(256), GREY, count=64, seed=seed)])
        .float()
        .mean()
        for seed in range(50)
    ]
    assert abs(torch.stack(means).mean() - 127.5) < 5
    assert torch.stack(means).std() > 4
    with pytest.raises(StageCostError, match="a sample of 0"):
        sample_batches(numbered(256), GREY, count=0, seed=0)


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


def test_quiet_leaves_the_libraries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.utils as hub_utils

    def state() -> tuple[Any, ...]:
        levels = datasets.logging.get_verbosity(), hub_utils.logging.get_verbosity()
        return *levels, datasets.is_progress_bar_enabled(), hub_utils.are_progress_bars_disabled()

    monkeypatch.setattr("datasets.load_dataset", lambda _: datasets.is_progress_bar_enabled())
    before = state()
    assert not hub.load_quietly("someone/something", bars=False)
    assert state() == before
