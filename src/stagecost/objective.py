"""The objective that training minimises, and the stage cost in it.

    J_N = Σ_{k<N} gamma·L_k + L_N + (lambda/2)·Σ_{k<N} ‖w_F,k‖²

`StageCost` holds the weights of the losses L_k: uniform, gamma, in the paper; or a few target cuts, or a
sampled subset with unbiased weights. The weight-decay term is left to the optimiser: SGD's
`weight_decay` on the group of residual branches is exactly its gradient (`parameter_groups`).

In a loop of your own, two lines change::

    stage_cost = StageCost.uniform(net.num_blocks, gamma=0.02)
    loss = stage_cost(net(images, stage_cost.outputs), labels).total
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.cut import Cut, Stages
from stagecost.dynamics import Pass
from stagecost.errors import StageCostError
from stagecost.losses import LossFunction, StageLoss, distilled, losses_of  # noqa: F401 (was here)
from stagecost.network import LITERALLY, ResidualNetwork
from stagecost.norms import norms_in


@dataclass(frozen=True)
class ObjectiveTerms:
    """The parts of J_N without weight decay.

    Attributes:
        total: the scalar to minimise: stage + terminal, divided by the weight of all losses if
            normalised.
        stage: Σ w_i·L_i over the cuts of the stage cost.
        terminal: the terminal loss L_N, times its weight.
        losses: (number of outputs,), L of every output given, detached; the last is L_N.
    """

    total: Tensor
    stage: Tensor
    terminal: Tensor
    losses: Tensor


@dataclass(frozen=True)
class StageCost:
    """What training minimises beside weight decay: weighted losses of the outputs of some cuts.

    Attributes:
        cuts: whose outputs bear a stage cost.
        weights: w_i ≥ 0 of each; gamma in the paper.
        terminal_weight: of L_N; 1 in the paper.
        loss: maps (output, target) to a mean loss or to one loss a sample.
        stage_loss: what the cuts are punished for instead of `loss`; see `distilled`.
        normalized: divide by the weight of all losses, so that the scale of the gradient does not depend
            on N. The minimisers stay the same if lambda is divided alike (`scale`).

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> images, labels = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
        >>> stage_cost = sc.StageCost.uniform(4, gamma=0.1)
        >>> terms = stage_cost(net(images, stage_cost.outputs), labels)
        >>> torch.allclose(terms.total, terms.stage + terms.terminal)
        True
    """

    cuts: tuple[Cut, ...] = ()
    weights: tuple[float, ...] = ()
    terminal_weight: float = 1.0
    loss: LossFunction = F.cross_entropy
    stage_loss: StageLoss | None = None
    normalized: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible weights.

        Raises:
            StageCostError: there is not one weight a cut, or one is negative or not finite, or all that
                a normalised objective would be divided by is 0.
        """
        if len(self.weights) != len(self.cuts):
            raise StageCostError(
                f"{len(self.weights)} weights for {len(self.cuts)} cuts: give one weight a cut"
            )
        for weight in (*self.weights, self.terminal_weight):
            if not (isinstance(weight, Real) and 0 <= weight < math.inf):
                raise StageCostError(f"stage weight {weight!r}: give a finite number of at least 0")
        if self.normalized and not self.scale:
            raise StageCostError("all weights are 0, by which nothing can be divided: give one above 0")

    @classmethod
    def uniform(cls, num_blocks: int, gamma: float, *, first: int = 0, **options: Any) -> "StageCost":
        """Return the paper's: gamma on each of the outputs y_0 … y_{N-1}; 0 is plain training.

        Args:
            num_blocks: N.
            gamma: the stage weight, ≥ 0.
            first: outputs before this depth bear no stage cost.
            options: `loss`, `stage_loss`, `normalized`.

        Raises:
            StageCostError: gamma is negative or not finite, or there is no such output.
        """
        if not (isinstance(gamma, Real) and 0 <= gamma < math.inf):
            raise StageCostError(f"gamma is {gamma!r}: give a finite number of at least 0")
        if gamma and not 0 <= first < num_blocks:
            raise StageCostError(
                f"no output from depth {first} on comes before the last of {num_blocks} blocks: give "
                "first from 0 to num_blocks - 1"
            )
        depths = range(first, num_blocks) if gamma else ()
        return cls(tuple(map(Cut.first, depths)), (gamma,) * len(depths), **options)

    @classmethod
    def targets(cls, cuts: Cut | Iterable[Cut], weight: float = 1.0, **options: Any) -> "StageCost":
        """Return a stage cost on a few target cuts, or on one, each with the same weight."""
        chosen = (cuts,) if isinstance(cuts, Cut) else tuple(cuts)
        return cls(chosen, (weight,) * len(chosen), **options)

    @property
    def outputs(self) -> tuple[Cut, ...]:
        """The cuts whose outputs the objective needs: its own, and the whole network."""
        return (*self.cuts, Cut.whole())

    @property
    def scale(self) -> float:
        """The weight of all losses: 1 + gamma·N if uniform."""
        return self.terminal_weight + sum(self.weights)

    @cached_property
    def _active(self) -> list[int]:
        # Those of weight 0 are left out: 0 times infinity is no number, and gamma = 0 is plain training.
        return [i for i, weight in enumerate(self.weights) if weight]

    def among(self, stages: Stages) -> "StageCost":
        """Return it with its cuts by the positions of their acting blocks."""
        return replace(self, cuts=tuple(cut.among(stages) for cut in self.cuts))

    def scaled(self, factor: float) -> "StageCost":
        """Return it with all weights but the terminal one multiplied; with 0 there is no cut left."""
        if factor == 0:
            return replace(self, cuts=(), weights=())
        return replace(self, weights=tuple(factor * weight for weight in self.weights))

    def sampled(self, samples: float, generator: torch.Generator) -> "StageCost":
        """Return a few of its cuts, drawn with weights such that the mean over draws is the whole.

        The cuts are parted into as many runs of neighbours as cuts are wanted, and one is drawn from
        each run, with its weight times the run's length. As neighbouring outputs have similar losses,
        the sum varies less than by free drawing.

        Args:
            samples: how many cuts, all of them if there are no more; or, below 1, in which part of the
                draws there is one, with its weight divided by this. In the others there is none.
            generator: where the randomness comes from.

        Raises:
            StageCostError: no samples, a number that is not whole, or a part of a normalised objective,
                whose mean it would not keep.
        """
        if not (0 < samples < 1 or (samples >= 1 and samples % 1 == 0)):
            raise StageCostError(
                f"{samples} sampled depths: give a whole number from 1 on, or a part below 1"
            )
        if samples < 1:
            if self.normalized:
                raise StageCostError(
                    f"{samples} sampled depths change the mean of a normalised objective: give 1"
                )
            drawn = float(torch.rand((), generator=generator)) < samples
            return self.sampled(1, generator).scaled(1 / samples if drawn else 0)
        cuts, weights = [], []
        for run in _strata(self._active, int(samples)):
            i = run[int(torch.randint(len(run), (), generator=generator))]
            cuts.append(self.cuts[i])
            weights.append(self.weights[i] * len(run))
        return self._draw(cuts, weights)

    def sandwiched(self, generator: torch.Generator) -> "StageCost":
        """Return its smallest cut and one that is drawn; the mean over draws is the whole.

        With the terminal output these are the smallest, the largest and one between, as in Yu and Huang,
        "Universally Slimmable Networks" (2019).

        Raises:
            StageCostError: a cut does not name its blocks; see `among`.
        """
        smallest, *others = sorted(self._active, key=lambda i: len(self.cuts[i].to_json())) or [0]
        if len(others) < 2:
            return self
        drawn = others[int(torch.randint(len(others), (), generator=generator))]
        weights = self.weights[smallest], self.weights[drawn] * len(others)
        return self._draw((self.cuts[smallest], self.cuts[drawn]), weights)

    def _draw(self, cuts: Sequence[Cut], weights: Sequence[float]) -> "StageCost":
        """Return it with drawn cuts; a normalised one is divided by the weight of all, not by theirs."""
        drawn, whole = replace(self, cuts=tuple(cuts), weights=tuple(weights)), self.scale
        if not self.normalized or math.isclose(drawn.scale, whole):
            return drawn
        last, parts = self.terminal_weight / whole, tuple(weight / whole for weight in weights)
        return replace(drawn, weights=parts, terminal_weight=last, normalized=False)

    def weight_behind(self, k: int, how: Pass = LITERALLY, *, apart: Collection[Cut] = ()) -> float:
        """Return the weight of all losses behind block k: of the cuts in which it acts, and of L_N.

        Of a loss beyond a gate as much counts as comes back. k = -1 is before all blocks. Cuts that are
        `apart`, with norms of their own, are not behind norms, nor are these held back for them.
        """
        gates = [gate for gate in how.gates if (k < 0 or gate.acts(k)) and gate not in apart]
        pairs = [(cut, w) for cut, w in zip(self.cuts, self.weights, strict=True) if cut not in apart]
        reached = [(w, sum(g < cut for g in gates)) for cut, w in pairs if k < 0 or cut.acts(k)]
        crossed = [*reached, (self.terminal_weight, len(gates))]
        return sum(weight * how.beta**number for weight, number in crossed)

    def __call__(self, outputs: Tensor, targets: Tensor) -> ObjectiveTerms:
        """Compute Σ w_i·L_i + L_N from the outputs of a batch.

        Args:
            outputs: (number of cuts + 1, B, …), as `net(images, stage_cost.outputs)` returns them: the
                terminal one last.
            targets: (B, …), whatever `loss` expects beside one output.

        Raises:
            StageCostError: the shapes do not fit.
        """
        self._check(outputs, targets)
        active, weights = self._active, (*self.weights, self.terminal_weight)
        if not all(weights):  # nor does a gradient come back: 0 times infinity is none either
            pairs = zip(outputs, weights, strict=True)
            outputs = torch.stack([output if weight else output.detach() for output, weight in pairs])
        losses = losses_of(outputs, targets, self.loss)
        terminal = losses[-1] if self.terminal_weight == 1 else self.terminal_weight * losses[-1]
        terminal = terminal if self.terminal_weight else torch.zeros_like(terminal)
        if not active:
            total = terminal / self.scale if self.normalized else terminal
            return ObjectiveTerms(total, torch.zeros_like(terminal), terminal, losses.detach())
        values = losses[:-1]
        if self.stage_loss is not None:
            last = outputs[-1].detach()
            stage_losses = (self.stage_loss(output, targets, last) for output in outputs[:-1])
            values = torch.stack([loss.mean() for loss in stage_losses])
        if len(active) < len(self.weights):
            values = values[active]
        stage = (values * values.new_tensor([self.weights[i] for i in active])).sum()
        total = stage + terminal
        if self.normalized:
            total = total / self.scale
        return ObjectiveTerms(total, stage, terminal, losses.detach())

    def objective(
        self, losses: Sequence[float], squared_norms: Sequence[float], weight_decay: float
    ) -> float:
        """Compute J from numbers: Σ w_i·L_i + L_N + (lambda/2)·Σ_k ‖w_F,k‖², never normalised.

        Args:
            losses: L of every cut, L_N last.
            squared_norms: ‖w_F,k‖², k = 0 … N-1.
            weight_decay: lambda.

        Raises:
            StageCostError: there is not a loss of every cut, or lambda is negative or not finite.
        """
        _check_decay(weight_decay)
        if len(losses) != len(self.cuts) + 1:
            raise StageCostError(f"{len(losses)} losses for {len(self.cuts)} cuts: give L_N as well")
        pairs = zip((*self.weights, self.terminal_weight), losses, strict=True)
        weighted = sum(weight * loss for weight, loss in pairs if weight)
        return weighted + weight_decay / 2 * sum(squared_norms)

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        if len(outputs) != len(self.cuts) + 1:
            raise StageCostError(
                f"outputs {tuple(outputs.shape)} of {len(outputs)} cuts, but {len(self.cuts)} bear a "
                "stage cost: give net(images, stage_cost.outputs)"
            )
        if targets.dim() > 0 and outputs.dim() > 1 and outputs.shape[1] != targets.shape[0]:
            raise StageCostError(
                f"outputs {tuple(outputs.shape)} hold {outputs.shape[1]} samples but targets "
                f"{tuple(targets.shape)} hold {targets.shape[0]}: give outputs (N+1, B, …) and "
                "targets (B, …)"
            )


def _check_decay(weight_decay: float) -> None:
    """Refuse an impossible lambda."""
    if not 0 <= weight_decay < math.inf:
        raise StageCostError(f"weight decay is {weight_decay}: give a finite number of at least 0")


def _strata(numbers: Sequence[int], samples: int) -> list[Sequence[int]]:
    """Part numbers into `samples` runs of neighbours whose lengths differ by at most one."""
    samples = min(samples, len(numbers))
    edges = [round(i * len(numbers) / samples) for i in range(samples + 1)] if samples else [0]
    return [numbers[a:b] for a, b in pairwise(edges)]


def residual_parameters(network: ResidualNetwork) -> list[list[nn.Parameter]]:
    """Return w_F,k for k = 0 … N-1: the parameters of each residual branch, norms included.

    These are the parameters of a block that its skip does not need. One that several branches share
    belongs to the first.
    """
    taken = {id(p) for skip in network.skips for p in skip.parameters()}
    branches = []
    for block in network.blocks.values():
        branches.append([p for p in block.parameters() if id(p) not in taken])
        taken.update(map(id, branches[-1]))
    return branches


@torch.no_grad()
def equilibrate(network: ResidualNetwork, stage_cost: StageCost, how: Pass = LITERALLY) -> None:
    """Turn gradients from sums into means: each block gets the mean of the losses behind it.

    Stem, skips and head get the mean of all, as every output goes through them; norms of a target cut
    its loss alone, and those of the others theirs. What several parts share is the first one's. Source:
    Li et al., "Improved Techniques for Training Adaptive Deep Networks" (2019), who scale the gradients
    of states instead.

    Args:
        network: its parameters have the gradients of a stage cost, in one backward pass.
        stage_cost: this one, its cuts by the positions of their acting blocks.
        how: the pass was done: gates weigh the losses beyond them.
    """
    targets, apart = dict(zip(stage_cost.cuts, stage_cost.weights, strict=True)), network.targets
    whole_cut = network.resolve(Cut.whole())
    how = replace(how, gates=tuple(gate for gate in how.gates if gate < whole_cut))
    places = [(-1, part) for part in (*network.skips, network.head)]
    places += enumerate(network.blocks.values())
    shares = [
        (norm, stage_cost.weight_behind(k, how, apart=apart))
        for k, part in places
        for norm in norms_in(part).values()
        if apart
    ]
    shares += [(part, stage_cost.weight_behind(k, how)) for k, part in [(-1, network.stem), *places]]
    shares += [(norms, targets.get(t, 0.0)) for t, norms in zip(apart, network.norms, strict=True)]
    factor = stage_cost.scale if stage_cost.normalized else 1.0
    behind_of = {p: behind for part, behind in reversed(shares) for p in part.parameters()}
    for parameter, behind in behind_of.items():
        if parameter.grad is not None and behind:
            parameter.grad.mul_(factor / behind)


def mean_log_probabilities(outputs: Tensor) -> Tensor:
    """Return one answer of several outputs: (K, B, classes) → (B, classes), mean log-probabilities.

    Nothing is trained for it. The largest entry is the class with the largest product of probabilities.

    Raises:
        StageCostError: the outputs have another shape.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> outputs = net(torch.rand(2, 3, 8, 8), depths=[2, 3, 4])
        >>> sc.mean_log_probabilities(outputs).shape
        torch.Size([2, 10])
    """
    if outputs.dim() != 3:
        raise StageCostError(f"outputs of shape {tuple(outputs.shape)}: give (K, B, classes)")
    return F.log_softmax(outputs, dim=-1).mean(dim=0)


def squared_weight_norms(network: ResidualNetwork) -> list[float]:
    """Compute ‖w_F,k‖² for k = 0 … N-1, over all parameters of the branch, norms included.

    These are the parameters that `parameter_groups` gives to lambda. Summed in double precision.
    """
    branches = residual_parameters(network)
    parameters = [p.detach() for branch in branches for p in branch]
    norms = list(torch._foreach_norm(parameters, 2, dtype=torch.float64)) if parameters else []
    squares = iter(torch.stack(norms).square().tolist() if norms else [])
    return [sum(next(squares) for _ in branch) for branch in branches]


def parameter_groups(network: ResidualNetwork, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters into named groups for an optimiser, so that its decay is lambda.

    The group "residual" holds all w_F,k with weight decay lambda, and the norms that target cuts have
    in the places of theirs; "other" holds stem, skips and head without. With SGD the decay's gradient
    is exactly that of (lambda/2)·Σ‖w_F,k‖²; with AdamW it is decoupled and the objective only
    resembles J_N.

    Raises:
        StageCostError: weight_decay is negative or not finite.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> groups = sc.parameter_groups(net, weight_decay=5e-4)
        >>> [(group["name"], group["weight_decay"]) for group in groups]
        [('residual', 0.0005), ('other', 0.0)]
    """
    _check_decay(weight_decay)
    residual = [p for branch in residual_parameters(network) for p in branch]
    chosen = {id(p) for p in residual}
    named = {name: id(p) for name, p in network.named_parameters()}
    for norms in network.norms:
        own = [p for name, p in norms.named_parameters() if named.get(name) in chosen]
        residual += own
        chosen.update(map(id, own))
    other = [p for p in network.parameters() if id(p) not in chosen]
    return [
        {"name": "residual", "params": residual, "weight_decay": weight_decay},
        {"name": "other", "params": other, "weight_decay": 0.0},
    ]
