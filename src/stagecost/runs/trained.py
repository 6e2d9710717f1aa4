"""Opening what was trained: a run folder, or the folder of a saved network, with its images."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from stagecost.cut import Cut
from stagecost.data.batches import FixedBatches, eval_batches, sample_batches
from stagecost.data.config import DataConfig
from stagecost.data.fingerprint import FINGERPRINT_FILE, check_fingerprint, digest_of, trained_images
from stagecost.data.images import ImageFormat
from stagecost.data.loading import ALL, DataBundle, has_validation, load_data
from stagecost.data.sources import at
from stagecost.errors import StageCostError, refusing
from stagecost.head import OutputBatchNorm2d
from stagecost.losses import LossFunction
from stagecost.models.catalogue import load
from stagecost.network import ResidualNetwork
from stagecost.records import JsonObject
from stagecost.runs.certainty import chance_of, warnings_on
from stagecost.runs.folder import RunFolder, refuse_moved
from stagecost.saved import CONFIG_FILE, WEIGHTS_FILE
from stagecost.storage import read_json, read_metadata
from stagecost.text import shell_path
from stagecost.train.checkpoint import Checkpoint, read_checkpoint
from stagecost.train.devices import select_device
from stagecost.train.parsing import parse_settings
from stagecost.train.settings import RunSettings
from stagecost.train.stage_cost import loss_of, target_of

CheckpointName = Literal["last", "best"]
Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class Judged:
    """Images that a network is judged on."""

    batches: FixedBatches  #: in order, without augmentation
    num_images: int  #: how many
    chance: float  #: accuracy of always guessing the most frequent class, percent
    #: what has changed of the images, which were trained on, and whether the run is within an epoch
    warnings: tuple[str, ...] = ()
    digest: str = ""  #: of their files, sizes and classes; empty for those of all splits together

    def doubts(self, accuracy: float, tolerance: float | None) -> tuple[str, ...]:
        """Return these warnings, and what makes a choice by accuracies doubtful (`warnings_on`)."""
        return *self.warnings, *warnings_on(accuracy, self.num_images, self.chance, tolerance)


@dataclass(frozen=True)
class Trained:
    """A trained network and what is needed to judge it."""

    path: Path  #: of the run or the saved network
    network: ResidualNetwork  #: in eval mode, on `device`
    settings: RunSettings  #: of the run that trained it
    image_format: ImageFormat  #: how its images are prepared
    device: torch.device  #: where it is
    checkpoint: Checkpoint | None = None  #: the run's checkpoint; None for a saved network

    def run_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of its run.

        Raises:
            StageCostError: it is a saved network, which has none.
        """
        if self.checkpoint is None:
            raise StageCostError(f"{self.path} is a saved network: give the run that it was pruned from")
        return self.checkpoint

    @property
    def loss(self) -> LossFunction:
        """The loss of its training."""
        return loss_of(self.settings.training.label_smoothing)

    @property
    def targets(self) -> list[Cut]:
        """The targets of its training; without those whose blocks have left since."""
        targets = list[Cut]()
        for text in self.settings.stage.targets:
            with suppress(StageCostError):
                targets.append(target_of(text, self.network))
        return targets

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.image_format.shape

    def moved(self, data: str | None) -> "Trained":
        """Return the same with its images at another place; None leaves them where they are."""
        if data is None:
            return self
        return replace(self, settings=replace(self.settings, data=at(self.settings.data, data)))

    def load(self, *splits: str, data: str | None = None) -> DataBundle:
        """Load splits of the images that it was trained on, or of other data prepared alike.

        Args:
            splits: train, val or test; or all, together; if none, each that there is.
            data: other images, or where those of the training are now.

        Raises:
            StageCostError: there is no such split, or the other data has other classes.
        """
        config, seed = self._images(data), self.settings.training.seed
        try:
            bundle = load_data(config, seed=seed, splits=splits or None, like=self.image_format)
        except StageCostError:
            if "val" in splits and not self.has_validation(data):
                # A verb with --split asks for one alone.
                other = ", or ask for another --split" if splits == ("val",) else ""
                raise StageCostError(
                    f"{self.path} was trained without validation images: train with --val-fraction 0.1, "
                    f"or give images that have some by --data{other}"
                ) from None
            raise
        for split in splits:
            if split not in bundle.splits:
                raise StageCostError(f"{self.path} has no split {split!r}: choose train, val or test")
        return bundle

    def has_validation(self, data: str | None = None) -> bool:
        """Tell whether there are validation images, where they are now."""
        return has_validation(self._images(data), self.image_format.class_names)

    def _images(self, data: str | None) -> DataConfig:
        config = self.moved(data).settings.data
        if data is None:
            refuse_moved(config.data, self.path)
        return config

    def judged(self, split: Split, data: str | None = None, *, allow_trained: bool = False) -> Judged:
        """Load the images of one split, or of all of them together.

        Raises:
            StageCostError: some of them were trained on and are not allowed, see `judged_on`.
        """
        bundle = self.load(split, data=data)
        return self.judged_on(bundle, split, other=data is not None, allow_trained=allow_trained)

    def judged_on(
        self, bundle: DataBundle, split: Split, *, other: bool = False, allow_trained: bool = False
    ) -> Judged:
        """Return loaded images of a split, in order, without augmentation.

        Args:
            bundle: with them.
            split: which.
            other: they need not be those of the training, so that no change is to be told.
            allow_trained: judge it all the same on images that it was trained on.

        Raises:
            StageCostError: images were trained on that were not in this split then.
        """
        notes = self.notes_on(bundle, split, other=other, allow_trained=allow_trained)
        notes = (*self._within_an_epoch(), *notes)
        images = bundle.splits[split]
        targets = images.targets.tolist()
        if not targets:
            raise StageCostError(f"there are no images to judge {self.path} on: give some")
        batches = eval_batches(images, self.image_format, device=self.device)
        digest = digest_of(bundle, split) if split in bundle.chosen else ""
        return Judged(batches, len(targets), chance_of(targets), notes, digest)

    def _within_an_epoch(self) -> tuple[str, ...]:
        """Say that a run has not come to the end of an epoch, where head statistics are estimated."""
        estimated = any(isinstance(part, OutputBatchNorm2d) for part in self.network.head.modules())
        if not estimated or self.checkpoint is None or not (progress := self.checkpoint.progress).batch:
            return ()
        return (
            f"{self.path} was saved within epoch {progress.epoch + 1}, and head statistics of outputs "
            "that not every step visits are estimated after an epoch: go on with train --resume",
        )

    def notes_on(
        self, bundle: DataBundle, split: Split, *, other: bool = False, allow_trained: bool = False
    ) -> tuple[str, ...]:
        """Say what makes it doubtful to judge it on images; see `judged_on`."""
        if (saved := self.fingerprint) is None:
            return (f"{self.path} has no {FINGERPRINT_FILE}: nothing tells what it was trained on",)
        changes = check_fingerprint(saved, bundle, split, allow_trained=allow_trained)
        notes = () if other else changes
        if split == ALL and (count := trained_images(saved, bundle, split)):
            every = f"{len(bundle.splits[split]):,} images"
            notes = (*notes, f"{count:,} of these {every} were trained on, which flatters")
        return notes

    @property
    def fingerprint(self) -> str | None:
        """What it remembers of the images of its training."""
        path = self.path / FINGERPRINT_FILE
        return path.read_text(errors="replace") if path.is_file() else None

    @property
    def weights_digest(self) -> str:
        """Sixteen letters and figures that follow from all its weights and statistics, bit for bit."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def batches(self, split: Split, data: str | None = None) -> FixedBatches:
        """Load one split as batches, in order, without augmentation."""
        return self.judged(split, data).batches

    def random_images(self, bundle: DataBundle, count: int) -> FixedBatches:
        """Return training images drawn at random, to estimate statistics from."""
        images, seed = bundle.splits["train"], self.settings.training.seed
        return sample_batches(images, self.image_format, count=count, seed=seed, device=self.device)

    def details(self) -> JsonObject:
        """Return what a saved network keeps beside its structure, as plain types."""
        return {"settings": self.settings.to_flat(), "image_format": self.image_format.to_json()}


def open_trained(
    path: str | Path, *, checkpoint: CheckpointName = "last", device: str = "auto"
) -> Trained:
    """Open a run folder or the folder of a saved network.

    Args:
        path: what `stagecost train` or `stagecost prune` wrote.
        checkpoint: of a run: the last one, or the best on validation data.

    Raises:
        StageCostError: nothing trained is there, or it is damaged, or a weight is no finite number.
    """
    path = Path(path)
    if not path.is_dir():
        raise StageCostError(f"{path} is no folder: give a run or a saved network")
    place = select_device(device)
    if (path / CONFIG_FILE).is_file():
        if checkpoint != "last":
            raise StageCostError(
                f"{path} is a saved network, which has no checkpoints: leave --checkpoint out"
            )
        trained = _open_saved(path, place)
    else:
        trained = _open_run(RunFolder(path), checkpoint, place)
    trained.network.details |= trained.details()
    # The memory format of training, so that not even a rounding differs from what training measured.
    trained.network.to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trained


def _open_run(run: RunFolder, name: CheckpointName, device: torch.device) -> Trained:
    file = run.best if name == "best" else run.last
    if not file.is_file():
        run.settings()  # or say that this is no run
        if run.last.is_file():
            raise StageCostError(
                f"{run.path} has no best checkpoint, which validation images choose after an epoch: use "
                "--checkpoint last"
            )
        raise StageCostError(
            f"{run.path} has no {name} checkpoint yet: let it train, `stagecost train --resume --output "
            f"{shell_path(run.path)}`"
        )
    checkpoint = read_checkpoint(file)
    settings = run.settings_beside(checkpoint)
    image_format = ImageFormat.from_json(checkpoint.metadata.get("image_format", {}))
    network = checkpoint.network()
    _check_together(network, settings, image_format, file)
    return Trained(run.path, network, settings, image_format, device, checkpoint)


def _open_saved(path: Path, device: torch.device) -> Trained:
    network, source = load(path), path / CONFIG_FILE
    config = read_json(source)
    for key in ("settings", "image_format"):
        if key not in config:
            raise StageCostError(
                f"{path} does not say how its images are prepared ({key!r} is missing in "
                f"{CONFIG_FILE}): load it with stagecost.load, or save it with `stagecost prune`"
            )
    what, remedy = f"{source} does not say how it was trained", "restore it from a copy"
    with refusing(what, remedy, TypeError, ValueError):
        settings = parse_settings(dict(config["settings"]))
        settings.check()
    image_format = ImageFormat.from_json(config["image_format"])
    copy = read_metadata(path / WEIGHTS_FILE).get("image_format", config["image_format"])
    if copy != config["image_format"]:
        raise StageCostError(
            f"{source} and {WEIGHTS_FILE} tell of different images: restore it from a copy"
        )
    _check_together(network, settings, image_format, source)
    return Trained(path, network, settings, image_format, device)


def _check_together(
    network: ResidualNetwork, settings: RunSettings, image_format: ImageFormat, source: Path
) -> None:
    """Refuse a network that is not the one of its settings, or not one for its images."""
    assert network.description is not None
    arguments = network.description.arguments
    wanted = {
        **settings.model.arguments(),
        "num_classes": len(image_format.class_names),
        "in_channels": image_format.channels,
    }
    wrong = [name for name, value in wanted.items() if arguments.get(name, value) != value]
    if network.description.name != settings.model.model:
        wrong = ["model", *wrong]
    if settings.data.image_size not in (None, image_format.size):
        wrong = ["image_size", *wrong]
    if wrong:
        raise StageCostError(
            f"{source} contradicts itself about {wrong[0]}: restore it from a copy, or train anew"
        )
