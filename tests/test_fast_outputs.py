"""The fast path agrees with the literal loop: values, gradients, running statistics; also in pieces."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stagecost as sc
from helpers import BUILDERS, build, images, labels
from stagecost import kernels
from stagecost.chains import collapse
from stagecost.fast_outputs import fast_outputs, first_norm
from stagecost.native import shared_library
from stagecost.network import ResidualNetwork
from stagecost.outputs import skip_chain

POLICIES = ("per_output", "shared", "terminal")
# (builder, changes): every builder, and the projections that a staged network may have.
NETWORKS = [(name, {}) for name in BUILDERS] + [("staged", {"projection": "average"})]


@pytest.fixture(autouse=True)
def formulas(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the formulas as they are: they are what is compiled, and compiling takes long."""
    if "compiled" not in request.keywords:
        monkeypatch.setattr("stagecost.fast_outputs.compiled_kernels", lambda: kernels.FORMULAS)
        monkeypatch.setattr(shared_library, "_compiler", lambda: None)
        shared_library.load.cache_clear()
    yield
    shared_library.load.cache_clear()
    torch._dynamo.reset()


Step = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def one_step(network: ResidualNetwork, batch: Tensor, depths: object = "all", **options: bool) -> Step:
    """Outputs, gradients by name and buffers by name after one backward pass of a copy."""
    network = copy.deepcopy(network)
    outputs = network(batch, depths=depths, **options)
    sc.stage_cost_objective(outputs, labels(len(batch)), gamma=0.3).total.backward()
    zero = torch.zeros(())
    grads = {name: zero if p.grad is None else p.grad for name, p in network.named_parameters()}
    return outputs.detach(), grads, dict(network.named_buffers())


def assert_agree(one: Step, other: Step, tolerance: float) -> None:
    assert_same_values(one, other, tolerance)
    for name, grad in one[1].items():
        error = torch.linalg.vector_norm(grad - other[1][name])
        assert error <= tolerance * (1 + torch.linalg.vector_norm(grad)), name


def assert_same_values(one: Step, other: Step, tolerance: float) -> None:
    """Compare outputs and running statistics."""
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    for name, buffer in one[2].items():
        torch.testing.assert_close(buffer, other[2][name], rtol=tolerance, atol=tolerance)


def worst_error(grads: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Return how far rounding takes gradients: through a hundred layers and few images, by per cents."""
    errors = (
        torch.linalg.vector_norm(grads[name].double() - exact) / (1 + torch.linalg.vector_norm(exact))
        for name, exact in truth.items()
    )
    return float(max(errors))


def prepared(name: str, changes: dict[str, object], policy: str, dtype: torch.dtype) -> ResidualNetwork:
    network = build(name, head_statistics=policy, **changes).to(dtype)
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "changes"), NETWORKS)
def test_the_twins_agree(
    name: str, changes: dict[str, object], policy: str, training: bool, dtype: torch.dtype
) -> None:
    """In double precision to 1e-10, in single to rounding."""
    network = prepared(name, changes, policy, dtype).train(training)
    batch = images(8, 32 if "resnet" in name else 16).to(dtype)
    literal, fused = one_step(network, batch), one_step(network, batch, fused=True)
    if dtype == torch.float64:
        assert_agree(literal, fused, 1e-10)
    else:
        assert_same_values(literal, fused, 1e-4)
        _, truth, _ = one_step(copy.deepcopy(network).double(), batch.double())
        assert worst_error(fused[1], truth) <= 1e-4 + 3 * worst_error(literal[1], truth)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "changes"), NETWORKS[:2])
def test_a_constant_head_gets_no_gradient_from_either(
    name: str, changes: dict[str, object], policy: str
) -> None:
    network, batch = prepared(name, changes, policy, torch.float64).train(), images(8).double()
    literal = one_step(network, batch, constant_head=True)
    assert_agree(literal, one_step(network, batch, constant_head=True, fused=True), 1e-10)


@pytest.mark.parametrize("depths", [[1, 3, 4], [0, 4], [3, 0], [2]])
def test_some_depths_and_their_order(depths: list[int]) -> None:
    network, batch = prepared("homogeneous", {}, "per_output", torch.float64).train(), images(8).double()
    assert_agree(one_step(network, batch, depths), one_step(network, batch, depths, fused=True), 1e-10)


def test_the_terminal_output_is_that_of_plain_training_to_the_last_bit_in_eval_mode() -> None:
    for name, changes in NETWORKS:
        network = prepared(name, changes, "per_output", torch.float32).eval()
        batch = images(4, 32)
        assert torch.equal(network(batch), network(batch, depths="all", fused=True)[-1])


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("name", ["homogeneous", "staged"])
def test_the_compiled_kernels_agree_with_the_literal_loop(name: str) -> None:
    if not kernels.can_compile():
        pytest.skip("there is no C++ compiler")
    network, batch = prepared(name, {}, "per_output", torch.float32).train(), images(8)
    assert_agree(one_step(network, batch), one_step(network, batch, fused=True), 1e-4)


def test_fused_kernels_without_a_compiler_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "can_compile", lambda: False)
    with pytest.raises(sc.StageCostError, match="C\\+\\+ compiler"):
        kernels.compiled_kernels.__wrapped__()


def test_a_compiler_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError("Python.h is missing")

    monkeypatch.setattr(torch, "compile", broken)
    assert not kernels.can_compile.__wrapped__()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("name", "changes"), NETWORKS[:2])
@pytest.mark.parametrize("policy", POLICIES)
def test_checkpointing_changes_nothing_but_memory(
    name: str, changes: dict[str, object], policy: str, fused: bool
) -> None:
    """Not a bit of outputs, gradients and running statistics: nothing is counted twice."""
    network, batch = prepared(name, changes, policy, torch.float32).train(), images(8)
    whole = one_step(network, batch, fused=fused)
    pieces = one_step(network, batch, fused=fused, checkpointing=True)
    assert torch.equal(whole[0], pieces[0])
    assert_agree(whole, pieces, 1e-6)
    for buffer, again in zip(whole[2].values(), pieces[2].values(), strict=True):
        assert torch.equal(buffer, again)


def test_checkpointing_of_many_blocks_keeps_few_states() -> None:
    """Of 36 blocks the states of six pieces are kept, and of one piece at a time all the rest."""

    def kept(checkpointing: bool) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        network = build("homogeneous", num_blocks=36).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images(4), depths="all", checkpointing=checkpointing)
        return sum(sizes)

    assert kept(True) < kept(False) / 3


@given(
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    average=st.lists(st.booleans(), min_size=4, max_size=4),
    size=st.integers(5, 13),
)
@settings(max_examples=40)
def test_a_collapsed_chain_is_the_chain(strides: list[int], average: list[bool], size: int) -> None:
    skips: list[nn.Module] = []
    for position, (stride, pools) in enumerate(zip(strides, average, strict=False)):
        convolution = nn.Conv2d(position + 2, position + 3, 1, stride=1 if pools else stride, bias=False)
        pooling = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        skips.append(nn.Sequential(pooling, convolution) if pools else convolution)
    skips.insert(1, nn.Identity())
    chains = collapse([skip.double() for skip in skips])
    if chains is None:  # a stride behind a pooling is left to the literal loop
        assert any(average[: len(strides)])
        return
    width = 2
    for k, chain in enumerate(chains):
        state = images(2, size, width if k < 2 else 1 + k).double()
        torch.testing.assert_close(chain(state), skip_chain(skips[k:], state), rtol=1e-12, atol=1e-12)
        width += k == 0


@pytest.mark.parametrize(
    "skip",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 1, groups=2, bias=False),
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
        nn.ReLU(),
    ],
    ids=["bias", "3×3", "groups", "norm", "not linear"],
)
def test_other_skips_are_left_to_the_literal_loop(skip: nn.Module) -> None:
    assert collapse([nn.Identity(), skip]) is None


def test_hooks_are_never_passed_by() -> None:
    """Who hooks a module sees it called: the fast path steps back."""
    network, seen = build("staged").train(), []
    block = network.blocks["0"]
    assert first_norm(block) is not None
    block.residual[0].register_forward_hook(lambda *_: seen.append("norm"))
    network.head.norm.register_forward_hook(lambda *_: seen.append("head"))
    assert first_norm(block) is None
    assert fast_outputs(network.head, network.skips) is None
    network(images(), depths="all", fused=True)
    assert seen.count("norm") == 1
    assert seen.count("head") == network.num_blocks + 1


def test_a_frozen_norm_stays_frozen() -> None:
    network, batch = build("homogeneous").train(), images(8)
    for block in network.blocks.values():
        block.residual[0].eval()
    assert_agree(one_step(network, batch), one_step(network, batch, fused=True), 1e-4)


def test_bfloat16_states_are_pooled_in_single_precision() -> None:
    network, batch = build("staged").train(), images(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        literal, fused = one_step(network, batch), one_step(network, batch, fused=True)
    scale = literal[0].abs().max()
    assert (literal[0].float() - fused[0].float()).abs().max() < 0.05 * scale


def test_losses_of_all_depths_at_once_are_those_one_by_one() -> None:
    outputs, targets = torch.randn(5, 8, 3, dtype=torch.float64), labels(8, 3)
    targets[2] = -100  # left out, as torch's mean leaves it out
    together = sc.stage_cost_objective(outputs, targets, gamma=0.5).losses
    torch.testing.assert_close(together, torch.stack([F.cross_entropy(o, targets) for o in outputs]))
