"""The network as a row of blocks, an SVG written by hand."""

from collections.abc import Collection, Sequence
from xml.sax.saxutils import quoteattr

from stagecost.report.svg import colour_variable


def block_strip(
    num_blocks: int,
    kept_blocks: Collection[int],
    *,
    stage_starts: Sequence[int] = (0,),
    summary: str = "The blocks from the input to the output",
) -> str:
    """Draw the network as a row of blocks from input to output, the kept ones coloured."""
    width, height, stage_gap = 1000.0, 26, 10.0
    starts = [start for start in sorted(set(stage_starts)) if 0 < start < num_blocks]
    step = (width - stage_gap * len(starts)) / max(num_blocks, 1)
    # Gaps between single blocks vanish before they would eat the blocks themselves.
    gap = min(3.0, 0.2 * step) if num_blocks <= 200 else 0.0
    kept = set(kept_blocks)
    shapes = []
    for first, last in _runs(num_blocks, kept, starts, single=gap > 0):
        left = first * step + stage_gap * sum(start <= first for start in starts)
        size = (last - first + 1) * step - gap
        colour = "accent" if first in kept else "faded"
        radius = min(3.0, size / 4)
        shapes.append(
            f'<rect x="{left:.2f}" y="0" width="{size:.2f}" height="{height}" rx="{radius:.2f}" '
            f'style="fill: {colour_variable(colour)}"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" viewBox="0 0 {width:g} {height}" '
        f'preserveAspectRatio="none" role="img" aria-label={quoteattr(summary)}>'
        f"{''.join(shapes)}</svg>"
    )


def _runs(
    num_blocks: int, kept: Collection[int], starts: Sequence[int], *, single: bool
) -> list[tuple[int, int]]:
    # Neighbours of one colour and one stage are drawn as one shape, unless gaps part the blocks.
    runs: list[tuple[int, int]] = []
    for block in range(num_blocks):
        same = block > 0 and block not in starts and (block in kept) == (block - 1 in kept)
        if same and not single:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
