"""The paper's own figures: test accuracy in percent of homogeneous networks of 54 and 12 blocks.

Its recipe is not published, so these stand beside the rows for comparison; no row here repeats one.
"""

PAPER: dict[str, dict[str, float]] = {
    "mnist": {
        "plain_full": 99.64,
        "plain_sub": 99.63,
        "stage_full": 99.62,
        "stage_pruned": 99.54,
    },
    "cifar10": {
        "plain_full": 93.05,
        "plain_sub": 91.43,
        "stage_full": 91.59,
        "stage_pruned": 91.02,
    },
    "cifar100": {
        "plain_full": 71.94,
        "plain_sub": 68.77,
        "stage_full": 69.97,
        "stage_pruned": 66.55,
    },
}


def paper_accuracy(dataset: str, arm: str) -> float | None:
    """Return the paper's figure; None where it has none."""
    return PAPER.get(dataset, {}).get(arm)


def paper_difference(dataset: str, arm: str, other: str) -> float | None:
    """Return by how many points an arm is above another one in the paper; None where it does not say."""
    found = [paper_accuracy(dataset, name) for name in (arm, other)]
    first, second = found
    return None if first is None or second is None else round(first - second, 2)
