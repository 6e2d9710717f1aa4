"""Which images of a source make the training, the validation and the test split.

A data set's own test split is the test split; where there is none, a fixed stratified 20 % of the
training images is held out as one, the same whatever the seed. A data set's own validation split is
the validation split, and `val_fraction` is then unused; where there is none, that part of the
training images is held out, drawn with the seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stagecost.data.class_names import shown
from stagecost.data.config import DataConfig
from stagecost.data.encoded import LEFT_OUT, IntArray, Part, Source
from stagecost.data.split_names import SPLITS
from stagecost.errors import StageCostError
from stagecost.random_streams import FIXED_SEED, Stream, seed_sequence
from stagecost.text import counted

TEST_FRACTION = 0.2  # held out where a data set has no test split


@dataclass(frozen=True)
class Rows:
    """The chosen rows (int64, sorted) of one part of a source."""

    part: Part
    index: IntArray

    @property
    def labels(self) -> IntArray:
        """The class numbers of the chosen images."""
        return self.part.labels[self.index]


def choose_rows(
    source: Source, config: DataConfig, seed: int, *, hold_out: bool = True
) -> dict[str, Rows]:
    """Choose the images of each split from the labels alone; no image is read.

    Without `hold_out` the splits are those that the source has, with all of their images.
    """
    used = {split: np.flatnonzero(part.labels != LEFT_OUT) for split, part in source.parts.items()}
    rows = {split: Rows(part, used[split]) for split, part in source.parts.items() if len(used[split])}
    if not hold_out:
        return {split: rows[split] for split in SPLITS if split in rows}
    if "train" in rows and "test" not in rows:
        rows["train"], rows["test"] = _hold_out(rows["train"], TEST_FRACTION, FIXED_SEED)
    if "train" in rows:
        rows["train"] = _limit(rows["train"], config.limit_train, seed)
    if "test" in rows:
        rows["test"] = _limit(rows["test"], config.limit_test, FIXED_SEED)
    if "train" in rows and "val" not in rows:
        count = len(rows["train"].index)
        held_out = round(config.val_fraction * count)
        if held_out == count:
            raise StageCostError(
                f"--val-fraction {config.val_fraction} of {count} images leaves none for training: "
                "give a smaller --val-fraction or more images"
            )
        if held_out:
            split_seed = int(seed_sequence(seed, Stream.VALIDATION).generate_state(1)[0])
            rows["train"], rows["val"] = _hold_out(rows["train"], held_out, split_seed)
    return {split: rows[split] for split in SPLITS if split in rows}


def check_present(split: str, rows: Mapping[str, Rows], config: DataConfig) -> None:
    """Refuse a split that was asked for and is not there."""
    if split in rows:
        return
    if split == "val" and "train" in rows:
        count = len(rows["train"].index)
        enough = max(0.1, np.ceil(100 / count) / 100)
        remedy = (
            f"hold out more of them (--val-fraction {enough:g})" if count > 1 else "give more images"
        )
        raise StageCostError(
            f"--val-fraction {config.val_fraction} of {counted(count, 'training image')} leaves none "
            f"for validation: {remedy}"
        )
    raise StageCostError(
        f"{shown(config.data)} has no {split} split (only {', '.join(rows)}): give data with training "
        "images"
    )


def _hold_out(rows: Rows, size: float, seed: int) -> tuple[Rows, Rows]:
    """Split off `size` (a count or a fraction) of the rows; stratified where the classes allow.

    A class with a single image keeps it for training; where classes are too many to be stratified, each
    keeps one if that leaves enough.
    """
    total = len(rows.index)
    held_out = size if isinstance(size, int) else int(np.ceil(size * total))
    if held_out >= total:
        raise StageCostError(
            f"with {counted(total, 'training image')} nothing is left to train on once the test images "
            "are held out: give more images"
        )
    _, first, class_of, members = np.unique(
        rows.labels, return_index=True, return_inverse=True, return_counts=True
    )
    if isinstance(size, float) and total == len(members):
        raise StageCostError(
            f"with {counted(total, 'training image')}, each of another class, there are no test images: "
            "give more images of each class, or test images in a directory of their own"
        )
    several = np.flatnonzero(members[class_of] > 1)
    fewest = np.count_nonzero(members > 1)  # images that both sides of a stratified split need
    if fewest and fewest <= min(held_out, len(several) - held_out):
        chosen, strata = several, rows.labels[several]
    else:
        spare = np.setdiff1d(np.arange(total), first)
        chosen, strata = (spare if held_out < len(spare) else np.arange(total)), None
    held = chosen[draw(len(chosen), held_out, seed, strata)]
    rest = np.setdiff1d(np.arange(total), held)
    return Rows(rows.part, rows.index[rest]), Rows(rows.part, rows.index[np.sort(held)])


def draw(total: int, count: int, seed: int, labels: IntArray | None = None) -> IntArray:
    """Draw `count` of `total` positions; with the labels of all, of each class in proportion.

    They are those of the test set of scikit-learn's `train_test_split`, by which runs were split before;
    its import takes longer than most verbs.
    """
    generator = np.random.RandomState(seed)
    if labels is None:
        return generator.permutation(total)[:count]
    _, class_of, members = np.unique(labels, return_inverse=True, return_counts=True)
    stay = _apportion(members, total - count, generator)
    leave = _apportion(members - stay, count, generator)
    rows = np.split(np.argsort(class_of, kind="stable"), np.cumsum(members)[:-1])
    shuffled = [generator.permutation(each) for each in rows]
    parts = [each[s : s + t] for each, s, t in zip(shuffled, stay, leave, strict=True)]
    return np.concatenate(parts)


def _apportion(sizes: IntArray, count: int, generator: np.random.RandomState) -> IntArray:
    """Part `count` among classes by their sizes; what rounding leaves goes to the largest remainders."""
    shares = sizes / sizes.sum() * count
    whole = np.floor(shares)
    for remainder in np.unique(shares - whole)[::-1]:
        left = int(count - whole.sum())
        if left <= 0:
            break
        equal = np.flatnonzero(shares - np.floor(shares) == remainder)
        whole[generator.choice(equal, min(len(equal), left), replace=False)] += 1
    counts: IntArray = whole.astype(np.int64)
    return counts


def _limit(rows: Rows, limit: int | None, seed: int) -> Rows:
    if limit is None or limit >= len(rows.index):
        return rows
    drawn = np.random.default_rng(seed_sequence(seed, Stream.LIMIT)).permutation(rows.index)[:limit]
    return Rows(rows.part, np.sort(drawn))
