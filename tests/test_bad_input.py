"""Every bad input ends with status 2 and one line that names the value and the remedy."""

import errno
import functools
import json
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import stagecost as sc
from conftest import DATA, RECIPE, Runs
from processes import CommandLine
from stagecost.storage import write_atomically

MODEL = ("--num-blocks", 2, "--width", 4)
STAGED = ("--model", "staged")
Tensors = dict[str, torch.Tensor]


def flags_only(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    (["--gamma", "inf"], "'inf'", "give a number"),
    (["--gamma", "1e999"], "gamma is inf", "finite"),
    (["--weight-decay", "-1"], "weight_decay is -1", "at least 0"),
    (["--weight-decay", "nan"], "'nan'", "give a number"),
    (["--label-smoothing", "1"], "label_smoothing is 1", "from 0 to below 1"),
    (["--ema-decay", "1"], "ema_decay is 1", "from 0 to below 1"),
    (["--clip-norm", "-1"], "clip_norm is -1", "at least 0"),
    (["--warmup-epochs", "-1"], "warmup_epochs is -1", "at least 0"),
    (["--epochs", "0"], "epochs is 0", "at least 1"),
    (["--epochs", "1.5"], "'1.5'", "give a whole number"),
    (["--batch-size", "0"], "batch_size is 0", "at least 1"),
    (["--lr", "0"], "lr is 0", "above 0"),
    (["--lr", "nan"], "'nan'", "give a number"),
    (["--seed", "-1"], "seed is -1", "at least 0"),
    (["--val-fraction", "1.5"], "1.5", "--val-fraction 0.1"),
    (["--val-fraction", "-0.1"], "-0.1", "--val-fraction 0.1"),
    (["--val-fraction", "0.0001"], "0.0001", "hold out more"),
    (["--limit-train", "0"], "limit_train 0", "at least 1"),
    (["--limit-test", "-1"], "limit_test -1", "at least 1"),
    (["--limit-train", "1"], "1 training image", "hold out more"),
    (["--image-size", "0"], "image_size 0", "at least 1"),
    (["--augment", "all"], "'all'", "'auto', 'none'"),
    (["--device", "foo"], "'foo'", "choose auto, cpu, cuda or mps"),
    (["--precision", "64"], "'64'", "'32', 'bf16', 'fp16'"),
    (["--precision", "fp16"], "fp16", "use --precision bf16 or 32"),
    (["--checkpoint-minutes", "0"], "checkpoint_minutes is 0", "above 0"),
    (["--num-processes", "0"], "num_processes is 0", "at least 1"),
    (["--num-processes", "3"], "3 processes", "give a multiple"),
    (["--num-processes", "32", "--limit-train", "20"], "32 processes", "use fewer processes"),
    (["--nonsense", "7"], "--nonsense 7", "--help"),
    (["--gam", "7"], "--gam 7", "--help"),
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
    (["--blocks-per-stage", ""], "''", "numbers like 16,32,64"),
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


def test_no_data_no_output_no_verb(cli: CommandLine, tmp_path: Path) -> None:
    assert "--data digits" in cli("train", "--epochs", 1, "--output", tmp_path / "run").refusal
    assert "output" in cli("train", "--data", "digits").refusal
    assert "--output is empty" in cli("train", *RECIPE, *MODEL, "--output", "").refusal
    for arguments in ([], ["frobnicate"], ["analyze"], ["evaluate"], ["bound"], ["prune", tmp_path]):
        outcome = cli(*arguments)
        assert (outcome.status, outcome.stdout, len(outcome.stderr.splitlines())) == (2, "", 1)


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
    (b"widths: {a: 1}\n", "numbers like 16,32,64"),
    (b"\x00\xff\xfe", "is no text"),
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
        load_digits()  # this user may not even read where Python lies; what was read once stays
        os.seteuid(65534)


def test_a_folder_without_permission(cli: CommandLine, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for path in (locked, *locked.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)  # it may be looked into, but not written to
    command = ("train", *RECIPE, *MODEL, "--output", locked / "run")
    line = cli(*command, prepare=give_up_rights).refusal
    assert str(locked) in line
    assert "permission" in line.lower()
    assert not (locked / "run").exists()


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
    assert flag.removeprefix("--").replace("-", "_") in line
    assert str(value) in line
    assert contents(runs.three) == before


# ---------------------------------------------------------------------------------------------
# Runs and saved networks that are missing or damaged


def verbs_on(cli: CommandLine, path: Path, runs: Runs, spare: Path) -> list[str]:
    """Return the lines with which all verbs that read a run refuse this one."""
    commands: list[tuple[object, ...]] = [
        ("analyze", path),
        ("evaluate", path),
        ("report", path),
        ("prune", path, "--keep-blocks", 1, "--output", spare),
        ("bound", path, "--sub", runs.two),
        ("bound", runs.three, "--sub", path),
    ]
    lines = [cli(*command).refusal for command in commands]
    assert not spare.exists()
    return lines


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_no_run(cli: CommandLine, runs: Runs, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "path"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("x")
    for line in verbs_on(cli, path, runs, tmp_path / "spare"):
        assert str(path) in line


def change(file: Path, edit: Callable[[Tensors, dict[str, str]], object]) -> None:
    """Rewrite a safetensors file with something changed."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(file)
    edit(tensors, metadata)
    save_file(tensors, file, metadata=metadata)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_format(file: Path) -> None:
    change(file, lambda tensors, metadata: metadata.update(format='"something"'))


def weight(tensors: Tensors, start: str) -> str:
    return next(name for name in sorted(tensors) if name.startswith(start) and tensors[name].dim() == 4)


def without_a_tensor(file: Path) -> None:
    change(file, lambda tensors, _: tensors.pop(weight(tensors, "network.blocks.0")))


def without_a_counter(file: Path) -> None:
    name = "network.blocks.0.residual.0.num_batches_tracked"
    change(file, lambda tensors, _: tensors.pop(name))


def of_another_shape(file: Path) -> None:
    def edit(tensors: Tensors, _: dict[str, str]) -> None:
        name = weight(tensors, "network.blocks.0")
        tensors[name] = tensors[name][:1].clone()

    change(file, edit)


def without_a_description(file: Path) -> None:
    change(file, lambda tensors, metadata: metadata.pop("description"))


def without_an_image_format(file: Path) -> None:
    change(file, lambda tensors, metadata: metadata.pop("image_format"))


def with_a_pickle(file: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return os.mkdir, (str(file.parent.parent / "executed"),)

    file.write_bytes(pickle.dumps(Trap()))


DAMAGES = {
    "truncated": truncate,
    "random bytes": lambda file: file.write_bytes(np.random.default_rng(0).bytes(5000)),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "another format": other_format,
    "no description": without_a_description,
    "no image format": without_an_image_format,
    "a tensor missing": without_a_tensor,
    "a counter missing": without_a_counter,
    "another shape": of_another_shape,
    "a pickle": with_a_pickle,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(cli: CommandLine, runs: Runs, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.three, run)
    DAMAGES[damage](run / "last.safetensors")
    for line in verbs_on(cli, run, runs, tmp_path / "spare"):
        if damage != "no image format":
            assert str(run) in line
    assert not (tmp_path / "executed").exists()


RESUMING = ["truncated", "random bytes", "empty", "another format", "a tensor missing", "a pickle"]


@pytest.mark.parametrize("damage", [*RESUMING, "a counter missing", "another shape"])
def test_resuming_from_a_damaged_checkpoint(
    cli: CommandLine, runs: Runs, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.three, run)
    DAMAGES[damage](run / "last.safetensors")
    before = contents(run)
    line = cli("train", "--resume", "--output", run).refusal
    assert "last.safetensors" in line
    assert contents(run) == before
    assert not (tmp_path / "executed").exists()


def no_rng(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors.pop("rng")


def other_momentum(tensors: Tensors, metadata: dict[str, str]) -> None:
    name = weight(tensors, "optimizer.")
    tensors[name] = torch.zeros(3)


def no_progress(tensors: Tensors, metadata: dict[str, str]) -> None:
    metadata["progress"] = '{"a": 1}'


@pytest.mark.parametrize("edit", [no_rng, other_momentum, no_progress])
def test_resuming_without_a_part(
    cli: CommandLine, runs: Runs, tmp_path: Path, edit: Callable[[Tensors, dict[str, str]], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.three, run)
    change(run / "last.safetensors", edit)
    assert "last.safetensors" in cli("train", "--resume", "--output", run).refusal


CORRUPT = [b"a: [1", b"- 1\n", b"", b"epoks: 3\n", b"data: digits\nnum_blocks: x\n", b"\x00\xff"]


@pytest.mark.parametrize("content", CORRUPT, ids=str)
def test_damaged_settings_of_a_run(cli: CommandLine, runs: Runs, tmp_path: Path, content: bytes) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.three, run)
    (run / "config.yaml").write_bytes(content)
    verbs_on(cli, run, runs, tmp_path / "spare")
    assert cli("train", "--resume", "--output", run).refusal


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def forget_the_copy(folder: Path) -> None:
    """Save the weights without the description that they carry, which would tell of the change."""
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def corrupt_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def json_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def kept(*indices: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit_config(folder, kept_blocks=list(indices))
        forget_the_copy(folder)

    return damage


def changed(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit_config(folder, **changes)
        forget_the_copy(folder)

    return damage


SAVED: dict[str, Callable[[Path], object]] = {
    "config is no JSON": corrupt_json,
    "config is a list": json_list,
    "config is a pickle": lambda folder: with_a_pickle(folder / "config.json"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated weights": lambda folder: truncate(folder / "model.safetensors"),
    "weights are a pickle": lambda folder: with_a_pickle(folder / "model.safetensors"),
    "blocks that are not there": kept(0, 7),
    "blocks out of order": kept(1, 0),
    "no blocks": kept(),
    "blocks that are no numbers": kept("a"),
    "other blocks than the weights": kept(0),
    "all blocks": changed(kept_blocks=None),
    "description mixed up": lambda folder: edit_config(folder, kept_blocks=[0]),
    "unknown model": changed(name="zzz"),
    "impossible arguments": changed(arguments={"num_blocks": -1, "width": 6, "num_classes": 10}),
    "no arguments": changed(arguments=None),
}
SAVED_IMAGES: dict[str, Callable[[Path], object]] = {
    "no settings": changed(settings=None),
    "settings of another type": changed(settings="digits"),
    "unknown entry": changed(settings={"zzz": 1}),
    "value of another type": changed(settings={"data": "digits", "val_fraction": "x"}),
    "no seed": changed(settings={"data": "digits", "seed": None}),
    "no image format": changed(image_format=None),
    "an image format of another type": changed(image_format=[1]),
}


@pytest.mark.parametrize("damage", SAVED | SAVED_IMAGES)
def test_damaged_saved_networks(cli: CommandLine, runs: Runs, tmp_path: Path, damage: str) -> None:
    small = tmp_path / "small"
    shutil.copytree(runs.saved, small)
    (SAVED | SAVED_IMAGES)[damage](small)
    for verb in ("evaluate", "analyze"):
        assert cli(verb, small).refusal
    if damage in SAVED:
        with pytest.raises(sc.StageCostError):
            sc.load(small)
    assert not (tmp_path / "executed").exists()


# ---------------------------------------------------------------------------------------------
# Verbs on good runs


PRUNE = [
    (["--keep-blocks", "0"], "keeping 0", "from 1 to 3"),
    (["--keep-blocks", "99"], "keeping 99", "from 1 to 3"),
    (["--keep-blocks", "-1"], "keeping -1", "from 1 to 3"),
    (["--keep-blocks", "x"], "'x'", "give a whole number"),
    (["--keep-per-stage", "1,1"], "[1, 1]", "stages of [3]"),
    (["--keep-per-stage", "9"], "[9]", "stages of [3]"),
    (["--keep-per-stage", "1,"], "'1,'", "numbers like 16,32,64"),
    ([], "max_drop", "keep_blocks"),
    (["--keep-blocks", "1", "--keep-per-stage", "1"], "exclude each other", "give one of them"),
    (["--max-drop", "-1"], "max_drop is -1", "at least 0"),
    (["--max-drop", "nan"], "'nan'", "give a number"),
    (["--max-drop", "1e999"], "max_drop is inf", "at least 0"),
    (["--keep-blocks", "1", "--finetune-epochs", "-1"], "finetune_epochs is -1", "at least 0"),
    (["--keep-blocks", "1", "--checkpoint", "first"], "'first'", "'last', 'best'"),
]


@pytest.mark.parametrize(("flags", "value", "remedy"), PRUNE, ids=flags_only)
def test_prune(
    cli: CommandLine, runs: Runs, tmp_path: Path, flags: list[str], value: str, remedy: str
) -> None:
    line = cli("prune", runs.three, *flags, "--output", tmp_path / "small").refusal
    assert value in line
    assert remedy in line
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("wish", ["1", "3,1", "0,1", "1,1,1"])
def test_prune_staged(cli: CommandLine, runs: Runs, tmp_path: Path, wish: str) -> None:
    flags = ("--keep-per-stage", wish, "--output", tmp_path / "small")
    assert "stages of [2, 2]" in cli("prune", runs.staged, *flags).refusal
    for number in (1, 5):
        flags = ("--keep-blocks", str(number), "--output", tmp_path / "small")
        assert "from 2 to 4" in cli("prune", runs.staged, *flags).refusal
    assert not (tmp_path / "small").exists()


def test_more_than_max_drop_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    run, small = tmp_path / "run", tmp_path / "small"
    # Without a stage cost and after some epochs the first output knows nothing.
    settings = (*DATA, "--num-blocks", 6, "--width", 8, "--gamma", 0, "--epochs", 5, "--batch-size", 32)
    assert cli("train", *settings, "--output", run).status == 0
    found = cli("analyze", run, "--json").answer
    assert found["accuracies"][1] < found["accuracies"][6] - 1
    before = contents(run)
    flags = ("--keep-blocks", 1, "--max-drop", 1)
    line = cli("prune", run, *flags, "--output", small).refusal
    assert "max_drop 1" in line
    assert "keep more blocks or allow a larger drop" in line
    assert not small.exists()
    assert contents(run) == before


@pytest.mark.parametrize("verb", ["analyze", "report"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x"])
def test_tolerance(cli: CommandLine, runs: Runs, verb: str, value: str) -> None:
    line = cli(verb, runs.two, "--tolerance", value).refusal
    assert value in line
    assert "give" in line


def test_bound(cli: CommandLine, runs: Runs, tmp_path: Path) -> None:
    for name, flags in (("wide", ("--num-blocks", 2, "--width", 7)), ("other data", ())):
        settings = flags or (*MODEL, "--seed", 0, "--val-fraction", 0.2)
        assert cli("train", *RECIPE, *settings, "--output", tmp_path / name).status == 0
    cases = (
        (runs.two, runs.three, "needs fewer"),
        (runs.three, runs.three, "needs fewer"),
        (runs.three, tmp_path / "wide", "change only N"),
        (runs.three, runs.staged, "change only N"),
        (runs.three, tmp_path / "other data", "other images"),
        (runs.saved, runs.two, "is a saved network"),
    )
    for run, sub, words in cases:
        assert words in cli("bound", run, "--sub", sub).refusal
    assert "--sub" in cli("bound", runs.three, "--sub").refusal


def test_demo(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in cli("demo", "--output", tmp_path / "file").refusal
    assert "seed is -1" in cli("demo", "--seed", -1, "--output", tmp_path / "demo").refusal


# ---------------------------------------------------------------------------------------------
# What goes wrong on the way


def last_line(stderr: str) -> str:
    """Return the one line of the refusal; the lines of the epochs before it are progress."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if not line.startswith("train epoch")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("stagecost: ")
    return lines[0]


def test_a_loss_that_is_no_number(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*DATA, *MODEL, "--epochs", 4, "--batch-size", 32, "--warmup-epochs", 3)
    # The warm-up begins with a tiny part of the rate: the first epoch of one step survives.
    outcome = cli("train", *settings, "--lr", "1e30", "--output", run)
    assert outcome.status == 2
    line = last_line(outcome.stderr)
    assert "lower --lr" in line
    assert "the last good checkpoint is kept" in line
    assert not (run / "last.safetensors").exists() or cli("evaluate", run).status == 0


def test_a_loss_that_becomes_no_number_keeps_what_was_saved(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # One step an epoch; the rate rises from 1e-6 of a huge one, so the first epoch does no harm.
    settings = ("--data", "digits", "--limit-train", 100, *MODEL, "--batch-size", 90, "--device", "cpu")
    rates = ("--epochs", 50, "--warmup-epochs", 40, "--lr", 1e6)
    outcome = cli("train", *settings, *rates, "--output", run)
    assert outcome.status == 2
    assert "lower --lr" in last_line(outcome.stderr)
    assert "train epoch 1/50" in outcome.stderr
    assert cli("evaluate", run).status == 0
    again = cli("train", "--resume", "--output", run)  # the same end, told again
    assert "lower --lr" in last_line(again.stderr)


def small_files_only(limit: int) -> None:
    """Let no file grow beyond a limit, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_no_room_for_a_checkpoint(cli: CommandLine, tmp_path: Path) -> None:
    run, twin = tmp_path / "run", tmp_path / "twin"
    settings = (*DATA, *MODEL, "--epochs", 3, "--batch-size", 32)
    assert cli("train", *settings, "--output", twin).status == 0
    begun = interrupted_run(cli, run, settings)
    before = contents(run)
    outcome = cli(
        "train", "--resume", "--output", run, prepare=functools.partial(small_files_only, 4000)
    )
    assert outcome.status == 2
    assert "safetensors" in last_line(outcome.stderr)
    after = contents(run)
    assert after["last.safetensors"] == before["last.safetensors"]
    assert not list(run.glob(".*"))
    assert begun
    assert cli("train", "--resume", "--output", run).status == 0
    assert same_tensors(run, twin)


def interrupted_run(
    cli: CommandLine, run: Path, settings: tuple[object, ...], number: int = signal.SIGINT
) -> str:
    """Train until there is a checkpoint, send a signal, and return the line that was said."""
    running = cli.start("train", *settings, "--checkpoint-minutes", 1e-9, "--output", run)
    wait_for(run / "last.safetensors")
    os.kill(running.process.pid or 0, number)
    outcome = running.wait()
    assert outcome.status == 2, outcome.stderr
    return last_line(outcome.stderr)


def wait_for(path: Path, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.002)


def same_tensors(one: Path, other: Path) -> bool:
    tensors, twins = (load_file(run / "last.safetensors") for run in (one, other))
    return tensors.keys() == twins.keys() and all(torch.equal(tensors[k], twins[k]) for k in tensors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_and_says_how_to_go_on(cli: CommandLine, tmp_path: Path, number: int) -> None:
    run, twin = tmp_path / "run", tmp_path / "twin"
    settings = (*DATA, "--num-blocks", 4, "--width", 8, "--epochs", 6, "--batch-size", 16)
    assert cli("train", *settings, "--output", twin).status == 0
    line = interrupted_run(cli, run, settings, number)
    assert "interrupted" in line
    assert f"stagecost train --resume --output {run}" in line
    assert cli("evaluate", run).status == 0
    found = cli("train", "--resume", "--output", run, "--json").answer
    assert found["epochs"] == 6
    assert same_tensors(run, twin)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_atomically(file, "new")
    assert caught.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "old"


def test_the_best_checkpoint_of_a_run_without_validation(cli: CommandLine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", *RECIPE, *MODEL, "--val-fraction", 0, "--epochs", 1, "--output", run)
    assert cli(*command).status == 0
    assert "--checkpoint last" in cli("evaluate", run, "--checkpoint", "best").refusal
