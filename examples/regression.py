"""A regression: there are no accuracies, so blocks are cut by the loss.

    python examples/regression.py [--epochs 60]

The data are scikit-learn's diabetes table: 442 patients, 10 numbers each, and how far the disease went
within a year. A few seconds.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from table_mlp import ResidualMLP, Table, batches
from torch import Tensor, nn

import stagecost as sc
from stagecost.prune import PruningPlan


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of outputs (B, 1) and targets (B,)."""
    return F.mse_loss(output[:, 0], target)


def train_and_cut(train: Table, val: Table, epochs: int) -> tuple[PruningPlan, nn.Module]:
    """Train on one table, cut by another; all that this library is used for."""
    view = sc.adapt(ResidualMLP(train[0].shape[1], 1, blocks=6), train[0][:1])
    stage_cost = sc.StageCost.uniform(view.num_blocks, gamma=0.1, loss=squared_error)
    optimizer = torch.optim.AdamW(sc.parameter_groups(view, weight_decay=1e-2), lr=1e-3)
    for rows, targets in (batch for _ in range(epochs) for batch in batches(train)):
        loss = stage_cost(view(rows, stage_cost.outputs), targets).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trajectory = sc.loss_trajectory(view, batches(val), loss=squared_error)
    plan = sc.plan_pruning(view, trajectory, max_loss_increase=0.02)
    return plan, view.keep(plan.cut).model


def diabetes() -> tuple[Table, Table]:
    """Return the table, scaled, four fifths of it for training."""
    numbers, progress = (
        torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True)
    )
    rows = (numbers - numbers.mean(0)) / numbers.std(0)
    targets = (progress - progress.mean()) / progress.std()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    first, second = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return (rows[first], targets[first]), (rows[second], targets[second])


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    plan, model = train_and_cut(*diabetes(), arguments.epochs)
    print(plan, model, sep="\n")


if __name__ == "__main__":
    main()
