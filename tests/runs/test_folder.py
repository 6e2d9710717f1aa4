"""Whose folder it is: locks, settings of a checkpoint, folders that lost a file or vanish."""

import csv
import os
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from runs.conftest import TINY, Trained
from runs.workers import start
from stagecost.errors import StageCostError
from stagecost.runs import training
from stagecost.runs.analysis import analyze
from stagecost.runs.evaluation import evaluate
from stagecost.runs.folder import RunFolder
from stagecost.runs.lock import locked
from stagecost.runs.pruning import prune
from stagecost.runs.training import train
from stagecost.storage import write_atomically
from stagecost.train.loop import Step
from stagecost.train.state import State

SMALL: dict[str, Any] = {**TINY, "limit_train": 120, "num_blocks": 2, "width": 4, "epochs": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_of_two_runs_that_begin_at_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second starts while the first reads its images."""
    real, refusals = training.load_data, []

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(training, "load_data", real)
        with pytest.raises(StageCostError, match="is being trained by another process") as caught:
            train({**SMALL, "seed": 1, "epochs": 3}, tmp_path / "run", resume=True)
        refusals.append(caught.value)
        return real(*arguments, **options)

    monkeypatch.setattr(training, "load_data", meanwhile)
    assert train(SMALL, tmp_path / "run").epochs == 1
    assert len(refusals) == 1
    assert RunFolder(tmp_path / "run").settings().training.epochs == 1


def hold(folder: Path, record: Path) -> None:
    """Hold a folder for a moment, and note when."""
    with locked(folder):
        began = time.monotonic()
        (folder / "mine").write_text(str(os.getpid()))
        time.sleep(0.05)
        assert (folder / "mine").read_text() == str(os.getpid())
        (folder / "mine").unlink()
        ended = time.monotonic()
    (record / f"{os.getpid()}").write_text(f"{began} {ended}")


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_folder_that_goes_while_it_is_made_is_made_again(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that another process had created, and that stayed empty."""
    real, gone = Path.mkdir, [error()]

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if gone:
            raise gone.pop()
        real(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "exists", lambda self: True)  # it was there a moment ago
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_race_of_twenty_starts(tmp_path: Path) -> None:
    """Those that hold the folder hold it one after the other; the rest are refused in one line."""
    record = tmp_path / "record"
    record.mkdir()
    told = [tmp_path / f"told-{i}" for i in range(20)]
    processes = [start(hold, tmp_path / "new" / "run", record, told=file) for file in told]
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    assert set(codes) <= {0, 2}, [file.read_text() for file in told if file.exists()]
    assert codes.count(0) == len(list(record.iterdir())) >= 1
    for file, code in zip(told, codes, strict=True):
        assert code == 0 or "by another process" in file.read_text()
    spans = sorted(tuple(map(float, file.read_text().split())) for file in record.iterdir())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert contents(tmp_path / "new") == {}  # no lock is left where all came to their end


def test_a_race_of_twenty_runs_trains_one(tmp_path: Path) -> None:
    run, told = tmp_path / "run", [tmp_path / f"told-{i}" for i in range(20)]
    processes = [start(train, {**SMALL, "seed": seed}, run, told=told[seed]) for seed in range(20)]
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert sorted(codes) == [0, *[2] * 19], [file.read_text() for file in told if file.exists()]
    assert RunFolder(run).settings().training.seed == codes.index(0)
    for file, code in zip(told, codes, strict=True):
        text = "" if code == 0 else file.read_text()
        assert code == 0 or "by another process" in text or "already holds a run" in text


def test_the_system_frees_the_folder_of_a_process_that_dies(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(train, {**SMALL, "epochs": 1000}, run, told=tmp_path / "told")
    while not (run / "config.yaml").exists():
        time.sleep(0.01)
        assert process.is_alive()
    with pytest.raises(StageCostError, match="by another process"):
        train({}, run, resume=True)
    process.kill()
    process.join()
    assert (run / ".lock").exists()
    shutil.rmtree(run)
    train(SMALL, run)
    assert not (run / ".lock").exists()


def test_a_refused_start_leaves_nothing_behind(tmp_path: Path) -> None:
    for given in ({**SMALL, "epochs": 0}, {**SMALL, "data": str(tmp_path / "none")}):
        with pytest.raises(StageCostError):
            train(given, tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(StageCostError, match="is a file"):
        train(SMALL, tmp_path / "file")


def test_the_tables_tell_of_every_epoch_and_depth(tmp_path: Path) -> None:
    told = train({**SMALL, "epochs": 2, "cut_at": "1:1"}, tmp_path).history
    epochs, depths = (
        list(csv.DictReader((tmp_path / name).read_text().splitlines()))
        for name in ("metrics.csv", "trajectory.csv")
    )
    assert [row["num_blocks"] for row in epochs] == ["2", "1"]
    for row, entry in zip(epochs, told, strict=True):
        assert row == {name: str(getattr(entry, name)) for name in row}
    found = [
        (int(row["epoch"]), int(row["depth"]), float(row["val_loss"]), float(row["val_accuracy"]))
        for row in depths
    ]
    assert found == [
        (entry.epoch, k, loss, accuracy)
        for entry in told
        for k, (loss, accuracy) in enumerate(
            zip(entry.val_losses or (), entry.val_accuracies or (), strict=True)
        )
    ]
    assert len(found) == 3 + 2


def test_settings_that_would_not_be_read_again_are_refused(tmp_path: Path) -> None:
    """They were written, and no verb opened the run."""
    classes = ",".join(f"{k:>7000}" for k in range(10))
    with pytest.raises(StageCostError, match=r"take .* bytes, more than 65,536"):
        train({**SMALL, "classes": classes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_not_trained_into(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.two, run)
    before = contents(run)
    with pytest.raises(StageCostError, match="already holds a run"):
        train(SMALL, run)
    (run / "config.yaml").unlink()
    with pytest.raises(StageCostError, match="already holds a run"):
        train(SMALL, run)
    assert contents(run) == {k: v for k, v in before.items() if k != "config.yaml"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_holds_a_saved_network_is_not_trained_into(
    trained: Trained, tmp_path: Path, resume: bool
) -> None:
    """Every verb would show it in the place of the run."""
    small = shutil.copytree(trained.saved, tmp_path / "small")
    before = contents(small)
    with pytest.raises(StageCostError, match="holds a saved network"):
        train(SMALL, small, resume=resume)
    assert contents(small) == before


@pytest.mark.parametrize("change", [{"width": 8}, {"seed": 3}, {"epochs": 9}, {"gamma": 0.7}])
def test_other_settings_are_another_run(
    trained: Trained, tmp_path: Path, change: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.two, run)
    before = contents(run)
    (name,) = change
    with pytest.raises(StageCostError, match=f"--{name} is .* not {change[name]}"):
        train(change, run, resume=True)
    assert contents(run) == before
    train({"device": "cpu", "checkpoint_minutes": 3.0}, run, resume=True)  # the result is the same
    assert RunFolder(run).settings().training.checkpoint_minutes == 3


@pytest.mark.parametrize("change", [{"width": 8}, {"seed": 3}, {"epochs": 9}])
def test_a_checkpoint_knows_the_settings_it_belongs_to(
    trained: Trained, tmp_path: Path, change: dict[str, Any]
) -> None:
    """A run that lost its config.yaml is the run that it was, and goes on as that alone."""
    run = tmp_path / "run"
    shutil.copytree(trained.two, run)
    (run / "config.yaml").unlink()
    assert analyze(run).num_blocks == 2
    with pytest.raises(StageCostError, match="not"):
        train(change, run, resume=True)
    assert not (run / "config.yaml").exists()
    train({}, run, resume=True)
    assert (run / "config.yaml").read_text() == (trained.two / "config.yaml").read_text()


def test_a_config_of_another_run_beside_a_checkpoint_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.two, run)
    shutil.copy(trained.three / "config.yaml", run / "config.yaml")
    verbs: list[Callable[[], Any]] = [lambda: analyze(run), lambda: train({}, run, resume=True)]
    for verb in verbs:
        with pytest.raises(StageCostError, match="--num-blocks is 2"):
            verb()


def remove_at(number: int, folder: Path, *, again: bool) -> Callable[[State, Step], None]:
    """Remove the folder of a run at a step; then somebody may write there again."""

    def on_step(state: State, step: Step) -> None:
        if step.moment.step == number:
            shutil.rmtree(folder)
            if again:
                write_atomically(folder / ".lock", "")
                write_atomically(folder / "other", "theirs")

    return on_step


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_vanishes_ends_the_run(tmp_path: Path, again: bool) -> None:
    run = tmp_path / "run"
    with pytest.raises(StageCostError, match="was removed or replaced while") as caught:
        train(SMALL, run, on_step=remove_at(1, run, again=again))
    assert "\n" not in str(caught.value)
    assert run.exists() == again
    if again:
        assert (run / "other").read_text() == "theirs"
        assert not (run / "last.safetensors").exists()


def test_a_run_without_a_checkpoint_may_start_anew_with_other_settings(tmp_path: Path) -> None:
    """Such as one whose loss was no number in its first epoch."""
    run = tmp_path / "run"
    wild = {**SMALL, "lr": 1e30, "warmup_epochs": 0.0, "batch_size": 16}
    with pytest.raises(StageCostError, match=r"lower --lr"):
        train(wild, run)
    assert (run / "config.yaml").is_file()
    assert not (run / "last.safetensors").exists()
    (run / "best.safetensors").unlink(missing_ok=True)
    with pytest.raises(StageCostError, match=r"lower --lr"):
        train({}, run, resume=True)  # the same end, told again
    assert train({**SMALL, "lr": 0.01}, run, resume=True).epochs == 1
    assert RunFolder(run).settings().training.lr == 0.01
    with pytest.raises(StageCostError, match="already holds a run"):
        train(SMALL, run)


def test_images_that_moved_are_found_where_they_are_now(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    images, moved, run = tmp_path / "images", tmp_path / "moved", tmp_path / "run"
    draw = np.random.default_rng(0)
    for level, name in ((60, "dark"), (190, "light")):
        (images / name).mkdir(parents=True)
        for i in range(40):
            pixels = np.clip(draw.normal(level, 20, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(images / name / f"{i}.png")
    given = {"num_blocks": 2, "width": 4, "device": "cpu", "epochs": 2, "batch_size": 16}
    train({**given, "data": str(images)}, run)
    before = analyze(run)
    images.rename(moved)
    for verb in (lambda: analyze(run), lambda: train({}, run, resume=True)):
        with pytest.raises(StageCostError, match="is there no more: say where they are now with --data"):
            verb()
    assert analyze(run, data=str(moved)) == before
    prune(run, tmp_path / "small", keep=1, data=str(moved))
    assert evaluate(tmp_path / "small", split="val").num_images == before.num_images
    assert train({"data": str(moved)}, run, resume=True).epochs == 2
    assert analyze(run) == before
    moved.rename(images)  # and back, to where the checkpoint knows them
    assert analyze(run, data=str(images)) == before
    assert train({"data": str(images)}, run, resume=True).epochs == 2
    assert analyze(run) == before
    with pytest.raises(StageCostError, match="--data is"):
        train({"data": "digits"}, run, resume=True)


def test_a_run_on_a_local_folder_can_be_used_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecost.runs.folder import settings_for

    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = settings_for(RunFolder(tmp_path / "run"), {"data": "images"}, resume=False)
    assert settings.data.data == str(tmp_path / "images")
    (tmp_path / "~images").mkdir()  # a path is taken as it is, before ~ means somebody's home
    others = {
        "digits": "digits",
        "~images": str(tmp_path / "~images"),
        "~nobody-here/x": "~nobody-here/x",
    }
    for given, meant in others.items():
        other = settings_for(RunFolder(tmp_path / "other"), {"data": given}, resume=False)
        assert other.data.data == meant
