"""What one arm reached with one seed, and what it cost; kept in a file, so that it is done once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stagecost.errors import StageCostError
from stagecost.macs import count_macs, count_parameters
from stagecost.network import ResidualNetwork
from stagecost.storage import read_json, write_json
from stagecost.training.cost import training_macs
from stagecost.training.trained import Trained
from stagecost.trajectory import terminal_score
from stagecost_recipes.runs import Run, digest


@dataclass(frozen=True)
class Outcome:
    """What an arm reached with one seed.

    Attributes:
        num_blocks: blocks that an image goes through.
        test_accuracy: percent.
        val_accuracy: percent.
        parameters: of all that has to be kept.
        macs: for one image, on average over the test images.
        training_macs: of all passes of all its epochs.
        seconds: spent in them.
    """

    num_blocks: int
    test_accuracy: float
    val_accuracy: float
    parameters: int
    macs: int
    training_macs: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What the trainings of an arm cost."""

    macs: int
    seconds: float

    @classmethod
    def of(cls, run: Run) -> "Cost":
        """Return what a run cost."""
        return cls(training_macs(run.folder, run.result.history), run.result.seconds)

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both."""
        return Cost(self.macs + other.macs, self.seconds + other.seconds)


def measured(trained: Trained, network: ResidualNetwork, cost: Cost) -> Outcome:
    """Measure a network on the validation and test images of the run that it comes from."""
    image = trained.image_format
    test, val = (
        terminal_score(network, trained.batches(split), loss=trained.loss)[0]
        for split in ("test", "val")
    )
    return Outcome(
        num_blocks=network.num_blocks,
        test_accuracy=test,
        val_accuracy=val,
        parameters=count_parameters(network),
        macs=count_macs(network, (image.channels, image.size, image.size)),
        training_macs=cost.macs,
        seconds=round(cost.seconds, 1),
    )


def cached(
    folder: Path,
    arm: str,
    seed: int,
    defining: Mapping[str, Any],
    make: Callable[[], Sequence[Outcome]],
) -> list[Outcome]:
    """Return what an arm reached with a seed: from its file, or made now and kept there.

    Args:
        folder: of the files; each is named after what defines it, so that an arm which was changed is
            made anew.
        arm: its name.
        seed: of its trainings.
        defining: all that decides the outcome, as values for JSON.
        make: makes the outcomes.

    Raises:
        StageCostError: the file is damaged.
    """
    file = folder / f"{arm}-{digest(defining)}-seed{seed}.json"
    if not file.is_file():
        content = {"arm": arm, "seed": seed, **defining}
        write_json(file, {**content, "outcomes": [asdict(outcome) for outcome in make()]})
    found = read_json(file)
    try:
        return [Outcome(**outcome) for outcome in found["outcomes"]]
    except (KeyError, TypeError) as error:
        raise StageCostError(
            f"{file} is no outcome of an arm ({error}): delete it, and it is made anew"
        ) from None
