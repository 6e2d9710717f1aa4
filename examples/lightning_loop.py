"""Lightning: two lines in `training_step`, and a callback that measures every depth.

    python examples/lightning_loop.py [--epochs 8]

The images are scikit-learn's digits. Half a minute on one core.
"""

import argparse

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from plain_loop import digits
from table_mlp import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import stagecost as sc
from stagecost.integrations.lightning import DepthCallback
from stagecost.prune import PruningPlan


class Classifier(LightningModule):  # type: ignore[misc]
    """A module like any other."""

    def __init__(self, num_blocks: int = 4) -> None:
        """Create network and stage cost; a view of another library's model would do as well."""
        super().__init__()
        self.network = sc.create_model("homogeneous", num_blocks=num_blocks, width=8, in_channels=1)
        self.stage_cost = sc.StageCost.uniform(num_blocks, gamma=1 / num_blocks)

    def training_step(self, batch: Table, _: int) -> Tensor:
        """Return the loss of a step."""
        images, labels = batch
        outputs = self.network(images, self.stage_cost.outputs)  # was: self.network(images)
        return self.stage_cost(outputs, labels).total  # was: cross_entropy(outputs, labels)

    def validation_step(self, batch: Table, _: int) -> None:
        """Log the loss of the whole network."""
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Weight decay is lambda, on the residual branches."""
        return torch.optim.AdamW(sc.parameter_groups(self.network, weight_decay=1e-2), lr=2e-2)


def train_and_cut(
    train: Table, val: Table, epochs: int
) -> tuple[Trainer, PruningPlan, sc.ResidualNetwork]:
    """Train on some images, cut by others."""
    module, depths = Classifier(), DepthCallback("network", max_drop=1.0)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[depths],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = (DataLoader(TensorDataset(*part), 32, shuffle=part is train) for part in (train, val))
    trainer.fit(module, *loaders)
    assert depths.plan is not None
    return trainer, depths.plan, depths.plan.apply(module.network)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(*train_and_cut(*digits(size=8), arguments.epochs)[1:], sep="\n")


if __name__ == "__main__":
    main()
