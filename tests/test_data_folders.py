"""Folders of pictures: what is a class, what is a split, what is left out, and what is a path."""

import os
import shutil
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_files import classes_seen, counts, fill, load, parquet, refuse, tree
from stagecost.data.class_names import name_key, places
from stagecost.data.config import DataConfig
from stagecost.data.images import ImageFormat
from stagecost.data.split_names import split_of

TWO = {"cat": 4, "dog": 4}


def beneath(*directories: str, of: dict[str, int] = TWO) -> dict[str, int]:
    return {f"{directory}/{name}": count for directory in directories for name, count in of.items()}


# -- which directories are classes and splits -------------------------------------------------

READ = {
    "plain": ({**TWO, "emu": 4}, {"cat": 4, "dog": 4, "emu": 4}),
    "directories above": (beneath("my/photos"), TWO),
    "splits below others": (beneath("my/train", "my/test"), {"cat": 8, "dog": 8}),
    "a class called train": ({"bus": 4, "train": 4}, {"bus": 4, "train": 4}),
    "a class called __background__": ({"__background__": 4, **TWO}, {"__background__": 4, **TWO}),
    "classes that are numbers": ({"0": 5, "1": 5, "10": 5}, {"0": 5, "1": 5, "10": 5}),
}


@pytest.mark.parametrize("name", READ)
def test_layouts_that_are_read(tmp_path: Path, name: str) -> None:
    made, expected = READ[name]
    bundle = load(tree(tmp_path, made), splits=["all"])
    assert bundle.format.class_names == tuple(sorted(expected))
    whole = bundle.splits["all"]
    assert whole.targets.bincount().tolist() == [expected[key] for key in sorted(expected)]
    assert whole.targets.tolist() == classes_seen(whole)
    assert not bundle.warnings


def test_a_directory_in_each_class(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        fill(tmp_path / "set" / name / "images" / "large", number, 4)
    bundle = load(tmp_path, splits=["all"])
    assert bundle.format.class_names == ("cat", "dog")
    assert bundle.splits["all"].targets.tolist() == classes_seen(bundle.splits["all"])


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test", "val"),
        ("Training", "testing", "valid"),
        ("training_set", "test_set", "validation_set"),
        ("train2017", "test-images", "dev"),
        ("TRAIN", "Evaluation", "Validation data"),
    ],
)
def test_names_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for directory, count in zip(names, (6, 3, 2), strict=True):
        tree(tmp_path, beneath(directory, of={"cat": count, "dog": count}))
    assert counts(load(tmp_path)) == {"train": 12, "val": 4, "test": 6}
    none = load(tmp_path, val_fraction=0)  # a data set's own validation images are always used
    assert counts(none) == {"train": 12, "val": 4, "test": 6}


REFUSED = {
    "two levels": (
        {"cat/indoor": 3, "cat/outdoor": 3, "dog/indoor": 3, "dog/outdoor": 3},
        "cat, dog, or indoor, outdoor: say which they are by --classes cat,dog",
    ),
    "a level and a half": ({**TWO, "cat/more": 2}, "cat, dog, or more: .*--classes cat,dog"),
    "splits of unknown names": (beneath("round_a", "round_b"), "round_a, round_b, or cat, dog"),
    "a split or a class": (
        beneath("train") | {"bus": 4},
        "train, which may be a split or a class, beside bus",
    ),
    "no classes in the splits": ({"train": 4, "test": 4}, "test, train, which are names of splits"),
    "one split twice": (beneath("train", "val", "validation"), r"2 directories .* \(val, validation\)"),
    "other case": (
        beneath("train") | {"test/Cat": 2, "test/Dog": 2},
        r"test images of classes .* \(Cat, Dog, which differ in spelling only; .*--classes cat,dog",
    ),
    "another class": (beneath("train", "test") | {"test/emu": 2}, r"\(emu; those have cat, dog\)"),
    "numbers that go on": (
        {"train/0": 3, "train/1": 3, "test/1": 3, "test/2": 3},
        r"test images of classes that its training images lack \(2; those have 0, 1\)",
    ),
    "one class": ({"cat": 4}, r"one class only \(cat\)"),
    "no directory": ({".": 4}, "4 images and no directory for each class"),
    "one image a class": ({"cat": 1, "dog": 1}, "each of another class, there are no test images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused(tmp_path: Path, name: str) -> None:
    made, match = REFUSED[name]
    refuse(match, tree(tmp_path, made))


@pytest.mark.parametrize(
    ("made", "classes", "expected"),
    [
        (REFUSED["two levels"][0], "cat,dog", {"cat": 6, "dog": 6}),
        (REFUSED["two levels"][0], "indoor,outdoor", {"indoor": 6, "outdoor": 6}),
        (REFUSED["a level and a half"][0], "cat,dog", {"cat": 6, "dog": 4}),
        (REFUSED["other case"][0], "cat,dog", {"cat": 6, "dog": 6}),
        (REFUSED["another class"][0], "cat,dog", {"cat": 8, "dog": 8}),
        (REFUSED["no classes in the splits"][0], "train,test", {"train": 4, "test": 4}),
        (beneath("train") | beneath("bus"), "train,bus", {"train": 8, "bus": 8}),
        ({"cat": 3, "dog": 4, "emu, grey": 5}, '"emu, grey",dog', {"emu, grey": 5, "dog": 4}),
        ({"cat": 3, "dog": 4, "emu, grey": 5}, 'dog, "emu, grey"', {"dog": 4, "emu, grey": 5}),
    ],
)
def test_the_list_of_classes_settles_it(
    tmp_path: Path, made: dict[str, int], classes: str, expected: dict[str, int]
) -> None:
    bundle = load(tree(tmp_path, made), splits=["all"], classes=classes)
    assert bundle.format.class_names == tuple(expected)
    assert bundle.splits["all"].targets.bincount().tolist() == [*expected.values()]
    left = sum(made.values()) - sum(expected.values())
    assert any(f"left out {left} image" in text for text in bundle.warnings) == (left > 0)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_be_called_as_a_split(tmp_path: Path, name: str) -> None:
    made = {f"train/{name}": 5, "train/bus": 5, f"test/{name}": 2, "test/bus": 2}
    folder = tree(tmp_path, made)
    trained = load(folder, val_fraction=0).format
    for options in ({"classes": f"bus,{name}"}, {"like": trained}):
        assert counts(load(folder, val_fraction=0, **options)) == {"train": 10, "test": 4}


def test_a_list_that_does_not_fit(tmp_path: Path) -> None:
    folder = str(tree(tmp_path, TWO))
    refuse(
        r"--classes names doog, and .* no such class \(it has cat, dog\)",
        DataConfig(folder, classes="cat,doog"),
    )
    for wrong in ("", "cat,", "cat,cat", ",", "cat\ndog,emu"):
        refuse("an empty name or one twice", DataConfig(folder, classes=wrong))
    refuse("leave --label-column out", DataConfig(folder, label_column="x"))


@pytest.mark.parametrize("names", [("dog", "cat"), ("a\nb", "c,d"), ('"', " ")])
def test_a_list_in_python(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tree(tmp_path, dict.fromkeys(names, 4))
    if " " in names:
        refuse("an empty name", DataConfig(str(folder), classes=names))
    else:
        assert load(folder, classes=names).format.class_names == names


# -- what is left out is said -----------------------------------------------------------------


def empty(folder: Path) -> None:
    (folder / "emu").mkdir()


def unknown_ending(folder: Path) -> None:
    fill(folder / "emu", 2, 3)
    for path in (folder / "emu").iterdir():
        path.rename(path.with_suffix(".heic"))


def no_ending(folder: Path) -> None:
    for path in sorted((folder / "dog").iterdir())[:3]:
        path.rename(path.with_suffix(""))


def cover(folder: Path) -> None:
    fill(folder, 1, 1)


def flat_test(folder: Path) -> None:
    for name in ("cat", "dog"):
        shutil.move(folder / name, folder / "train" / name)
    fill(folder / "test", 0, 5)
    fill(folder / "test" / ".ipynb_checkpoints", 0, 2)


def extra(folder: Path) -> None:
    flat_test(folder)
    fill(folder / "test" / "cat", 0, 2, first=50)
    shutil.rmtree(folder / "test" / ".ipynb_checkpoints")


@pytest.mark.parametrize(
    ("change", "match", "total"),
    [
        (empty, "emu has no image that can be read (it is empty)", 8),
        (unknown_ending, "emu has no image that can be read (3 .heic)", 8),
        (no_ending, "left out 3 files in dog with other endings (3 without an ending)", 5),
        (cover, "left out 1 image in no class directory: 000.png", 8),
        (flat_test, "left out 5 images in no class directory: test/000.png, ", 8),
        (extra, "left out 5 images in no class directory: test/000.png, ", 10),
    ],
)
def test_what_is_left_out_is_said(tmp_path: Path, change, match: str, total: int) -> None:
    change(tree(tmp_path, TWO))
    bundle = load(tmp_path, splits=["all"])
    assert any(match in text for text in bundle.warnings)
    assert match in bundle.summary()
    assert bundle.format.class_names == ("cat", "dog")
    assert len(bundle.splits["all"]) == total
    assert bundle.splits["all"].targets.tolist() == classes_seen(bundle.splits["all"])


def test_the_summary_counts_classes_and_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "pets", beneath("train", of={"cat": 5, "dog": 1}) | {"test/cat": 1})
    summary = load(tmp_path / "pets", val_fraction=0).summary()
    assert summary.splitlines() == [
        "pets: 2 classes (cat, dog), grey images of 6×6",
        "  train: 6 images (cat 5, dog 1)",
        "  test: 1 image (cat 1, dog 0)",
        "  warning: 1 class without test images: dog",
    ]
    assert "1 class without test images: dog" in caplog.text


def test_names_in_another_unicode_form_are_one_class(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("test", "NFD")):
        tree(tmp_path / split, {unicodedata.normalize(form, "caf\u00e9"): 4, "tea": 4})
    bundle = load(tmp_path)
    assert bundle.format.class_names == ("caf\u00e9", "tea")
    assert bundle.splits["test"].targets.tolist() == classes_seen(bundle.splits["test"])


def test_classes_that_differ_in_case_within_a_split_are_told_apart(tmp_path: Path) -> None:
    bundle = load(tree(tmp_path, {"A": 4, "a": 4}))
    assert bundle.format.class_names == ("A", "a")
    assert any("differ in spelling only: A, a" in text for text in bundle.warnings)


# -- paths are taken literally ----------------------------------------------------------------

PATHS = [
    "[a-z]*",
    "what?",
    "$HOME",
    "~",
    "~nobody",
    "a::b",
    "100%",
    "two words",
    "two\nlines",
    "caf\u00e9",
    ".hidden",
]
PATHS += ["zip:::x", "#1", "a,b", "{a,b}", "**", "-", "'\"", "train-00000-of-00005", "hub:x", "\u202e"]


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_literal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tree(tmp_path / name / "x", TWO)
    tree(tmp_path / name, {f"train/{name.lstrip('.')}": 4, "train/other": 4})
    (tmp_path / name / "x").rename(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    for data in (str(tmp_path / name), f"{name}/train"):
        bundle = load(data, splits=["all"])
        assert set(bundle.format.class_names) == {name.lstrip("."), "other"}
        assert len(bundle.splits["all"]) == 8
    parquet(tmp_path / "tables" / name / "a.parquet", [0, 1] * 10)
    assert len(load(tmp_path / "tables" / name, splits=["all"]).splits["all"]) == 20
    idx = tmp_path / "idx" / name
    idx.mkdir(parents=True)
    images, labels = (
        bytes((0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2)),
        bytes((0, 0, 8, 1, 0, 0, 0, 9)),
    )
    (idx / "train-images-idx3-ubyte").write_bytes(images + bytes(range(36)))
    (idx / "train-labels-idx1-ubyte").write_bytes(labels + bytes((0, 1, 2) * 3))
    assert len(load(idx, splits=["all"]).splits["all"]) == 9


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    tree(tmp_path, TWO)
    os.rename(os.fsencode(tmp_path / "cat"), os.fsencode(tmp_path) + b"/c\xe4t")  # noqa: PTH104
    bundle = load(tmp_path)
    assert bundle.format.class_names == ("c\\xe4t", "dog")
    assert bundle.summary().encode()


# Half of a pair of code units is no name; names that are no UTF-8, and those of splits, have tests of
# their own.
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6
).filter(lambda name: name[0] != "." and len(name.encode()) < 200 and not split_of(name))


@settings(max_examples=20)
@given(
    names=st.lists(
        NAMES, min_size=2, max_size=4, unique_by=lambda name: unicodedata.normalize("NFC", name)
    ),
    above=st.lists(NAMES, max_size=2),
    splits=st.sampled_from([(), ("train",), ("train", "test"), ("train", "val", "test")]),
    count=st.integers(2, 4),
    linked=st.booleans(),
)
def test_any_names(
    names: list[str], above: list[str], splits: tuple[str, ...], count: int, linked: bool
) -> None:
    names = sorted(names, key=lambda name: unicodedata.normalize("NFC", name))
    with TemporaryDirectory() as name:
        folder, real = Path(name, *above), Path(name + " real")
        folder.mkdir(parents=True, exist_ok=True)
        for split in splits or ("",):
            for number, class_name in enumerate(names):
                target = (real if linked else folder) / split / class_name
                fill(target, number, count)
                if linked:
                    (folder / split).mkdir(exist_ok=True)
                    (folder / split / class_name).symlink_to(target, target_is_directory=True)
        assume(len(os.listdir(folder / (splits or ("",))[0])) == len(names))  # noqa: PTH208
        try:
            bundle = load(Path(name, *above[:1]), splits=["all"])
        finally:
            shutil.rmtree(real, ignore_errors=True)
        whole = bundle.splits["all"]
        assert bundle.format.class_names == tuple(unicodedata.normalize("NFC", name) for name in names)
        assert whole.targets.tolist() == classes_seen(whole)
        assert len(whole) == count * len(names) * len(splits or (0,))
        given = [split for split in ("val", "test") if split in splits]
        for split in given:
            assert len(bundle.chosen[split].index) == count * len(names)


# -- links ------------------------------------------------------------------------------------


def test_links_are_followed(tmp_path: Path) -> None:
    tree(tmp_path / "real", {**TWO, "emu": 4})
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "cat").symlink_to(tmp_path / "real" / "cat")
    shutil.copytree(tmp_path / "real" / "dog", folder / "dog")
    (folder / "emu").mkdir()
    for path in (tmp_path / "real" / "emu").iterdir():
        (folder / "emu" / path.name).symlink_to(path)
    (folder / "emu" / "again").symlink_to(folder)  # a circle
    (tmp_path / "top").symlink_to(folder)
    bundle = load(tmp_path / "top", splits=["all"])
    assert bundle.format.class_names == ("cat", "dog", "emu")
    assert bundle.splits["all"].targets.tolist() == classes_seen(bundle.splits["all"])


@pytest.mark.parametrize("target", ["gone.png", "lost.png"])
def test_a_link_that_leads_nowhere_is_a_broken_image(tmp_path: Path, target: str) -> None:
    folder = tree(tmp_path, TWO)
    (folder / "cat" / "lost.png").symlink_to(folder / "cat" / target)  # to itself, too
    refuse(
        "1 image cannot be decoded: .*lost.png .there is no such file",
        DataConfig(str(folder), val_fraction=0),
        splits=["all"],
    )
    assert len(load(folder, splits=["all"], skip_broken=True).splits["all"]) == 8


def test_what_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "set", TWO)
    scandir = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refuse("dog/? cannot be read .*Permission denied.*check its permissions", tmp_path / "set")
    monkeypatch.undo()
    (tmp_path / "deep" / "/".join("d" * 70)).mkdir(parents=True)
    refuse("more than 64 levels", tmp_path / "deep")


def test_pipes_are_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, TWO)
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # reading it would never end
    assert len(load(tmp_path, splits=["all"]).splits["all"]) == 8


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse("is empty", tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    refuse("is a file", tmp_path / "file")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    refuse(r"1 files and no images that can be read \(.txt\)", tmp_path / "text")
    refuse("does not exist", "x" * 5000 + "/y")
    refuse("does not exist", "a\0b/c/d")


def test_the_home_folder_unless_there_is_such_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path / "home", beneath("pets"))))
    monkeypatch.chdir(tmp_path)
    assert load("~/pets").format.class_names == ("cat", "dog")
    tree(tmp_path, beneath("~/pets", of={"emu": 4, "gnu": 4}))
    assert load("~/pets").format.class_names == ("emu", "gnu")


# -- a trained network ------------------------------------------------------------------------


def network(*names: str, channels: int = 1) -> ImageFormat:
    return ImageFormat(channels, 6, (0.5,) * channels, (0.2,) * channels, names)


def test_a_test_directory_alone_serves_a_trained_network(tmp_path: Path) -> None:
    folder = tree(tmp_path, beneath("test"))
    like = ImageFormat(3, 8, (0.5,) * 3, (0.2,) * 3, ("dog", "cat"))
    bundle = load(folder, splits=("test",), like=like)
    assert bundle.format == like
    assert bundle.splits["test"].images.shape == (8, 3, 8, 8)
    assert bundle.splits["test"].targets.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]  # in the network's order
    refuse("no training images", folder, splits=("test",))
    refuse("has no train split", folder, splits=("train",), like=like)
    refuse(
        "--image-size 9 is not the 8", DataConfig(str(folder), image_size=9), splits=("test",), like=like
    )


@pytest.mark.parametrize(
    ("made", "names", "expected"),
    [
        ({"test/cat": 3}, ("cat", "dog", "emu"), [0, 0, 0]),  # a test set that lacks classes
        ({"test/dog": 1}, ("cat", "dog"), [1]),  # one image
        ({"test/Cat": 1, "test/D-O G": 2}, ("dog", "cat"), [1, 0, 0]),  # spelled otherwise
        ({"test/7": 1, "test/0": 2}, ("class 0", "class 7"), [0, 0, 1]),  # numbers are names, too
        ({"test/a/cat": 1, "test/b/dog": 1}, ("cat", "dog"), [0, 1]),  # the names tell the level
        ({"test/a/cat": 1, "test/b/dog": 1}, ("b", "a"), [1, 0]),
    ],
)
def test_classes_are_those_of_the_network(
    tmp_path: Path, made: dict[str, int], names: tuple[str, ...], expected: list[int]
) -> None:
    folder = tree(tmp_path, made)
    for data, split in (
        (folder, "test"),
        (folder / "test", "all"),
    ):  # also where nothing can be held out
        bundle = load(data, splits=(split,), like=network(*names))
        assert bundle.splits[split].targets.tolist() == expected
        assert bundle.format.class_names == names


@pytest.mark.parametrize(
    ("made", "names", "match"),
    [
        (TWO, ("cat", "dog_", "emu"), None),
        (TWO, ("cat", "cow"), "2 classes, and the network tells 2 apart .* not trained on dog"),
        ({"1": 4, "2": 4, "3": 4}, ("0", "1", "2"), "not trained on 3"),
        (
            TWO,
            ("class 0", "class 1"),
            "not trained on cat, dog: .* say by --classes what the numbers mean",
        ),
        ({"class 0": 4, "class 1": 4}, ("cat", "dog"), "say by --classes what the numbers mean"),
    ],
)
def test_classes_that_the_network_does_not_know(
    tmp_path: Path, made: dict[str, int], names: tuple[str, ...], match: str | None
) -> None:
    folder = tree(tmp_path, made)
    if match is None:
        load(folder, like=network(*names))
    else:
        refuse(match, folder, like=network(*names))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("-1", "1"),
        ("A+", "A"),
        ("C++", "C"),
        ("C#", "C"),
        ("10-20", "1020"),
        ("1 0", "10"),
    ],
)
def test_signs_that_make_another_class(tmp_path: Path, one: str, other: str) -> None:
    assert name_key(one) != name_key(other)
    assert places([one, other], [one, "x"]) == [0, None]
    assert places([other], [one, "x"]) == [None]
    folder = tree(tmp_path, {f"{one}/{one}".split("/")[0]: 4, other: 4, "x": 4})
    bundle = load(folder, classes=f"{one},x", splits=["all"])
    assert len(bundle.splits["all"]) == 8
    assert any(
        f"left out 4 images of classes not in --classes: {other} (4)" in w for w in bundle.warnings
    )


def test_two_spellings_of_one_class_are_not_made_one() -> None:
    assert places(["Cat", "cat", "dog"], ["cat", "dog"]) == [None, 0, 1]
    assert places(["Cat", "CAT", "dog"], ["cat", "dog"]) == [None, None, 1]
    assert places(["T - shirt / top", "class_7", "rock+roll"], ["t-shirt/top", "7", "rock roll"]) == [
        0,
        None,
        2,
    ]


def test_the_list_of_classes_tells_what_numbers_mean(tmp_path: Path) -> None:
    folder = tree(tmp_path / "a", {"class 0": 2, "class 1": 3})
    told = load(folder, splits=["all"], like=network("dog", "cat"), classes="cat,dog")
    assert told.splits["all"].targets.tolist().count(1) == 2
    folder = tree(tmp_path / "b", {"cat": 2, "dog": 3})
    told = load(folder, splits=["all"], like=network("class 0", "class 1"), classes="dog,cat")
    assert told.splits["all"].targets.tolist().count(0) == 3
