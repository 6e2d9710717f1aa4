"""What all arms share: backbone, images, optimiser, schedule, number of epochs; and their outcomes.

Every arm gets E epochs in all. Where something is done after a first training, the first training gets
70 % of them, with the whole of its schedule, and the rest belongs to what is done. Networks that are
trained on do so by plain training of the terminal output: fresh momentum, a cosine from the highest
learning rate of the first training to zero, no warm-up.

Both rates below are those of 0.1, 0.3 and 1 times the highest rate, and of 0.001 and 0.01 for earlyon's
exits, that did best on validation images of a small training on MNIST with a seed of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.contrib.schedules import pruned_training
from experiments.recipes import SUB_BLOCKS, Settings, base_recipe, normalized_stage_cost
from experiments.runner import Tier
from experiments.trainings import (
    Run,
    Training,
    accuracy_of,
    digest,
    images_of_an_epoch,
    training_macs,
)
from stagecost.errors import StageCostError
from stagecost.macs import count_macs, count_parameters
from stagecost.network import ResidualNetwork
from stagecost.runs.pruning import finetune_settings, train_in_memory
from stagecost.runs.trained import Trained
from stagecost.storage import read_json, write_json
from stagecost.train.setup import prepare

LATER_SHARE = 0.3
"""Part of the epochs that is left for fine-tuning, or for the exits of frozen networks."""
CUT_SHARE = 0.3
"""Part of the epochs after which blocks leave, where they leave during the training."""
DROP_PATH = 0.2
"""Rate of the last block for stochastic depth; a moderate one, as the trainings are short."""
FINETUNE_LR_FACTOR = 1.0
"""Where the learning rate of fine-tuning starts, as a part of the highest one."""
EXITS_LR = 1e-2
"""Learning rate of earlyon's exits; ten times its own default, as the epochs are few."""


@dataclass(frozen=True)
class Protocol:
    """The comparison on a data set: settings of plain training at full depth, and M."""

    recipe: Settings
    sub_blocks: int

    @classmethod
    def of(cls, tier: Tier, dataset: str) -> "Protocol":
        """Return the comparison of a tier on a data set."""
        return cls(base_recipe(tier, dataset), SUB_BLOCKS[tier])

    @property
    def later_epochs(self) -> int:
        """Epochs of what is done after a first training."""
        return max(1, round(LATER_SHARE * int(self.recipe["epochs"])))

    @property
    def exit_blocks(self) -> tuple[int, ...]:
        """Blocks behind which earlyon puts an exit: one is the M-th, one comes before, one after it."""
        m, n = self.sub_blocks, self.recipe["num_blocks"]
        return tuple(sorted({max(1, m // 2), m, (m + n) // 2}))

    def trainings(self) -> dict[str, Training]:
        """Return each kind of training."""
        plain, m = self.recipe, self.sub_blocks
        n, epochs = plain["num_blocks"], plain["epochs"]
        first = {"epochs": epochs - self.later_epochs}
        cut = {"cut_at": f"{max(1, round(CUT_SHARE * epochs))}:{m}"}
        stage_cut = {**normalized_stage_cost(1 / n, n), "plain_after_cuts": True}
        return {
            "plain": Training(plain),
            "plain-sub": Training({**plain, "num_blocks": m}),
            "plain-first": Training({**plain, **first}),
            "plain-cut": Training({**plain, **cut}),
            "stochastic-depth": Training({**plain, "drop_path": DROP_PATH}),
            "pruned": pruned_training(plain, m),
            "pruned-first": pruned_training({**plain, **first}, m),
            "stage-cut": Training({**plain, **stage_cut, **cut}),
        }


@dataclass(frozen=True)
class Cost:
    """What the trainings of an arm cost: MACs and seconds."""

    macs: int
    seconds: float

    @classmethod
    def of(cls, run: Run) -> "Cost":
        """Return what a run cost."""
        return cls(training_macs(run), run.seconds)

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both."""
        return Cost(self.macs + other.macs, self.seconds + other.seconds)


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


def outcome_of(trained: Trained, network: ResidualNetwork, cost: Cost) -> Outcome:
    """Measure a network on the validation and test images of the run that it comes from."""
    judged = replace(trained, network=network)
    return Outcome(
        num_blocks=network.num_blocks,
        test_accuracy=accuracy_of(judged),
        val_accuracy=accuracy_of(judged, "val"),
        parameters=count_parameters(network),
        macs=count_macs(network, trained.image_shape),
        training_macs=cost.macs,
        seconds=round(cost.seconds, 1),
    )


def finetuned(trained: Trained, small: ResidualNetwork, protocol: Protocol, before: Cost) -> Outcome:
    """Train a smaller network on, by plain training, and measure it.

    Args:
        trained: the run that the network comes from.
        small: the network; is changed.
        protocol: says for how long.
        before: what the run cost.
    """
    epochs = protocol.later_epochs
    settings = finetune_settings(trained, epochs, FINETUNE_LR_FACTOR)
    setup = prepare(settings, trained.load("train", "val"), network=small)
    state = setup.start()
    network = train_in_memory(setup, state, "fine-tune")
    images, validated = images_of_an_epoch(trained)
    macs = epochs * (3 * images + validated) * count_macs(network, trained.image_shape)
    return outcome_of(trained, network, before + Cost(macs, state.progress.seconds))


def cached(
    folder: Path,
    arm: str,
    seed: int,
    defining: Mapping[str, Any],
    make: Callable[[], Sequence[Outcome]],
) -> list[Outcome]:
    """Return what an arm reached with a seed: from its file, or made now and kept there.

    Args:
        folder: of the files; each is named after what defines it, so a changed arm is made anew.
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
