"""Equilibrium, gate, sandwich and common answers, each against its definition by separate losses."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import stagecost as sc
from helpers import BUILDERS, build, images, labels
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.losses import losses_of
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost, equilibrate, mean_log_probabilities

TARGETS = (Cut.first(1), Cut.first(3))
COST = StageCost(TARGETS, (0.5, 2.0))


def gradients(network: ResidualNetwork, loss: Tensor) -> dict[str, Tensor]:
    named = dict(network.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(named.items(), found, strict=True)
    }


def by_output(network: ResidualNetwork, cost: StageCost = COST) -> list[dict[str, Tensor]]:
    """Return the gradients of each weighted loss by itself, that of the whole network last."""
    losses = losses_of(network(images(), cost.outputs), labels(), cost.loss)
    weighted = zip((*cost.weights, cost.terminal_weight), losses, strict=True)
    return [gradients(network, weight * loss) for weight, loss in weighted]


def block_of(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


@pytest.mark.parametrize("normalized", [False, True])
def test_equilibrium_is_the_mean_of_the_losses_behind(normalized: bool) -> None:
    network = build("homogeneous").train()
    separate = by_output(network)
    cost = StageCost(TARGETS, COST.weights, normalized=normalized)
    cost(network(images(), cost.outputs), labels()).total.backward()
    equilibrate(network, cost)
    for name, parameter in network.named_parameters():
        k = block_of(name)
        behind = 3.5 if k is None else sum(w for m, w in ((1, 0.5), (3, 2.0), (4, 1.0)) if k < m)
        mean = sum(part[name] for part in separate) / behind
        torch.testing.assert_close(parameter.grad, mean, rtol=1e-4, atol=1e-6)


def test_equilibrium_behind_a_closed_gate_is_the_loss_of_the_target_alone() -> None:
    network = build("homogeneous").train()
    separate, how = by_output(network), sc.Pass(gates=(1, 3), beta=0.0)
    COST(network(images(), COST.outputs, how=how), labels()).total.backward()
    equilibrate(network, COST, how)
    for name, parameter in network.named_parameters():
        nearest = (0, 1, 1, 2)[block_of(name) or 0]
        if name.startswith(("stem", "blocks")):
            alone = separate[nearest][name] / (0.5, 2.0, 1.0)[nearest]
            torch.testing.assert_close(parameter.grad, alone, rtol=1e-4, atol=1e-6)


def test_a_gate_at_the_last_depth_holds_nothing_back() -> None:
    """As where the training cut the network to one of its targets, which stays a target."""
    cost = StageCost.targets([sc.Cut.first(1), sc.Cut.first(4)])
    network, whole = (build("homogeneous").train() for _ in range(2))
    for one, gates in ((network, (1, 4)), (whole, (1,))):
        how = sc.Pass(gates=gates, beta=0.5)
        cost(one(images(), cost.outputs, how=how), labels()).total.backward()
        equilibrate(one, cost, how)
    for parameter, other in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)


def test_equilibrium_takes_skips_for_parts_of_every_loss() -> None:
    network, cost = build("staged").train(), StageCost((Cut.first(1), Cut.first(3)), (0.5, 2.0))
    separate = by_output(network, cost)
    cost(network(images(), cost.outputs), labels()).total.backward()
    equilibrate(network, cost)
    projections = [name for name, _ in network.named_parameters() if ".skip." in name]
    assert projections
    for name in projections:
        mean = sum(part[name] for part in separate) / 3.5
        torch.testing.assert_close(network.get_parameter(name).grad, mean, rtol=1e-4, atol=1e-6)


def test_equilibrium_scales_what_blocks_share_once() -> None:
    network = build("homogeneous").train()
    network.blocks["2"].residual = network.blocks["0"].residual
    COST(network(images(), COST.outputs), labels()).total.backward()
    sums = [parameter.grad.clone() for parameter in network.blocks["0"].parameters()]
    equilibrate(network, COST)
    for parameter, total in zip(network.blocks["0"].parameters(), sums, strict=True):
        torch.testing.assert_close(parameter.grad, total / COST.weight_behind(0))


NORMS = ("norms.", "head.norm", *(f"blocks.{k}.residual.{i}" for k in range(4) for i in (0, 3)))
"""Where parameters of norms are: a branch is norm, relu and convolution, twice."""


def test_equilibrium_of_norms_is_the_mean_of_the_losses_that_they_serve() -> None:
    network = build("homogeneous").train()
    network.give_norms(TARGETS[0])
    for gates, beta in (((), 1.0), ((1, 3), 0.3)):
        how = sc.Pass(gates=gates, beta=beta)
        separate = by_output(network)
        network.zero_grad()
        COST(network(images(), COST.outputs, how=how), labels()).total.backward()
        equilibrate(network, COST, how)
        behind_last = beta if gates else 1.0  # the gate at 3 has these norms as well, the one at 1 not
        for name in (name for name, _ in network.named_parameters() if name.startswith(NORMS)):
            k = -1 if name.startswith("head") else block_of(name)
            if name.startswith("norms."):
                wanted = separate[0][name] / 0.5
            elif k == 3:
                wanted = separate[2][name]
            else:
                total = separate[1][name] + behind_last * separate[2][name]
                wanted = total / (2.0 + behind_last)
            torch.testing.assert_close(
                network.get_parameter(name).grad, wanted, rtol=1e-4, atol=1e-6, msg=name
            )


def test_equilibrium_passes_over_a_target_without_a_loss() -> None:
    network = build("homogeneous").train()
    network.give_norms(*TARGETS)
    cost = StageCost.targets(TARGETS[1])
    cost(network(images(), cost.outputs), labels()).total.backward()
    equilibrate(network, cost)
    assert all(p.grad is None for p in network.norms[0].parameters())


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gate_multiplies_what_comes_back_from_beyond_a_target(beta: float, own: bool) -> None:
    network = build("homogeneous").train()
    if own:
        network.give_norms(*TARGETS)
    separate, plain = by_output(network), network(images(), COST.outputs)
    how = sc.Pass(gates=(1, 3), beta=beta, checkpointing=own)
    outputs = network(images(), COST.outputs, how=how)
    assert torch.equal(outputs, plain)
    gated = gradients(network, COST(outputs, labels()).total)
    for name, gradient in gated.items():
        k = block_of(name)
        before = 0 if k is None else k  # all gates are behind the stem and the first block
        crossed = [sum(before < gate < cut for gate in (1, 3)) for cut in (1, 3, 4)]
        if own and any(name.startswith(path) for path in NORMS):
            crossed = [0, 0, 0]  # no gate uses those of the whole network, or of another target
        wanted = sum(beta**n * part[name] for n, part in zip(crossed, separate, strict=True))
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_passes_apart_count_statistics_once() -> None:
    """A gate with norms of its own gives each cut a pass; the whole network has the first."""
    cuts, seen = [Cut.first(3), Cut.first(1), Cut.whole(), Cut.first(4)], []
    once, apart = (build("homogeneous").train() for _ in range(2))
    for network, gates in ((once, ()), (apart, (1,))):
        network.give_norms(Cut.first(1))
        how = sc.Pass(gates=gates, beta=0.0)
        network(images(), cuts, how=how, observe=lambda k, *_: seen.append(k))
    assert seen == 2 * [0, 1, 2, 3]
    for (name, buffer), other in zip(once.named_buffers(), apart.buffers(), strict=True):
        assert torch.equal(buffer, other), name


NESTED = [
    ("homogeneous", (Cut((0, 3)), Cut((0, 2, 3)))),
    ("staged", (Cut.stages(1, 1, 1), Cut.stages(1, 2, 2))),
    ("staged", (Cut.first(1), Cut.first(3))),  # projections that the gates have as skips alone
    ("staged", (Cut((1, 3)), Cut((1, 3, 5)))),
    ("timm/test_resnet", (Cut.stages(1, 1, 1, 1), Cut.whole())),
    ("timm/test_vit", (Cut((0, 2, 4)), Cut((0, 2, 3, 4)))),
]


def network_of(name: str) -> ResidualNetwork:
    if name in BUILDERS:
        return build(name).train()
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 4, "depth": 5} if "vit" in name else {}
    model = timm.create_model(name.removeprefix("timm/"), num_classes=5, **options)
    return sc.adapt(model, torch.zeros(1, 3, 16, 16)).train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "nested"), NESTED)
def test_a_gate_may_be_any_part_of_a_network(
    name: str, nested: tuple[Cut, ...], checkpointing: bool
) -> None:
    network = network_of(name)
    gates = tuple(map(network.resolve, nested))
    targets = tuple(cut for cut in gates if len(cut.blocks) < network.num_blocks)
    cost = StageCost(targets, (0.5, 2.0)[: len(targets)])
    separate, plain = by_output(network, cost), network(images(), cost.outputs)
    how = sc.Pass(gates=gates, beta=0.3, checkpointing=checkpointing)
    outputs = network(images(), cost.outputs, how=how)
    assert torch.equal(outputs, plain)
    found = gradients(network, cost(outputs, labels()).total)
    named, cuts = dict(network.named_parameters()), [*targets, network.resolve(Cut.whole())]
    places = {id(p): k for k, block in enumerate(network.blocks.values()) for p in block.parameters()}
    for parameter in (p for skip in network.skips for p in skip.parameters()):
        places.pop(id(parameter))  # every cut has it
    for parameter, gradient in found.items():
        k = places.get(id(named[parameter]))
        before = [gate for gate in gates if k is None or gate.acts(k)]
        crossed = [sum(gate < cut for gate in before) for cut in cuts]
        wanted = sum(0.3**n * part[parameter] for n, part in zip(crossed, separate, strict=True))
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_gates_are_nested_with_all_cuts() -> None:
    network, how = build("homogeneous"), sc.Pass(gates=(Cut((0, 3)),), beta=0.5)
    with pytest.raises(StageCostError, match=r"a gate of cut \[0 3\] beside cut 2: give gates"):
        network(images(), [Cut.first(2)], how=how)


@pytest.mark.parametrize("target", [Cut.first(3), Cut((0, 2, 3))])
def test_a_closed_gate_leaves_a_target_what_it_has_alone(target: Cut) -> None:
    """With beta = 0 its blocks, stem and head follow its loss as if there were nothing else."""
    network = build("homogeneous").train()
    small = network.keep(target).train()
    cost = StageCost.targets([target])
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in (network, small)]
    for seed in range(3):
        batch, targets = images(seed=seed), labels(seed=seed)
        outputs = network(batch, cost.outputs, how=sc.Pass(gates=(target,), beta=0.0))
        cost(outputs, targets).total.backward()
        StageCost()(small(batch)[None], targets).total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), parameter)


def test_a_sandwich_has_the_smallest_always_and_the_mean_of_all() -> None:
    cost = StageCost(tuple(map(Cut.first, (3, 1, 2))), (1.0, 0.5, 2.0))
    generator = torch.Generator().manual_seed(0)
    drawn = [cost.sandwiched(generator) for _ in range(400)]
    assert all(len(one.cuts) == 2 and one.cuts[0] == Cut.first(1) for one in drawn)
    sums = dict.fromkeys(cost.cuts, 0.0)
    for one in drawn:
        for cut, weight in zip(one.cuts, one.weights, strict=True):
            sums[cut] += weight / len(drawn)
    assert list(sums.values()) == pytest.approx(cost.weights, rel=0.15)
    assert COST.sandwiched(generator) == COST
    with pytest.raises(sc.StageCostError, match="does not name its blocks"):
        StageCost.targets([Cut.stages(2, 2), Cut.first(3)]).sandwiched(torch.Generator())


def test_the_common_answer_is_that_of_the_product_of_probabilities() -> None:
    outputs = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    product = outputs.softmax(dim=-1).prod(dim=0) ** (1 / 3)
    torch.testing.assert_close(mean_log_probabilities(outputs).exp(), product)
    with pytest.raises(StageCostError, match=r"give \(K, B, classes\)"):
        mean_log_probabilities(outputs[0])
    torch.testing.assert_close(mean_log_probabilities(outputs[:1]), outputs[0].log_softmax(dim=-1))


@pytest.mark.parametrize("beta", [-0.5, float("nan"), float("inf"), "0.5"])
def test_an_impossible_gate_is_refused(beta: Any) -> None:
    with pytest.raises(StageCostError, match="beta is"):
        sc.Pass(gates=(2,), beta=beta)
