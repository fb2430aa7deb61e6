"""Pictures that occur twice, found without comparing all with all.

Two 64-bit hashes that differ in at most three bits agree in at least one of four bands of 16 bits: so only
pictures that share a band are compared, and a pair counts if their thumbnails correlate as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 3
MIN_LIKENESS = 0.98
_BANDS = 4
_WINDOW = 4096
_CHUNK = 1 << 16
_SAME = ("hash", "size", "crc32")


@dataclass
class Pairs:
    """Which samples have a twin, and some of the pairs.

    Attributes:
        same_bytes, look_alike: (N, S) bool: sample n has such a twin in split s. A look-alike is one that
            differs in its bytes.
        between, within: the first pairs (i, j), i < j, between splits and within one.
        num_crowded: samples in bands so crowded that not all pairs were compared.
    """

    same_bytes: NDArray[np.bool_]
    look_alike: NDArray[np.bool_]
    between: list[tuple[int, int]] = field(default_factory=list)
    within: list[tuple[int, int]] = field(default_factory=list)
    num_crowded: int = 0


def find_pairs(
    pictures: NDArray[np.void], split: NDArray[np.int64], num_splits: int, keep: int, window: int = _WINDOW
) -> Pairs:
    """Finds the twins among all pictures.

    Args:
        pictures: (N,) PICTURE rows; those that are not `seen` are passed over.
        split: (N,) number of the split each belongs to.
        num_splits: S.
        keep: pairs between splits, and within one, that are kept.
        window: pictures of one band value that each is compared with; bounds the work by N·window.
    """
    shape = (len(pictures), num_splits)
    pairs = Pairs(np.zeros(shape, bool), np.zeros(shape, bool))

    def keep_pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        crossing = split[first] != split[second]
        for kept, chosen in ((pairs.between, crossing), (pairs.within, ~crossing)):
            room = max(0, keep - len(kept))
            low, high = np.minimum(first, second)[chosen], np.maximum(first, second)[chosen]
            new = [pair for pair in zip(low[:room].tolist(), high[:room].tolist()) if pair not in kept]
            kept += new

    seen = np.flatnonzero(pictures["seen"])
    _find_same_bytes(pictures, seen, split, pairs, keep_pairs)
    # A picture of nearly one colour looks like every other one.
    _find_look_alikes(pictures, seen[~pictures["flat"][seen]], split, pairs, keep_pairs, window)
    return pairs


KeepPairs = Callable[[NDArray[np.int64], NDArray[np.int64]], None]


def _find_same_bytes(
    pictures: NDArray[np.void],
    seen: NDArray[np.int64],
    split: NDArray[np.int64],
    pairs: Pairs,
    keep_pairs: KeepPairs,
) -> None:
    """Equal crc32, size and hash: equal bytes, but for a chance of one in 2^64 or so."""
    if not len(seen):
        return
    columns = [pictures[name][seen] for name in _SAME]
    order = np.lexsort([seen, *columns])
    ordered, column = seen[order], [values[order] for values in columns]
    starts = np.concatenate([[True], np.any([c[1:] != c[:-1] for c in column], axis=0)])
    group = np.cumsum(starts) - 1
    counts = np.zeros((group[-1] + 1, pairs.same_bytes.shape[1]), np.int64)
    np.add.at(counts, (group, split[ordered]), 1)
    others = counts[group]
    others[np.arange(len(ordered)), split[ordered]] -= 1
    pairs.same_bytes[ordered] = others > 0
    leader = ordered[np.flatnonzero(starts)][group]
    repeated = leader != ordered
    keep_pairs(leader[repeated], ordered[repeated])


def _find_look_alikes(
    pictures: NDArray[np.void],
    seen: NDArray[np.int64],
    split: NDArray[np.int64],
    pairs: Pairs,
    keep_pairs: KeepPairs,
    window: int,
) -> None:
    """Hashes within MAX_DISTANCE and thumbnails with a correlation of MIN_LIKENESS."""
    hashes = pictures["hash"][seen]
    crowded = np.zeros(len(seen), bool)
    for band in range(_BANDS):
        value = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.lexsort((seen, hashes, value))  # equal hashes lie side by side
        band_value = value[order]
        ends = np.searchsorted(band_value, band_value, side="right")
        crowded[order[ends - np.searchsorted(band_value, band_value) > window]] = True
        at = np.arange(len(order))
        for step in range(1, window + 1):
            at = at[at + step < ends[at]]
            if not len(at):
                break
            a, b = order[at], order[at + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= MAX_DISTANCE
            _confirm(pictures, seen[a[near]], seen[b[near]], split, pairs, keep_pairs)
    pairs.num_crowded = int(crowded.sum())


def _confirm(
    pictures: NDArray[np.void],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    split: NDArray[np.int64],
    pairs: Pairs,
    keep_pairs: KeepPairs,
) -> None:
    """Marks the candidates that do look alike, unless all they could say is known already."""
    known = pairs.look_alike[first, split[second]] & pairs.look_alike[second, split[first]]
    known |= np.all([pictures[name][first] == pictures[name][second] for name in _SAME], axis=0)
    first, second = first[~known], second[~known]
    for start in range(0, len(first), _CHUNK):
        a, b = first[start : start + _CHUNK], second[start : start + _CHUNK]
        alike = likeness(pictures["thumb"][a], pictures["thumb"][b]) >= MIN_LIKENESS
        a, b = a[alike], b[alike]
        pairs.look_alike[a, split[b]] = True
        pairs.look_alike[b, split[a]] = True
        keep_pairs(a, b)


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Correlation of thumbnails, row by row: (N, P), (N, P) uint8 -> (N,) in [-1, 1]."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    a -= a.mean(1, keepdims=True)
    b -= b.mean(1, keepdims=True)
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    result: NDArray[np.float32] = (a * b).sum(1) / np.maximum(norms, 1e-6)
    return result
