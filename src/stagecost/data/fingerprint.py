"""What a run remembers of its images, to tell later whether they are still the same.

Of each split: how many images, and a digest of their files, sizes and classes. Of the images that were
trained on: a short digest of the pixels of each, so that they are recognised in whatever split they turn
up later, under whatever name.
"""

import base64
import json
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from stagecost.data.class_names import shown
from stagecost.data.images import ImageSplit
from stagecost.data.loading import ALL, DataBundle
from stagecost.data.splits import Rows
from stagecost.errors import StageCostError
from stagecost.text import counted

FINGERPRINT_FILE = "images.json"
_Digests = npt.NDArray[np.uint64]


def fingerprint(bundle: DataBundle) -> str:
    """Return the fingerprint of the images of a run, as JSON.

    Args:
        bundle: with the split 'train', if trained images are to be recognised later. Of other splits
            that are loaded, it is remembered how many of their images are among the trained ones.
    """
    trained = np.unique(_digests(bundle.splits.get("train")))
    splits = {
        split: {
            "images": len(rows.index),
            "digest": _digest(rows, bundle.format.class_names),
            "trained": _trained(bundle.splits[split], trained) if split in bundle.splits else None,
        }
        for split, rows in bundle.chosen.items()
    }
    return json.dumps({"splits": splits, "trained": _written(trained)})


def fine_tuned(saved: str, bundle: DataBundle) -> str:
    """Return a run's fingerprint with the training images that its network was trained on further."""
    trained = np.union1d(_parse(saved)[1], _digests(bundle.splits["train"]))
    return json.dumps({**json.loads(saved), "trained": _written(trained)})


def trained_alike(saved: str, other: str) -> bool:
    """Tell whether two runs were trained on the same images, in whatever order."""
    return np.array_equal(_parse(saved)[1], _parse(other)[1])


def check_fingerprint(
    saved: str, bundle: DataBundle, split: str, *, allow_trained: bool = False
) -> tuple[str, ...]:
    """Say what of the images has changed since a run, before its network is judged on a split.

    Args:
        saved: what `fingerprint` returned of the run.
        bundle: the images now, with `split` loaded.
        split: what the network is to be judged on; 'train' and 'all' may hold trained images, and for
            'all' nothing is held out, so that the splits are not those of then.
        allow_trained: whether to judge it all the same on images that it was trained on.

    Returns:
        A line for each split that has changed, and one if more than a hundredth of these images are
        copies of trained ones; none if all is as it should be.

    Raises:
        StageCostError: the split holds images that were trained on and were not in it then, or the
            fingerprint is damaged.
    """
    then, trained = _parse(saved)
    changes: list[str] = []
    if split == ALL:
        return ()
    for name in sorted(then.keys() | bundle.chosen.keys()):
        rows = bundle.chosen.get(name)
        images, digest, _ = then.get(name, (0, "", None))
        if rows is None or digest != _digest(rows, bundle.format.class_names):
            now = 0 if rows is None else len(rows.index)
            counts = f"{images} then, {now} now" if now != images else f"{now} as then, but other ones"
            changes.append(f"the {name} images have changed since the run: {counts}")
    if split == "train" or split not in bundle.splits:
        return tuple(changes)
    count = _trained(bundle.splits[split], trained)
    images, digest, usual = then.get(split, (0, "", None))
    if usual is None and digest == _digest(bundle.chosen[split], bundle.format.class_names):
        usual = count  # it has the files that it had, and none of them was trained on
    if usual is None:  # copies within the data as they were cannot be told from trained images
        usual = len(bundle.splits[split]) // 100 if images else 0
    if count > usual and not allow_trained:
        raise StageCostError(
            f"{counted(count, 'image')} of the {len(bundle.splits[split])} {split} images of "
            f"{shown(bundle.name)} were trained on: give images that the network has not seen, or allow "
            "these by --allow-trained"
        )
    if len(bundle.splits[split]) < 100 * count <= 100 * usual:  # from the start on
        changes.append(
            f"{count} of the {len(bundle.splits[split])} {split} images are copies of ones that were "
            "trained on, which flatters"
        )
    return tuple(changes)


def digest_of(bundle: DataBundle, split: str) -> str:
    """Return a digest of the files, sizes and classes of the images of a split."""
    return _digest(bundle.chosen[split], bundle.format.class_names)


def trained_images(saved: str, bundle: DataBundle, split: str) -> int:
    """Return how many images of a loaded split are among those that a run was trained on.

    Raises:
        StageCostError: the fingerprint is damaged.
    """
    return _trained(bundle.splits[split], _parse(saved)[1])


def _parse(saved: str) -> tuple[dict[str, tuple[int, str, int | None]], _Digests]:
    try:
        content = json.loads(saved)
        splits = {
            str(name): (_count(then["images"]) or 0, str(then["digest"]), _count(then["trained"]))
            for name, then in content["splits"].items()
        }
        trained = np.frombuffer(base64.b64decode(content["trained"], validate=True), np.uint64)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise StageCostError(
            f"{FINGERPRINT_FILE}, the fingerprint of the run's images, is damaged "
            f"({type(error).__name__}): restore it from a copy"
        ) from error
    return splits, trained


def _written(trained: _Digests) -> str:
    return base64.b64encode(trained.tobytes()).decode()


def _count(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError(f"{value!r} is not a count")
    return value


def _digest(rows: Rows, class_names: tuple[str, ...]) -> str:
    """Return a digest of the files, sizes and classes of the images."""
    digest = blake2b(digest_size=16)
    names = [*class_names, "", ""]  # the last ones are of labels that are withheld
    for row, label in zip(rows.index.tolist(), rows.labels.tolist(), strict=True):
        images = rows.part.images
        digest.update(f"{images.mark(row)}\n{names[label]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _digests(split: ImageSplit | None) -> _Digests:
    """Return a digest of the pixels of each image; (n,)."""
    images = () if split is None else split.images.cpu().numpy()
    every = b"".join(blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(every, np.uint64)


def _trained(split: ImageSplit, trained: _Digests) -> int:
    """Return how many images of a split are among the trained ones."""
    return int(np.isin(_digests(split), trained).sum())
