"""Stages, and vectors of depths: the first M_s blocks of each stage, M_1, …, M_S."""

from collections.abc import Sequence

from stagecost.errors import StageCostError

Stages = Sequence[Sequence[int]]
"""The paper's indices of the blocks, grouped by stage."""


def first_blocks(stages: Stages, depth_vector: Sequence[int]) -> tuple[int, ...]:
    """Return the paper's indices of the first M_s blocks of each stage.

    Args:
        stages: of a network.
        depth_vector: M_1, …, M_S.

    Raises:
        StageCostError: there are not S numbers, or a stage has fewer blocks or would lose all.
    """
    sizes = [len(stage) for stage in stages]
    possible = len(depth_vector) == len(sizes) and all(
        1 <= keep <= size for keep, size in zip(depth_vector, sizes, strict=True)
    )
    if not possible:
        raise StageCostError(
            f"keeping {list(depth_vector)} blocks is impossible in stages of {sizes}: give "
            f"{len(sizes)} numbers, each from 1 to the size of its stage"
        )
    pairs = zip(stages, depth_vector, strict=True)
    return tuple(k for stage, keep in pairs for k in stage[:keep])
