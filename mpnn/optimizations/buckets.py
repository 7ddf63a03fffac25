"""Length buckets: which proteins share a padded batch, and what the padding costs.

For engines that pad a batch to its longest protein; the exact engine lays proteins end to end and
pads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_PADDING = 0.1


def length_buckets(
    lengths: Sequence[int], size: int, most_padding: float = MOST_PADDING
) -> list[list[int]]:
    """Groups proteins of like length.

    Proteins are taken from the longest to the shortest; a batch is closed when it is full or the
    next protein would make too much of it padding.

    Args:
        lengths: residues of each protein.
        size: proteins in one batch, at most.
        most_padding: largest share of a batch's B × L residues that may be padding.

    Returns:
        Numbers of the proteins in each batch; every protein is in exactly one.

    Raises:
        ValueError: a batch has no room, or the share is not one.
    """
    if size < 1 or not 0 <= most_padding < 1:
        raise ValueError(f"size {size} must be at least 1, most_padding {most_padding} in [0, 1)")
    batches: list[list[int]] = []
    for protein in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        if batches and len(batches[-1]) < size:
            wider = [*batches[-1], protein]
            if padding([lengths[p] for p in wider]) <= most_padding:
                batches[-1] = wider
                continue
        batches.append([protein])
    return batches


def padding(*batches: Sequence[int]) -> float:
    """Share of padding among all residues of batches, each given by the lengths of its proteins."""
    real = sum(sum(lengths) for lengths in batches)
    padded = sum(len(lengths) * max(lengths) for lengths in batches)
    return 1 - real / padded
