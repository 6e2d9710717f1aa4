"""What a run remembers of its images, and what a later look says of images that changed."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import fill, grey, load, parquet, png, tree
from stagecost.cli.main import main
from stagecost.data.fingerprint import check_fingerprint, fingerprint, trained_images
from stagecost.data.loading import DataBundle
from stagecost.errors import StageCostError
from stagecost.runs.exporting import export

OWN = {"train/cat": 12, "train/dog": 12, "test/cat": 4, "test/dog": 4}
HELD_OUT = {"cat": 30, "dog": 30}


def add_to_test(folder: Path) -> None:
    fill(folder / "test" / "cat", 0, 3, first=500)


def remove_from_test(folder: Path) -> None:
    (folder / "test" / "cat" / "200.png").unlink()


def other_content(folder: Path) -> None:
    path = folder / "test" / "cat" / "200.png"
    size = path.stat().st_size
    path.write_bytes(png(grey(0, 999)))
    with path.open("ab") as file:  # as large as before, if need be
        file.write(bytes(max(0, size - path.stat().st_size)))


def relabel(folder: Path) -> None:
    for path in sorted((folder / "test" / "cat").iterdir()):
        path.rename(folder / "test" / "dog" / f"x{path.name}")


def add_to_train(folder: Path) -> None:
    fill(folder / "train" / "cat", 0, 3, first=500)


def move_to_test(folder: Path) -> None:
    shutil.move(folder / "train" / "cat" / "000.png", folder / "test" / "cat" / "new.png")


def copy_to_test(folder: Path) -> None:
    shutil.copy(folder / "train" / "dog" / "100.png", folder / "test" / "dog" / "new.png")


def swap(folder: Path) -> None:
    first, second = folder / "train" / "cat" / "000.png", folder / "test" / "cat" / "200.png"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def keep(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("change", "changed", "trained"),
    [
        (keep, [], False),
        (add_to_test, ["test"], False),
        (remove_from_test, ["test"], False),
        (relabel, ["test"], False),
        (add_to_train, ["train"], False),
        (move_to_test, ["test", "train"], True),
        (copy_to_test, ["test"], True),
        (swap, None, True),
    ],
)
@pytest.mark.parametrize("everything", [True, False])
def test_changes_of_a_folder(
    tmp_path: Path,
    change: Callable[[Path], None],
    changed: list[str] | None,
    trained: bool,
    everything: bool,
) -> None:
    folder = tree(tmp_path / "set", OWN)
    splits = None if everything else ("train",)
    run = load(folder, val_fraction=0, splits=splits)
    saved = fingerprint(run)
    assert json.loads(saved)["splits"]["test"]["images"] == 8
    change(folder)
    now = load(folder, val_fraction=0, splits=("test",), like=run.format)
    if trained:
        with pytest.raises(
            StageCostError, match=r"1 image of the .* test images of set were trained on"
        ):
            check_fingerprint(saved, now, "test")
    lines = check_fingerprint(saved, now, "test", allow_trained=True)
    if changed is not None:
        assert [line.split()[1] for line in lines] == changed
    train = load(folder, val_fraction=0, splits=("train",), like=run.format)
    check_fingerprint(saved, train, "train")  # which may of course hold trained images
    both = load(folder, val_fraction=0, splits=("all",), like=run.format)
    check_fingerprint(saved, both, "all")


def test_other_content_under_the_same_name(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set", OWN)
    run = load(folder)
    other_content(folder)
    now = load(folder, splits=("test",), like=run.format)
    lines = check_fingerprint(fingerprint(run), now, "test")
    assert lines == () or "test" in lines[0]  # its size may be the same; but none of it was trained on


def test_a_folder_that_moved_is_the_same(tmp_path: Path) -> None:
    for kind in ("tree", "table"):
        folder = tmp_path / kind
        if kind == "tree":
            tree(folder, HELD_OUT)
        else:
            parquet(folder / "a.parquet", [0, 1] * 30)
        run = load(folder)
        saved = fingerprint(run)
        shutil.copytree(folder, tmp_path / f"{kind} elsewhere")
        shutil.rmtree(folder)
        now = load(tmp_path / f"{kind} elsewhere", like=run.format)
        assert not check_fingerprint(saved, now, "test")
        assert not check_fingerprint(saved, now, "val")


def test_held_out_images_that_fall_otherwise(tmp_path: Path) -> None:
    """One more image, and the test images that are held out are others: most of them trained on."""
    folder = tree(tmp_path / "set", HELD_OUT)
    run = load(folder)
    fill(folder / "cat", 0, 1, first=700)
    now = load(folder, like=run.format)
    for split in ("test", "val"):
        with pytest.raises(
            StageCostError, match=rf"{split} images of set were trained on.*--allow-trained"
        ):
            check_fingerprint(fingerprint(run), now, split)
        lines = check_fingerprint(fingerprint(run), now, split, allow_trained=True)
        assert "the test images have changed since the run: 12 then, 13 now" in lines
        assert len(lines) == 3


def test_every_verb_that_judges_can_be_told_to_go_on(tmp_path: Path) -> None:
    folder, run = tree(tmp_path / "set", HELD_OUT), str(tmp_path / "run")
    tiny = ("--num-blocks", "2", "--width", "4", "--epochs", "1", "--device", "cpu")
    main(["train", "--data", str(folder), "--output", run, *tiny])
    fill(folder / "cat", 0, 1, first=700)
    for verb in (
        ["analyze", run],
        ["prune", run, "--keep-blocks", "1", "--output", str(tmp_path / "small")],
        ["report", run],
        ["evaluate", run],
    ):
        with pytest.raises(SystemExit) as refused:
            main(verb)
        assert refused.value.code == 2
        main([*verb, "--allow-trained"])


def test_images_of_the_fine_tuning_are_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = str(tree(tmp_path / "first", HELD_OUT)), str(tmp_path / "second")
    for number, name in enumerate(HELD_OUT):
        fill(Path(second) / name, number, 30, first=500)
    run, small = str(tmp_path / "run"), tmp_path / "small"
    tiny = ("--num-blocks", "2", "--width", "4", "--epochs", "1", "--device", "cpu")
    main(["train", "--data", first, "--output", run, *tiny])
    later = ("--keep-blocks", "1", "--finetune-epochs", "1", "--data", second)
    main(["prune", run, *later, "--output", str(small)])
    saved, images = (small / "images.json").read_text(), load(Path(second))
    assert trained_images(saved, images, "train") == len(images.splits["train"])
    assert not trained_images((Path(run) / "images.json").read_text(), images, "train")
    for data in (first, second):
        capsys.readouterr()
        main(["evaluate", str(small), "--data", data, "--split", "all", "--json"])
        (note,) = json.loads(capsys.readouterr().out)["warnings"]
        assert "of these 60 images were trained on, which flatters" in note


def test_eight_bits_are_not_judged_by_trained_images(tmp_path: Path) -> None:
    folder, run = tree(tmp_path / "set", HELD_OUT), tmp_path / "run"
    tiny = ("--num-blocks", "1", "--width", "4", "--epochs", "1", "--device", "cpu")
    main(["train", "--data", str(folder), "--output", str(run), *tiny])
    kept = trained_images((run / "images.json").read_text(), load(folder), "train")
    for number in range(10):  # the others are parted otherwise without these
        (folder / "cat" / f"{number:03}.png").unlink(missing_ok=True)
    with pytest.raises(StageCostError, match=r"val images of .* were trained on: .*--allow-trained"):
        export(run, tmp_path / "out", int8=True)
    assert not export(run, tmp_path / "float").warnings
    told = export(run, tmp_path / "allowed", int8=True, allow_trained=True).warnings
    assert any("the val images have changed since the run" in line for line in told)
    (note,) = export(run, tmp_path / "all", int8=True, data=str(folder)).warnings
    assert 0 < int(note.split()[0]) <= kept
    assert note.endswith("were trained on, which flatters")


def test_a_run_that_has_forgotten_its_images_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tiny = ("--num-blocks", "2", "--width", "4", "--epochs", "1", "--device", "cpu")
    main(["train", "--data", str(tree(tmp_path / "set", HELD_OUT)), "--output", str(run), *tiny])
    (run / "images.json").unlink()
    capsys.readouterr()
    main(["evaluate", str(run), "--json"])
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning == f"{run} has no images.json: nothing tells what it was trained on"
    main(["train", "--output", str(run), "--resume", "--epochs", "1"])
    told = f"{run} has no images.json: nothing tells whether the images are those that it began with"
    assert capsys.readouterr().err.count(told) == 1
    (run / "images.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["evaluate", str(run)])
    assert "stagecost: images.json" in capsys.readouterr().err


def test_copies_that_were_there_from_the_start(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set", OWN)
    copy_to_test(folder)
    run = load(folder)
    saved = fingerprint(run)
    now = load(folder, splits=("test",), like=run.format)
    (told,) = check_fingerprint(saved, now, "test")
    assert told == "1 of the 9 test images are copies of ones that were trained on, which flatters"
    shutil.copy(folder / "train" / "dog" / "103.png", folder / "test" / "dog" / "newer.png")
    with pytest.raises(StageCostError, match="2 images of the 10 test images"):
        check_fingerprint(saved, load(folder, splits=("test",), like=run.format), "test")


def test_broken_images_that_are_left_out_are_no_change(tmp_path: Path) -> None:
    """Training decodes some splits and a judge others; which images there are stays the same."""
    folder = tree(tmp_path / "set", OWN)
    copy_to_test(folder)
    for broken in ("train/cat/001.png", "test/cat/201.png"):
        (folder / broken).write_bytes(b"?")
    run = load(folder, splits=("train", "val"), skip_broken=True)
    now = load(folder, splits=("test",), like=run.format, skip_broken=True)
    (told,) = check_fingerprint(fingerprint(run), now, "test")
    assert told == "1 of the 8 test images are copies of ones that were trained on, which flatters"


def test_a_copy_on_both_sides_of_held_out_images(tmp_path: Path) -> None:
    """Nothing has changed since the training, so nothing that is judged was trained on as itself."""
    folder = tree(tmp_path / "set", HELD_OUT)
    for number in range(6):
        shutil.copy(folder / "cat" / "000.png", folder / "cat" / f"copy {number}.png")
    run = load(folder, splits=("train",))
    now = load(folder, splits=("test",), like=run.format)
    assert trained_images(fingerprint(run), now, "test")
    (told,) = check_fingerprint(fingerprint(run), now, "test")
    assert "are copies of ones that were trained on" in told


def test_digits() -> None:
    run = load("digits", limit_train=100)
    assert not check_fingerprint(fingerprint(run), load("digits", limit_train=100), "test")
    with pytest.raises(StageCostError, match="trained on"):
        check_fingerprint(fingerprint(run), load("digits", seed=1), "val")
    assert check_fingerprint(fingerprint(run), load("digits", val_fraction=0, limit_train=100), "test")


@cache
def digits() -> DataBundle:
    return load("digits", limit_train=20, limit_test=5)


KEYS = st.sampled_from(["splits", "trained", "images", "digest", "test"])
JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(KEYS, x)
)


@settings(max_examples=50)
@given(st.text() | JSON.map(json.dumps))
def test_damaged_fingerprints(saved: str) -> None:
    try:
        check_fingerprint(saved, digits(), "test")
    except StageCostError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_the_fingerprint_is_small_json() -> None:
    run = load("digits", val_fraction=0)
    content = json.loads(fingerprint(run))
    assert set(content) == {"splits", "trained"}
    assert len(fingerprint(run)) < 12 * len(run.splits["train"]) + 500
    assert np.isfinite(content["splits"]["train"]["images"])
