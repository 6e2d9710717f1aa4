"""Images of the GPU tier: decoded once to bytes, cropped and mirrored on the device."""

import io
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.storage import read_tensors, write_tensors

STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def decode_image(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels (H, W, C) of a PNG or WebP file."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def decode(folder: Path, file: Path, processes: int = 16) -> None:
    """Decode parquet files, `train-*` and perhaps `test-*`, to bytes in one safetensors file."""
    import pyarrow.parquet as pq

    tensors: dict[str, Tensor] = {}
    for part in ("train", "test"):
        tables = [pq.read_table(path) for path in sorted(folder.glob(f"{part}-*.parquet"))]
        if not tables:
            continue
        encoded = [row["bytes"] for table in tables for row in table.column("image").to_pylist()]
        name = "fine_label" if "fine_label" in tables[0].column_names else "label"
        labels = np.concatenate([table.column(name).to_numpy() for table in tables])
        with ProcessPoolExecutor(processes) as pool:
            pixels = np.stack(list(pool.map(decode_image, encoded, chunksize=500)))
        tensors |= {
            f"{part}_pixels": torch.from_numpy(pixels),
            f"{part}_labels": torch.from_numpy(labels).long(),
        }
    write_tensors(file, tensors, {})


@dataclass(frozen=True)
class Images:
    """Images as bytes on the device, padded, (n, H + 2·pad, W + 2·pad, C), and their labels (n,)."""

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    pad: int
    flip: bool

    def crops(self, draws: Tensor) -> Tensor:
        """Return normalised crops (B, C, H, W), channels last.

        Args:
            draws: (B, 4), of each crop the image, the row, the column, and 1 where it is mirrored.
        """
        height, width = (side - 2 * self.pad for side in self.pixels.shape[1:3])
        across = torch.arange(width, device=draws.device)
        rows = draws[:, 1, None] + torch.arange(height, device=draws.device)
        columns = draws[:, 2, None] + torch.where(draws[:, 3, None] == 1, width - 1 - across, across)
        pixels = self.pixels[draws[:, 0, None, None], rows[:, :, None], columns[:, None, :]]
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def draw(self, steps: int, batch_size: int, seed: int) -> Tensor:
        """Draw the crops of a whole training, (steps, B, 4) int32: one permutation after the other.

        Raises:
            StageCostError: fewer images than a batch has.
        """
        generator = torch.Generator().manual_seed(seed)
        per_epoch = len(self.labels) // batch_size
        if not per_epoch:
            raise StageCostError(
                f"a batch of {batch_size} needs as many images, got {len(self.labels)}: lower it"
            )
        orders = [
            torch.randperm(len(self.labels), generator=generator)[: per_epoch * batch_size]
            for _ in range(math.ceil(steps / per_epoch))
        ]
        draws = torch.zeros(steps * batch_size, 4, dtype=torch.int32)
        draws[:, 0] = torch.cat(orders)[: len(draws)]
        draws[:, 1:3] = torch.randint(2 * self.pad + 1, (len(draws), 2), generator=generator)
        if self.flip:
            draws[:, 3] = torch.randint(2, (len(draws),), generator=generator)
        return draws.reshape(steps, batch_size, 4)


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set; `test` may be empty."""

    name: str
    classes: int
    train: Images
    val: Images
    test: Images | None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a crop."""
        _, height, width, channels = self.train.pixels.shape
        return channels, height - 2 * self.train.pad, width - 2 * self.train.pad


def load_splits(name: str, file: Path, device: torch.device) -> Splits:
    """Read decoded images and hold out a tenth, the same for all seeds, for validation."""
    tensors, _ = read_tensors(file)
    kind = name.partition("-")[0]
    colour = kind != "mnist"
    mean, std = (torch.tensor(values, device=device) * 255 for values in STATISTICS[kind])

    def images(pixels: Tensor, labels: Tensor) -> Images:
        pad = 4 if colour else 2
        padded = F.pad(pixels, (0, 0, pad, pad, pad, pad)).to(device)
        return Images(padded, labels.to(device), mean, std, pad, colour)

    pixels, labels = tensors["train_pixels"], tensors["train_labels"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held = len(labels) // 10
    test = images(tensors["test_pixels"], tensors["test_labels"]) if "test_pixels" in tensors else None
    return Splits(
        name,
        100 if kind == "cifar100" else 10,
        images(pixels[order[held:]], labels[order[held:]]),
        images(pixels[order[:held]], labels[order[:held]]),
        test,
    )
