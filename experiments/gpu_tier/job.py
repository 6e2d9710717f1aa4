"""One training of the GPU tier: networks, losses, and a step that needs no host."""

import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.gpu_tier.images import Images, Splits
from experiments.gpu_tier.plan import ONE_PASS, TARGET_WEIGHTS, Recipe
from stagecost.cut import Cut
from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork
from stagecost.objective import parameter_groups


def build(
    recipe: Recipe, splits: Splits, num_blocks: int, seed: int, device: torch.device
) -> ResidualNetwork:
    """Build a network from a seed; the first blocks of two depths begin with the same weights."""
    torch.manual_seed(seed)
    network = create_model(
        "homogeneous",
        num_blocks=num_blocks,
        width=recipe.width,
        num_classes=splits.classes,
        in_channels=splits.image_shape[0],
        stem_stride=recipe.stem_stride,
    )
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def with_separate_norms(network: ResidualNetwork, kept: int) -> ResidualNetwork:
    """Return the first blocks as an ordinary network that shares all weights but those of the norms."""
    smaller = network.keep(Cut.first(kept))
    for name, module in smaller.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            original = network.get_submodule(name)
            for key in list(module._parameters):
                setattr(module, key, getattr(original, key))
    return smaller


def stage_loss(outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_k w_k·L_k / Σ_k w_k of outputs (K, B, classes): J_N / (1 + gamma·N) for the stage cost.

    As a normalised `StageCost`, but with nothing that a CUDA graph cannot hold.
    """
    repeated = labels.expand(len(outputs), -1).flatten()
    singles = F.cross_entropy(outputs.flatten(0, 1), repeated, reduction="none")
    return (singles.reshape(len(outputs), -1).mean(1) * weights).sum() / weights.sum()


def target_loss(output: Tensor, whole: Tensor, labels: Tensor, distilled: bool) -> Tensor:
    """Return the loss of the target's output (B, classes) beside the whole network's."""
    loss = F.cross_entropy(output, labels)
    if not distilled:
        return loss
    wanted = F.log_softmax(whole.detach().float(), dim=1)
    given = F.log_softmax(output.float(), dim=1)
    return 0.5 * loss + 0.5 * F.kl_div(given, wanted, log_target=True, reduction="batchmean")


class Job:
    """One training: networks, and all draws and rates on the device, so that a step needs no host."""

    def __init__(self, arm: str, seed: int, epochs: int, recipe: Recipe, splits: Splits) -> None:
        """Build the networks and draw the whole training; `epochs` are those of plain_full."""
        self.arm, self.seed, self.epochs, self.recipe, self.splits = arm, seed, epochs, recipe, splits
        device = splits.train.labels.device
        self.network = build(recipe, splits, recipe.blocks(arm), seed, device)
        self.target = with_separate_norms(self.network, recipe.kept) if arm in TARGET_WEIGHTS else None
        per_epoch = len(splits.train.labels) // recipe.batch_size
        self.steps = max(2, round(epochs * recipe.epoch_factor(arm) * per_epoch))
        self.draws = splits.train.draw(self.steps, recipe.batch_size, seed).to(device)
        self.rates = rates(self.steps, recipe).to(device)
        self.counter = torch.zeros(1, dtype=torch.long, device=device)
        self.rate = torch.zeros((), device=device)
        cost = recipe.stage_cost(arm)
        self.outputs, weights = cost.outputs, [*cost.weights, cost.terminal_weight]
        self.weights = torch.tensor(weights, device=device)
        self.optimizer = optimizer(self.networks, self.rate, recipe)
        self.done, self.begun = 0, time.monotonic()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        if recipe.compiled:
            for network in self.networks:
                for block in network.blocks.values():
                    block.compile(dynamic=False)

    @property
    def networks(self) -> list[ResidualNetwork]:
        """The whole network and, in a joint training, its target."""
        return [self.network] if self.target is None else [self.network, self.target]

    def backward(self, images: Tensor, labels: Tensor) -> None:
        """Leave the gradients of one batch in the parameters."""
        with torch.autocast(images.device.type, torch.bfloat16, images.is_cuda, cache_enabled=False):
            if len(self.outputs) > 1:
                loss = stage_loss(self.network(images, self.outputs), labels, self.weights)
                loss.backward()  # type: ignore[no-untyped-call]
                return
            whole = self.network(images)
            F.cross_entropy(whole, labels).backward()  # type: ignore[no-untyped-call]
            if self.target is None:
                return
            shared = {id(p) for p in self.target.parameters()}
            both = [p.grad for p in self.network.parameters() if id(p) in shared and p.grad is not None]
            if self.recipe.beta != 1:
                torch._foreach_mul_(both, self.recipe.beta)
            loss = target_loss(self.target(images), whole, labels, self.recipe.distilled)
            (TARGET_WEIGHTS[self.arm] * loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Do one step of the training, all of it on the device."""
        draws = self.draws.index_select(0, self.counter)[0].long()
        self.rate.copy_(self.rates.index_select(0, self.counter)[0])
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(self.splits.train.crops(draws), self.splits.train.labels[draws[:, 0]])
        self.optimizer.step()
        self.counter += 1

    def capture(self) -> None:
        """Record the step as a CUDA graph, the training staying where it was; nothing without a GPU."""
        if self.stream is None:
            return
        networks = self.networks
        state = [t for network in networks for t in (*network.parameters(), *network.buffers())]
        state.append(self.counter)
        before = [t.detach().clone() for t in state]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.step()
            self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.step()
            self.graph = graph
        except Exception as error:  # whatever a capture may raise: go on without
            print(f"no graph, {self.arm} goes on without: {error}", file=sys.stderr)
        torch.cuda.synchronize()
        momenta = [s["momentum_buffer"] for s in self.optimizer.state.values()]
        with torch.no_grad():
            torch._foreach_copy_(state, before)
            torch._foreach_zero_(momenta)
        torch.cuda.synchronize()

    @property
    def idle(self) -> bool:
        """Whether all that was asked of the device is done."""
        return self.event is None or self.event.query()  # type: ignore[no-untyped-call]

    def advance(self, steps: int = 8) -> None:
        """Ask the device for some more steps."""
        for _ in range(min(steps, self.steps - self.done)):
            self.done += 1
            if self.stream is None:
                self.step()
                continue
            with torch.cuda.stream(self.stream):
                if self.graph is None:
                    self.step()
                else:
                    self.graph.replay()
        if self.event is not None:
            self.event.record(self.stream)

    def results(self) -> dict[str, Any]:
        """Read validation and test images by each network that this training yields."""
        recipe = self.recipe
        names = {recipe.kept: "cut", recipe.middle: "middle"}
        networks = {names.get(self.network.num_blocks, "whole"): self.network}
        if self.target is not None:
            networks["cut"] = self.target
        elif len(self.outputs) > 1:
            depths = names if self.arm in ONE_PASS else [recipe.kept]
            networks |= {names[depth]: self.network.keep(Cut.first(depth)) for depth in depths}
        accuracies: dict[str, dict[str, float]] = {}
        for name, network in networks.items():
            ordinary = copy.deepcopy(network)  # compiled blocks stay behind
            accuracies[name] = {"val": accuracy(ordinary, self.splits.val)}
            if self.splits.test is not None:
                accuracies[name]["test"] = accuracy(ordinary, self.splits.test)
        return {
            "dataset": self.splits.name,
            "arm": self.arm,
            "seed": self.seed,
            "epochs": self.epochs,
            "steps": self.steps,
            "shared_seconds": round(time.monotonic() - self.begun, 1),
            "graph": self.graph is not None,
            "networks": accuracies,
            "recipe": asdict(self.recipe),
        }


def rates(steps: int, recipe: Recipe) -> Tensor:
    """Return the learning rate of each step: linear warm-up, then half a cosine to zero."""
    warm = max(1, round(recipe.warmup * steps))
    step = torch.arange(1, steps + 1, dtype=torch.float64)
    falling = 0.5 * (1 + torch.cos(math.pi * (step - warm) / max(1, steps - warm)))
    return (recipe.learning_rate * torch.where(step < warm, step / warm, falling)).float()


def optimizer(networks: Sequence[ResidualNetwork], rate: Tensor, recipe: Recipe) -> torch.optim.SGD:
    """Return SGD over all parameters, each once, lambda on residual branches; `rate` can be changed."""
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for network in networks:
        for group in parameter_groups(network, recipe.weight_decay):
            fresh = [p for p in group["params"] if id(p) not in seen]
            seen |= {id(p) for p in fresh}
            groups.append({**group, "params": fresh, "name": f"{group['name']}-{len(groups)}"})
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=True, fused=True)


@torch.no_grad()
def accuracy(network: ResidualNetwork, images: Images, chunk: int = 2500) -> float:
    """Return the percentage of images that a network gets right, in the precision of training."""
    network.eval()
    count, right = len(images.labels), 0
    for start in range(0, count, chunk):
        index = torch.arange(start, min(start + chunk, count), device=images.labels.device)
        middle = torch.full_like(index, images.pad)
        draws = torch.stack([index, middle, middle, torch.zeros_like(index)], dim=1)
        with torch.autocast(index.device.type, torch.bfloat16, index.is_cuda):
            right += int((network(images.crops(draws)).argmax(1) == images.labels[index]).sum())
    return 100 * right / count
