"""Data sets that are known by name: where they are, and how to normalise and augment them.

Others with the same class names and shape are augmented alike. They are normalised by the published
statistics if their own agree with these, as those of a copy do.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stagecost.data.augmentation import NO_AUGMENTATION, Augmentation
from stagecost.data.class_names import name_key

HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
KNOWN_NAMES = ("digits", *HUB_IDS)
DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@dataclass(frozen=True)
class KnownData:
    """How a well-known data set is normalised, and how it and others like it are augmented."""

    channels: int
    size: int
    typical_names: Sequence[str]  #: some of its classes, or all
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    augmentation: Augmentation
    num_classes: int = 10

    def resembles(self, names: Collection[str]) -> bool:
        """Tell whether a data set of these classes may be a copy of it."""
        typical = set(map(name_key, self.typical_names))
        return len(names) == self.num_classes and typical <= set(map(name_key, names))


_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_CIFAR100 = ["apple", "aquarium_fish", "lawn_mower", "sweet_pepper", "wardrobe", "willow_tree", "worm"]
_OF_CIFAR10 = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
_OF_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
KNOWN = {
    "digits": KnownData(1, 8, DIGIT_NAMES, None, NO_AUGMENTATION),
    "mnist": KnownData(1, 28, DIGIT_NAMES, ((0.1307,), (0.3081,)), Augmentation(2, flip=False)),
    "fashion-mnist": KnownData(1, 28, FASHION_NAMES, ((0.2860,), (0.3530,)), Augmentation(2, flip=True)),
    "cifar10": KnownData(3, 32, _CIFAR10, _OF_CIFAR10, Augmentation(4, flip=True)),
    "cifar100": KnownData(3, 32, _CIFAR100, _OF_CIFAR100, Augmentation(4, flip=True), num_classes=100),
}
