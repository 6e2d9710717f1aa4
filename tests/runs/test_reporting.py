"""Reports and comparisons of real runs: what is in them, and what is refused."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_files import tree
from runs.conftest import TINY, Trained
from stagecost.cli.views import show
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.records import read_record
from stagecost.report.words import duration_text
from stagecost.runs.analysis import analyze
from stagecost.runs.evaluation import evaluate
from stagecost.runs.exiting import exit_early
from stagecost.runs.inspection import inspect_model
from stagecost.runs.measuring import Measurements, Timing, measure
from stagecost.runs.mistakes import mistakes_of, saved_network, thumbnail
from stagecost.runs.pruning import prune
from stagecost.runs.reporting import compare, report, report_data
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train


@pytest.mark.parametrize("which", ["three", "saved"])
def test_mistakes_are_those_of_the_cut(trained: Trained, which: str) -> None:
    run = open_trained(trained.three, device="cpu")
    batches = run.batches("test")
    saved = str(trained.saved) if which == "saved" else ""
    found = mistakes_of(run, batches, [0, 1], saved)
    small = open_trained(trained.saved, device="cpu").network
    with torch.no_grad():
        before = torch.cat([run.network(x).argmax(1) for x, _ in batches])
        cut = small if saved else (lambda x: run.network(x, Cut.first(2)))
        after = torch.cat([cut(x).argmax(1) for x, _ in batches])
    right = batches.split.targets
    assert found.newly_wrong_count == int(((before == right) & (after != right)).sum()) > 0
    assert len(found.newly_wrong) == min(12, found.newly_wrong_count)
    assert found.confusion is not None
    counts = torch.tensor(found.confusion.counts)
    assert counts.sum() == 200
    assert int(counts.diagonal().sum()) == int((after == right).sum())
    assert counts.sum(1).tolist() == torch.bincount(right, minlength=10).tolist()
    for image in found.newly_wrong:
        assert image.label != image.answer


def test_another_network_in_the_place_of_the_small_one_is_passed_over(
    trained: Trained, tmp_path: Path
) -> None:
    other = shutil.copytree(trained.saved, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"image_format": config["image_format"] | {"size": 9}})
    )
    run = open_trained(trained.three, device="cpu")
    for folder, kept in ((other, [0, 1]), (trained.saved, [0])):
        found = [mistakes_of(run, run.batches("val"), kept, name) for name in (str(folder), "")]
        assert found[0] == found[1]


def test_a_cut_of_another_run_in_the_same_folder_is_passed_over(
    trained: Trained, tmp_path: Path
) -> None:
    run, small = shutil.copytree(trained.three, tmp_path / "run"), tmp_path / "small"
    prune(run, small, keep=2, device="cpu")
    opened = open_trained(run, device="cpu")
    assert saved_network(str(small), opened, [0, 1]) is not None
    config = json.loads((small / "config.json").read_text())
    config["pruning"]["accuracy_after"] += 1
    (small / "config.json").write_text(json.dumps(config))
    assert saved_network(str(small), opened, [0, 1]) is None
    (small / "config.json").write_text(json.dumps(config | {"pruning": "edited by hand"}))
    assert saved_network(str(small), opened, [0, 1]) is None
    assert saved_network(str(tmp_path / "moved"), opened, [0, 1]) is None


def test_a_cut_is_found_from_another_folder(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = shutil.copytree(trained.staged, tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    kept = [1] * len(open_trained(run, device="cpu").network.stages)
    assert prune("run", "small", keep=Cut.stages(*kept), device="cpu").network == "small"
    monkeypatch.chdir(elsewhere)
    page = Path(report(run, device="cpu").report).read_text("utf-8")
    assert "What the cut gets wrong" in page
    assert str(tmp_path / "small") in page


def test_a_pruning_of_other_weights_is_refused(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    prune(run, tmp_path / "small", keep=2, device="cpu")
    report(run, device="cpu")
    file = run / "pruning.json"
    content = json.loads(file.read_text())
    assert content["weights"] == open_trained(run, device="cpu").weights_digest
    file.write_text(json.dumps(content | {"weights": "0123456789abcdef"}))  # as of --checkpoint best
    with pytest.raises(StageCostError, match=r"does not tell of a pruning of this .*other weights"):
        report(run, device="cpu")
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "weights"}))
    report(run, device="cpu")  # of an earlier version


def test_times_and_exits_that_cannot_be_are_refused(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.two, tmp_path / "run")
    measure([run], batch=(1,), seconds=0.001, depths=True, device="cpu")
    exit_early(run, max_drop=5, batch=(1,), device="cpu")
    changes = (
        ("latency.json", "timings", {"batch_size": 0, "batch": 0}, "a batch has no images"),
        ("latency.json", "timings", {"p50_ms": -1.0}, "or took no time"),
        ("latency.json", "timings", {"p50_ms": "nan"}, "or took no time"),
        ("exit.json", "cuts", {"depths": []}, "for another number of blocks"),
        ("exit.json", "leaving", {}, "how many images leave at each depth"),
    )
    for name, rows, change, words in changes:
        kept = (run / name).read_text()
        content = json.loads(kept)
        content[rows] = [row | change for row in content[rows] if change]
        (run / name).write_text(json.dumps(content))
        with pytest.raises(StageCostError, match=rf"{name} does not tell of .*{words}"):
            report(run, device="cpu")
        (run / name).write_text(kept)


def test_training_images_are_called_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train({**TINY, "num_blocks": 2, "width": 4, "val_fraction": 0.0}, run)
    note = "there are no validation images: these are the training images, which flatters"
    done = report(run, device="cpu")
    assert done.warnings[0] == note
    page = Path(done.report).read_text()
    assert "stagecost prune" not in page  # which would be refused
    assert page.count("there are no validation images to cut by") >= 2
    assert compare([run, run], tmp_path / "page.html", device="cpu").runs[0].warnings[0] == note
    with pytest.raises(StageCostError, match=r"trained without validation images: .* another --split"):
        analyze(run, device="cpu")
    assert analyze(run, split="train", device="cpu").num_blocks == 2


def test_a_thumbnail_is_the_image() -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        pixels = torch.randint(256, (channels, 8, 8), dtype=torch.uint8)
        content = base64.b64decode(thumbnail(pixels).partition(",")[2])
        image = Image.open(io.BytesIO(content))
        assert (image.mode, image.size) == (mode, (8, 8))
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        assert torch.equal(flat.view(8, 8, channels).permute(2, 0, 1), pixels)
    large = base64.b64decode(thumbnail(torch.zeros(3, 300, 200, dtype=torch.uint8)).partition(",")[2])
    assert Image.open(io.BytesIO(large)).size == (64, 96)


def test_a_report_tells_of_mistakes_times_and_exits(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    page = Path(report(run, device="cpu").report).read_text("utf-8")
    assert "What the cut gets wrong" in page
    assert "one image at a time, 1 thread of" in page  # a quick look
    assert "Times were not measured" not in page
    assert "Early exit" not in page
    measure([run], batch=(2, 1), seconds=0.001, depths=True, device="cpu")
    measure([run], batch=(2,), backends=("onnx",), seconds=0.001, device="cpu")  # which keeps the others
    exit_early(run, max_drop=5, batch=(20,), device="cpu")
    page = Path(report(run, device="cpu").report).read_text("utf-8")
    for words in ("<h2>Early exit</h2>", "oracle", "early exits", "batches of 20", "With exits"):
        assert words in page
    assert "one image at a time, 1 thread of" in page
    kept = json.loads((run / "latency.json").read_text())
    rows = {(row["depth"], row["batch_size"]): row for row in kept["timings"]}
    assert rows.keys() == {(k, n) for k in range(4) for n in (1, 2)}
    assert len(kept["timings"]) == 9
    for k in range(4):
        shown = json.dumps(duration_text(rows[k, 1]["p50_ms"] / 1000))
        assert f'"latency":{shown}' in page
    assert len(page.encode()) < 3_000_000
    (run / "exit.json").write_text('{"run": "x"}')
    with pytest.raises(
        StageCostError, match=r"exit\.json does not tell of exits.* delete it and exit_policy\.json"
    ):
        report(run, device="cpu")
    (run / "exit.json").unlink()
    pruning = json.loads((run / "pruning.json").read_text())
    (run / "pruning.json").write_text(json.dumps(pruning | {"kept_blocks": [0, 3]}))
    with pytest.raises(StageCostError, match=r"pruning\.json .*blocks \[0, 3\] cannot be kept"):
        report(run, device="cpu")


def test_commands_of_a_page_take_the_checkpoint_and_the_images_that_it_is_on(
    trained: Trained, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.two, tmp_path / "run")
    plain = f"stagecost prune {run} --max-drop 0.5 --output small/"
    assert plain in Path(report(run, device="cpu").report).read_text("utf-8")
    given: Any = {"checkpoint": "best", "data": "digits", "allow_trained": True}
    page = Path(report(run, device="cpu", **given).report).read_text("utf-8")
    flags = "--checkpoint best --data digits --allow-trained"
    assert plain not in page
    for wish, output in (("--max-drop 0.5", "small"), ("--keep-blocks 1", "small-1")):
        assert f"stagecost prune {run} {wish} {flags} --output {output}/" in page


def test_runs_are_compared(trained: Trained, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "all.html"
    found = compare([trained.two, trained.three, trained.staged], page, tolerance=5, device="cpu")
    assert found.report == str(page)
    assert [row.num_blocks for row in found.runs] == [2, 3, 4]
    for row in found.runs:
        told = analyze(row.run, tolerance=5, device="cpu")
        assert (row.needed_blocks, row.needed_cut) == (told.needed_blocks, told.needed_cut)
        (needed,) = (cut for cut in told.cuts if cut.cut == told.needed_cut)
        assert (row.accuracy_needed, row.macs_needed) == (needed.accuracy, needed.macs)
        whole = evaluate(row.run, split="val", device="cpu")
        assert (row.accuracy, row.interval, row.macs) == (whole.accuracy, whole.interval, whole.macs)
        assert (row.split, row.num_images) == ("val", 60)
        assert row.run in page.read_text("utf-8")
    assert any(row.macs_needed < row.macs and row.accuracy_needed != row.accuracy for row in found.runs)


def test_a_pruning_and_exits_of_other_weights_are_no_part_of_a_comparison(
    trained: Trained, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    prune(run, tmp_path / "small", keep=2, device="cpu")
    exit_early(run, max_drop=5, batch=(1,), device="cpu")
    before = compare([trained.two, run], tmp_path / "page.html", device="cpu")
    page = (tmp_path / "page.html").read_bytes()
    for file in (run / "pruning.json", run / "exit.json"):  # as of --checkpoint best
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"weights": "0123456789abcdef"}))
    assert compare([trained.two, run], tmp_path / "page.html", device="cpu") == before
    assert (tmp_path / "page.html").read_bytes() == page


def test_validation_images_of_a_data_set_count_where_none_are_held_out(
    trained: Trained, tmp_path: Path
) -> None:
    """They are judged in training, and by every verb that chooses a depth."""
    sizes = {f"{split}/{name}": n for split, n in (("train", 8), ("val", 3)) for name in ("cat", "dog")}
    pets, run = tree(tmp_path / "pets", sizes), tmp_path / "run"
    given = {"data": str(pets), "val_fraction": 0.0, "num_blocks": 2, "width": 4, "device": "cpu"}
    result = train({**given, "epochs": 1, "batch_size": 4}, run)
    page = tmp_path / "page.html"
    found, other = compare([run, trained.two], page, device="cpu").runs
    assert (found.split, found.num_images, found.accuracy) == ("val", 6, result.val_accuracy)
    note = f"these are val images of digits, not val images of {pets}: accuracies on other images"
    assert not any(note in text for text in found.warnings)
    assert any(note in text for text in other.warnings)
    assert note in page.read_text("utf-8")


def test_other_images_of_the_same_data_are_told_of(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train({**TINY, "limit_train": 200, "seed": 3, "num_blocks": 2, "epochs": 1}, run)
    one, other, same = compare([trained.two, run, trained.three], tmp_path / "page.html").runs
    note = f"these are val images of digits, not those of {trained.two}: accuracies on other images"
    told = [any(note in text for text in row.warnings) for row in (one, other, same)]
    assert told == [False, True, False]


def test_what_cannot_be_compared(trained: Trained, tmp_path: Path) -> None:
    for runs, words in (
        ([trained.two], "1 run is nothing to compare"),
        ([trained.two, trained.saved], "is a saved network"),
        ([trained.two, tmp_path / "nothing"], "is no folder"),
    ):
        with pytest.raises(StageCostError, match=words):
            compare(runs, tmp_path / "page.html", device="cpu")
    with pytest.raises(StageCostError, match="is a folder"):
        compare([trained.two, trained.three], tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []
    for name, text in (
        ("config.yaml", "data: digits"),
        ("index.html", "<!DOCTYPE html>\n<html lang='en'>of somebody else"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(StageCostError, match=f"{name} holds something else already"):
            compare([trained.two, trained.three], tmp_path / name, device="cpu")
        assert (tmp_path / name).read_text() == text


def test_a_damaged_bundle_of_the_chart_library_is_made_anew(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.two, tmp_path / "run")
    command = [sys.executable, "-m", "stagecost.cli", "report", str(run), "--device", "cpu"]

    def bundle() -> str:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        (kept,) = (tmp_path / "cache" / "stagecost").iterdir()
        assert kept.read_text("utf-8").partition("\n")[2] in (run / "report.html").read_text("utf-8")
        return kept.read_text("utf-8")

    whole = bundle()
    (kept,) = (tmp_path / "cache" / "stagecost").iterdir()
    kept.write_text(whole.replace("vega", "vain", 1), "utf-8")
    assert bundle() == whole


def test_times_stay_however_the_folder_is_spelt(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained.two, tmp_path / "run")
    measure([run], batch=(1,), seconds=0.001, device="cpu")
    monkeypatch.chdir(tmp_path)
    measure(["run"], batch=(2,), seconds=0.001, device="cpu")
    kept = read_record(Measurements, json.loads((run / "latency.json").read_text()))
    assert {row.batch_size for row in kept.timings} == {1, 2}
    assert {row.network for row in kept.timings} == {"run"}


def test_times_of_depths_stay_together(trained: Trained, tmp_path: Path) -> None:
    """A later time of the whole network alone is none to compare theirs with."""
    run = shutil.copytree(trained.three, tmp_path / "run")
    opened = open_trained(run, device="cpu")

    def shown() -> tuple[Timing, ...]:
        kept = read_record(Measurements, json.loads((run / "latency.json").read_text()))
        return kept.of_depths(opened)

    measure([run], batch=(1,), seconds=0.001, depths=True, device="cpu")
    first = shown()
    measure([run], batch=(1, 2), seconds=0.001, backends=("eager", "onnx"), device="cpu")
    assert shown() == first
    kept = read_record(Measurements, json.loads((run / "latency.json").read_text()))
    kinds = [(row.depth, row.backend, row.batch_size) for row in kept.timings]
    alone = {(3, "onnx", 1), (3, "eager", 2), (3, "onnx", 2)}
    assert {*kinds} == alone | {(k, "eager", 1) for k in range(4)}
    assert len(kinds) == 7
    measure([run], batch=(1,), seconds=0.002, depths=True, device="cpu")
    assert all(new != old for new, old in zip(shown(), first, strict=True))


def test_times_of_another_network_are_not_shown(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.three, tmp_path / "run")
    measure([run], batch=(1,), threads=2, seconds=0.001, depths=True, device="cpu")
    measure([run], batch=(1,), seconds=0.001, depths=True, device="cpu")
    file = run / "latency.json"
    kept = read_record(Measurements, json.loads(file.read_text()))
    assert {row.threads for row in kept.timings} == {1, 2}
    opened = open_trained(run, device="cpu")
    assert {row.threads for row in kept.of_depths(opened)} == {1}  # the latest
    assert kept.of_depths(open_trained(trained.two, device="cpu")) == ()
    other = shutil.copytree(trained.two, tmp_path / "other")
    shutil.copy(file, other / "latency.json")
    report(other, device="cpu")  # which measures anew
    assert json.loads((other / "latency.json").read_text())["networks"][0]["num_blocks"] == 2


def test_blocks_of_a_network_that_lost_some_are_named_as_prune_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"model": "staged", "blocks_per_stage": [2, 2], "widths": [4, 6]}
    train({**TINY, **stages, "epochs": 1}, tmp_path / "whole")
    prune(tmp_path / "whole", tmp_path / "small", keep=[0, 2, 3])
    capsys.readouterr()
    show("analyze", analyze(tmp_path / "small", device="cpu"))
    told = capsys.readouterr().out
    rows = [line.split("│")[5].strip() for line in told.splitlines() if line.count("│") == 8]
    assert rows == ["0", "2", "3", ""]
    assert "stages begin at blocks 0, 2;" in told
    found = inspect_model("staged", weights=str(tmp_path / "small"), data="digits", device="cpu")
    assert [block.block for block in found.blocks] == [0, 2, 3]
    show("analyze", found)
    rows = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert rows == ["", "2", "3", ""]

    again = {"model": "staged", "weights": str(tmp_path / "small"), "epochs": 1}
    train({**TINY, **again}, tmp_path / "again")
    page = Path(report(tmp_path / "again", device="cpu").report).read_text(encoding="utf-8")
    assert "norm of the weights of blocks 0, 2–3, in order" in page
    assert "in block 3" in page
    assert page.count(">blocks 0, 2–3, in order<") == 2  # of the axes


def test_settings_of_a_report_are_those_of_the_training(tmp_path: Path) -> None:
    train({**TINY, "num_blocks": 4, "width": 4, "epochs": 2, "cut_at": "1:2"}, tmp_path / "run")
    opened = open_trained(tmp_path / "run", device="cpu")
    data = report_data(opened, analyze(tmp_path / "run", device="cpu"))
    assert data.settings["num_blocks"] == 4
    assert data.analysis.num_blocks == 2
