"""Which images to train on: the part of the data that the command line describes.

Kept apart from `stagecost.data.loading`, and free of heavy imports, so that `stagecost --help` answers
at once.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Which images to use, and how they are prepared; see docs/data.md.

    Args:
        data: 'digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', a Hugging Face dataset id,
            or a local folder (class directories, parquet or IDX files).
        image_size: side in pixels; images are resized (short side) and centre-cropped to it.
        mean: of each channel, for pixels in [0, 1], one number for grey images and three for colours; by
            default those of the training images, or of the network that training starts from.
        std: the same of the standard deviations.
        interpolation: by which images are resized; bicubic if neither this nor the network says.
        val_fraction: part of the training images held out for validation, in [0, 1); unused where
            the data set brings its own validation split.
        limit_train: at most this many training images, drawn at random with the seed before the
            validation images are taken from them.
        limit_test: at most this many test images, the same ones whatever the seed.
        augment: 'auto' shifts and mirrors the training images as usual for the data set; 'none'
            leaves them as they are.
        label_column: of a table, the column that holds the classes.
        image_column: of a table, the column that holds the images.
        classes: the classes in their order, as "cat,dog" (a name with a comma in double quotes): which
            directories are classes, what the numbers of a label column mean; images of other classes
            are left out.
        skip_broken: leave images out that cannot be decoded, instead of refusing the data.
    """

    data: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    val_fraction: float = 0.1
    limit_train: int | None = None
    limit_test: int | None = None
    augment: Literal["auto", "none"] = "auto"
    label_column: str | None = None
    image_column: str | None = None
    classes: str | tuple[str, ...] | None = None
    skip_broken: bool = False
