"""Hugging Face's Trainer: its `compute_loss` asks for the outputs that bear a stage cost.

    python examples/trainer_loop.py [--epochs 6]

The model is transformers' own ResNet, small and with random weights; the images are scikit-learn's
digits. Half a minute on one core.
"""

import argparse
import tempfile
from typing import Any

import torch
from plain_loop import digits
from table_mlp import Table, batches
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import stagecost as sc
from stagecost.prune import PruningPlan


class Logits(nn.Module):
    """Transformers' models return several things; a view needs the one tensor."""

    def __init__(self, model: nn.Module) -> None:
        """Take the model."""
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.model(pixel_values).logits
        return logits


class StageCostTrainer(Trainer):  # type: ignore[misc]
    """A trainer that minimises a stage cost."""

    def __init__(self, stage_cost: sc.StageCost, **options: Any) -> None:
        """Take the stage cost; the model is a view."""
        super().__init__(**options)
        self.stage_cost = stage_cost

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the loss of a step."""
        outputs = model(inputs["pixel_values"], self.stage_cost.outputs)
        loss = self.stage_cost(outputs, inputs["labels"]).total
        return (loss, {"logits": outputs[-1]}) if return_outputs else loss


def train_and_cut(train: Table, val: Table, epochs: int) -> tuple[PruningPlan, nn.Module]:
    """Train on some images (n, 1, 32, 32), cut by others."""
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [3, 3], "layer_type": "basic"}
    config = ResNetConfig(num_channels=1, num_labels=10, **sizes)
    view = sc.adapt(Logits(ResNetForImageClassification(config)), train[0][:1])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=4e-3,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            use_cpu=True,
        )
        samples = [{"pixel_values": x, "labels": y} for x, y in zip(*train, strict=True)]
        stage_cost = sc.StageCost.uniform(view.num_blocks, gamma=0.1)
        StageCostTrainer(stage_cost, model=view, args=arguments, train_dataset=samples).train()
    trajectory = sc.loss_trajectory(view, batches(val))
    plan = sc.plan_pruning(view, trajectory, max_drop=1.0, loader=batches(val))
    small = view.keep(plan.cut).model
    assert isinstance(small, Logits)
    return plan, small.model  # transformers' own class, with fewer blocks


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(*train_and_cut(*digits(), arguments.epochs), sep="\n")


if __name__ == "__main__":
    main()
