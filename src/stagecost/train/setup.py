"""What a training is made of, built from its settings and its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stagecost.data.batches import ImageBatches, check_shares, eval_batches, sample_batches
from stagecost.data.config import DataConfig
from stagecost.data.images import INTERPOLATIONS, ImageFormat
from stagecost.data.loading import DataBundle
from stagecost.errors import StageCostError
from stagecost.models.catalogue import check_name, create_model, read_description
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost
from stagecost.saved import CONFIG_FILE, read_config
from stagecost.train.checkpoint import Checkpoint, restore_state
from stagecost.train.cutting import check_schedule
from stagecost.train.devices import check_compiler, launch, make_fabric
from stagecost.train.recipe import Recipe
from stagecost.train.settings import RunSettings
from stagecost.train.stage_cost import loss_of, stage_cost_of
from stagecost.train.state import State, check_batch, freeze_unused, start
from stagecost.train.validation import CALIBRATION_IMAGES, Validation

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Setup:
    """A training that can start."""

    settings: RunSettings  #: of it
    data: DataBundle  #: its images; "train", and "val" if there are validation images
    fabric: "Fabric"  #: device, precision and processes; not launched
    network: ResidualNetwork  #: whole, with random weights or those that were given
    stage_cost: StageCost  #: that the settings describe

    @property
    def recipe(self) -> Recipe:
        """How its steps are done."""
        return Recipe.of(self.settings)

    @property
    def weight_decay(self) -> float:
        """Lambda as the optimiser is to use it: a normalised objective divides it, too."""
        decay = self.settings.training.weight_decay
        return decay / self.stage_cost.scale if self.settings.training.normalize_objective else decay

    @property
    def batches(self) -> ImageBatches:
        """The training images, batch by batch, for this process."""
        training, fabric = self.settings.training, self.fabric
        return ImageBatches(
            self.data.splits["train"],
            self.data.format,
            self.data.augmentation,
            training.batch_size,
            training.seed,
            fabric.global_rank,
            fabric.world_size,
            fabric.device,
        )

    @property
    def validation(self) -> Validation:
        """What judges its epochs."""
        data, device = self.data, self.fabric.device
        val, seed = data.splits.get("val"), self.settings.training.seed
        calibration = sample_batches(
            data.splits["train"], data.format, count=CALIBRATION_IMAGES, seed=seed, device=device
        )
        batches = None if val is None else eval_batches(val, data.format, device=device)
        return Validation(batches, calibration, loss_of(self.settings.training.label_smoothing))

    def start(self, checkpoint: Checkpoint | None = None) -> State:
        """Start the processes, and the training; or go on where a checkpoint was written.

        Raises:
            StageCostError: the checkpoint does not fit.
        """
        launch(self.fabric)
        kept = None if checkpoint is None else checkpoint.kept_blocks
        state = start(
            self.fabric,
            self.network,
            self.settings.training,
            weight_decay=self.weight_decay,
            kept_blocks=kept,
            targets=self.stage_cost.cuts if self.settings.stage.targets else (),
        )
        if checkpoint is not None:
            restore_state(checkpoint, state)
            if state.progress.batch > len(self.batches):
                raise StageCostError(
                    f"{checkpoint.path} goes on behind batch {state.progress.batch} of an epoch of "
                    f"{len(self.batches)}: delete it to start afresh"
                )
        return state


def prepare(
    settings: RunSettings,
    data: DataBundle,
    *,
    network: ResidualNetwork | None = None,
    loggers: Sequence[Any] = (),
) -> Setup:
    """Build what a training is made of, and refuse what cannot be trained, before anything is written.

    Args:
        settings: of the training.
        data: its images.
        network: the network to train, if it is there already; else it is created from the seed.
        loggers: Fabric's loggers.

    Raises:
        StageCostError: the settings, the images and the network do not go together.
    """
    settings.check()
    training, images = settings.training, len(data.splits["train"])
    check_shares(images, training.batch_size, training.num_processes)
    fabric = make_fabric(training.device, training.precision, training.num_processes, loggers)
    if training.data_on_device:
        data = data.to(fabric.device)
    if training.compile:
        check_compiler(fabric.device.type)
    torch.manual_seed(training.seed)
    if network is None:
        network = create_network(settings, data)
    stage_cost = stage_cost_of(settings, network)
    if settings.stage.target_norms == "own":
        network.give_norms(*stage_cost.cuts)
    check_schedule(settings.stage.schedule(), network)
    if training.num_processes > 1:
        freeze_unused(network, stage_cost.outputs, data.format.shape)
    if not training.freeze_norms:  # which take no variance of a batch
        together = min(training.batch_size, images) // training.num_processes
        check_batch(network, data.format.shape, together)
    return Setup(settings, data, fabric, network, stage_cost)


def create_network(settings: RunSettings, data: DataBundle) -> ResidualNetwork:
    """Build the network that the settings name for these images."""
    given = network_arguments(settings, data)
    return create_model(settings.model.model, weights=settings.model.weights, **given)


def network_arguments(settings: RunSettings, data: DataBundle) -> dict[str, Any]:
    """Return the arguments of the builder that the settings name, for these images."""
    arguments = settings.model.arguments()
    arguments |= {"num_classes": data.num_classes, "in_channels": data.format.channels}
    if "/" in settings.model.model:  # views of other libraries' models are made for one size
        arguments["image_size"] = data.format.size
    return arguments


def data_config(settings: RunSettings) -> DataConfig:
    """Return which images to use, prepared as the weights want them where the settings leave it open.

    Raises:
        StageCostError: a folder of weights that holds no saved network, or another one.
    """
    data, weights, name = settings.data, settings.model.weights, settings.model.model
    wanted: Mapping[str, Any] = {}
    if weights is not None and "/" in name:
        from stagecost.models.adapters.libraries import preprocessing

        wanted = vars(preprocessing(name))
    if weights is not None and Path(weights).is_dir():
        wanted = {**wanted, **_format_of(Path(weights), name)}
    if not wanted:
        return data
    way = wanted.get("interpolation")
    return replace(
        data,
        image_size=data.image_size or wanted.get("size"),
        mean=data.mean or wanted.get("mean"),
        std=data.std or wanted.get("std"),
        interpolation=data.interpolation or (way if way in INTERPOLATIONS else None),
    )


def _format_of(folder: Path, name: str) -> Mapping[str, Any]:
    """Return how a saved network of this name wants its images, as far as it says."""
    config = read_config(folder)
    saved = read_description(config, folder / CONFIG_FILE)
    check_name(saved, name, folder)
    size = saved.arguments.get("image_size")
    given = {"size": size} if size else {}
    if "image_format" not in config:
        return given
    return {**given, **vars(ImageFormat.from_json(config["image_format"]))}
