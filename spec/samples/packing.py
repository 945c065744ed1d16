"""Rows of different lengths into bins of one length, with hardly any padding.

Best fit, longest first: each row goes where it leaves the least room. On lengths of conversations that is within 2% of
full bins (measured in the tests), in one pass: bins are found by the room they have left, in a bit set.
"""

import numpy as np

from spec.errors import BadInput


def pack(lengths: np.ndarray, capacity: int, *, seed: int = 0) -> list[list[int]]:
    """Bins of row indices, each row in exactly one, each bin's lengths adding up to at most `capacity` tokens.

    `seed` decides which of equally long rows come together. Raises `BadInput` for a row longer than `capacity`.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > capacity:
        raise BadInput(f"a row of {lengths.max()} tokens does not fit {capacity}; prepare with --max-length {capacity}")
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room left -> bins
    rooms = 0  # bit r: some bin has room for r tokens
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # the least that is enough
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(row)
        if left := room - length:
            with_room[left].append(chosen)
            rooms |= 1 << left
    return bins


def epoch_order(bins: int, *, seed: int, epoch: int) -> np.ndarray:
    """`[bins]` int64: the order in which an epoch visits its bins; the same on every rank and after a restart."""
    return np.random.default_rng((seed, epoch)).permutation(bins)
