"""A loop of your own around a model of another library: train with a stage cost, cut.

    python examples/plain_loop.py [--epochs 6]

timm's model is adapted, never copied; the images are scikit-learn's digits. Half a minute on one core.
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from table_mlp import Table, batches
from torch import nn

import stagecost as sc
from stagecost.prune import PruningPlan


def train_and_cut(train: Table, val: Table, epochs: int) -> tuple[PruningPlan, nn.Module]:
    """Train on some images (n, 1, 32, 32), cut by others; all that this library is used for."""
    model = timm.create_model("test_convnext", num_classes=10, in_chans=1)
    view = sc.adapt(model, train[0][:1])
    stage_cost = sc.StageCost.uniform(view.num_blocks, gamma=0.1)
    optimizer = torch.optim.AdamW(sc.parameter_groups(view, weight_decay=1e-2), lr=4e-3)
    for images, labels in (batch for _ in range(epochs) for batch in batches(train)):
        loss = stage_cost(view.train()(images, stage_cost.outputs), labels).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trajectory = sc.loss_trajectory(view, batches(val))
    plan = sc.plan_pruning(view, trajectory, max_drop=1.0, loader=batches(val))
    return plan, view.keep(plan.cut).model  # timm's own class, with fewer blocks


def digits(size: int = 32, count: int = 1797) -> tuple[Table, Table]:
    """Return images of digits (n, 1, size, size) and labels (n,), four fifths of them for training."""
    content = load_digits()
    images = torch.tensor(content.images[:count], dtype=torch.float32).unsqueeze(1) / 16 - 0.3
    images, labels = F.interpolate(images, size), torch.tensor(content.target[:count])
    last = len(labels) * 4 // 5
    return (images[:last], labels[:last]), (images[last:], labels[last:])


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(*train_and_cut(*digits(), arguments.epochs), sep="\n")


if __name__ == "__main__":
    main()
