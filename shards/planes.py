"""What depth and thermal planes are to a model: physical units on scales that are the same for all clips.

Nothing is scaled by the least and greatest value of a frame: that would hide the very warmth and distance
that the planes are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.frames import ZERO_CELSIUS_CK, UInt16

DEPTH_UNIT_MM = 100.0
"""A depth of 1 lies this much farther than the face."""

DEPTH_LIMIT = 3.0
"""Depths are clipped to ± this many units: behind it is background."""

SKIN_C = 34.0
"""Temperature that becomes 0, and what is missing with it: about that of a face."""

THERMAL_UNIT_C = 2.0
"""A temperature of 1 is this much warmer: faces differ by a degree, and a nose cools by one or two."""

THERMAL_LIMIT = 2.5
"""Temperatures are clipped to ± this many units, 29 to 39 °C: what is colder is background."""


def face_depth(planes: Sequence[UInt16]) -> float:
    """How far the face of a window is, in mm: the median over the middle of all its depth planes.

    The middle is half the height and half the width; where it is all holes, the whole planes are taken.

    Args:
        planes: (H, W) uint16 mm each, 0 = hole; before any cut, so that a cut does not move the scale.

    Returns:
        0 if there is no depth at all.
    """
    middles = [
        p[p.shape[0] // 4 : -(-3 * p.shape[0] // 4), p.shape[1] // 4 : -(-3 * p.shape[1] // 4)]
        for p in planes
    ]
    for parts in (middles, planes):
        known = np.concatenate([np.zeros(0, np.uint16), *(part[part > 0] for part in parts)])
        if len(known):
            return float(np.median(known))
    return 0.0


def depth_units(plane: UInt16, face: float) -> NDArray[np.float32]:
    """Depth relative to the face: (mm − face) / 100, clipped to ± 3; holes are 0, as far as the face.

    Args:
        plane: (H, W) uint16 mm, 0 = hole.
        face: mm, of the window (see `face_depth`).

    Returns:
        (H, W) float32.
    """
    units = np.clip((plane.astype(np.float32) - np.float32(face)) / DEPTH_UNIT_MM, -DEPTH_LIMIT, DEPTH_LIMIT)
    return np.asarray(units * (plane > 0), np.float32)


def thermal_units(plane: UInt16) -> NDArray[np.float32]:
    """Temperature on a fixed scale: 34 °C is 0, 2 °C are 1, clipped to ± 2.5 (29 to 39 °C); missing is 0.

    Args:
        plane: (H, W) uint16 centi-kelvin, 0 = missing.

    Returns:
        (H, W) float32.
    """
    celsius = (plane.astype(np.float32) - ZERO_CELSIUS_CK) / 100
    units = np.clip((celsius - SKIN_C) / THERMAL_UNIT_C, -THERMAL_LIMIT, THERMAL_LIMIT)
    return np.asarray(units * (plane > 0), np.float32)
