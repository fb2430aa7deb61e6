"""What a picture looks like in 264 bytes: a 64-bit difference hash and a 16×16 grey thumbnail.

The hash finds candidates quickly (`shards.doctor.twins`), the thumbnail confirms them: aligned faces are so
alike that among many the hash alone would pair strangers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

THUMB = 16
_FLAT_STD = 3.0


@dataclass(frozen=True)
class Look:
    """One picture's hash, thumbnail (256,) uint8, and whether it is of nearly one colour."""

    hash: int
    thumb: NDArray[np.uint8]
    flat: bool


def look_at(image: torch.Tensor) -> Look:
    """The look of one picture.

    The hash says for an 8×9 grid of mean grey whether each cell is brighter than the one to its left
    (dHash); re-encoding, rescaling and a change of brightness leave it within a few bits.

    Args:
        image: (3, H, W) uint8.
    """
    red, green, blue = image.numpy()  # numpy, on purpose: torch's threads cost more than they save here
    grey = (red.astype(np.uint16) + green + blue).astype(np.float32) / 3
    grid, thumb = _cells(grey, 8, 9), _cells(grey, THUMB, THUMB)
    bits = np.packbits(grid[:, 1:] > grid[:, :-1])
    return Look(
        hash=int(bits.view(np.uint64)[0]),
        thumb=np.rint(thumb).astype(np.uint8).ravel(),
        flat=bool(thumb.std() < _FLAT_STD),
    )


def _cells(grey: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Means over a grid of cells: (H, W) -> (rows, columns)."""
    tops, lefts = _edges(grey.shape[0], rows), _edges(grey.shape[1], columns)
    sums = np.add.reduceat(np.add.reduceat(grey, tops[:-1], axis=0), lefts[:-1], axis=1)
    areas = np.outer(np.maximum(np.diff(tops), 1), np.maximum(np.diff(lefts), 1))
    means: NDArray[np.float32] = (sums / areas).astype(np.float32)
    return means


def _edges(size: int, cells: int) -> NDArray[np.int64]:
    return np.arange(cells + 1) * size // cells
