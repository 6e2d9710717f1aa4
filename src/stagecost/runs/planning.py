"""What `stagecost prune` is asked for, and the plan that follows from it on validation images."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from stagecost.cut import Cut
from stagecost.data.batches import sample_batches
from stagecost.errors import StageCostError
from stagecost.macs import count_macs
from stagecost.models.catalogue import cut_to
from stagecost.prune import Limits, PruningPlan, check_count, plan_pruning
from stagecost.runs.analysis import measure
from stagecost.runs.certainty import check_points
from stagecost.runs.trained import Judged, Trained
from stagecost.search import search_cuts
from stagecost.text import format_indices
from stagecost.trajectory import Score, Trajectory, loss_trajectory

logger = logging.getLogger("stagecost")

SEARCH_IMAGES = 512  # of the validation images, that cuts are searched on


@dataclass(frozen=True)
class Request:
    """How much is to go, or what is to stay; see `stagecost.runs.pruning.prune`."""

    max_drop: float | None = None  #: points of validation accuracy that may be lost
    max_loss_increase: float | None = None  #: by how much the validation loss may rise
    #: a cut, or how many blocks stay, or the paper's indices k of those that do
    keep: Cut | int | Sequence[int] | None = None
    search: bool = False  #: among cuts of any blocks

    def check(self) -> None:
        """Refuse what asks for nothing, or for two things at once."""
        if self.max_drop is not None:
            check_points("--max-drop", self.max_drop)
        if self.max_loss_increase is not None and not 0 <= self.max_loss_increase < math.inf:
            raise StageCostError(
                f"--max-loss-increase is {self.max_loss_increase}: give a number of at least 0"
            )
        if self.max_drop is None and self.max_loss_increase is None and self.keep is None:
            raise StageCostError(
                "say how much to prune: give --max-drop or --max-loss-increase, or what to keep "
                "(--keep-blocks, --keep)"
            )
        if self.search and not isinstance(self.keep, int | None):
            raise StageCostError(
                "--search looks for the blocks to keep, and they are given: leave it out"
            )

    def limits(self, before: Score) -> Limits:
        """Return what may be lost of the score of the whole network."""
        return Limits(before, self.max_drop, self.max_loss_increase)

    def plan(self, trained: Trained, val: Judged) -> PruningPlan:
        """Plan which blocks stay.

        What the caller wants to keep is not judged here: statistics may be estimated anew, and training
        may follow, so the network that is left tells whether it loses more than is allowed.

        Raises:
            StageCostError: an impossible cut, or limits that say nothing of this network.
        """
        keep = self.keep
        if self.search:
            trajectory, keep = self._searched(trained, val)
        else:
            trajectory = measure(trained, val)
            if isinstance(keep, Sequence):
                keep = cut_to(trained.network, sorted(keep))
        limits = self.limits(trajectory.whole)
        wanted = self.keep is not None
        return plan_pruning(
            trained.network,
            trajectory,
            max_drop=None if wanted else limits.max_drop,
            max_loss_increase=None if wanted else limits.max_loss_increase,
            keep=keep,
            loader=val.batches,
            loss=trained.loss,
        )

    def _searched(self, trained: Trained, val: Judged) -> tuple[Trajectory, Cut]:
        """Search for cuts on some validation images; return the cheapest within the limits on all."""
        network, images = trained.network, val.batches.split
        some = sample_batches(
            images, trained.image_format, count=SEARCH_IMAGES, seed=0, device=trained.device
        )

        def tell(score: Score) -> None:
            blocks = format_indices(score.cut.remaining(network.block_indices))
            logger.info("%d blocks: %s, loss %.4f", len(score.cut.blocks), blocks, score.loss)

        least = self.keep if isinstance(self.keep, int) else 1
        check_count(network, least, fewest=1)
        found = search_cuts(network, some, loss=trained.loss, least=least, observe=tell)
        cuts = [score.cut for score in found]
        if isinstance(self.keep, int):
            check_count(network, self.keep, len(cuts[-1].blocks))
        trajectory = loss_trajectory(network, val.batches, cuts=cuts, loss=trained.loss)
        if isinstance(self.keep, int):
            return trajectory, cuts[-1]
        limits = self.limits(trajectory.whole)
        rows = [row for row in trajectory.rows if network.can_keep(row.cut) and limits.allow(row)]
        macs = {row.cut: count_macs(network, trained.image_shape, row.cut) for row in rows}
        return trajectory, min(rows, key=lambda row: (macs[row.cut], row.loss)).cut
