"""The fast ways agree with the literal one: values, gradients, running statistics; also in segments."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import BUILDERS, build, images, labels, objective
from stagecost.dynamics import Pass, ResidualBlock, SkipChain
from stagecost.errors import StageCostError
from stagecost.fast.chains import collapsed_tails
from stagecost.fast.reading import LeanHead
from stagecost.network import ResidualNetwork
from stagecost.train.devices import check_compiler

POLICIES = ("per_output", "terminal")
# (builder, changes): every builder, and the projections that a staged network may have.
NETWORKS = [(name, {}) for name in BUILDERS] + [("staged", {"projection": "average"})]
LITERALLY = Pass()
FAST = Pass(collapsed=True)

Step = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def one_step(
    network: ResidualNetwork, batch: Tensor, how: Pass = LITERALLY, depths: object = "all"
) -> Step:
    """Outputs, gradients by name and buffers by name after one backward pass of a copy."""
    network = copy.deepcopy(network)
    outputs = network(batch, depths=depths, how=how)
    objective(outputs, labels(len(batch)), 0.3).total.backward()
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


def prepared(
    name: str, changes: dict[str, object], policy: str = "per_output", dtype: torch.dtype = torch.float32
) -> ResidualNetwork:
    network = build(name, head_statistics=policy, **changes).to(dtype)
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "changes"), NETWORKS)
def test_the_twins_agree(name: str, changes: dict[str, object], policy: str, training: bool) -> None:
    """The reading sums in single precision; else to rounding."""
    network = prepared(name, changes, policy).train(training)
    batch = images(8, 32 if "resnet" in name else 16)
    literal, fast = one_step(network, batch), one_step(network, batch, FAST)
    assert_same_values(literal, fast, 1e-4)
    _, truth, _ = one_step(copy.deepcopy(network).double(), batch.double())
    assert worst_error(fast[1], truth) <= 1e-4 + 3 * worst_error(literal[1], truth)


@pytest.mark.parametrize(("name", "changes"), NETWORKS)
def test_collapsed_chains_agree_in_double_precision(name: str, changes: dict[str, object]) -> None:
    network = prepared(name, changes, dtype=torch.float64).train()
    batch = images(8, 32 if "resnet" in name else 16).double()
    assert_agree(one_step(network, batch), one_step(network, batch, Pass(collapsed=True)), 1e-10)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(
    "scales", [(0.0, 1.5, -1.5, 1e-9), (0.02, 1.5, -1.5, 0.3), (0.02, 1.5, 0.7, 0.3)]
)
def test_a_lean_reading_agrees_whatever_the_norm_of_the_head_is(
    scales: tuple[float, ...], offset: float
) -> None:
    """A ReLU that opens above or below, everywhere or never; states far from 0."""
    network = build("homogeneous", width=12).double().train()
    weights, biases = torch.tensor(scales), torch.tensor([0.0, 0.7, -0.7])
    with torch.no_grad():
        pairs = torch.cartesian_prod(weights, biases).double()
        for parameter, values in zip(network.head.norm.parameters(), pairs.unbind(1), strict=True):
            parameter.copy_(values)
        next(iter(network.blocks.values())).register_forward_hook(lambda *io: io[2] + offset)
    assert LeanHead(network.head, ()).by_sums == (min(scales) >= 0.02)
    batch = images(8).double()
    assert_agree(one_step(network, batch), one_step(network, batch, FAST), 1e-9)


@pytest.mark.parametrize("how", [LITERALLY, FAST])
def test_one_value_a_channel_is_refused_and_moves_no_statistics(how: Pass) -> None:
    network = build("homogeneous").train()
    network.blocks.eval()  # whose own norms do not refuse it
    before = network.head.norm.running_var.clone()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(images(1, 1), depths="all", how=how)
    assert torch.equal(network.head.norm.running_var, before)


@pytest.mark.parametrize("depths", [[1, 3, 4], [0, 4], [3, 0, 4], [4]])
def test_some_depths_and_their_order(depths: list[int]) -> None:
    network, batch = prepared("homogeneous", {}).train(), images(8)
    assert_agree(one_step(network, batch, depths=depths), one_step(network, batch, FAST, depths), 1e-4)


def test_the_terminal_output_is_that_of_plain_training_to_the_last_bit() -> None:
    for name, changes in NETWORKS:
        batch = images(4, 32)
        for training in (False, True):
            one, other = (prepared(name, changes).train(training) for _ in range(2))
            assert torch.equal(one(batch), other(batch, depths="all", how=FAST)[-1])


def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError("Python.h is missing")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(StageCostError, match="install g\\+\\+ and python3-dev"):
        check_compiler()


def test_no_pass_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("something was compiled")

    monkeypatch.setattr(torch, "compile", refuse)
    for network in (build("staged").eval(), build("staged").train()):
        assert network(images(), depths="all", how=FAST).shape == (8, 4, 5)


def test_a_lean_reading_has_no_second_derivatives() -> None:
    network = build("homogeneous").train()
    loss = objective(network(images(8), depths="all", how=FAST), labels(8), 0.3).total
    weight = network.head.norm.weight
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("fast", [Pass(), FAST])
@pytest.mark.parametrize(("name", "changes"), [("homogeneous", {}), ("staged", {})])
@pytest.mark.parametrize("policy", POLICIES)
def test_checkpointing_changes_nothing_but_memory(
    name: str, changes: dict[str, object], policy: str, fast: Pass
) -> None:
    """Not a bit of outputs and running statistics: nothing is counted twice."""
    network, batch = prepared(name, changes, policy).train(), images(8)
    whole = one_step(network, batch, fast)
    how = Pass(checkpointing=True, collapsed=fast.collapsed)
    segments = one_step(network, batch, how)
    assert torch.equal(whole[0], segments[0])
    assert_agree(whole, segments, 1e-6)
    for buffer, again in zip(whole[2].values(), segments[2].values(), strict=True):
        assert torch.equal(buffer, again)


@pytest.mark.parametrize("how", [Pass(checkpointing=True), FAST])
def test_less_is_kept_for_the_gradient(how: Pass) -> None:
    """Of 36 blocks the states of six segments; of a lean reading nothing of a state's size."""

    def kept(how: Pass) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        network = build("homogeneous", num_blocks=36).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images(4), depths="all", how=how)
        return sum(sizes.values())

    assert kept(how) < kept(Pass()) * (0.34 if how.checkpointing else 0.86)


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
    blocks = [ResidualBlock(nn.Identity(), skip.double()) for skip in skips]
    tails = collapsed_tails(blocks)
    if tails is None:  # a stride behind a pooling is left to the literal way
        assert any(average[: len(strides)])
        return
    literal, width = SkipChain(blocks), 2
    for k in range(len(blocks) + 1):
        state = images(2, size, width if k < 2 else 1 + k).double()
        torch.testing.assert_close(tails(state, k), literal(state, k), rtol=1e-12, atol=1e-12)
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
def test_other_skips_are_left_to_the_literal_way(skip: nn.Module) -> None:
    blocks = [ResidualBlock(nn.Identity()), ResidualBlock(nn.Identity(), skip)]
    assert collapsed_tails(blocks) is None


@pytest.mark.parametrize("kind", ["forward", "full_backward"])
def test_hooks_are_never_passed_by(kind: str) -> None:
    """Who hooks a module sees it called, or its gradient: the fast ways step back."""
    network, seen = build("staged").train(), []
    for name, module in (("head", network.head.linear), ("skip", network.blocks["2"].skip)):
        register = getattr(module, f"register_{kind}_hook")
        register(lambda *_, name=name: seen.append(name))
    network(images(), depths="all", how=FAST).sum().backward()
    assert seen.count("head") == network.num_blocks + 1
    assert seen.count("skip") == 4, "once in its block, and once for each of y_0, y_1, y_2"


def test_bfloat16_states_are_pooled_in_single_precision() -> None:
    network, batch = build("staged").train(), images(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        literal, fast = one_step(network, batch), one_step(network, batch, FAST)
    scale = literal[0].abs().max()
    assert (literal[0].float() - fast[0].float()).abs().max() < 0.05 * scale


class Adapted(nn.Linear):
    """A linear map with something beside it, as LoRA makes one."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) + 5 * values[:, :1] * torch.arange(float(self.out_features))


@pytest.mark.parametrize("training", [True, False])
def test_a_classifier_of_another_make_is_called(training: bool) -> None:
    network = prepared("homogeneous", {}).train(training)
    features, classes = network.head.linear.in_features, network.head.linear.out_features
    made = Adapted(features, classes), nn.Sequential(nn.Linear(features, 6), nn.Linear(6, classes))
    for linear in made:
        network.head.linear = linear
        with torch.no_grad():
            literal = network(images(4), depths="all")
            fast = network(images(4), depths="all", how=FAST)
        torch.testing.assert_close(fast, literal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("missing", [["bias"], ["weight", "bias"]])
def test_a_norm_without_scale_or_shift_is_read_literally(missing: list[str], training: bool) -> None:
    network = prepared("homogeneous", {}).train(training)
    for name in missing:
        setattr(network.head.norm, name, None)
    with torch.no_grad():
        outputs = network(images(4), depths="all", how=FAST)
        assert torch.equal(outputs, network(images(4), depths="all"))


def test_half_precision_is_read_literally() -> None:
    network = prepared("homogeneous", {}).eval()
    with torch.no_grad():
        network.head.norm.weight.fill_(1e-5)  # so that the ReLU opens beyond the largest half
        network.head.norm.bias.fill_(-1.0)
        network.half()
        outputs = network(images(4).half(), depths="all", how=FAST)
        assert torch.equal(outputs, network(images(4).half(), depths="all"))
    assert bool(outputs.isfinite().all())
