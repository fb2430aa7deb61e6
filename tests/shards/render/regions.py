"""Where on the aligned face each action unit shows: boxes in pixels of the 112 template."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

REGIONS: Final = MappingProxyType(
    {
        "brow": ((22.0, 8.0, 90.0, 47.0),),
        "eyes": ((20.0, 37.0, 92.0, 63.0),),
        "cheeks": ((17.0, 54.0, 46.0, 98.0), (66.0, 54.0, 95.0, 98.0)),
        "nose": ((40.0, 46.0, 72.0, 82.0),),
        "mouth": ((32.0, 76.0, 80.0, 110.0),),
        "chin": ((26.0, 100.0, 86.0, 126.0),),
    }
)
"""Region -> boxes (left, top, right, bottom) in a 112 frame without margin; they may reach beyond it."""

AU_REGIONS: Final = MappingProxyType(
    {
        "AU1": ("brow",),
        "AU2": ("brow",),
        "AU4": ("brow", "eyes"),
        "AU6": ("eyes", "cheeks"),
        "AU7": ("eyes",),
        "AU10": ("nose", "mouth"),
        "AU12": ("cheeks", "mouth"),
        "AU15": ("mouth", "chin"),
        "AU23": ("mouth",),
        "AU24": ("mouth",),
        "AU25": ("mouth",),
        "AU26": ("cheeks", "mouth", "chin"),
    }
)
"""Labelled unit -> the regions it changes."""


def region_mask(unit: str, size: int, margin: float) -> NDArray[np.bool_]:
    """(size, size) True where `unit` shows in a frame of that size and margin."""
    mask = np.zeros((size, size), np.bool_)
    scale = size / 112 / (1 + 2 * margin)
    for region in AU_REGIONS[unit]:
        for box in REGIONS[region]:
            left, top, right, bottom = (max(0, round((edge - 56) * scale + size / 2)) for edge in box)
            mask[top:bottom, left:right] = True
    return mask
