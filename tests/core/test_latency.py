"""Measured time: what is slower is found slower, and the networks are left as they were."""

import time

import pytest
import torch
from torch import Tensor, nn

import stagecost as sc
from helpers import build, images
from stagecost.latency import Forward, peak_memory


def test_percentiles_and_throughput_are_those_of_the_calls() -> None:
    def sleep(seconds: float) -> Forward:
        return lambda batch: time.sleep(seconds)

    short, long = sc.measure_latency(
        {"short": sleep(0.001), "long": sleep(0.004)}, images(3), seconds=0.01
    ).values()
    assert short.calls == long.calls >= 20
    assert 1 <= short.p50_ms <= short.p90_ms <= short.p99_ms
    assert long.p50_ms >= 4
    assert short.p50_ms < long.p50_ms
    assert long.images_per_second <= 3 / 0.004
    assert (short.batch_size, short.threads) == (3, torch.get_num_threads())


def test_networks_take_turns_and_keep_their_mode() -> None:
    network, order = build("homogeneous").train(), []

    def other(batch: Tensor) -> None:
        order.append("other")
        assert not network.training
        assert not torch.is_grad_enabled()

    network.register_forward_hook(lambda *_: order.append("network"))
    sc.measure_latency({"network": network, "other": other}, images(), threads=1, seconds=0.01)
    assert order[:6] == ["network"] * 3 + ["other"] * 3  # warming up
    assert order[6:] == ["network", "other"] * (len(order[6:]) // 2)
    assert network.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"threads": 3_000_000_000}, {"seconds": 0.0}, {"seconds": float("inf")}]
)
def test_no_time_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(sc.StageCostError, match="more than 0 of both"):
        sc.measure_latency({"one": build("homogeneous")}, images(), **options)
    with pytest.raises(sc.StageCostError, match="nothing to time"):
        sc.measure_latency({}, images())


def test_memory_is_that_of_the_tensors_that_live_at_a_time() -> None:
    batch = torch.zeros(4, 1000)
    chain = peak_memory(lambda x: ((x + 1) * 2).view(2, -1)[0], batch)
    assert chain == 2 * batch.nbytes  # the sum and the product; a view takes nothing
    assert peak_memory(lambda x: [x + 1, x + 2, x + 3], batch) == 3 * batch.nbytes
    assert peak_memory(lambda x: x, batch) == 0


def test_memory_has_neither_weights_nor_images_in_it() -> None:
    batch, layer = torch.zeros(4, 1000), nn.Linear(1000, 10)
    assert peak_memory(layer, batch) == 4 * 10 * 4
    assert peak_memory(lambda x: x.view(2, -1).relu_() + 1, batch) == batch.nbytes
