"""Running statistics that stay as they are: what is computed a second time must not be counted twice."""

from collections.abc import Iterable
from types import TracebackType

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class FrozenStatistics:
    """A context in which norms do all that they do, but leave their running statistics as they are.

    They still go through the motions, with a momentum of 0: a second computation has to save the same
    tensors as the first.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Take the norms with statistics of batches among the modules and their parts."""
        parts = (part for module in modules for part in module.modules())
        norms = (part for part in parts if isinstance(part, _NormBase))
        self.norms = [(norm, norm.num_batches_tracked) for norm in norms if norm.track_running_stats]

    def __enter__(self) -> None:
        """Stop tracking."""
        self.before = [(norm.momentum, _copy(count)) for norm, count in self.norms]
        for norm, _ in self.norms:
            norm.momentum = 0.0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Track again."""
        for (norm, count), (momentum, before) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)


def _copy(count: Tensor | None) -> Tensor | None:
    return None if count is None else count.clone()
