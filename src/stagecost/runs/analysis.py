"""`stagecost analyze`: loss and accuracy over depth, and how many blocks are needed.

What is needed is said of cuts that can be made, by the rule of `stagecost prune`: the cheapest cut
within the tolerance. In a homogeneous network these are the y_k; in a staged one some are measured
beside them. So are the targets of the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stagecost.cut import Cut, stage_counts
from stagecost.macs import macs_by_branch
from stagecost.network import ResidualNetwork
from stagecost.prune import Limits, choose, possible_cuts
from stagecost.runs.certainty import Interval, check_points, wilson
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Judged, Split, Trained, open_trained
from stagecost.trajectory import Score, Trajectory, loss_trajectory

MEASURED_CUTS = 27
"""How many cuts of a staged network are measured: three numbers of blocks in each of three stages."""


@dataclass(frozen=True)
class CutScore:
    """A cut that can be made."""

    cut: str  #: as printed: 4, or 3+3+4 by stages
    kept_blocks: tuple[int, ...]  #: the paper's indices k of the blocks that stay
    loss: float  #: of the network without the others, as it is
    accuracy: float  #: percent
    interval: Interval | None  #: Wilson's, of the accuracy
    macs: int  #: for one image


@dataclass(frozen=True)
class Analysis(Result):
    """Loss and accuracy over depth."""

    aliases: ClassVar[Mapping[str, str]] = {"num_samples": "num_images"}

    num_blocks: int  #: N
    split: Split  #: the images
    num_images: int  #: how many
    losses: tuple[float, ...]  #: L_0 … L_N
    accuracies: tuple[float, ...]  #: percent, of y_0 … y_N
    intervals: tuple[Interval | None, ...]  #: Wilson's, of these
    residual_ratios: tuple[float, ...]  #: mean of ‖F_k(x_k)‖/‖x_k‖, k = 0 … N-1
    weight_norms: tuple[float, ...]  #: ‖w_F,k‖, k = 0 … N-1
    stage_starts: tuple[int, ...]  #: positions of the blocks that begin a stage
    tolerance: float  #: points of accuracy that may be missing
    needed_blocks: int  #: blocks of the cheapest measured cut within the tolerance
    needed_cut: str  #: this cut, as printed
    cuts: tuple[CutScore, ...]  #: that can be made and were measured
    target_norms: tuple[str, ...]  #: those of them, as printed, that have norms of their own
    warnings: tuple[str, ...]  #: what makes the needed blocks doubtful

    @property
    def blocks(self) -> tuple[int, ...]:
        """The paper's k of all blocks, by their positions."""
        return max((cut.kept_blocks for cut in self.cuts), key=len)

    @property
    def needed(self) -> CutScore:
        """The cheapest measured cut within the tolerance."""
        return next(cut for cut in self.cuts if cut.cut == self.needed_cut)


def analyze(
    path: str | Path,
    *,
    split: Split = "val",
    tolerance: float = 0.5,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    data: str | None = None,
    allow_trained: bool = False,
) -> Analysis:
    """Show loss and accuracy over depth, and how many blocks are needed.

    Args:
        path: of a run or a saved network.
        split: the images; choose depths on val, never on test.
        tolerance: points of accuracy that may be missing to the full depth.
        data: other images, or where those of the training are now.
        allow_trained: measure it also on images that it was trained on.

    Raises:
        StageCostError: an impossible tolerance, nothing trained, or no such images.
    """
    check_points("--tolerance", tolerance)
    trained = open_trained(path, checkpoint=checkpoint, device=device)
    return analysis_of(trained, split, tolerance, data, allow_trained=allow_trained)


def analysis_of(
    trained: Trained,
    split: Split,
    tolerance: float,
    data: str | None = None,
    *,
    allow_trained: bool = False,
) -> Analysis:
    """Analyse an opened network."""
    images = trained.judged(split, data, allow_trained=allow_trained)
    return summarise(trained, measure(trained, images), images, split, tolerance)


def measure(trained: Trained, images: Judged) -> Trajectory:
    """Measure the trajectory of a network, and some cuts that can be made, its targets among them."""
    network = trained.network
    cuts = possible_cuts(network, limit=MEASURED_CUTS) if len(network.stages) > 1 else ()
    cuts = tuple(dict.fromkeys([*cuts, *trained.targets, *network.targets]))
    return loss_trajectory(network, images.batches, cuts=cuts, loss=trained.loss)


def summarise(
    trained: Trained, trajectory: Trajectory, images: Judged, split: Split, tolerance: float
) -> Analysis:
    """Say what a trajectory tells."""
    network, count = trained.network, trajectory.num_samples
    macs = macs_by_branch(network, trained.image_shape)
    # Of cuts that can be made, each once.
    possible = [*{row.cut: row for row in trajectory.rows if network.can_keep(row.cut)}.values()]
    needed = choose(possible, macs, Limits(trajectory.whole, tolerance))
    return Analysis(
        num_blocks=trajectory.num_blocks,
        split=split,
        num_images=count,
        losses=trajectory.losses,
        accuracies=trajectory.accuracies,
        intervals=tuple(wilson(accuracy, count) for accuracy in trajectory.accuracies),
        residual_ratios=trajectory.residual_ratios,
        weight_norms=trajectory.weight_norms,
        stage_starts=trajectory.stage_starts,
        tolerance=tolerance,
        needed_blocks=len(needed.cut.blocks),
        needed_cut=printed(network, needed.cut),
        cuts=tuple(_cut_score(network, row, macs) for row in possible),
        target_norms=tuple(printed(network, target) for target in network.targets),
        warnings=images.doubts(trajectory.whole.accuracy, tolerance),
    )


def printed(network: ResidualNetwork, cut: Cut) -> str:
    """Print a cut: by the blocks of each stage, where it takes the first ones; else by the k of each."""
    counts = stage_counts(cut, network.stage_positions)
    if counts is None:
        return str(Cut(cut.remaining(network.block_indices)))
    return "+".join(map(str, counts))


def _cut_score(network: ResidualNetwork, row: Score, macs: Sequence[int]) -> CutScore:
    return CutScore(
        cut=printed(network, row.cut),
        kept_blocks=row.cut.remaining(network.block_indices),
        loss=row.loss,
        accuracy=row.accuracy,
        interval=wilson(row.accuracy, row.num_samples),
        macs=macs[0] + sum(macs[1 + k] for k in row.cut.blocks),
    )
