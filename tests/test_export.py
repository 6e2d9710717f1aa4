"""What is exported gives the network's outputs and decisions, also where torch is not installed."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import stagecost as sc
from environments import make_environment
from helpers import Runs, build
from stagecost.cli.main import describe
from stagecost.cli.views import show
from stagecost.data.images import ImageFormat, normalise
from stagecost.exits.engine import run_with_exits
from stagecost.exits.policy import POLICY_FILE, ExitPolicy, votes_at
from stagecost.export.folder import compare, export_network, new_folder
from stagecost.export.graphs import open_graph
from stagecost.export.pictures import read
from stagecost.export.runner import classify
from stagecost.latency import Machine, this_machine
from stagecost.network import ResidualNetwork
from stagecost.prediction import image_format_of, predict
from stagecost.runs.evaluation import evaluate
from stagecost.runs.exporting import export
from stagecost.runs.folder import keep_for_report
from stagecost.runs.lock import locked
from stagecost.runs.measuring import measure
from stagecost.runs.results import Result
from stagecost.runs.trained import open_trained
from stagecost.saved import WEIGHTS_FILE
from stagecost.storage import read_tensors, write_atomically, write_tensors

ADAPTED = {"timm/test_resnet": 64, "timm/test_vit": 160}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network_of(name: str) -> tuple[ResidualNetwork, Tensor]:
    """Return a network that knows its images, and bytes of some."""
    size = ADAPTED.get(name, 12)
    if name in ADAPTED:
        torch.manual_seed(0)
        network = sc.create_model(name, num_classes=5, image_size=size)
    else:
        network = build(name)
    names = ("a", "b", "c", "d", "e")
    numbers = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    network.details["image_format"] = ImageFormat(3, size, *numbers, names).to_json()
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (24, 3, size, size), dtype=torch.uint8, generator=generator)
    return network.eval(), pixels


def prepared(network: ResidualNetwork, pixels: Tensor) -> Tensor:
    image_format = image_format_of(network)
    mean, std = (torch.tensor(v)[:, None, None] for v in (image_format.mean, image_format.std))
    return (pixels.float() / 255 - mean) / std


@pytest.mark.parametrize(
    ("name", "kind", "policy"),
    [
        ("homogeneous", "pt2", None),
        ("staged", "onnx", None),
        ("staged", "pt2", ExitPolicy((3, 7), (0.5,), "patience", combine=True)),
        ("timm/test_vit", "onnx", None),
        ("timm/test_resnet", "onnx", ExitPolicy((1, 4), (0.5,))),
        ("timm/test_resnet", "pt2", None),
    ],
)
def test_graphs_give_the_answers(
    name: str, kind: str, policy: ExitPolicy | None, tmp_path: Path
) -> None:
    network, pixels = network_of(name)
    exported = export_network(network, tmp_path / "out", pixels[:7], format=kind, policy=policy)
    assert exported.depths == ((network.num_blocks,) if policy is None else policy.depths)
    assert exported.largest_difference <= 1e-4
    state: tuple[Tensor, ...] = (prepared(network, pixels[:5]),)
    with torch.no_grad():
        outputs = network(state[0], depths="all")
    policy = policy or ExitPolicy((network.num_blocks,))
    said = votes_at(outputs, policy.depths, policy.criterion, combine=policy.combine)
    for file, depth, labels, scores in zip(exported.files, exported.depths, *said, strict=True):
        assert file.endswith(kind)
        *following, logits, answers, shares, sure = open_graph(tmp_path / "out" / file)(state)
        state = tuple(following)
        torch.testing.assert_close(logits, outputs[depth], rtol=0, atol=1e-4)
        torch.testing.assert_close(sure, scores, rtol=0, atol=1e-4)
        assert torch.equal(answers, labels)
        if not policy.combine:
            expected = outputs[depth].softmax(dim=1).amax(dim=1)
            torch.testing.assert_close(shares, expected, rtol=0, atol=1e-4)
    assert state == ()


def run_graphs(folder: Path, pixels: Tensor) -> tuple[list[int], list[float], list[int]]:
    """Let the runner classify bytes: class numbers, probabilities, depths."""
    spec = json.loads((folder / "model.json").read_text())
    graphs = [onnxruntime.InferenceSession(folder / file) for file in spec["files"]]
    labels, shares, depths = classify(spec, graphs, pixels.numpy())
    return [int(k) for k in labels], shares.tolist(), [int(k) for k in depths]


class Rows(nn.Module):
    """Its states hold a number, and a table of as many rows as a graph is traced with images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3 * 8 * 8, width), nn.Linear(width, 5)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, table = self.stem(x.flatten(1)), torch.linspace(0, 1, 16).view(2, 8)
        gain = self.head.weight.square().mean()
        for block in self.blocks:
            x = x + block(x).relu() * table.mean(0) * gain
        return self.head(x)  # type: ignore[no-any-return]


class Folded(Rows):
    """Its states have two rows for each image."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.cat([x.flatten(1), x.flatten(1)]))
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x.unflatten(0, (2, -1)).mean(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_what_has_no_row_for_each_image_is_handed_on_whole(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    numbers = (0.5,) * 3, (0.25,) * 3
    details = ImageFormat(3, 8, *numbers, ("a", "b", "c", "d", "e")).to_json()
    pixels = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8)
    network, folded = (sc.adapt(model, torch.zeros(1, 3, 8, 8)).eval() for model in (Rows(), Folded()))
    network.details["image_format"] = folded.details["image_format"] = details
    with torch.no_grad():
        sure = network(prepared(network, pixels), depths=1).softmax(dim=1).amax(dim=1)
    policy = ExitPolicy((1, 3), (float(sure.median()) + 1e-4,))
    export_network(network, tmp_path / "out", pixels, format=kind, policy=policy)
    if kind == "onnx":
        expected = run_with_exits(network, prepared(network, pixels), policy)
        labels, _, depths = run_graphs(tmp_path / "out", pixels)
        assert set(depths) == {1, 3}
        assert (labels, depths) == (expected.labels.tolist(), expected.depths.tolist())
    with pytest.raises(sc.StageCostError, match="no row for each of 2 images: exits need the batch"):
        export_network(folded, tmp_path / "folded", pixels, format=kind, policy=policy)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_cut_network_is_one_graph_with_its_classes_and_its_preparation(tmp_path: Path) -> None:
    network, pixels = network_of("staged")
    small = network.keep(sc.Cut.stages(1, 2, 1))
    export_network(small, tmp_path / "out", pixels)
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    held = {one.key: json.loads(one.value) for one in graph.metadata_props}
    assert held["class_names"] == ["a", "b", "c", "d", "e"]
    assert held["mean"] == [0.4, 0.5, 0.6]
    assert held == json.loads((tmp_path / "out" / "model.json").read_text())
    assert sum(len(one.raw_data) for one in graph.graph.initializer) < 4.5 * sc.count_parameters(small)
    said, _ = predict(small, list(pixels.permute(0, 2, 3, 1).numpy()))
    for count in (1, 3, len(pixels)):
        labels, shares, depths = run_graphs(tmp_path / "out", pixels[:count])
        assert ["abcde"[k] for k in labels] == [one.label for one in said[:count]]
        np.testing.assert_allclose(shares, [one.probability for one in said[:count]], atol=1e-5)
        assert depths == [4] * count


def test_torch_reads_a_pt2_file_alone(tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    export_network(network, tmp_path / "out", pixels, format="pt2")
    extra = {"stagecost.json": ""}
    program = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra)
    assert json.loads(extra["stagecost.json"])["class_names"] == ["a", "b", "c", "d", "e"]
    logits, labels, shares, _ = program.module()(prepared(network, pixels))
    with torch.no_grad():
        expected = network(prepared(network, pixels))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert torch.equal(labels, expected.argmax(dim=1))
    torch.testing.assert_close(shares, expected.softmax(dim=1).amax(dim=1), rtol=0, atol=1e-4)


def test_norms_of_targets_are_not_exported(tmp_path: Path) -> None:
    """They are none of the whole network's."""
    network, pixels = network_of("homogeneous")
    network.give_norms(sc.Cut.first(2))
    export_network(network, tmp_path / "out", pixels, format="pt2")
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert not [name for name in program.state_dict if "norms" in name.split(".")]
    assert network.targets == (sc.Cut.first(2),)


@pytest.mark.parametrize(
    ("criterion", "combine"),
    [("margin", False), ("patience", True)],  # the other one is below, in an environment of its own
)
def test_the_runner_decides_as_torch_does(criterion: str, combine: bool, tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    with torch.no_grad():
        outputs = network(prepared(network, pixels), depths="all")
    _, scores = votes_at(outputs, (0, 2, 4), criterion, combine=combine)
    thresholds = [2.0, 2.0] if criterion == "patience" else scores[:2].quantile(0.5, dim=1).tolist()
    policy = ExitPolicy((0, 2, 4), tuple(thresholds), criterion, combine)
    expected = run_with_exits(network, prepared(network, pixels), policy)
    assert len(set(expected.depths.tolist())) == (3 if criterion != "patience" else 2)
    export_network(network, tmp_path / "out", pixels, policy=policy)
    labels, _, depths = run_graphs(tmp_path / "out", pixels)
    assert depths == expected.depths.tolist()
    assert labels == expected.labels.tolist()


def test_it_runs_where_torch_is_not_installed(
    runs: Runs, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = export(runs.three, tmp_path / "out", segments="1,2", threshold=0.15)
    assert result.depths == (1, 2, 3)
    assert result.thresholds == (0.15, 0.15)
    trained = open_trained(runs.three, device="cpu")
    pixels = trained.load("test").splits["test"].images[:40]
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (13, 17, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held sideways
    photo.save(tmp_path / "photo.jpg", exif=exif)
    large = Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    large.save(tmp_path / "large.jpg")  # which is decoded at a part of its size
    photo.putalpha(90)
    photo.save(tmp_path / "glass.png")
    for number, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number:02}.png")
    files = sorted([*tmp_path.glob("*.png"), *tmp_path.glob("*.jpg")])
    environment = tmp_path_factory.mktemp("without-torch")
    make_environment(environment, "onnxruntime", "numpy", "pillow")
    python = str(environment / "bin" / "python")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode
    command = [python, "out/run.py", *[file.name for file in files]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [file.name for file in files]
    outputs = {
        k: predict(trained.network.keep(sc.Cut.first(k)), files, top_k=1)[0] for k in result.depths
    }
    for place, (_, label, share, where) in enumerate(rows):
        leaves = [k for k in (1, 2) if outputs[k][place].probability >= 0.15]
        depth = min([*leaves, 3])
        assert (label, where) == (outputs[depth][place].label, f"depth {depth}")
        assert float(share) == pytest.approx(outputs[depth][place].probability, abs=1e-4)
    assert len({row[3] for row in rows}) > 1
    spec = json.loads((tmp_path / "out" / "model.json").read_text())
    spec["class_names"] = [f"a\t{number}\nb" for number in range(10)]
    (tmp_path / "out" / "model.json").write_text(json.dumps(spec))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    again = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in again] == [f"a\\t{row[1]}\\nb" for row in rows]
    Image.fromarray(rng.integers(0, 60000, (8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, side in (("huge", 14_000), ("large", 11_000)):
        Image.new("1", (side, side)).save(tmp_path / f"{name}.png")
    for name, words in {
        "": "python run.py",
        "--help": "python run.py",
        "deep.png": "more than 8 bits",
        "text.png": "text.png cannot be read",
        "huge.png": "huge.png cannot be read",
        "large.png": "large.png cannot be read",
        "gone.png": "gone.png cannot be read",
    }.items():
        done = subprocess.run(
            [*command[:2], *filter(None, [name])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [RuntimeError, struct.error, NotImplementedError, KeyError])
def test_a_picture_that_a_decoder_gives_up_is_named(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libavif does by a RuntimeError."""

    def give_up(spec: object, path: str) -> None:
        raise error("Decoding of color planes failed")

    monkeypatch.setattr("stagecost.export.pictures.decode", give_up)
    with pytest.raises(SystemExit, match=r"a\.avif cannot be read as a picture: .*color planes"):
        read({}, "a.avif")


def test_eight_bits_are_measured(runs: Runs, tmp_path: Path) -> None:
    result = export(runs.saved, tmp_path / "out", int8=True).to_json()
    small = result["int8"]
    assert (tmp_path / "out" / small["file"]).stat().st_size == small["file_bytes"]
    graph = onnx.load(tmp_path / "out" / small["file"])
    assert "QuantizeLinear" in {node.op_type for node in graph.graph.node}
    spec = json.loads((tmp_path / "out" / "model.json").read_text())
    held = {one.key: one.value for one in graph.metadata_props}  # the quantisation notes more
    assert {key: json.loads(held[key]) for key in spec} == spec
    assert small["num_images"] == 60
    assert abs(small["accuracy"] - small["accuracy_float"]) <= 10
    evaluated = evaluate(runs.saved, split="val", device="cpu")
    assert small["accuracy_float"] == pytest.approx(evaluated.accuracy)


def test_weights_in_a_file_beside_the_graph_are_counted(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecost.export.graphs.EXTERNAL_FROM", 0)
    result = export(runs.saved, tmp_path / "out", int8=True)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("model.onnx*")}
    assert sizes.keys() == {"model.onnx", "model.onnx.data"}
    assert result.file_bytes == sum(sizes.values())


def test_a_saved_policy_comes_along(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.two, run)
    for file in (POLICY_FILE, "exit.json"):  # of another test
        (run / file).unlink(missing_ok=True)
    with pytest.raises(sc.StageCostError, match="has no exit policy"):
        export(run, segments="exits")
    policy = ExitPolicy((0, 2), (0.25,), "margin")
    policy.save(run)
    for kind, segments, output in (
        ("onnx", "exits", None),
        ("pt2", "0,2", None),
        ("pt2", "0", run / "pt2-0"),  # to the whole network, as with "0,2"
    ):
        result = export(run, output, format=kind, segments=segments)
        assert (result.depths, result.thresholds) == (policy.depths, policy.thresholds)
        assert result.criterion == "margin"
        assert result.output == str(output or run / kind)
    assert not (run / "pt2" / "run.py").exists()
    (run / POLICY_FILE).write_text("{")
    with pytest.raises(sc.StageCostError, match=POLICY_FILE):
        export(run, segments="0,2", output=tmp_path / "damaged")
    assert export(run, output=tmp_path / "whole").depths == (2,)  # which asks for no policy


def test_a_run_under_way_deletes_no_export(runs: Runs, tmp_path: Path) -> None:
    """It begins by deleting what a kill has left in its folder, and that looks alike."""
    run = shutil.copytree(runs.two, tmp_path / "run")
    with locked(run):
        for output in (None, run / "shipped"):
            with pytest.raises(sc.StageCostError, match="is in use by another process"):
                export(run, output, format="pt2")
        assert export(run, tmp_path / "elsewhere", format="pt2").file_bytes


def test_what_another_process_wrote_meanwhile_stays(tmp_path: Path) -> None:
    other = tmp_path / "onnx" / "theirs"
    with pytest.raises(OSError, match="not empty") as caught, new_folder(other.parent):
        write_atomically(other, "")
    assert "another process wrote something there meanwhile" in describe(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "theirs"]


def test_networks_are_measured_in_turns(runs: Runs) -> None:
    paths = [str(runs.three), str(runs.staged)]
    first = measure(
        paths, batch=(1, 4), backends=("eager", "onnx"), seconds=0.01, device="cpu"
    ).to_json()
    assert [one["network"] for one in first["networks"]] == paths
    ways = [(row["network"], row["backend"], row["batch_size"]) for row in first["timings"]]
    assert ways == [(p, b, n) for n in (1, 4) for p in paths for b in ("eager", "onnx")]
    for row in first["timings"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["calls"] >= 20
        assert (row["memory_bytes"] is None) == (row["backend"] == "onnx")
    alone, four = (row["memory_bytes"] for row in first["timings"][::4])
    assert four == 4 * alone
    size = first["networks"][0]
    weights, _ = read_tensors(runs.saved / WEIGHTS_FILE)
    saved = measure([runs.saved], batch=(1,), seconds=0.01, device="cpu").networks[0]
    assert saved.file_bytes == sum(tensor.nbytes for tensor in weights.values())
    assert saved.num_blocks == 2 < size["num_blocks"] == 3
    assert saved.macs < size["macs"]
    for options, match in (
        ({"backends": ("tpu",)}, "--backends names"),
        ({"batch": (0,)}, "--batch is"),
        ({"networks": [runs.saved, runs.saved]}, "given twice"),
        ({"seconds": 0.0}, "give more than 0 of both"),
        ({"threads": 0}, "give more than 0 of both"),
    ):
        with pytest.raises(sc.StageCostError, match=match):
            measure(**{"networks": [runs.saved], "device": "cpu", **options})


def test_what_two_processes_measure_at_once_is_kept_of_both(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, together = shutil.copytree(runs.three, tmp_path / "run"), threading.Barrier(2)
    (run / "latency.json").unlink(missing_ok=True)

    def slowly(file: Path, result: Result) -> None:
        time.sleep(0.3)
        keep_for_report(file, result)

    def at_once() -> Machine:
        together.wait(60)
        return this_machine()

    monkeypatch.setattr("stagecost.runs.measuring.keep_for_report", slowly)
    monkeypatch.setattr("stagecost.runs.measuring.this_machine", at_once)
    ways = [partial(measure, [run], batch=(n,), seconds=0.001, device="cpu") for n in (1, 2)]
    threads = [threading.Thread(target=way) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = json.loads((run / "latency.json").read_text())["timings"]
    assert {row["batch_size"] for row in kept} == {1, 2}


def test_times_are_told_where_older_ones_cannot_be_read(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was printed that they are kept, and that the report shows them."""
    run = shutil.copytree(runs.three, tmp_path / "run")
    (run / "latency.json").unlink(missing_ok=True)
    (run / "latency.json").mkdir()
    result = measure([run], batch=(1,), seconds=0.001, device="cpu")
    assert "not kept for the report" in caplog.text
    show("measure", result)
    assert str(result.machine.torch) in (printed := capsys.readouterr().out)
    assert "kept" not in printed
    assert "report" not in printed


@pytest.mark.parametrize(
    ("names", "batch", "expected"),
    [(("three",), (1, 2, 3, 3), [1, 2, 3]), (("three", "two", "saved"), (1, 2), [1, 1, 1, 2, 2, 2])],
)
def test_each_of_many_sizes_and_networks_is_measured_compiled(
    names: tuple[str, ...],
    batch: tuple[int, ...],
    expected: list[int],
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[int] = []
    original = torch.compile

    def trace(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiled.extend({one.shape[0] for one in inputs if one.shape[1:] == (1, 8, 8)})
        return graph

    def traced(network: nn.Module, **_: object) -> object:
        return original(network, backend=trace, dynamic=False)

    monkeypatch.setattr(torch, "compile", traced)
    with torch._dynamo.config.patch(recompile_limit=1):  # its own is 8
        paths = [getattr(runs, name) for name in names]
        measure(paths, batch=batch, backends=("compiled",), seconds=0.001, device="cpu")
    assert compiled == expected


def test_where_nothing_compiles_the_backend_is_to_be_left_out(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(sc.StageCostError, match=r"or leave compiled of --backends out$"):
        measure([runs.three], backends=("compiled",), seconds=0.001, device="cpu")


def test_too_few_images_and_another_precision_are_refused(tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    for given, images in ((network, pixels[:2]), (network.double(), pixels)):
        with pytest.raises(sc.StageCostError, match=r"at least 3, and network\.float"):
            export_network(given, tmp_path / "out", images, format="pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", ["abcd", "abcdef"])
def test_other_classes_than_the_network_has_are_refused(names: str, tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    network.details["image_format"]["class_names"] = list(names)
    with pytest.raises(sc.StageCostError, match=f"has 5 outputs, .* names {len(names)} classes"):
        export_network(network, tmp_path / "out", pixels, format="pt2")
    assert not list(tmp_path.iterdir())


class Attending(Rows):
    """Its blocks attend within windows, (B, windows, heads, places, width): ONNX knows no such thing."""

    def __init__(self) -> None:
        super().__init__(width=64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            parts = block(x).unflatten(1, (2, 2, 4, 4))
            x = x + F.scaled_dot_product_attention(parts, parts, parts).flatten(1)
        return self.head(x)  # type: ignore[no-any-return]


class Halves(Attending):
    """Makes two rows of each image, by a size that torch.export does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(96, 64), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.stem(x.reshape(count * 2, 96))
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x.reshape(count, 128))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Attending, r"cannot write the network as ONNX \(.*: give --format pt2"),
        (Halves, r"makes no graph .* any size \(.*: use the network by torch"),
    ],
)
def test_what_torch_cannot_export_is_refused_by_a_line(
    kind: type[nn.Module], words: str, tmp_path: Path
) -> None:
    network = sc.adapt(kind(), torch.zeros(1, 3, 8, 8)).eval()
    details = ImageFormat(3, 8, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c", "d", "e")).to_json()
    network.details["image_format"] = details
    pixels = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(sc.StageCostError, match=words):
        export_network(network, tmp_path / "out", pixels)
    assert not list(tmp_path.iterdir())


def test_eight_bits_are_of_a_whole_graph(tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    policy = ExitPolicy((1, network.num_blocks), (0.5,))
    with pytest.raises(sc.StageCostError, match="is one whole graph of ONNX: leave calibration out"):
        export_network(network, tmp_path / "out", pixels, policy=policy, calibration=[pixels])
    assert not list(tmp_path.iterdir())


def test_large_outputs_may_differ_by_more(tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    with torch.no_grad():
        for parameter in network.head.linear.parameters():
            parameter.mul_(1e5)
    exported = export_network(network, tmp_path / "out", pixels, format="pt2")
    image_format = image_format_of(network)
    largest = network.eval()(normalise(pixels, image_format)).abs().max()
    assert largest > 1e3
    other = network.keep(sc.Cut.whole())
    with torch.no_grad():
        other.head.linear.weight.mul_(1.001)
    with torch.no_grad(), pytest.raises(sc.StageCostError, match="nothing is written"):
        compare(other, [tmp_path / "out" / "model.pt2"], exported.depths, pixels)


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    network, pixels = network_of("homogeneous")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    export_network(network, tmp_path / "link", pixels, format="pt2")
    assert (tmp_path / "there" / "model.pt2").is_file()
    assert (tmp_path / "link").is_symlink()


def test_no_room_for_a_pt2_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes | str) -> None:
        if path.suffix == ".pt2":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    monkeypatch.setattr("stagecost.export.graphs.write_atomically", full)
    network, pixels = network_of("homogeneous")
    with pytest.raises(OSError, match="No space left") as caught:
        export_network(network, tmp_path / "out", pixels, format="pt2")
    assert caught.value.filename == str(tmp_path / "out")  # not that of a temporary folder
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_goes_and_a_running_one_stays(tmp_path: Path) -> None:
    left = tmp_path / ".out[1].abc.tmp"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    with new_folder(tmp_path / "out[1]") as running, new_folder(tmp_path / "out[1]") as other:
        assert {*tmp_path.iterdir()} == {running, other}
    assert {*tmp_path.iterdir()} == {tmp_path / "out[1]"}


def test_refusals_are_one_line_and_leave_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(match: str, **options: object) -> None:
        with pytest.raises(sc.StageCostError, match=match):
            export(**{"network": runs.saved, "output": tmp_path / "out", "format": "pt2", **options})
        assert not list(tmp_path.glob("*out*"))

    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as here:
        here.chdir(empty)
        refuse(r"--output \. is the current folder", output=".")
    for kind in ("onnx", "pt2"):
        refuse("cannot be opened", output=os.fsdecode(bytes(tmp_path) + b"/out\xff"), format=kind)
    for segments in ("1,9", "2,1", "-1,2", "1,1"):
        refuse("give ascending depths from 0 to 2", segments=segments)
    refuse("--segments is 'x'", segments="x")
    refuse("--segments is empty", segments="")
    refuse("--threshold is 2", segments="1", threshold=2.0)
    refuse(r"--threshold is 0\.5", threshold=0.5)
    refuse(r"--threshold 0\.5 and --segments exits", segments="exits", threshold=0.5)
    refuse("format 'tflite' is unknown", format="tflite")
    refuse("--int8 is for one graph", int8=True)
    refuse("is no folder", network=tmp_path / "none")
    unheld = shutil.copytree(runs.saved, tmp_path / "unheld")
    config = json.loads((unheld / "config.json").read_text())
    config["settings"]["val_fraction"] = 0.0
    (unheld / "config.json").write_text(json.dumps(config))
    refuse("has no 3 validation images", network=unheld, format="onnx", int8=True)
    monkeypatch.setattr("stagecost.export.folder.LARGEST_DIFFERENCE", -1.0)
    refuse("nothing is written")
    monkeypatch.undo()
    damaged = tmp_path / "damaged"
    shutil.copytree(runs.saved, damaged)
    tensors, metadata = read_tensors(damaged / WEIGHTS_FILE)
    tensors["head.linear.bias"] = torch.full_like(tensors["head.linear.bias"], torch.nan)
    write_tensors(damaged / WEIGHTS_FILE, tensors, metadata)
    refuse("no finite number", network=damaged)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(sc.StageCostError, match="holds something already"):
        export(runs.saved, tmp_path / "full", format="pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        export(runs.saved, tmp_path / "out")
    assert "stagecost[export]" in str(sc.errors.missing_extra(missing.value))
