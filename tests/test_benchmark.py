"""The benchmark measures what it says: known times, known memory, known outputs; and its tables."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from helpers import build, images
from processes import CommandLine
from stagecost.benchmark import configurations, latency, peers, scaling, steps
from stagecost.benchmark.configurations import Configuration, choose, homogeneous, staged
from stagecost.benchmark.figures import scaling_figures
from stagecost.benchmark.hook_heads import HookHeads, weighted_loss
from stagecost.benchmark.memory import peak_bytes, peak_of
from stagecost.benchmark.plain_twin import module_macs, plain_twin
from stagecost.benchmark.recorded import results_folder, shrink_rows
from stagecost.benchmark.timing import cpu_seconds, ratio, take_turns
from stagecost.benchmark.training_ratios import measure
from stagecost.errors import StageCostError
from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork
from stagecost.objective import stage_cost_objective
from stagecost.verbs.benchmark_view import show_benchmark

CPU = torch.device("cpu")
SMALL = homogeneous(3, 4, 4, image_size=8)
SMALL_STAGED = staged(1, 4, image_size=8)
ROW_KEYS = {
    *("configuration", "device", "threads", "exact_step_ratio", "literal_step_ratio"),
    *("sampled_step_ratio", "memory_ratio", "analyze_ratio"),
}
SPEEDUP_KEYS = {"blocks_before", "blocks_after", "batch", "speedup"}
SHRINK_KEYS = {"dataset", "total_ratio", "accuracy_difference"}
SCALE_KEYS = {"num_blocks", "training", "step_seconds", "seconds_a_block", "peak_bytes"}
PEER_KEYS = {"peer", "configuration", "quantity", "value", "spread", "note"}


# ---------------------------------------------------------------------------------------------
# Times


class FakeMachine:
    """Arms that take known seconds on a machine that gets slower as it runs."""

    def __init__(self, slowing: float = 0.0) -> None:
        self.now, self.slowing, self.calls = 0.0, slowing, []  # type: ignore[var-annotated]

    def arm(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * (1 + self.slowing * self.now)

        return run

    def clock(self, arm: Callable[[], object]) -> float:
        before = self.now
        arm()
        return self.now - before


def test_known_times_give_known_ratios() -> None:
    machine = FakeMachine()
    arms = {"plain": machine.arm("plain", 2.0), "exact": machine.arm("exact", 3.0)}
    seconds = take_turns(arms, 4, machine.clock)
    assert seconds == {"plain": [2.0] * 4, "exact": [3.0] * 4}
    found = ratio(seconds["exact"], seconds["plain"])
    assert (found.median, found.low, found.high) == (1.5, 1.5, 1.5)


def test_every_arm_runs_once_a_round_in_alternating_order() -> None:
    machine = FakeMachine()
    take_turns({name: machine.arm(name, 1.0) for name in "abc"}, 3, machine.clock)
    assert "".join(machine.calls) == "abc" + "abc" + "cba" + "abc"  # the first is the warm-up


def test_repeats_are_within_one_timing_and_a_warm_run_before_it() -> None:
    machine = FakeMachine()
    arms = {"a": machine.arm("a", 1.0), "b": machine.arm("b", 4.0)}
    seconds = take_turns(arms, 3, machine.clock, repeats=5, warm=True)
    assert seconds == {"a": [1.0] * 3, "b": [4.0] * 3}
    assert machine.calls.count("a") == 1 + 3 * (1 + 5)


def test_a_steady_drift_leaves_the_ratio_alone() -> None:
    machine = FakeMachine(slowing=0.002)
    arms = {name: machine.arm(name, 1.0) for name in ("plain", "exact")}
    seconds = take_turns(arms, 10, machine.clock)
    assert max(seconds["plain"]) > 1.02 * min(seconds["plain"])  # the machine did drift
    assert ratio(seconds["exact"], seconds["plain"]).median == pytest.approx(1.0, abs=2e-4)


def test_the_median_forgives_a_disturbed_round() -> None:
    assert ratio([1.1, 1.1, 9.0, 1.1, 1.1], [1.0] * 5).median == pytest.approx(1.1)
    found = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert found.quartiles == [2.0, 4.0]


def test_other_processes_do_not_count() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(0.3)"]
    assert cpu_seconds(lambda: subprocess.run(sleep, check=True)) < 0.2


@pytest.mark.parametrize("rounds", [-1, 0, 2])
def test_too_few_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(StageCostError, match=f"rounds is {rounds}: give at least 3"):
        take_turns({}, rounds, cpu_seconds)


# ---------------------------------------------------------------------------------------------
# Memory


def test_the_peak_of_known_allocations() -> None:
    kept: list[torch.Tensor] = []

    def arm() -> None:
        a = torch.empty(1_000_000)
        b = torch.empty(500_000)
        del a
        c = torch.empty(250_000)
        del b, c
        if not kept:
            kept.append(torch.empty(10_000_000))  # as momentum in the first step: the resting level

    assert peak_bytes(arm, CPU) == 4 * 1_500_000


def test_the_peak_of_a_chain_is_what_autograd_keeps() -> None:
    start = torch.ones(1_000_000, requires_grad=True)

    def arm() -> None:
        state = start
        for _ in range(5):
            state = state.exp()  # each keeps its output for the backward pass
        state.sum().backward()
        start.grad = None

    states, gradients = 5, 2  # the one that is read and the one that is written
    assert peak_bytes(arm, CPU) == pytest.approx(4_000_000 * (states + gradients), rel=1e-3)


def test_peak_of_a_running_sum() -> None:
    assert peak_of([]) == 0
    assert peak_of([3, -3, 2, 2, -4, 3]) == 4
    assert peak_of([-5, 1]) == 0


_FAULTS = """
import resource, torch
from stagecost.allocator import keep_freed_memory
kept, faults = keep_freed_memory(), []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1_000_000) for _ in range(20)]
    del tensors
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, faults[0], max(faults[-5:]))
"""


def test_kept_memory_costs_no_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], check=True, capture_output=True, text=True, timeout=120
    )
    kept, first, settled = done.stdout.split()
    if kept == "False":
        pytest.skip("this is not glibc")
    # By default nearly every step costs as many as the first one.
    assert int(settled) < int(first) / 20


# ---------------------------------------------------------------------------------------------
# What is timed


@pytest.mark.parametrize("name", ["homogeneous", "staged"])
def test_hook_heads_are_heads_at_the_states(name: str) -> None:
    network, batch = build(name), images()
    model = HookHeads(network, batch, num_classes=5).eval()
    with torch.no_grad():
        states = list(network.states(batch))
        outputs = model(batch)
        assert len(outputs) == network.num_blocks + 1
        for state, head, output in zip(states, model.heads, outputs, strict=False):
            assert torch.equal(output, head(state, 0))
        assert model._outputs == []
        assert torch.equal(outputs[-1], network(batch))


def test_hook_heads_are_trained_as_the_stage_cost_weighs_them() -> None:
    network, batch = build("homogeneous"), images()
    model = HookHeads(network, batch, num_classes=5)
    outputs, targets = model(batch), torch.tensor([0, 1, 2, 3])
    loss = weighted_loss(outputs, targets, gamma=0.3)
    torch.testing.assert_close(loss, stage_cost_objective(outputs, targets, gamma=0.3).total)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("configuration", [SMALL, SMALL_STAGED], ids=lambda c: c.model)
@pytest.mark.parametrize("kind", ["plain", "exact", "literal", "sampled", "separate_heads"])
def test_a_step_trains_and_leaves_no_gradient(
    kind: str, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[ResidualNetwork] = []
    original = Configuration.network

    def remember(self: Configuration, device: torch.device) -> ResidualNetwork:
        built.append(original(self, device))
        return built[-1]

    monkeypatch.setattr(Configuration, "network", remember)
    arm = {
        "plain": steps.plain_step,
        "exact": steps.exact_step,
        "literal": lambda *where: steps.exact_step(*where, way="literal"),
        "sampled": steps.sampled_step,
        "separate_heads": steps.separate_heads_step,
    }[kind](configuration, CPU)
    (network,) = built
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    arm()
    moved = {name for name, p in network.named_parameters() if not torch.equal(before[name], p)}
    assert moved == set(before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_every_way_asks_the_network_for_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, bool, bool]] = []
    original = ResidualNetwork.forward

    def forward(
        self: ResidualNetwork,
        images: torch.Tensor,
        depths: Any = None,
        *,
        fused: bool = False,
        checkpointing: bool = False,
    ) -> torch.Tensor:
        seen.append((depths, fused, checkpointing))
        return original(self, images, depths)

    monkeypatch.setattr(ResidualNetwork, "forward", forward)
    steps.plain_step(SMALL, CPU)()
    for way in ("exact", "literal", "checkpointed"):
        steps.exact_step(SMALL, CPU, way=way)()
    assert seen == [
        (None, False, False),
        ("all", True, False),
        ("all", False, False),
        ("all", True, True),
    ]


def test_the_plain_step_is_the_step_by_hand() -> None:
    network, (batch, targets) = SMALL.network(CPU), SMALL.batch(CPU)
    arm_network = SMALL.network(CPU)
    arm = steps.step(
        lambda: F.cross_entropy(arm_network(batch), targets), steps.optimizer_of(arm_network)
    )
    arm()
    F.cross_entropy(network(batch), targets).backward()
    for name, parameter in network.named_parameters():
        decay = steps.LAMBDA if ".residual." in name else 0.0
        # Nesterov's first step goes along g + 0.9 g.
        gradient = parameter.grad + decay * parameter.detach()
        expected = parameter.detach() - steps.LEARNING_RATE * 1.9 * gradient
        torch.testing.assert_close(dict(arm_network.named_parameters())[name], expected)


@pytest.mark.parametrize("name", ["homogeneous", "staged"])
@pytest.mark.parametrize("training", [False, True])
def test_the_plain_twin_computes_the_same(name: str, training: bool) -> None:
    network, batch = build(name).train(training), images()
    twin = plain_twin(network)
    torch.testing.assert_close(twin(batch), network(batch))
    assert module_macs(twin, batch) == count_macs(network, batch.shape[1:])


# ---------------------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("configuration", [SMALL, SMALL_STAGED], ids=lambda c: c.model)
def test_a_row_of_ratios(configuration: Configuration) -> None:
    measured = measure(configuration, CPU, rounds=3)
    row = measured.row(CPU, threads=1)
    assert set(row) == ROW_KEYS
    assert (row["configuration"], row["device"], row["threads"]) == (configuration.name, "cpu", 1)
    assert all(row[key] > 0 for key in ROW_KEYS if key.endswith("_ratio"))
    assert row["memory_ratio"] == round(measured.peak_bytes["exact"] / measured.peak_bytes["plain"], 4)
    spreads = measured.spreads()
    for key in ("exact_step_ratio", "sampled_step_ratio", "analyze_ratio"):
        low, high = spreads[key]
        assert low <= row[key] <= high
    figures = peers.separate_heads(measured)
    assert [set(figure.row()) for figure in figures] == [PEER_KEYS] * 2


def test_the_pruned_network_of_the_row_is_the_truncation() -> None:
    found = latency.pruned_speedups(CPU, 3, SMALL, kept_blocks=1)
    assert [set(speedup.row()) for speedup in found] == [SPEEDUP_KEYS] * 2
    assert [(s.blocks_before, s.blocks_after, s.batch) for s in found] == [(3, 1, 1), (3, 1, 64)]
    network = SMALL.network(CPU).eval()
    batch, _ = SMALL.batch(CPU)
    with torch.no_grad():
        cut = latency.truncated(network, SMALL, CPU, kept_blocks=1)
        assert torch.equal(cut(batch), network(batch, depths=1))


def test_rows_and_figures_of_growing_n() -> None:
    told: list[str] = []
    rows = scaling.scaling(CPU, 3, told.append, sizes=(1, 3))
    assert told == ["a step of 1 blocks", "a step of 3 blocks"]
    assert all(set(row) == SCALE_KEYS for row in rows)
    assert {row["num_blocks"] for row in rows} == {1, 3}
    peaks = {row["num_blocks"]: row["peak_bytes"] for row in rows if row["training"] == "plain"}
    assert peaks[3] > 1.5 * peaks[1]
    for svg in scaling_figures(rows).values():
        assert svg.startswith("<svg")
        assert "stage cost" in svg


def test_the_configurations_are_those_of_the_aims() -> None:
    names = ["homogeneous-54-w16", "homogeneous-54-w32", "staged-3x9"]
    assert [c.name for c in configurations.CONFIGURATIONS] == [
        f"{name}-b{batch}" for batch in (64, 128) for name in names
    ]
    assert [c.name for c in choose(None, quick=True)] == [f"{name}-b64" for name in names[:2]]
    assert [c.name for c in choose(["staged-3x9-b64"], quick=False)] == ["staged-3x9-b64"]
    with pytest.raises(StageCostError, match=r"configuration 'deep' is unknown: choose from homog"):
        choose(["deep"], quick=True)
    sizes = [tuple(c.batch(CPU)[0].shape) for c in configurations.CONFIGURATIONS[:3]]
    assert sizes == [(64, 3, 16, 16), (64, 3, 16, 16), (64, 3, 32, 32)]


# ---------------------------------------------------------------------------------------------
# Peers and records


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = [figure.row() for figure in peers.compare_packages([SMALL], CPU, 3, str)]
    assert [row["peer"] for row in rows] == ["torch-pruning", "earlyon"]
    assert all(row["value"] is None and "pip install" in row["note"] for row in rows)


@pytest.mark.parametrize("package", ["torch_pruning", "earlyon"])
def test_an_installed_package_is_measured(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package, reason="the extra `peers` is not installed")
    from stagecost.benchmark import peer_channels, peer_exits

    monkeypatch.setattr(peer_channels, "KEPT_BLOCKS", 1)
    monkeypatch.setattr(peer_exits, "KEPT_BLOCKS", 1)
    monkeypatch.setattr(peer_exits, "EXITS", (1, 2))
    compare = {
        "torch_pruning": peer_channels.compare_channels,
        "earlyon": peer_exits.compare_exits,
    }[package]
    figures = compare([SMALL], CPU, 3, str)
    assert all(figure.note if figure.value is None else figure.value > 0 for figure in figures)
    assert sum(figure.value is None for figure in figures) == 2  # what it cannot do is said
    if package == "torch_pruning":
        kept = {figure.peer: figure.value for figure in figures if figure.quantity == "MACs kept"}
        ours = kept.pop("stagecost truncation")
        assert all(value <= ours for name, value in kept.items() if "half" not in name)


def write_shrink(folder: Path, name: str, content: object) -> None:
    (folder / "shrink").mkdir(parents=True, exist_ok=True)
    (folder / "shrink" / f"{name}.json").write_text(json.dumps(content))


def test_results_of_shrinking_are_read(tmp_path: Path) -> None:
    assert shrink_rows(tmp_path) == []
    summary = {"total_ratio": 0.5, "macs_ratio": 0.4, "accuracy_difference": -0.2, "other": 1}
    write_shrink(tmp_path, "b", {"name": "mnist", "summary": summary})
    other = {**summary, "total_ratio": 0.6}
    write_shrink(tmp_path, "a", {"name": "small", "dataset": "cifar10", "summary": other})
    assert shrink_rows(tmp_path) == [
        {"dataset": "cifar10", "total_ratio": 0.6, "accuracy_difference": -0.2},
        {"dataset": "mnist", "total_ratio": 0.5, "accuracy_difference": -0.2},
    ]
    write_shrink(tmp_path, "c", {"dataset": "mnist"})
    with pytest.raises(StageCostError, match=r"c\.json is no record of shrinking"):
        shrink_rows(tmp_path)


def test_the_folder_of_results(tmp_path: Path) -> None:
    assert results_folder(str(tmp_path)) == tmp_path
    assert results_folder(None) == Path(__file__).resolve().parent.parent / "results"
    with pytest.raises(StageCostError, match="is no folder: give the folder of recorded results"):
        results_folder(str(tmp_path / "missing"))


# ---------------------------------------------------------------------------------------------
# The verb


def use_small_sizes() -> None:
    """Make the benchmark a matter of a second: the same way on smaller networks."""
    small = (SMALL, homogeneous(3, 6, 4, image_size=8), SMALL_STAGED)
    configurations.CONFIGURATIONS = small
    latency.pruned_speedups.__defaults__ = (SMALL, 1)
    scaling.scaling.__defaults__ = ((1, 3),)
    peers._PACKAGES.clear()


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "CONFIGURATIONS", configurations.CONFIGURATIONS)
    monkeypatch.setattr(latency.pruned_speedups, "__defaults__", latency.pruned_speedups.__defaults__)
    monkeypatch.setattr(scaling.scaling, "__defaults__", scaling.scaling.__defaults__)
    monkeypatch.setattr(peers, "_PACKAGES", dict(peers._PACKAGES))
    use_small_sizes()


def documented_keys() -> list[str]:
    page = (Path(__file__).resolve().parent.parent / "docs" / "command-line.md").read_text()
    (row,) = re.findall(r"^\| `benchmark` \| (`rows`.*) \|$", page, re.MULTILINE)
    return re.findall(r"`(\w+)`", row)


def check_answer(found: dict[str, Any], names: list[str]) -> None:
    assert [row["configuration"] for row in found["rows"]] == names
    assert all(set(row) == ROW_KEYS for row in found["rows"])
    assert [set(row) for row in found["pruned_speedup"]] == [SPEEDUP_KEYS] * 2
    assert all(set(row) == SCALE_KEYS for row in found["scale"])
    assert all(set(row) == PEER_KEYS for row in found["peers"])
    assert all(set(row) == SHRINK_KEYS for row in found["shrink"])
    assert list(found) == documented_keys()


def test_benchmark(cli: CommandLine, tmp_path: Path) -> None:
    summary = {"total_ratio": 0.5, "accuracy_difference": 0.1}
    write_shrink(tmp_path, "mnist", {"dataset": "mnist", "summary": summary})
    flags = ("--rounds", 3, "--results", tmp_path, "--device", "cpu", "--json")
    quick = cli("benchmark", "--quick", *flags, prepare=use_small_sizes)
    check_answer(quick.answer, [SMALL.name, "homogeneous-3-w6-b4"])
    assert quick.answer["scale"] == []
    assert quick.answer["shrink"] == [{"dataset": "mnist", **summary}]
    assert quick.answer["rounds"] == 3
    assert f"measuring {SMALL.name}" in quick.stderr
    assert "ERROR" not in quick.stderr  # the profiler's library is kept quiet
    one = cli("benchmark", "--configurations", SMALL_STAGED.name, *flags, prepare=use_small_sizes)
    check_answer(one.answer, [SMALL_STAGED.name])
    assert {row["num_blocks"] for row in one.answer["scale"]} == {1, 3}


def test_the_tables_of_a_benchmark(small_sizes: None, tmp_path: Path) -> None:
    from stagecost.verbs.commands import benchmark

    before = torch.get_num_threads()
    found = benchmark(rounds=3, results=str(tmp_path), device="cpu")
    assert torch.get_num_threads() == before
    found["shrink"] = [{"dataset": "mnist", "total_ratio": 0.5, "accuracy_difference": -0.25}]
    console = Console(width=100, record=True, file=(tmp_path / "shown").open("w"))
    show_benchmark(console, found)
    shown = console.export_text()
    for words in (
        SMALL.name,
        "≤ 1.05",
        "3 → 1",
        "-0.25 points",
        "separate heads by hooks",
        "stage cost",
    ):
        assert words in shown, words
    assert found["machine"] in re.sub(r"\s+", " ", shown)
    console.file.close()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rounds", 2), "rounds is 2: give at least 3"),
        (("--threads", 0), "threads is 0: give a number of at least 1"),
        (("--threads", "two"), "give a whole number"),
        (("--configurations", "deep"), "configuration 'deep' is unknown: choose from"),
        (("--device", "tpu"), "device 'tpu' is unknown"),
        (("--results", "missing"), "missing is no folder: give the folder of recorded results"),
    ],
)
def test_what_a_benchmark_refuses(cli: CommandLine, flags: tuple[object, ...], words: str) -> None:
    assert words in cli("benchmark", "--quick", *flags).refusal


@pytest.mark.slow
def test_a_benchmark_in_a_process_of_a_users_own() -> None:
    """Of the real size: the table's first row, with few rounds."""
    flags = ["--quick", "--configurations", "homogeneous-54-w16-b64", "--rounds", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "stagecost.cli", "benchmark", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    check_answer(json.loads(done.stdout), ["homogeneous-54-w16-b64"])
    assert "ERROR" not in done.stderr
