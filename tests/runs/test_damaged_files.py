"""Runs and saved networks that are missing or damaged are refused by every verb, in one line."""

import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runs.conftest import Trained
from stagecost.errors import StageCostError
from stagecost.models.catalogue import load
from stagecost.runs.analysis import analyze
from stagecost.runs.bound import bound
from stagecost.runs.evaluation import evaluate
from stagecost.runs.pruning import prune
from stagecost.runs.reporting import report
from stagecost.runs.training import train
from stagecost.train.checkpoint import read_checkpoint

Tensors = dict[str, torch.Tensor]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(verb: Callable[[], object]) -> str:
    """Return the one line with which a verb is refused."""
    with pytest.raises(StageCostError) as caught:
        verb()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def verbs_on(path: Path, trained: Trained, spare: Path) -> list[str]:
    """Return the lines with which all verbs that read a run refuse this one."""
    verbs: list[Callable[[], object]] = [
        lambda: analyze(path),
        lambda: evaluate(path),
        lambda: report(path),
        lambda: prune(path, spare, keep=1),
        lambda: bound(path, [trained.two]),
        lambda: bound(trained.three, [path]),
    ]
    lines = [refusal(verb) for verb in verbs]
    assert not spare.exists()
    return lines


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_no_run(trained: Trained, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "path"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("x")
    for line in verbs_on(path, trained, tmp_path / "spare"):
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


def with_a_number(value: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        def edit(tensors: Tensors, _: dict[str, str]) -> None:
            tensors[weight(tensors, "network.blocks.0")].view(-1)[0] = value

        change(file, edit)

    return damage


def of_other_settings(file: Path) -> None:
    def edit(_: Tensors, metadata: dict[str, str]) -> None:
        settings = {**json.loads(metadata["settings"]), "lr": 0.123}
        metadata["settings"] = json.dumps(settings)

    change(file, edit)


def without_settings(file: Path) -> None:
    change(file, lambda tensors, metadata: metadata.pop("settings"))


DAMAGES = {
    "a weight that is no number": with_a_number(float("nan")),
    "an infinite weight": with_a_number(float("inf")),
    "other settings": of_other_settings,
    "no settings": without_settings,
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
def test_damaged_checkpoints(trained: Trained, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    DAMAGES[damage](run / "last.safetensors")
    for line in verbs_on(run, trained, tmp_path / "spare"):
        if damage != "no image format":
            assert str(run) in line, line
    assert not (tmp_path / "executed").exists()


RESUMING = [
    *("a weight that is no number", "an infinite weight", "no settings"),
    *("truncated", "random bytes", "empty", "another format", "a tensor missing", "a pickle"),
]


@pytest.mark.parametrize("damage", [*RESUMING, "a counter missing", "another shape"])
def test_resuming_from_a_damaged_checkpoint(trained: Trained, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    DAMAGES[damage](run / "last.safetensors")
    before = contents(run)
    line = refusal(lambda: train({}, run, resume=True))
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
    trained: Trained, tmp_path: Path, edit: Callable[[Tensors, dict[str, str]], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    change(run / "last.safetensors", edit)
    assert "last.safetensors" in refusal(lambda: train({}, run, resume=True))


def test_a_report_of_a_run_that_began_with_no_list_of_blocks(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    change(run / "last.safetensors", lambda _, metadata: metadata.update(initial_blocks="5"))
    assert "with which blocks" in refusal(lambda: report(run, device="cpu"))


@pytest.mark.parametrize("told", ["5", "[1]", "[0, 1]", '["inf", 1]', '["nan", 1]', "[1, 0.5]"])
def test_a_scale_of_the_loss_that_is_none(trained: Trained, tmp_path: Path, told: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    assert read_checkpoint(run / "last.safetensors").loss_scale is None
    change(run / "last.safetensors", lambda _, metadata: metadata.update(loss_scale=told))
    checkpoint = read_checkpoint(run / "last.safetensors")
    assert "by what the loss is multiplied" in refusal(lambda: checkpoint.loss_scale)


CORRUPT = [b"a: [1", b"- 1\n", b"", b"epoks: 3\n", b"data: digits\nnum_blocks: x\n", b"\x00\xff"]


@pytest.mark.parametrize("content", CORRUPT, ids=str)
def test_damaged_settings_of_a_run(trained: Trained, tmp_path: Path, content: bytes) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.three, run)
    (run / "config.yaml").write_bytes(content)
    verbs_on(run, trained, tmp_path / "spare")
    assert refusal(lambda: train({}, run, resume=True))


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


def no_number(folder: Path) -> None:
    def edit(tensors: Tensors, _: dict[str, str]) -> None:
        tensors["head.linear.weight"][0, 0] = float("nan")

    change(folder / "model.safetensors", edit)


SAVED_IMAGES: dict[str, Callable[[Path], object]] = {
    "a weight that is no number": no_number,
    "no settings": changed(settings=None),
    "settings of another type": changed(settings="digits"),
    "unknown entry": changed(settings={"zzz": 1}),
    "value of another type": changed(settings={"data": "digits", "val_fraction": "x"}),
    "no seed": changed(settings={"data": "digits", "seed": None}),
    "no image format": changed(image_format=None),
    "an image format of another type": changed(image_format=[1]),
}


@pytest.mark.parametrize("damage", SAVED | SAVED_IMAGES)
def test_damaged_saved_networks(trained: Trained, tmp_path: Path, damage: str) -> None:
    small = tmp_path / "small"
    shutil.copytree(trained.saved, small)
    (SAVED | SAVED_IMAGES)[damage](small)
    for verb in (evaluate, analyze):
        assert refusal(functools.partial(verb, small))
    if damage in SAVED:
        assert refusal(lambda: load(small))
    assert not (tmp_path / "executed").exists()
