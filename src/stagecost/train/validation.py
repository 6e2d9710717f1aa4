"""What an epoch is judged by: the loss trajectory on validation images, at every depth."""

from dataclasses import dataclass

from stagecost.calibration import calibrate_outputs
from stagecost.cut import Cut
from stagecost.losses import LossFunction
from stagecost.network import ResidualNetwork
from stagecost.train.history import EpochRecord
from stagecost.train.loop import Epoch
from stagecost.train.recipe import Recipe
from stagecost.train.state import State
from stagecost.trajectory import Loader, Trajectory, loss_trajectory

CALIBRATION_IMAGES = 2048


@dataclass(frozen=True)
class Validation:
    """Judges the network after an epoch."""

    val: Loader | None  #: the validation images; None if there are none
    #: training images drawn at random, for head statistics that training does not visit
    calibration: Loader
    loss: LossFunction  #: of the training

    def record(self, state: State, epoch: Epoch, recipe: Recipe) -> EpochRecord:
        """Measure the network that an epoch has left."""
        network = state.evaluated
        self.calibrate(network, epoch, recipe)
        trajectory = self.trajectory(network)
        state.count_time()
        sums = epoch.sums
        return EpochRecord(
            epoch=epoch.number,
            num_blocks=network.num_blocks,
            seconds=round(state.progress.seconds, 3),
            learning_rate=epoch.learning_rate,
            train_objective=sums.objective / sums.samples,
            train_loss=sums.loss / sums.samples,
            train_accuracy=sums.accuracy,
            gamma=epoch.gamma,
            val_loss=trajectory.whole.loss if trajectory else None,
            val_accuracy=trajectory.whole.accuracy if trajectory else None,
            val_losses=trajectory.losses if trajectory else None,
            val_accuracies=trajectory.accuracies if trajectory else None,
        )

    def trajectory(self, network: ResidualNetwork) -> Trajectory | None:
        """Measure the loss trajectory on the validation images, if there are any."""
        return None if self.val is None else loss_trajectory(network, self.val, loss=self.loss)

    def calibrate(self, network: ResidualNetwork, epoch: Epoch, recipe: Recipe) -> None:
        """Estimate the head statistics of the outputs that training does not visit in every step.

        Frozen ones stay: every output is trained with those that are there.
        """
        if recipe.freeze_norms:
            return
        unvisited = [k for k in range(network.num_blocks) if Cut.first(k) not in epoch.visited]
        calibrate_outputs(network, self.calibration, unvisited)
