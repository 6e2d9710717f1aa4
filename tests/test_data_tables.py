"""Tables of images: which columns are meant, what labels mean, and which files belong together."""

import datetime
import json
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import STEP, classes_seen, counts, fill, grey, load, parquet, png, refuse
from stagecost.data.config import DataConfig
from stagecost.data.images import ImageFormat
from stagecost.errors import StageCostError
from stagecost.runs.evaluation import evaluate
from stagecost.runs.training import train

PLACES = [index % 3 for index in range(30)]
ANIMALS = ["cat", "dog", "emu"]
TEXTS = [ANIMALS[place] for place in PLACES]
PICTURES = [png(grey(place, index)) for index, place in enumerate(PLACES)]


def animals(path: Path, values: Any = PLACES, **options: Any) -> Path:
    return parquet(path, values, pictures=PICTURES, **options).parent


# -- columns ----------------------------------------------------------------------------------

TAKEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "label": ({}, {}),
    "Label, in capitals": ({"label": "Label"}, {}),
    "ids before it": ({"image_id": [*range(30)], "labels": TEXTS, "label": ""}, {}),
    "category": ({"image_id": [*range(30)], "category": TEXTS, "label": ""}, {}),
    "what pandas leaves": ({"__index_level_0__": [*range(30)], "class": TEXTS, "label": ""}, {}),
    "coarse and fine": ({"coarse_label": [0] * 30, "fine_label": TEXTS, "label": ""}, {}),
    "a ClassLabel of any name": ({"id": [*range(30)], "label": "kind", "names": ANIMALS}, {}),
    "asked for": ({"id": [*range(30)], "species": TEXTS, "label": ""}, {"label_column": "species"}),
    "asked for beside label": ({"species": TEXTS, "labels": [None] * 30}, {"label_column": "species"}),
    "fractions asked for": (
        {"class": [float(p) for p in PLACES], "label": ""},
        {"label_column": "class"},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_columns_that_are_taken(tmp_path: Path, name: str) -> None:
    options, config = TAKEN[name]
    options = dict(options)
    label = options.pop("label", "label")
    folder = animals(tmp_path / "train.parquet", PLACES if label else None, label=label, **options)
    whole = load(folder, splits=["all"], **config).splits["all"]
    assert whole.targets.tolist() == classes_seen(whole)
    assert whole.targets.bincount().tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("labels", "options", "match"),
    [
        (
            None,
            {"species": TEXTS, "year": PLACES},
            r"certainly the label \(species: text, year: whole .*--label-column species",
        ),
        (None, {"species": TEXTS}, r"certainly the label \(species: text\): .*--label-column species"),
        (PLACES, {"category": TEXTS}, r"certainly the label \(category: text, label: whole numbers\)"),
        (PLACES, {"label": "a", "names": ANIMALS, "b": PLACES}, None),
        ([float(p) for p in PLACES], {}, "floating-point numbers in its column label: .*--label-column"),
        ([p > 0 for p in PLACES], {}, "true or false in its column label: .*--label-column"),
        ([*range(30)], {}, "another value in each of the 30 rows of its column label, as ids have"),
        (
            [f"{p}.png" for p in range(30)],
            {"kind": TEXTS},
            r"as ids have: .* \(kind: text, label: text\)",
        ),
        (None, {}, r"no column of class labels \(its columns: image: image\)"),
        (PLACES, {"image": ""}, r"no column of images \(its columns: label: whole numbers\)"),
        ([None, *PLACES[1:]], {}, "1 image without a value in its column label"),
        (["", *TEXTS[1:]], {}, "1 image without a value in its column label"),
        ([-5, *PLACES[1:]], {}, "label -5 in its column label, which takes whole numbers from 0 on"),
        (
            [6, *PLACES[1:]],
            {"names": ANIMALS},
            r"label 6 .* names for 0 to 2 \(cat, dog, emu\): correct 1 row",
        ),
        ([-2, *PLACES[1:]], {"names": ANIMALS}, "label -2 "),
        ([-1] * 20 + PLACES[:10], {}, "train images whose labels are withheld"),
        ([-1] * 30, {"names": ANIMALS}, "train images whose labels are withheld"),
    ],
)
def test_columns_that_are_refused(tmp_path: Path, labels: Any, options: Any, match: str | None) -> None:
    folder = animals(tmp_path / "train.parquet", labels, **options)
    if match is None:
        assert load(folder).format.class_names == tuple(ANIMALS)
    else:
        refuse(match, folder)


@pytest.mark.parametrize(
    ("labels", "column", "match"),
    [
        ([p + 0.5 for p in PLACES], "label", "the label 0.5 in its column label"),
        ([float("inf"), *map(float, PLACES[1:])], "label", "the label inf "),
        ([float("nan"), *map(float, PLACES[1:])], "label", "1 image without a value"),
        ([2.0**53 + 2 * p for p in PLACES], "label", r"label 9007199254740992.0 .* below 2\^53"),
        (
            PLACES,
            "lable",
            r"no column lable of labels, .* \(its columns: image: image, label: whole numbers\)",
        ),
        (PLACES, "image", "no column image of labels"),
        (
            [datetime.date(2024, 1, 1 + place) for place in PLACES],
            "label",
            r"label: date32\[day\]\): name one of text or numbers",
        ),
    ],
)
def test_label_columns_asked_for_that_are_none(
    tmp_path: Path, labels: Any, column: str, match: str
) -> None:
    refuse(match, DataConfig(str(animals(tmp_path / "train.parquet", labels)), label_column=column))


def test_true_and_false_asked_for(tmp_path: Path) -> None:
    folder = animals(tmp_path / "train.parquet", [place > 0 for place in PLACES])
    assert load(folder, label_column="label").format.class_names == ("False", "True")


@pytest.mark.parametrize("mask", ["mask", "a_mask", "zz"])
def test_a_mask_beside_the_image(tmp_path: Path, mask: str) -> None:
    import pyarrow as pa

    black = pa.array([{"bytes": png(np.zeros((6, 6), np.uint8)), "path": None}] * 30)
    whole = load(animals(tmp_path / "1" / "a.parquet", **{mask: black}), splits=["all"]).splits["all"]
    assert whole.targets.tolist() == classes_seen(whole)
    folder = animals(tmp_path / "2" / "a.parquet", image="photo", **{mask: black})
    refuse(
        rf"certainly the image \({mask}: image, photo: image, .*--image-column {mask}",
        folder,
    )
    whole = load(folder, splits=["all"], image_column="photo").splits["all"]
    assert whole.targets.tolist() == classes_seen(whole)
    refuse("no column face of images", DataConfig(str(folder), image_column="face"))


@pytest.mark.parametrize("kind", ["binary", "dictionary", "uint64", "row groups"])
def test_how_columns_are_stored(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa

    labels: Any = PLACES
    options: dict[str, Any] = {}
    if kind == "binary":
        options = {"image": "", "img": pa.array(PICTURES, pa.binary())}
    elif kind == "dictionary":
        labels = pa.array(TEXTS).dictionary_encode()
    elif kind == "uint64":
        labels = pa.array([2**63 + place for place in PLACES], pa.uint64())
    else:
        options = {"rows": 4}
    whole = load(animals(tmp_path / "a.parquet", labels, **options), splits=["all"]).splits["all"]
    assert whole.targets.tolist() == classes_seen(whole)


def test_rows_without_an_image(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "a.parquet", PLACES, pictures=[*PICTURES[:28], None, None]).parent
    refuse(r"2 images cannot be decoded: image 28 of .*a.parquet \(there is no image", folder)
    assert len(load(folder, splits=["all"], skip_broken=True).splits["all"]) == 28


@pytest.mark.parametrize(("key", "match"), [("path", "is no path"), ("name", "no image in this row")])
def test_images_whose_paths_are_numbers(tmp_path: Path, key: str, match: str) -> None:
    content = [{"bytes": picture, key: row} for row, picture in enumerate(PICTURES)]
    content[5]["bytes"] = None
    parquet(tmp_path / "a.parquet", PLACES, image="", photo=content)
    refuse(rf"1 image cannot be decoded: image 5 of .*a.parquet \(.*{match}", tmp_path)


# -- classes correspond by name ---------------------------------------------------------------

NO_NAMES = "", "nan", "<na>", "n/a", "null"  # texts by which tables say that there is no value
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
    lambda name: name.strip().casefold() not in NO_NAMES
)


@settings(max_examples=20)
@given(
    names=st.lists(
        NAME, min_size=2, max_size=5, unique_by=lambda name: unicodedata.normalize("NFC", name)
    ),
    data=st.data(),
)
def test_orders_of_classes(names: list[str], data: st.DataObject) -> None:
    """Files number the same classes in different orders, or have their names, in some Unicode form."""
    names = [unicodedata.normalize("NFC", name) for name in names]
    files = data.draw(st.lists(st.permutations(names), min_size=1, max_size=3))
    texts = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    with TemporaryDirectory() as folder:
        for number, (order, as_text) in enumerate(zip(files, texts, strict=True)):
            form = data.draw(st.sampled_from(["NFC", "NFD"]))
            places = [*range(len(names))] * 3
            labels: list[Any] = (
                [unicodedata.normalize(form, order[p]) for p in places] if as_text else places
            )
            parquet(
                Path(folder, f"train-{number:05d}-of-{len(files):05d}.parquet"),
                labels,
                names=None if as_text else [unicodedata.normalize(form, name) for name in order],
                pictures=[png(grey(names.index(order[p]), i)) for i, p in enumerate(places)],
            )
        bundle = load(folder, splits=["all"])
        assert sorted(bundle.format.class_names) == sorted(names)
        whole = bundle.splits["all"]
        told = [names.index(bundle.format.class_names[t]) for t in whole.targets.tolist()]
        assert told == classes_seen(whole)
        shuffled = data.draw(st.permutations(names))
        like = ImageFormat(1, 6, (0.5,), (0.2,), tuple(shuffled))
        judged = load(folder, splits=["all"], like=like).splits["all"]
        assert [names.index(shuffled[t]) for t in judged.targets.tolist()] == classes_seen(judged)


@pytest.mark.parametrize(
    ("train", "test", "match"),
    [
        (
            ([0, 1] * 9, None),
            ([1, 2] * 3, None),
            r"test images .* lack \(class 2; those have class 0, class 1\)",
        ),
        ((["cat", "dog"] * 9, None), (["Cat", "Dog"] * 3, None), "differ in spelling only"),
        (
            (["cat", "dog"] * 9, None),
            ([0, 1] * 3, None),
            r"lack \(class 0, class 1; those have cat, dog\)",
        ),
        (([0, 1] * 9, ["cat", "dog"]), ([0, 1] * 3, ["dog", "emu"]), r"lack \(emu; "),
        (([0, 1] * 9, ["cat", "dog"]), ([0, 0] * 3, ["dog", "emu"]), None),
        (([0, 1] * 9, None), ([1] * 3, None), None),
        (([0, 1] * 9, None), ([-1] * 3, None), "3 test images whose labels are withheld"),
        (
            ([0, 1] * 9, ["cat", "dog"]),
            ([-1] * 3, ["cat", "dog"]),
            "3 test images whose labels are withheld",
        ),
    ],
)
def test_splits_with_other_classes(tmp_path: Path, train: Any, test: Any, match: str | None) -> None:
    parquet(tmp_path / "train.parquet", train[0], names=train[1])
    parquet(tmp_path / "test.parquet", test[0], names=test[1])
    if match:
        refuse(match, tmp_path)
    else:
        assert load(tmp_path, splits=["test"]).splits["test"].targets.unique().tolist() == [1]
    if match and "withheld" in match:  # they are in nobody's way
        assert "3 test images without a label" in load(tmp_path, splits=["train", "val"]).summary()


def test_the_list_of_classes_names_numbers(tmp_path: Path) -> None:
    folder = animals(tmp_path / "train.parquet")
    named = load(folder, splits=["all"], classes="cat,dog,emu")
    assert named.format.class_names == ("cat", "dog", "emu")
    assert named.splits["all"].targets.tolist() == classes_seen(named.splits["all"])
    refuse("the label 2, which is beyond the 2 names", DataConfig(str(folder), classes="cat,dog"))
    like = ImageFormat(1, 6, (0.5,), (0.2,), ("emu", "dog", "cat"))
    refuse("say by --classes what the numbers mean", folder, like=like)
    judged = load(folder, splits=["all"], classes="cat,dog,emu", like=like)
    assert [2 - t for t in judged.splits["all"].targets.tolist()] == classes_seen(judged.splits["all"])
    parquet(tmp_path / "train-x.parquet", TEXTS)
    refuse("files that name their classes and files that number them", folder)


@pytest.mark.parametrize("unset", ["NaN", "null", "N/A", "<NA>", " "])
def test_a_text_that_may_mean_no_label_is_no_class(tmp_path: Path, unset: str) -> None:
    parquet(tmp_path / "train.parquet", [*["cat", "dog", "none"] * 4, unset, unset])
    refuse(f"2 images with the label '{unset}' in its column label, which may mean none", tmp_path)
    if unset == "NaN":
        named = load(tmp_path, splits=["all"], classes="NaN,none,dog,cat")
        assert named.splits["all"].targets.bincount().tolist() == [2, 4, 4, 4]


def test_classes_without_images_stay_and_are_named(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "a.parquet", [0, 2] * 10, names=ANIMALS).parent
    bundle = load(folder)
    assert bundle.format.class_names == tuple(ANIMALS)
    assert "1 class without train images: dog" in bundle.warnings


# -- files ------------------------------------------------------------------------------------


def test_files_of_splits(tmp_path: Path) -> None:
    for name, count in {
        "data/train-00000-of-00002.parquet": 12,
        "data/train-00001-of-00002.parquet": 6,
        "data/test-00000-of-00001.parquet": 3,
        "data/validation-00000-of-00001.parquet": 4,
        "data/unsupervised-00000-of-00001.parquet": 9,
        ".cache/train.parquet": 50,
    }.items():
        parquet(tmp_path / name, PLACES[:count])
    bundle = load(tmp_path)
    assert counts(bundle) == {"train": 18, "val": 4, "test": 3}
    assert any(
        "left out 1 file whose names tell no split: data/unsup" in text for text in bundle.warnings
    )


@pytest.mark.parametrize(
    "names", [("train/0.parquet", "test/0.parquet"), ("my_train.parquet", "x.test.parquet")]
)
def test_names_that_tell_the_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, count in zip(names, (20, 3), strict=True):
        parquet(tmp_path / name, PLACES[:count])
    assert counts(load(tmp_path, val_fraction=0)) == {"train": 20, "test": 3}


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (
            ["train-00001-of-00005"],
            r"lacks 4 of the 5 files .* train-00000-of-00005, train-00002-of-00005",
        ),
        (["a-00001-of-00002", "a-00002-of-00002"], None),  # counted from 1 on
        (["train-00000-of-00002", "train-00002-of-00002"], "lacks 1 of the 2 files .* train-00001-of-"),
        (
            ["train-00000-of-00001", "train-00001-of-00001"],
            "has train-00001-of-00001 beyond the 1 files",
        ),
        (["train-0-of-999999999"], "lacks 999999998 of the 999999999 files"),
        (["train-0-of-1", "train-00000-of-00001"], r"several sets .*\(train-…-of-00001, train-…-of-1\)"),
        (["a/train", "b/train"], r"several sets of files for its train images \(a/\*, b/\*\)"),
        (["train-0-of-1", "train"], "several sets of files for its train images"),
        (["train_or_test"], "may hold test or train images by its name"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path: Path, names: list[str], match: str | None) -> None:
    for name in names:
        parquet(tmp_path / f"{name}.parquet", PLACES)
    if match:
        refuse(match, tmp_path)
    else:
        assert len(load(tmp_path, splits=["all"]).splits["all"]) == 60


def test_columns_of_one_name(tmp_path: Path) -> None:
    labels = pa.array([0, 1] * 6)
    pictures = pa.array([{"bytes": png(np.full((6, 6), n, np.uint8)), "path": None} for n in range(12)])
    names = ["image", "label", "label"]
    pq.write_table(pa.table([pictures, labels, labels], names), tmp_path / "a.parquet")
    refuse("a.parquet has two columns label", DataConfig(str(tmp_path)))


def test_pictures_beside_parquet(tmp_path: Path) -> None:
    folder = animals(tmp_path / "train.parquet")
    fill(folder / "assets", 0, 2)
    refuse("holds 1 parquet files and 2 pictures.*--label-column", folder)
    assert len(load(folder, splits=["all"], label_column="label").splits["all"]) == 30


def test_damaged_files(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"PAR1 not really", b"PAR1" + bytes(40) + b"PAR1")):
        path = tmp_path / str(number) / "a.parquet"
        path.parent.mkdir()
        path.write_bytes(content)
        refuse("a.parquet cannot be read .*: correct the file, or fetch it again", path.parent)
    parquet(tmp_path / "none" / "a.parquet", PLACES[:0], pictures=[])
    refuse("have no rows", tmp_path / "none")
    animals(tmp_path / "none" / "train.parquet")
    parquet(tmp_path / "none" / "test.parquet", PLACES[:0], pictures=[])
    assert "left out 1 file without a row: test.parquet" in load(tmp_path / "none").warnings
    path = animals(tmp_path / "cut" / "a.parquet") / "a.parquet"
    path.write_bytes(path.read_bytes()[:2000] + bytes(500) + path.read_bytes()[2500:])
    with pytest.raises(ValueError, match=r"cannot be (read|decoded)"):
        load(path.parent)


@pytest.mark.parametrize(
    "noted", [b"", b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 4}}}']
)
def test_notes_of_datasets_that_are_damaged(tmp_path: Path, noted: bytes) -> None:
    import pyarrow.parquet as pq

    path = animals(tmp_path / "a.parquet", names=ANIMALS) / "a.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": noted}), path)
    assert load(tmp_path).format.class_names == ("class 0", "class 1", "class 2")


def test_caches_never_outlive_the_files(tmp_path: Path) -> None:
    import os

    path = animals(tmp_path / "a.parquet") / "a.parquet"
    before, times = load(tmp_path, splits=["all"]), path.stat()
    parquet(path, PLACES, pictures=[png(grey(2 - place, i)) for i, place in enumerate(PLACES)])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(tmp_path, splits=["all"])
    assert [2 - place for place in classes_seen(after.splits["all"])] == classes_seen(
        before.splits["all"]
    )


# -- tables beside pictures -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_metadata_beside_pictures(tmp_path: Path, kind: str, splits: tuple[str, ...]) -> None:
    for split in splits:
        rows = []
        for number in range(3):
            fill(tmp_path / split, number, 5, first=10 * number)
            rows += [(f"{10 * number + index:03d}.png", ANIMALS[number]) for index in range(5)]
        lines = [json.dumps({"file_name": file, "label": label}) for file, label in rows]
        if kind == "csv":
            lines = ["file_name,label", *(f"{file},{label}" for file, label in rows)]
        (tmp_path / split / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    bundle = load(tmp_path, splits=["all"])
    assert bundle.format.class_names == tuple(ANIMALS)
    assert bundle.splits["all"].targets.tolist() == classes_seen(bundle.splits["all"])
    assert bundle.splits["all"].images[:, 0, 0, 0].max() == 2 * STEP
    assert not any("no table lists" in text for text in bundle.warnings)
    fill(tmp_path / splits[0], 0, 2, first=90)
    warnings = load(tmp_path, splits=["all"]).warnings
    assert any(f"left out 2 pictures that no table lists: {splits[0]}090.png" in w for w in warnings)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "1", "2"], ("class 0", "class 1", "class 2")),
        (["1", "01", "2"], ("01", "1", "2")),
        (["01", "02", "10"], ("01", "02", "10")),
        (["0x1", "1", "2"], ("0x1", "1", "2")),
        (["True", "true", "False"], ("False", "True", "true")),
        (["12345678901234567890123", "1", "2"], ("1", "12345678901234567890123", "2")),
        (["9007199254740993.0", "9007199254740992.0", "1.0"], None),
        (["2024-01-01", "2024-01-02", "2024-01-03"], None),
        (["2024-01-01 10:30", "2024-01-01 11:30", "2024-01-02 10:30"], None),
        (["10:30:00", "11:30:00", "12:30:00"], None),
    ],
)
def test_labels_of_a_csv_are_what_is_written(
    tmp_path: Path, labels: list[str], names: tuple[str, ...] | None
) -> None:
    fill(tmp_path, 0, 12)
    rows = [f"{index:03d}.png,{labels[index // 4]}" for index in range(12)]
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "\n".join(rows) + "\n")
    bundle = load(tmp_path, splits=["all"], label_column="label")
    assert bundle.format.class_names == (names or tuple(sorted(labels)))
    assert Counter(bundle.splits["all"].targets.tolist()) == {0: 4, 1: 4, 2: 4}


def test_metadata_beside_class_directories(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        fill(tmp_path / name, number, 6)
    rows = [f"{name}/{index:03d}.png,{index % 3}" for name in ("cat", "dog") for index in range(6)]
    (tmp_path / "metadata.csv").write_text("file_name,kind\n" + "\n".join(rows) + "\n")
    bundle = load(tmp_path)
    assert bundle.format.class_names == ("cat", "dog")
    assert any("not what metadata tables say" in text for text in bundle.warnings)
    kinds = load(tmp_path, label_column="kind").format.class_names
    assert kinds == ("class 0", "class 1", "class 2")
    (tmp_path / "metadata.csv").write_text("file,kind\nx,1\n")
    refuse("no column file_name", DataConfig(str(tmp_path), label_column="kind"))
    (tmp_path / "metadata.csv").write_text("file_name,kind\nx,1\ny,1\nx,2\n")
    refuse("several rows for x: keep one row", DataConfig(str(tmp_path), label_column="kind"))
    (tmp_path / "metadata.csv").write_text("file_name,kind\nx,1\n./x,2\n")
    refuse("several rows for x: keep one row", DataConfig(str(tmp_path), label_column="kind"))
    (tmp_path / "metadata.csv").write_text("file_name,kind\nx,1\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x", "kind": 2}\n')
    refuse("have several rows for x: keep one row", DataConfig(str(tmp_path), label_column="kind"))
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,kind,split\nx,1,train\ny,1,test\n")
    refuse("which rows are test, train: put each", DataConfig(str(tmp_path), label_column="kind"))
    for values in (("train", "extra"), ("0", "1")):  # a further word, and numbers
        rows = "".join(f"{row},1,{value}\n" for row, value in zip("xy", values, strict=True))
        (tmp_path / "metadata.csv").write_text("file_name,kind,split\n" + rows)
        refuse("says in its column split which rows are", DataConfig(str(tmp_path), label_column="kind"))
    (tmp_path / "metadata.csv").write_text("file_name,file_name\nx,y\n")
    refuse("two columns file_name: rename", DataConfig(str(tmp_path), label_column="kind"))


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("set", ("train", "test"), "are test, train:"),
        ("Usage", ("Training", "PublicTest"), "are PublicTest, Training:"),
        ("split", ("train", None), "are train or nothing:"),
        ("is_test", (True, False), "are False, True:"),
        ("set", ("clear", "hazy"), None),
        ("mode", (3, 4), None),
        ("phase", ("test", "test"), None),
    ],
)
def test_a_column_that_parts_the_rows_is_refused_by_what_it_says(
    tmp_path: Path, column: str, values: tuple[object, object], told: str | None
) -> None:
    fill(tmp_path, 0, 12)
    rows = [{"file_name": f"{i:03d}.png", "label": i % 2, column: values[i // 6]} for i in range(12)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if told is None:
        assert load(tmp_path).num_classes == 2
    else:
        refuse(f"says in its column {column} which rows {told}", DataConfig(str(tmp_path)))


def test_a_network_of_a_table_is_judged_on_directories(tmp_path: Path) -> None:
    for number in range(2):
        fill(tmp_path / "table", number, 12, first=100 * number)
        fill(tmp_path / "tree" / ANIMALS[number], number, 5, first=50)
    rows = [f"{100 * n + i:03d}.png,{ANIMALS[n]}" for n in range(2) for i in range(12)]
    (tmp_path / "table" / "metadata.csv").write_text("file_name,animal\n" + "\n".join(rows) + "\n")
    settings = {"data": str(tmp_path / "table"), "label_column": "animal", "num_blocks": 1, "width": 2}
    train({**settings, "epochs": 1, "batch_size": 8, "device": "cpu"}, tmp_path / "run")
    judged = evaluate(tmp_path / "run", data=str(tmp_path / "tree"), split="all")
    assert judged.num_images == 10
    (tmp_path / "tree" / ANIMALS[0] / "050.png").write_bytes(b"?")
    with pytest.raises(StageCostError, match=r"replace or remove it$"):
        evaluate(tmp_path / "run", data=str(tmp_path / "tree"), split="all")


@pytest.mark.parametrize(
    ("directories", "expected"),
    [
        (("test_tube", "road"), {"train": 25, "test": 7}),  # a fifth is held out
        (("train/train", "train/bus", "test/train"), {"train": 32, "test": 16}),
        (("validé", "refusé"), {"train": 25, "test": 7}),  # no validation images
    ],
)
def test_a_directory_is_a_split_by_its_whole_name(
    tmp_path: Path, directories: tuple[str, ...], expected: dict[str, int]
) -> None:
    rows = []
    for directory in directories:
        fill(tmp_path / directory, 0, 16)
        rows += [f"{directory}/{index:03d}.png,{ANIMALS[index % 2]}" for index in range(16)]
    (tmp_path / "metadata.csv").write_text("file_name,animal\n" + "\n".join(rows) + "\n")
    assert counts(load(tmp_path, label_column="animal", val_fraction=0)) == expected


def test_a_table_above_the_splits_is_parted_by_the_directories_of_its_pictures(tmp_path: Path) -> None:
    rows = []
    for split, count in (("train", 8), ("test", 4)):
        for number in range(2):
            fill(tmp_path / split, number, count, first=100 * number)
            names = (f"{split}/{100 * number + index:03d}.png" for index in range(count))
            rows += [f"{name},{ANIMALS[number]}" for name in names]
    rows.sort(key=lambda row: row[::-1])  # so that the rows of a split are not in a row
    (tmp_path / "metadata.csv").write_text("file_name,animal\n" + "\n".join(rows) + "\n")
    bundle = load(tmp_path, label_column="animal", val_fraction=0)
    assert {name: len(split) for name, split in bundle.splits.items()} == {"train": 16, "test": 8}
    for split in bundle.splits.values():
        assert split.targets.tolist() == classes_seen(split)
    (tmp_path / "train_or_test").mkdir()
    shutil.copy(tmp_path / "train" / "000.png", tmp_path / "train_or_test" / "x.png")
    table = tmp_path / "metadata.csv"
    table.write_text(table.read_text() + "train_or_test/x.png,cat\n")
    refuse(
        "train_or_test may hold test or train images", DataConfig(str(tmp_path), label_column="animal")
    )
