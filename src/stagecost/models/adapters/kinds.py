"""What functions do to a state, and which term of a sum is therefore its skip."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from stagecost.models.adapters.tracing import words


class Kind(IntEnum):
    """What a function does to a state, from simple to rich."""

    TRIVIAL = 0
    AFFINE = 1
    POOL = 2
    NORM = 3
    NONLINEAR = 4


_NAMES = {
    Kind.TRIVIAL: """view reshape permute transpose flatten contiguous unsqueeze squeeze clone to type_as
        float movedim unflatten swapaxes view_as t expand_as type expand""",
    Kind.AFFINE: """conv1d conv2d conv3d conv_transpose2d linear addmm batch_norm avg_pool1d avg_pool2d
        adaptive_avg_pool1d adaptive_avg_pool2d interpolate upsample pad cat concat stack __getitem__
        __setitem__ chunk split split_with_sizes tensor_split narrow select index_select gather unbind
        roll flip rot90 mean sum neg dropout dropout2d zeros_like ones_like empty_like new_empty
        new_zeros repeat unfold fold pixel_shuffle pixel_unshuffle add add_ __add__ __radd__ __iadd__
        sub sub_ rsub""",
    Kind.POOL: "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d amax max",
    Kind.NORM: """layer_norm group_norm rms_norm instance_norm normalize norm var var_mean std std_mean
        rsqrt sqrt pow clamp maximum""",
}
KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# Affine while only one factor depends on the state:
PRODUCTS = words(
    """mul mul_ multiply matmul bmm einsum div div_ true_divide addcmul __matmul__ __rmatmul__ __rmul__
    __rdiv__"""
)
SUMS = words("add add_ __add__ __radd__ __iadd__")
WEIGHTED = words("conv1d conv2d conv3d conv_transpose2d linear addmm matmul")
CLIPS = words("relu relu_ relu6 hardtanh hardtanh_")
JOINS = words("cat concat")


@dataclass(frozen=True)
class Term:
    """A term of a sum: its kind, and whether parameters take part in it."""

    kind: Kind
    weighted: bool


def choose_skips(terms: Sequence[Term]) -> list[int]:
    """Return which terms of a sum are skips; none where that cannot be said."""
    lowest = min(term.kind for term in terms)
    chosen = [i for i, term in enumerate(terms) if term.kind == lowest]
    if lowest == Kind.NONLINEAR:
        chosen = [i for i, term in enumerate(terms) if not term.weighted]
    branches = [term for i, term in enumerate(terms) if i not in chosen]
    least = {Kind.TRIVIAL: Kind.TRIVIAL, Kind.AFFINE: Kind.NORM}.get(lowest, Kind.NONLINEAR)
    rich = all(term.kind >= least and (term.weighted or lowest == Kind.TRIVIAL) for term in branches)
    return chosen if branches and rich else []
