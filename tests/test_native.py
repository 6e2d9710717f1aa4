"""The loops in C agree with the literal definition; and without a compiler all goes on."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stagecost as sc
from helpers import BUILDERS, build, images, loader
from stagecost import kernels
from stagecost.chains import CollapsedChain
from stagecost.native import normalised, pooled, projected, shared_library, stepped
from stagecost.network import ResidualNetwork
from stagecost.surgery import keep_blocks
from test_fast_outputs import POLICIES, assert_agree, one_step

DTYPES = [torch.float64, torch.float32]
# Widths of whole vectors, which C fits everywhere, and small ones, which it leaves to torch in part.
WIDE: dict[str, dict[str, object]] = {"homogeneous": {"width": 16}, "staged": {"widths": (16, 32, 48)}}
NETWORKS = [(name, {}) for name in list(BUILDERS)[:3]] + list(WIDE.items())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile into a folder of the tests'; what the twins leave over, the formulas do as they are."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr("stagecost.fast_outputs.compiled_kernels", lambda: kernels.FORMULAS)
    shared_library.load.cache_clear()


needs_compiler = pytest.mark.skipif(shared_library._compiler() is None, reason="there is no C compiler")


def prepared(name: str, changes: dict[str, object], policy: str, dtype: torch.dtype) -> ResidualNetwork:
    network = build(name, head_statistics=policy, **changes).to(dtype)
    return network.to(memory_format=torch.channels_last)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "changes"), NETWORKS)
def test_the_loops_agree_with_the_literal_definition(
    name: str, changes: dict[str, object], policy: str, dtype: torch.dtype
) -> None:
    network, batch = prepared(name, changes, policy, dtype).train(), images(8, 16).to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert_agree(one_step(network, batch), one_step(network, batch, fused=True), tolerance)


@needs_compiler
def test_the_loops_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With wide states no formula is called: else the test above would compare torch with torch."""
    called: list[str] = []

    def noted(name: str) -> object:
        return lambda *_: called.append(name)

    formulas = kernels.Kernels(*(noted(name) for name in kernels.Kernels.__dataclass_fields__))
    monkeypatch.setattr("stagecost.fast_outputs.compiled_kernels", lambda: formulas)
    for name, changes in WIDE.items():
        one_step(prepared(name, changes, "per_output", torch.float32).train(), images(8), fused=True)
    assert not called


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "outputs", "size", "stride"), [(3, 5, 7, 3), (17, 33, 9, 2)])
def test_odd_sizes_behind_a_projection(
    channels: int,
    outputs: int,
    size: int,
    stride: int,
    memory_format: torch.memory_format,
    threads: int,
    dtype: torch.dtype,
) -> None:
    """Rows that fill no vector, pixels that fill no tile, any strides, any number of threads."""
    state = (10 + images(5, size, channels)).to(dtype).contiguous(memory_format=memory_format)
    parameters = (torch.randn(outputs, channels, 1, 1), torch.rand(outputs), torch.randn(outputs))
    values: list[Tensor] = [v.to(dtype).requires_grad_() for v in (state, *parameters)]
    picked = CollapsedChain((stride, stride)).pick(state)
    reached = torch.nn.functional.conv2d(CollapsedChain((stride, stride)).pick(values[0]), values[1])
    normal = torch.nn.functional.batch_norm(reached, None, None, values[2], values[3], training=True)
    literal = normal.relu().sum((2, 3))
    grad = torch.randn_like(literal)
    literal.backward(grad)
    before, constants = torch.get_num_threads(), tuple(v.detach() for v in values[1:])
    grad_state = torch.zeros_like(state)
    try:
        torch.set_num_threads(threads)
        summed, count, moment, mean, variance, centre = projected.project_and_pool(
            picked, *constants, 1e-5
        )
        grads = projected.project_and_pool_gradient(
            *(picked, *constants, 1e-5, grad, (count, moment, variance, centre)),
            CollapsedChain((stride, stride)).pick(grad_state),
        )
    finally:
        torch.set_num_threads(before)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    pairs = [(summed, literal), (mean, reached.mean((0, 2, 3))), (grad_state, values[0].grad)]
    for found, expected in [*pairs, *zip(grads, (v.grad for v in values[1:]), strict=True)]:
        error = torch.linalg.vector_norm(found - expected)
        assert error <= tolerance * (1 + torch.linalg.vector_norm(expected))


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (2, 16, 40, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_the_sum_to_the_last_bit_and_its_norms(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    skipped, control = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    expected, size = skipped + control, torch.linalg.vector_norm(control, dim=(1, 2, 3))
    assert stepped.fits(control, skipped)
    found = stepped.add_and_measure(control, skipped)
    assert torch.equal(control, expected)
    torch.testing.assert_close(found, (size, torch.linalg.vector_norm(expected, dim=(1, 2, 3))))
    assert not stepped.fits(control, skipped.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("trouble", ["no compiler", "it fails", "no folder"])
def test_without_a_compiler_all_goes_on(
    trouble: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same losses, and the ratios to rounding, from torch alone."""
    network, data = build("staged", widths=(16, 16, 16)), loader()
    before = sc.loss_trajectory(network, data)
    if trouble == "no compiler":
        monkeypatch.setattr(shared_library, "_compiler", lambda: None)
    elif trouble == "it fails":
        monkeypatch.setattr(shared_library, "_compiler", lambda: "false")
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    shared_library.load.cache_clear()
    assert shared_library.load("normalise", torch.float32) is None
    after = sc.loss_trajectory(network, data)
    assert after.losses == before.losses
    assert after.residual_ratios == pytest.approx(before.residual_ratios, rel=1e-5)
    assert not normalised.fits(torch.zeros(1, 16, 2, 2))
    shared_library.load.cache_clear()


@needs_compiler
def test_a_file_is_compiled_once_and_mended_if_it_is_torn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shared_library.load("normalise", torch.float32) is not None
    (made,) = shared_library._folder().iterdir()
    stamp = made.stat().st_mtime_ns
    shared_library.load.cache_clear()
    assert shared_library.load("normalise", torch.float32) is not None
    assert made.stat().st_mtime_ns == stamp
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # this process holds on to what it has
    torn = shared_library._folder() / made.name
    torn.parent.mkdir(parents=True)
    torn.write_bytes(made.read_bytes()[:100])
    shared_library.load.cache_clear()
    assert shared_library.load("normalise", torch.float32) is not None
    assert torn.stat().st_size > 100


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 16, 5, 7), (2, 5, 1, 1), (4, 33, 8, 8), (2, 64, 20, 20)])
def test_the_head_pools_as_torch_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, shape[1], dtype=dtype)
    with torch.no_grad():
        assert pooled.fits(state, scale, shift)
        found = pooled.pool_affine(state, scale, shift)
        alone = pooled.pool_affine(state[:1], scale, shift)
    expected = (state * scale[:, None, None] + shift[:, None, None]).relu().mean(dim=(2, 3))
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:1], alone)  # no image has a part in another's result


@needs_compiler
def test_the_head_goes_by_torch_where_its_operations_are_wanted() -> None:
    state = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 4)
    assert not pooled.fits(state, scale, shift)  # gradients are on
    with torch.no_grad():
        assert pooled.fits(state, scale, shift)
        assert not pooled.fits(state[:, :3], scale, shift)
        assert not pooled.fits(torch.randn(2, 4, 3, 3), scale, shift)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not pooled.fits(state, scale, shift)


@pytest.mark.parametrize("compiler", [True, False])
def test_a_truncated_network_gives_the_output_of_the_analysis_to_the_last_bit(
    compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiler:
        monkeypatch.setattr(shared_library, "_compiler", lambda: None)
        shared_library.load.cache_clear()
    network = build("homogeneous").to(memory_format=torch.channels_last).eval()
    batch = images(5, 16).contiguous(memory_format=torch.channels_last)
    small = copy.deepcopy(network)
    keep_blocks(small, small.block_indices[:2])
    with torch.no_grad():
        outputs = network(batch, depths="all", fused=True)
        assert torch.equal(outputs[2], small(batch))
        assert torch.equal(outputs[2], network(batch, depths=2))
    shared_library.load.cache_clear()


@needs_compiler
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # torch.func.jvp calls it itself
def test_who_looks_at_the_operations_sees_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export, forward-mode derivatives and transforms of functions get through the head."""
    network = build("homogeneous").to(memory_format=torch.channels_last).eval()
    one, two = (images(count, 16).contiguous(memory_format=torch.channels_last) for count in (2, 3))
    with torch.no_grad():
        expected = network(two)
        monkeypatch.setattr(pooled, "pool_affine", None)  # to call it is an error from here on
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(network, (one,), dynamic_shapes=([batch, None, None, None],))
        torch.testing.assert_close(program.module()(two), expected)
        mapped = torch.func.vmap(lambda image: network(image[None])[0])(two)
        torch.testing.assert_close(mapped, expected)
        outputs, tangents = torch.func.jvp(network, (two,), (torch.ones_like(two),))
        torch.testing.assert_close(outputs, expected)
        assert tangents.abs().sum() > 0
