"""Bad settings, images and folders end with status 2 and one line: the value and the remedy."""

import os
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from helpers import DATA, RECIPE, Runs, contents
from processes import PRELOAD, CommandLine
from stagecost.models.weights import read_weights

MODEL = ("--num-blocks", 2, "--width", 4)
STAGED = ("--model", "staged")


def flags_only(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


# ---------------------------------------------------------------------------------------------
# Settings of a training

SETTINGS = [
    # flags, and what the line must hold: the value, then the remedy
    (["--data", "no-such-data"], "'no-such-data'", "digits"),
    (["--data", "/no/such/folder"], "/no/such/folder", "check the spelling"),
    (["--data", ""], "--data", "digits"),
    (["--model", "homogenous"], "'homogenous'", "did you mean 'homogeneous'"),
    (["--model", "zzz"], "'zzz'", "choose from homogeneous, staged"),
    (["--optimizer", "adam"], "'adam'", "'sgd', 'adamw'"),
    (["--num-blocks", "0"], "is 0", "at least 1"),
    (["--num-blocks", "-1"], "is -1", "at least 1"),
    (["--num-blocks", "x"], "--num-blocks is 'x'", "give a whole number"),
    (["--num-blocks", "2.5"], "'2.5'", "give a whole number"),
    (["--num-blocks", ""], "--num-blocks is ''", "give a whole number"),
    (["--width", "0"], "is 0", "at least 1"),
    (["--stem-stride", "0"], "stem_stride is 0", "at least 1"),
    (["--blocks-per-stage", "1,1"], "blocks_per_stage", "it takes num_blocks, width"),
    ([*STAGED], "num_blocks", "it takes blocks_per_stage, widths"),
    (["--gamma", "-1"], "gamma is -1", "at least 0"),
    (["--gamma", "nan"], "'nan'", "give a number"),
    (["--gamma", "inf"], "gamma is inf", "finite"),
    (["--gamma", "1e999"], "gamma is inf", "finite"),
    (["--weight-decay", "-1"], "--weight-decay is -1", "at least 0"),
    (["--weight-decay", "nan"], "'nan'", "give a number"),
    (["--label-smoothing", "1"], "--label-smoothing is 1", "from 0 to below 1"),
    (["--ema-decay", "1"], "--ema-decay is 1", "from 0 to below 1"),
    (["--clip-norm", "-1"], "--clip-norm is -1", "at least 0"),
    (["--warmup-epochs", "-1"], "--warmup-epochs is -1", "at least 0"),
    (["--epochs", "0"], "epochs is 0", "at least 1"),
    (["--epochs", "1.5"], "'1.5'", "give a whole number"),
    (["--batch-size", "0"], "--batch-size is 0", "at least 1"),
    (["--lr", "0"], "lr is 0", "above 0"),
    (["--lr", "1e300"], "--lr is 1e+300", "at most 1e+30"),
    (["--weight-decay", "1e308"], "--weight-decay is 1e+308", "at most 1e+30"),
    (["--weights", ""], "--weights is ''", "give a file, a folder, or pretrained"),
    (["--num-blocks", "3", "--targets", "99"], "--targets 99 is impossible", "give other ones"),
    (["--lr", "nan"], "'nan'", "give a number"),
    (["--seed", "-1"], "seed is -1", "at least 0"),
    (["--val-fraction", "1.5"], "1.5", "from 0 to below 1"),
    (["--val-fraction", "-0.1"], "-0.1", "from 0 to below 1"),
    (["--val-fraction", "0.0001"], "0.0001", "hold out more"),
    (["--limit-train", "0"], "--limit-train 0", "at least 1"),
    (["--limit-test", "-1"], "--limit-test -1", "at least 1"),
    (["--limit-train", "1"], "1 training image", "give more images"),
    (["--image-size", "0"], "--image-size 0", "at least 1"),
    (["--augment", "all"], "'all'", "'auto', 'none'"),
    (["--device", "foo"], "'foo'", "choose auto, cpu, cuda or mps"),
    (["--precision", "64"], "'64'", "'32', 'bf16', 'fp16'"),
    (["--precision", "fp16"], "fp16", "use --precision bf16 or 32"),
    (["--checkpoint-minutes", "0"], "--checkpoint-minutes is 0", "above 0"),
    (["--num-processes", "0"], "--num-processes is 0", "at least 1"),
    (["--num-processes", "3"], "3 processes", "give a multiple"),
    (["--num-processes", "32", "--limit-train", "20"], "32 processes", "use fewer processes"),
    (["--nonsense", "7"], "--nonsense is unknown", "--help"),
    (["--gam", "7"], "--gam is unknown", "did you mean --gamma?"),
    (["stray"], "stray", "--help"),
    (["--epochs"], "--epochs", "expected one argument"),
]


@pytest.mark.parametrize(("flags", "value", "remedy"), SETTINGS, ids=flags_only)
def test_settings(cli: CommandLine, tmp_path: Path, flags: list[str], value: str, remedy: str) -> None:
    run = tmp_path / "run"
    line = cli("train", *RECIPE, *MODEL, "--output", run, *flags, "--json").refusal
    assert value in line
    assert remedy in line
    assert not run.exists()  # a refused run leaves nothing behind


STAGES = [
    (["--blocks-per-stage", "1,1", "--widths", "4"], "(4,)", "one width a stage"),
    (["--blocks-per-stage", "1,x"], "'1,x'", "numbers like 16,32,64"),
    (["--blocks-per-stage", "1,,2"], "'1,,2'", "numbers like 16,32,64"),
    (["--blocks-per-stage", ""], "stages", "one width a stage"),
    (["--blocks-per-stage", "0,1", "--widths", "4,4"], "is 0", "at least 1"),
    (["--blocks-per-stage", "1,1", "--widths", "4,-4"], "is -4", "at least 1"),
    (["--widths", "4.5,8"], "'4.5,8'", "numbers like 16,32,64"),
]


@pytest.mark.parametrize(("flags", "value", "remedy"), STAGES, ids=flags_only)
def test_stages(cli: CommandLine, tmp_path: Path, flags: list[str], value: str, remedy: str) -> None:
    line = cli("train", *RECIPE, *STAGED, *flags, "--output", tmp_path / "run").refusal
    assert value in line
    assert remedy in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    line = cli("train", *RECIPE, *MODEL, "--device", "cuda", "--output", tmp_path / "run").refusal
    assert "'cuda'" in line
    assert "--device auto" in line
    assert "'cuda'" in cli("analyze", runs.three, "--device", "cuda").refusal
    assert "about a model" in cli("analyze", runs.three, "--image-size", 8).refusal


def test_no_data_no_output_no_verb(cli: CommandLine, tmp_path: Path) -> None:
    assert "--data digits" in cli("train", "--epochs", 1, "--output", tmp_path / "run").refusal
    assert "output" in cli("train", "--data", "digits").refusal
    assert "--output is empty" in cli("train", *RECIPE, *MODEL, "--output", "").refusal
    to = ("--output", tmp_path / "run")
    assert "--config is empty" in cli("train", *RECIPE, *MODEL, *to, "--config", "").refusal
    assert "--csv is empty" in cli("predict", tmp_path, tmp_path, "--csv", "").refusal
    for arguments in (["frobnicate"], ["analyze"], ["evaluate"], ["bound"], ["prune", tmp_path]):
        outcome = cli(*arguments)
        assert (outcome.status, outcome.stdout, len(outcome.stderr.splitlines())) == (2, "", 1)
    assert "analyze" in cli().stdout, "without a verb the verbs are shown"


CONFIGS: list[tuple[bytes | None, str]] = [
    (None, "does not exist"),
    (b"epochs: [1", "not valid YAML"),
    (b"- epochs\n", "no mapping"),
    (b"", "no mapping"),
    (b"epochs", "no mapping"),
    (b"epoks: 3\n", "'epoks' is unknown"),
    (b"epochs: many\n", "'many': give a whole number"),
    (b"epochs: -3\n", "epochs is -3"),
    (b"epochs: null\n", "epochs is null"),
    (b"epochs: 3\nseed: 1\nepochs: 4\n", "epochs is there twice"),
    (b"epochs: 3\ncut_at: 5:1\n", "--cut-at names epoch 5 of 3"),
    (b"widths: {a: 1}\n", "numbers like 16,32,64"),
    (b"\x00\xff\xfe", "not valid YAML"),
    (b"!!python/object/apply:os.system ['touch pwned']\n", "not valid YAML"),
]


@pytest.mark.parametrize(("content", "words"), CONFIGS, ids=lambda v: str(v)[:30])
def test_configurations(cli: CommandLine, tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    flags = (*DATA, *MODEL, "--output", tmp_path / "run")
    assert words in cli("train", "--config", file, *flags).refusal
    assert not Path("pwned").exists()


# ---------------------------------------------------------------------------------------------
# Images


def test_an_empty_folder(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    flags = ("--data", tmp_path / "empty", *MODEL, "--output", tmp_path / "run")
    assert "is empty" in cli("train", *flags).refusal


def test_a_damaged_photograph(cli: CommandLine, tmp_path: Path) -> None:
    folder = jpeg_folder(tmp_path / "photos")
    for path in (folder / "cat").iterdir():  # all of them: test images are not read here
        path.write_bytes(b"\xff\xd8 not a photograph")
    line = cli("train", "--data", folder, *MODEL, "--output", tmp_path / "run").refusal
    assert ".jpg" in line
    assert "replace or remove it" in line


def test_a_damaged_parquet_file(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.parquet").write_bytes(b"PAR1 and nothing else")
    flags = ("--data", tmp_path / "table", *MODEL, "--output", tmp_path / "run")
    assert str(tmp_path / "table") in cli("train", *flags).refusal


def test_other_classes(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    folder = jpeg_folder(tmp_path / "photos")
    for path in (runs.three, runs.saved):
        line = cli("evaluate", path, "--data", folder).refusal
        assert "2 classes" in line
        assert "10" in line


def jpeg_folder(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(0, 255, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.jpg")
    return folder


# ---------------------------------------------------------------------------------------------
# Where results go


def test_outputs_that_cannot_be(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below", "/proc/stagecost"):
        for command in (("train", *RECIPE, *MODEL), ("prune", runs.three, "--keep-blocks", 1)):
            assert str(output) in cli(*command, "--output", output).refusal
    assert file.read_text() == "mine"


def test_more_than_fits_into_memory(cli: CommandLine, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "run")
    line = cli("train", *RECIPE, "--num-blocks", 1, "--width", 10**6, *output).refusal
    assert "not enough memory" in line
    assert "--width" in line
    line = cli("train", *RECIPE, "--num-blocks", 10**9, *output).refusal
    assert "1000000000 blocks are too many" in line
    assert not (tmp_path / "run").exists()


def give_up_rights() -> None:
    """Go on as a user without rights, for root may write everywhere."""
    if os.geteuid() == 0:
        for name in PRELOAD:  # this user may not even read where Python lies; what was read once stays
            import_module(name)
        load_digits()
        os.seteuid(65534)


def let_others_look(path: Path) -> None:
    """Let every user look into a folder, and at what is on the way to it."""
    for each in (path, *path.parents):
        if (mode := each.stat().st_mode) & 0o055 != 0o055:
            each.chmod(mode | 0o055)


def test_a_folder_without_permission(cli: CommandLine, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    let_others_look(locked)  # though not write
    command = ("train", *RECIPE, *MODEL, "--output", locked / "run")
    line = cli(*command, prepare=give_up_rights).refusal
    assert str(locked) in line
    assert "permission" in line.lower()
    assert not (locked / "run").exists()


def test_weights_without_permission(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    closed = shutil.copytree(runs.three, tmp_path / "closed")
    let_others_look(closed)
    (closed / "last.safetensors").chmod(0)
    line = cli("analyze", closed, prepare=give_up_rights).refusal
    assert f"{closed / 'last.safetensors'}: Permission denied: check the permissions" in line


def test_weights_of_others_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.touch(mode=0)
    let_others_look(tmp_path)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with pytest.raises(PermissionError):
            read_weights(file)
    finally:
        os.seteuid(user)


def test_exits_for_a_folder_without_permission(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    """Said before anything is measured."""
    locked = shutil.copytree(runs.three, tmp_path / "locked")
    let_others_look(locked)
    called = cli("exit", locked, "--max-drop", 5, prepare=give_up_rights)
    assert "permission" in called.refusal.lower()
    assert "measuring" not in called.stderr


@pytest.mark.parametrize("verb", ["report", "compare", "predict"])
def test_what_cannot_be_written_is_said_before_anything_is_read(
    cli: CommandLine, runs: Runs, tmp_path: Path, verb: str
) -> None:
    locked = shutil.copytree(runs.three, tmp_path / "locked")
    (locked / "none.png").touch()
    let_others_look(locked)
    let_others_look(runs.staged)
    arguments, file = {
        "report": ([locked, "--data", tmp_path / "none"], "report.html"),
        "compare": ([locked, runs.staged, "--data", tmp_path / "none"], "page.html"),
        "predict": ([locked, locked / "none.png"], "answers.csv"),
    }[verb]
    place = {"compare": ["--output", locked / file], "predict": ["--csv", locked / file]}.get(verb, [])
    line = cli(verb, *arguments, *place, prepare=give_up_rights).refusal
    assert f"{locked / file}: Permission denied: check the permissions" in line


def test_a_folder_in_the_place_of_a_table(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "none.png").touch()
    line = cli("predict", runs.three, tmp_path / "none.png", "--csv", tmp_path).refusal
    assert f"{tmp_path} is a folder: give a file" in line


def stand_in_no_folder(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def test_the_current_folder_was_removed(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    prepare = partial(stand_in_no_folder, tmp_path / "gone")
    assert "the current folder was removed" in cli("analyze", runs.three, prepare=prepare).refusal


def test_a_folder_that_holds_something(cli: CommandLine, runs: Runs) -> None:
    before = contents(runs.three), contents(runs.saved)
    line = cli("train", *RECIPE, *MODEL, "--output", runs.three).refusal
    assert str(runs.three) in line
    assert "--resume" in line
    for output in (runs.three, runs.saved):
        line = cli("prune", runs.two, "--keep-blocks", 1, "--output", output).refusal
        assert str(output) in line
    assert before == (contents(runs.three), contents(runs.saved))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--width", 5), ("--epochs", 9), ("--gamma", 0.5), ("--seed", 4), ("--limit-train", 50)],
)
def test_resuming_with_other_settings(cli: CommandLine, runs: Runs, flag: str, value: float) -> None:
    before = contents(runs.three)
    line = cli("train", "--resume", flag, value, "--output", runs.three).refusal
    assert flag in line
    assert str(value) in line
    assert contents(runs.three) == before
