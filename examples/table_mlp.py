"""A residual MLP of your own on a table: train with a stage cost, see what each depth does, cut.

    python examples/table_mlp.py [--adult FOLDER] [--epochs 20]

Without `--adult` (a folder with the parquet files of the census income data) the table is scikit-learn's
breast cancer data: 569 rows, 30 numbers each, two classes. A few seconds.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import load_dataset
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import stagecost as sc
from stagecost.prune import PruningPlan

Table = tuple[Tensor, Tensor]
"""Numbers (n, columns) and classes (n,)."""


class ResidualMLP(nn.Module):
    """A module that knows nothing of this library."""

    def __init__(self, columns: int, classes: int, width: int = 32, blocks: int = 8) -> None:
        """Create it."""
        super().__init__()
        self.first = nn.Linear(columns, width)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
            )
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (B, columns) to logits (B, classes)."""
        state = self.first(rows)
        for branch in self.branches:
            state = state + branch(state)
        logits: Tensor = self.last(state)
        return logits


def batches(table: Table, size: int = 64) -> list[Table]:
    """Return a table in random order, batch by batch."""
    order = torch.randperm(len(table[1]))
    return [(table[0][part], table[1][part]) for part in torch.split(order, size)]


def train_and_cut(train: Table, val: Table, epochs: int) -> tuple[PruningPlan, nn.Module]:
    """Train on one table, cut by another; all that this library is used for."""
    model = ResidualMLP(train[0].shape[1], 2)
    view = sc.adapt(model, train[0][:1])
    stage_cost = sc.StageCost.uniform(view.num_blocks, gamma=0.1)
    optimizer = torch.optim.AdamW(sc.parameter_groups(view, weight_decay=1e-2), lr=3e-3)
    for rows, classes in (batch for _ in range(epochs) for batch in batches(train)):
        loss = stage_cost(view(rows, stage_cost.outputs), classes).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    plan = sc.plan_pruning(view, sc.loss_trajectory(view, batches(val)), max_drop=1.0)
    return plan, view.keep(plan.cut).model  # a ResidualMLP with fewer branches


def breast_cancer() -> tuple[Table, Table]:
    """Return the table of scikit-learn, four fifths of it for training."""
    numbers, classes = load_breast_cancer(return_X_y=True)
    rows = torch.tensor(numbers, dtype=torch.float32)
    return _parted((rows - rows.mean(0)) / rows.std(0), torch.tensor(classes))


def adult(folder: Path) -> tuple[Table, Table]:
    """Return the census income data: numbers as they are but scaled, words as one column each."""
    frame = load_dataset(str(folder), split="train").to_pandas()
    wealthy = torch.tensor(frame.pop(frame.columns[-1]).astype(str).str.contains(">50K").to_numpy())
    columns = []
    for name in frame:
        words = frame[name].dtype.kind not in "if"
        numbers = torch.tensor(
            (frame[name].astype("category").cat.codes if words else frame[name]).to_numpy()
        )
        columns.append(F.one_hot(numbers.long() + 1) if words else numbers[:, None])
    rows = torch.cat(columns, dim=1).float()
    return _parted((rows - rows.mean(0)) / rows.std(0).clamp_min(1e-3), wealthy.long())


def _parted(rows: Tensor, classes: Tensor) -> tuple[Table, Table]:
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    first, second = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return (rows[first], classes[first]), (rows[second], classes[second])


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adult", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train, val = adult(arguments.adult) if arguments.adult else breast_cancer()
    plan, model = train_and_cut(train, val, arguments.epochs)
    print(plan, model, sep="\n")


if __name__ == "__main__":
    main()
