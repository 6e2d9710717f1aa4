"""The turnpike in a picture: a residual network on two spirals, trained plainly and with a stage cost.

    python examples/two_spirals.py [--steps 1500] [--seed 0] [--output docs/images]

The network has a fixed width and no normalisation: x_0 is a linear map of the point, every block adds
F_k(x_k) = V·tanh(W·x_k + b), the head is a linear map. Blocks and head are this file's own; objective,
lambda's parameter groups, trajectory and truncation are the library's. About half a minute on one core.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import stagecost as sc
from stagecost.report.charts import Axis, Series, line_chart
from stagecost.trajectory import Trajectory

NUM_BLOCKS, WIDTH, HIDDEN = 20, 8, 32
WEIGHT_DECAY = 1e-4  # lambda
STAGE_SHARE = 1.0  # c = gamma·N
TOLERANCE = 0.5
COLOURS = {"plain": "muted", "stage cost": "accent"}


class PointHead(nn.Module):
    """H: a linear map of the state, the same behind every depth."""

    def __init__(self, width: int, num_classes: int) -> None:
        """Create the head."""
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Map a state, (B, width), to logits, (B, classes)."""
        logits: Tensor = self.linear(state)
        return logits


def point_network(num_blocks: int = NUM_BLOCKS, width: int = WIDTH) -> sc.ResidualNetwork:
    """Build the network; points come as images of two channels and one pixel, (B, 2, 1, 1)."""
    stem = nn.Sequential(nn.Flatten(), nn.Linear(2, width))
    blocks = [sc.ResidualBlock(_branch(width)) for _ in range(num_blocks)]
    return sc.ResidualNetwork(stem, blocks, PointHead(width, 2))


def _branch(width: int) -> nn.Sequential:
    # The last layer has no bias, so zero weights give F_k = 0 exactly.
    last = nn.Linear(HIDDEN, width, bias=False)
    nn.init.normal_(last.weight, std=0.02)
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh(), last)


def two_spirals(count: int, seed: int, turns: float = 1.5) -> tuple[Tensor, Tensor]:
    """Draw points (count, 2, 1, 1) on two spirals, with a little noise, and the spiral of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * turns * radius + math.pi * labels
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    points += 0.01 * torch.randn(points.shape, generator=generator)
    return 2 * points.reshape(count, 2, 1, 1), labels


def train(gamma: float, steps: int, seed: int) -> sc.ResidualNetwork:
    """Minimise J_N on 1,000 points; the weight decay of Adam (not AdamW) is lambda's gradient."""
    torch.manual_seed(seed)
    network = point_network()
    points, labels = two_spirals(1000, seed)
    optimizer = torch.optim.Adam(sc.parameter_groups(network, WEIGHT_DECAY), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stage_cost = sc.StageCost.uniform(NUM_BLOCKS, gamma)
    for step in range(steps):
        terms = stage_cost(network(points, stage_cost.outputs), labels)
        optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"\rstep {step + 1} of {steps}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return network


def figures(measured: Mapping[str, Trajectory]) -> dict[str, str]:
    """Draw loss and relative size of the control over k, a curve for each training: SVG by name."""
    return {
        "loss": _figure({name: t.losses for name, t in measured.items()}, "loss of y_k", "loss"),
        "control": _figure(
            {name: t.residual_ratios for name, t in measured.items()}, "‖F_k(x_k)‖ / ‖x_k‖", "control"
        ),
    }


def _figure(curves: Mapping[str, tuple[float, ...]], value_name: str, name: str) -> str:
    series = [
        Series(training, list(enumerate(values)), colour=COLOURS[training])
        for training, values in curves.items()
    ]
    chart = line_chart(
        series,
        x=Axis("depth k (blocks in use)"),
        y=Axis(value_name, log=True),
        summary=f"{value_name} over k on two spirals: {', '.join(curves)}",
    )
    return chart.svg(f"two-spirals-{name}")


def main() -> None:
    """Train twice, print what the blocks do, and write the pictures."""
    parser = argparse.ArgumentParser(description="The turnpike on two spirals.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    fresh = two_spirals(1000, options.seed + 1)
    measured = {}
    for name, gamma in {"plain": 0.0, "stage cost": STAGE_SHARE / NUM_BLOCKS}.items():
        network = train(gamma, options.steps, options.seed)
        measured[name] = trajectory = sc.loss_trajectory(network, [fresh])
        needed = trajectory.needed_blocks(TOLERANCE)
        small = sc.plan_pruning(network, trajectory, keep=needed).apply(network)
        accuracy = sc.loss_trajectory(small, [fresh]).accuracies[-1]
        print(
            f"{name}: {trajectory.accuracies[-1]:.1f} % of fresh points right with {NUM_BLOCKS} blocks,"
        )
        print(f"  {accuracy:.1f} % with the first {needed} alone, cut off without training")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, svg in figures(measured).items():
        (options.output / f"two-spirals-{name}.svg").write_text(svg + "\n", encoding="utf-8")
    print(f"wrote {options.output}/two-spirals-loss.svg and two-spirals-control.svg")


if __name__ == "__main__":
    main()
