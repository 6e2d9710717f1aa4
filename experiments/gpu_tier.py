"""The paper's table and the targets at 54 blocks, on one GPU, with no trainer but this file.

Hardware: one GPU (recorded: NVIDIA H100 80GB HBM3, NVIDIA H200), bf16 autocast, channels last; without
one the same code runs, slowly, on a CPU. Data (`gpu_tier_images`): all training images of MNIST,
CIFAR-10 and CIFAR-100 but a fixed tenth for validation; crops after padding by 4 (MNIST 2) and, CIFAR
alone, mirror images.
What is trained: `gpu_tier_plan`, one recipe for all arms; SGD with Nesterov momentum, linear warm-up and
half a cosine, lambda on the residual branches alone. Seeds 0, 1, 2; the pilot has others.

Speed: a whole step (crops, forward, backward, optimiser) is one CUDA graph; several jobs replay theirs
on streams of their own. Blocks are compiled where that is measured to pay. Where capture fails, the job
goes on without a graph.

    python -m experiments.gpu_tier decode --parquet DATA/cifar10 --file IMAGES/cifar10.safetensors
    python -m experiments.gpu_tier train pilot cifar10 mnist … --images IMAGES --out OUT
    python -m experiments.gpu_speed --out OUT
    python -m experiments.gpu_tier_records --lines OUT/gpu-tier.jsonl --results results

`IMAGES/pilot.safetensors` is decoded from the first three of CIFAR-10's five training files. `train`
writes a line for each finished job at once. Test images are read once a job, at its end.
"""

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.gpu_tier_images import Images, Splits, decode, load_splits
from experiments.gpu_tier_plan import (
    ARMS,
    LEARNING_RATES,
    ONE_PASS,
    PILOT_EPOCHS,
    PILOT_SEEDS,
    PLAN,
    SEEDS,
    TARGET_WEIGHTS,
    VARIANTS,
    Recipe,
    images_of,
)
from experiments.records import commit
from stagecost.cut import Cut
from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork
from stagecost.objective import parameter_groups

Line = Mapping[str, Any]
"""What is written of one job or measurement."""


# ---------------------------------------------------------------- networks and losses


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


# ---------------------------------------------------------------- one training


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


# ---------------------------------------------------------------- many trainings

Planned = tuple[str, int, int, Recipe]
"""A job to come: arm, seed, plain_full's epochs, recipe."""


class Session:
    """Where the lines go, and when to stop."""

    def __init__(self, out: Path, seconds: float = math.inf) -> None:
        """Begin to count, and write on what."""
        self.lines, self.end = out / "gpu-tier.jsonl", time.monotonic() + seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        out.mkdir(parents=True, exist_ok=True)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        versions = {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        self.write("machine", machine=name, versions=versions, commit=commit())

    def write(self, stage: str, **content: Any) -> None:
        """Append one line and show its beginning."""
        line = json.dumps({"stage": stage, **content})
        with self.lines.open("a") as file:
            file.write(line + "\n")
        print(line[:300], flush=True)

    def train_all(self, stage: str, planned: Sequence[Planned], splits: Splits) -> list[dict[str, Any]]:
        """Train jobs, a few at once; write the results of each; stop cleanly at the end of the time."""
        waiting, active, finished = deque(planned), list[Job](), list[dict[str, Any]]()
        while waiting or active:
            while waiting and len(active) < waiting[0][3].at_once:
                active.append(Job(*waiting.popleft(), splits))
                active[-1].capture()
            for job in [job for job in active if job.idle]:
                if job.done < job.steps:
                    job.advance()
                    continue
                active.remove(job)
                finished.append(job.results())
                self.write(stage, **finished[-1])
            if time.monotonic() > self.end:
                unfinished = [*((job.arm, job.seed) for job in active), *(job[:2] for job in waiting)]
                self.write("stopped", during=stage, dataset=splits.name, jobs=unfinished)
                break
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return finished


def fastest(session: Session, recipe: Recipe, splits: Splits) -> Recipe:
    """Measure jobs at once and compiled blocks; return the recipe to go on with."""
    best, least = recipe, math.inf
    for compiled in (False, True):
        try:
            trial = replace(recipe, compiled=compiled)
            begun = time.monotonic()
            jobs = [Job("plain_full", seed, 1, trial, splits) for seed in range(6)]
            for job in jobs:
                job.capture()
            prepared = time.monotonic() - begun
            seconds = {at_once: seconds_a_step(jobs[:at_once]) for at_once in (1, 3, 6)}
        except Exception as error:  # whatever a compiler may raise: go on without
            session.write("fastest", compiled=compiled, error=str(error)[:500])
            continue
        session.write("fastest", compiled=compiled, preparation=prepared, seconds=seconds)
        at_once = 6 if seconds[6] < 0.95 * seconds[3] else 3
        if seconds[at_once] < 0.97 * least:
            best, least = replace(trial, at_once=at_once), seconds[at_once]
    return best


def seconds_a_step(jobs: Sequence[Job], steps: int = 24) -> float:
    """Return seconds for a step of one job when these train at once; they begin anew."""
    steps = min(steps, jobs[0].steps) if jobs[0].stream else 1
    begun = 0.0
    for _ in ("warm", "measured"):
        for job in jobs:
            job.done = 0
            job.counter.zero_()
        begun = time.monotonic()
        while any(job.done < steps for job in jobs) or not all(job.idle for job in jobs):
            for job in jobs:
                if job.idle and job.done < steps:
                    job.advance(min(8, steps))
    return (time.monotonic() - begun) / (steps * len(jobs))


def pilot(session: Session, recipe: Recipe, splits: Splits) -> Recipe:
    """Choose speed, learning rate and the joint arm's variant on validation images.

    The learning rate is the one with the best mean of plain_full and plain_sub; the variant the one with
    the best mean of both depths.
    """
    recipe = fastest(session, recipe, splits)
    plain, (first, *others) = ("plain_full", "plain_sub"), PILOT_SEEDS
    trials = [replace(recipe, learning_rate=rate) for rate in LEARNING_RATES]
    planned = [(arm, first, PILOT_EPOCHS, trial) for arm in plain for trial in trials]
    lines = session.train_all("pilot", planned, splits)
    recipe = max(trials, key=lambda trial: mean_validation(lines, trial))
    variants = [replace(recipe, distilled=distilled, beta=beta) for distilled, beta in VARIANTS]
    planned = [("joint", seed, PILOT_EPOCHS, variant) for seed in PILOT_SEEDS for variant in variants]
    planned += [(arm, seed, PILOT_EPOCHS, recipe) for seed in others for arm in plain]
    lines = [line for line in session.train_all("pilot", planned, splits) if line["arm"] == "joint"]
    chosen = max(variants, key=lambda variant: mean_validation(lines, variant))
    session.write("choice", recipe=asdict(chosen))
    return chosen


def mean_validation(lines: Sequence[Mapping[str, Any]], recipe: Recipe) -> float:
    """Return the mean validation accuracy of all networks that a recipe yielded, −1 if none."""
    chosen = [line for line in lines if line["recipe"] == asdict(recipe)]
    values = [network["val"] for line in chosen for network in line["networks"].values()]
    return statistics.mean(values) if values else -1.0


def train(
    session: Session, images: Path, stages: Sequence[str], recipe: Recipe, only: Sequence[str] = ARMS
) -> None:
    """Do the stages in the order given; what the pilot chooses holds for the data sets after it."""
    for stage in stages:
        name, file = ("cifar10", stage) if stage == "pilot" else (stage, images_of(stage))
        splits = load_splits(name, images / f"{file}.safetensors", session.device)
        if stage == "pilot":
            recipe = pilot(session, recipe, splits)
            continue
        plan = PLAN[stage]
        changed = replace(recipe, **plan.changes)
        arms = [arm for arm in plan.arms if arm in only]
        session.train_all(
            "main", [(arm, seed, plan.epochs, changed) for arm in arms for seed in SEEDS], splits
        )


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode images or train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("decode")
    verb.add_argument("--parquet", type=Path, required=True)
    verb.add_argument("--file", type=Path, required=True)
    verb = verbs.add_parser("train")
    verb.add_argument("stages", nargs="+", choices=("pilot", *PLAN))
    verb.add_argument("--images", type=Path, required=True)
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--seconds", type=float, default=math.inf)
    verb.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    given = parser.parse_args(arguments)
    if given.verb == "decode":
        decode(given.parquet, given.file)
        return
    torch.backends.cudnn.benchmark = True
    session = Session(given.out, given.seconds)
    train(session, given.images, given.stages, Recipe(), given.arms)


if __name__ == "__main__":
    main()
