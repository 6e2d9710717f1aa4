"""Opening what was trained: a run folder, or the folder of a saved network, with its images."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stagecost.data.batches import eval_batches
from stagecost.data.images import ImageFormat
from stagecost.data.loading import DataBundle, load_data
from stagecost.errors import StageCostError
from stagecost.models import load
from stagecost.network import CONFIG_FILE, ResidualNetwork
from stagecost.objective import LossFunction
from stagecost.storage import read_json
from stagecost.training.checkpoint import Checkpoint, read_checkpoint
from stagecost.training.devices import select_device
from stagecost.training.folder import RunFolder
from stagecost.training.parsing import parse_settings
from stagecost.training.session import loss_function
from stagecost.training.settings import RunSettings

CheckpointName = Literal["last", "best"]


@dataclass(frozen=True)
class Trained:
    """A trained network and what is needed to judge it.

    Attributes:
        path: of the run or the saved network.
        network: in eval mode, on `device`.
        settings: of the run that trained it.
        image_format: how its images are prepared.
        device: where it is.
        checkpoint: the run's checkpoint; None for a saved network.
    """

    path: Path
    network: ResidualNetwork
    settings: RunSettings
    image_format: ImageFormat
    device: torch.device
    checkpoint: Checkpoint | None = None

    @property
    def loss(self) -> LossFunction:
        """The loss of its training."""
        return loss_function(self.settings.training)

    def load(self, *splits: str, data: str | None = None) -> DataBundle:
        """Load splits of the images that it was trained on, or of other data prepared alike.

        Raises:
            StageCostError: there is no such split, or the other data has other classes.
        """
        own = self.settings.data
        config = own if data is None else replace(own, data=data)
        bundle = load_data(
            config, seed=self.settings.training.seed, splits=splits, like=self.image_format
        )
        for split in splits:
            if split not in bundle.splits:
                raise StageCostError(f"{self.path} has no split {split!r}: choose train, val or test")
        return bundle

    def batches(self, split: str, data: str | None = None) -> Iterable[tuple[Tensor, Tensor]]:
        """Load one split as batches, in order, without augmentation."""
        bundle = self.load(split, data=data)
        return eval_batches(bundle.splits[split], self.image_format, device=self.device)

    def details(self) -> dict[str, Any]:
        """Return what a saved network keeps beside its structure, as plain types."""
        return {"settings": self.settings.to_flat(), "image_format": self.image_format.to_json()}


def open_trained(
    path: str | Path, *, checkpoint: CheckpointName = "last", device: str = "auto"
) -> Trained:
    """Open a run folder or the folder of a saved network.

    Args:
        path: what `stagecost train` or `stagecost prune` wrote.
        checkpoint: of a run: the last one, or the best on validation data.
        device: where to compute.

    Raises:
        StageCostError: nothing trained is there, or it is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise StageCostError(f"{path} is no folder: give a run or a saved network")
    if (path / CONFIG_FILE).is_file():
        return _open_saved(path, select_device(device))
    return _open_run(RunFolder(path), checkpoint, select_device(device))


def _open_run(run: RunFolder, name: CheckpointName, device: torch.device) -> Trained:
    settings = run.settings()
    file = run.best if name == "best" else run.last
    if not file.is_file():
        if run.last.is_file():
            raise StageCostError(
                f"{run.path} has no best checkpoint, as no validation images chose one: use "
                "--checkpoint last"
            )
        raise StageCostError(
            f"{run.path} has no {name} checkpoint yet: let it train, `stagecost train --resume --output "
            f"{run.path}`"
        )
    checkpoint = read_checkpoint(file)
    return Trained(
        path=run.path,
        network=_placed(checkpoint.network(), device),
        settings=settings,
        image_format=ImageFormat.from_json(checkpoint.metadata.get("image_format", {})),
        device=device,
        checkpoint=checkpoint,
    )


def _open_saved(path: Path, device: torch.device) -> Trained:
    network = load(path)
    source = path / CONFIG_FILE
    config = read_json(source)
    missing = [key for key in ("settings", "image_format") if key not in config]
    if missing:
        raise StageCostError(
            f"{path} does not say how its images are prepared ({missing[0]!r} is missing in "
            f"{CONFIG_FILE}): load it with stagecost.load, or save it with `stagecost prune`"
        )
    try:
        settings = parse_settings(dict(config["settings"]))
    except (TypeError, ValueError) as error:
        raise StageCostError(
            f"{source} does not say how it was trained ({error}): restore it from a copy"
        ) from None
    return Trained(
        path=path,
        network=_placed(network, device),
        settings=settings,
        image_format=ImageFormat.from_json(config["image_format"]),
        device=device,
    )


def _placed(network: ResidualNetwork, device: torch.device) -> ResidualNetwork:
    # The memory format of training, so that not even a rounding differs from what training measured.
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
