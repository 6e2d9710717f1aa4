"""A Lightning callback: what every depth is worth, after each validation."""

import math
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from stagecost.errors import refusing
from stagecost.losses import LossFunction
from stagecost.prune import PruningPlan, plan_pruning, possible_cuts
from stagecost.trajectory import Trajectory, loss_trajectory


class DepthCallback(Callback):  # type: ignore[misc]
    """Measures a module's network after each validation epoch, and logs how many blocks it needs.

    Logged are `needed_blocks` and `loss_at_k` of each output y_k. Of several processes each measures its
    own share of the data, and the mean is logged. The stage cost itself is the module's own
    `training_step`: two lines.

    Attributes:
        trajectory: the latest; None before a validation.
        plan: what may be cut by it: `callback.plan.apply(module.network)`.
    """

    def __init__(
        self,
        network: str = "network",
        *,
        max_drop: float | None = 0.5,
        max_loss_increase: float | None = None,
        loss: LossFunction = F.cross_entropy,
    ) -> None:
        """Say where the network is, and what a cut may lose.

        Args:
            network: name of the module's attribute, a `ResidualNetwork` or a view.
            max_drop: points of accuracy; None where targets are no class labels.
            max_loss_increase: by how much the loss may rise.
            loss: maps (output, target) to a mean loss or one loss a sample.
        """
        self.network, self.loss = network, loss
        self.max_drop, self.max_loss_increase = max_drop, max_loss_increase
        self.trajectory: Trajectory | None = None
        self.plan: PruningPlan | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log; the batches of validation are (inputs, targets)."""
        what = f"the module has no network {self.network!r}"
        with refusing(what, "give the name of its attribute", AttributeError):
            network = attrgetter(self.network)(pl_module)
        if trainer.sanity_checking:
            return
        batches = _Prepared(trainer)
        fork = torch.random.fork_rng(devices=[])  # of loaders: a training goes on as if unwatched
        with fork, trainer.precision_plugin.forward_context():
            # In one pass: another one may see other images, where they are shuffled or augmented.
            cuts = [cut for cut in possible_cuts(network) if not cut.is_prefix]
            self.trajectory = loss_trajectory(network, batches, cuts=cuts, loss=self.loss)
            self.plan = plan_pruning(
                network,
                self.trajectory,
                max_drop=self.max_drop,
                max_loss_increase=self.max_loss_increase,
            )
        losses = {f"loss_at_{k}": loss for k, loss in enumerate(self.trajectory.losses)}
        needed = float(len(self.plan.kept_blocks))
        pl_module.log_dict({**losses, "needed_blocks": needed}, sync_dist=True)


class _Prepared:
    """Batches of the first loader of validation, as many and as the module gets them."""

    def __init__(self, trainer: Trainer) -> None:
        loaders = trainer.val_dataloaders
        loaders = list(loaders.values()) if isinstance(loaders, dict) else loaders
        several = isinstance(loaders, list | tuple) and bool(loaders)
        self.trainer, self.loader = trainer, loaders[0] if several else loaders
        first = trainer.num_val_batches[0]  # infinite of a stream without a length
        self.most = int(first) if math.isfinite(first) else None

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self.loader, self.most):
            converted = self.trainer.precision_plugin.convert_input(batch)
            prepared = self.trainer.lightning_module._on_before_batch_transfer(converted)
            yield self.trainer.strategy.batch_to_device(prepared)
