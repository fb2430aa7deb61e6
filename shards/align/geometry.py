"""Five points, a similarity, and the cut that follows from it.

All coordinates are (x, y) in pixels with the centre of the first pixel at (0, 0), as in landmark files.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.template import TEMPLATE, TEMPLATE_NAME, TEMPLATE_SIDE, template_points

Points = NDArray[np.float64]
Picture = NDArray[np.uint8]

__all__ = [
    "TEMPLATE",
    "TEMPLATE_NAME",
    "TEMPLATE_SIDE",
    "apply_affine",
    "relative_residual",
    "scale_of",
    "similarity_from_points",
    "template_points",
    "warp",
    "warp_plane",
]

_SUPPORT = 3  # pixels of border that bicubic interpolation looks at, plus one


def similarity_from_points(source: Any, target: Any) -> Points:
    """The rotation, scale and shift that map `source` onto `target` with the least squared error.

    In the plane and without reflection, Umeyama's solution (1991, "Least-squares estimation of transformation
    parameters between two point patterns") is one complex division.

    Args:
        source, target: (N, 2) points, N >= 2.

    Returns:
        (2, 3) float64, [[a, -b, tx], [b, a, ty]].

    Raises:
        ValueError: other shapes, values that are not finite, or source points that coincide.
    """
    points, wanted = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if points.shape != wanted.shape or points.ndim != 2 or points.shape[0] < 2 or points.shape[1] != 2:
        raise ValueError(f"need two arrays (N, 2) with N >= 2, got {points.shape} and {wanted.shape}")
    if not (np.isfinite(points).all() and np.isfinite(wanted).all()):
        raise ValueError("points must be finite")
    z, w = points[:, 0] + 1j * points[:, 1], wanted[:, 0] + 1j * wanted[:, 1]
    z_mean, w_mean = z.mean(), w.mean()
    spread = float((abs(z - z_mean) ** 2).sum())
    if spread < 1e-9:
        raise ValueError("the points coincide")
    factor = ((z - z_mean).conj() * (w - w_mean)).sum() / spread
    shift = w_mean - factor * z_mean
    return np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]], np.float64
    )


def apply_affine(matrix: Points, points: Any) -> Points:
    """(2, 3) matrix on (N, 2) points -> (N, 2) float64."""
    return np.asarray(np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2])


def scale_of(matrix: Points) -> float:
    """Target pixels per source pixel of a similarity."""
    return math.hypot(matrix[0, 0], matrix[1, 0])


def relative_residual(matrix: Points, source: Any, target: Any) -> float:
    """What the similarity leaves unexplained of the target's spread: 0 a perfect fit, 1 none at all."""
    wanted = np.asarray(target, np.float64)
    error = apply_affine(matrix, source) - wanted
    return float(np.sqrt((error**2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()))


def warp(picture: Picture, matrix: Points, size: int) -> Picture:
    """Cuts a square out of a picture along a similarity; nothing aliases, the border is continued outwards.

    The part that is needed is first shrunk with an antialiasing filter to the target's scale, then turned and
    shifted by bicubic interpolation. Repeated edge pixels, not black, fill what lies outside the picture: a
    hard black corner is an edge that a model could learn from.

    Args:
        picture: (H, W, 3) uint8.
        matrix: (2, 3), picture -> square; its determinant must not be 0.
        size: side of the square, pixels.

    Returns:
        (size, size, 3) uint8.
    """
    height, width = picture.shape[:2]
    # Pillow measures from the corner of the first pixel: shift both sides by half a pixel, then invert.
    forward = np.vstack([matrix, (0, 0, 1)]).astype(np.float64)
    forward[:2, 2] += 0.5 - forward[:2, :2] @ (0.5, 0.5)
    backward: Points = np.linalg.inv(forward).astype(np.float64)
    shrink = max(1.0, 1.0 / scale_of(matrix))
    corners = apply_affine(backward[:2], [(0, 0), (size, 0), (0, size), (size, size)])
    reach = _SUPPORT * shrink
    left, top = np.floor(corners.min(0) - reach).astype(int)
    right, bottom = np.ceil(corners.max(0) + reach).astype(int)
    inner = (
        min(max(left, 0), width - 1),
        min(max(top, 0), height - 1),
        max(min(right, width), 1),
        max(min(bottom, height), 1),
    )
    inner = (inner[0], inner[1], max(inner[2], inner[0] + 1), max(inner[3], inner[1] + 1))
    part = picture[inner[1] : inner[3], inner[0] : inner[2]]
    # Bicubic interpolation by itself reaches far enough for a slight shrinking.
    factors = (1.0, 1.0)
    if shrink > 1.1:
        reduced = tuple(max(1, round(side / shrink)) for side in (part.shape[1], part.shape[0]))
        factors = (part.shape[1] / reduced[0], part.shape[0] / reduced[1])
        image = Image.fromarray(part).resize(
            (reduced[0], reduced[1]), Image.Resampling.BICUBIC, reducing_gap=3.0
        )
        part = np.asarray(image)
    before = (max(0, inner[0] - left), max(0, inner[1] - top))
    after = (max(0, right - inner[2]), max(0, bottom - inner[3]))
    pads = [(math.ceil(before[k] / factors[k]), math.ceil(after[k] / factors[k])) for k in (0, 1)]
    if any(max(pad) for pad in pads):
        part = np.pad(part, (pads[1], pads[0], (0, 0)), mode="edge")
    # Square -> picture -> part, all from the corner.
    to_part = np.array(
        [
            [1 / factors[0], 0, pads[0][0] - inner[0] / factors[0]],
            [0, 1 / factors[1], pads[1][0] - inner[1] / factors[1]],
            [0, 0, 1],
        ]
    )
    coefficients = tuple((to_part @ backward)[:2].ravel().tolist())
    turned = Image.fromarray(part).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return np.asarray(turned)


def warp_plane(plane: NDArray[np.uint16], matrix: Points, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Cuts a picture of measured values along an affine map: each pixel is the nearest one's very value.

    Nothing is blended, so that a hole stays a hole and a unit a unit, and nothing is continued: what lies
    outside the plane is 0, which means missing.

    Args:
        plane: (H, W) uint16.
        matrix: (2, 3) affine, plane -> cut; its determinant must not be 0.
        shape: (height, width) of the cut.

    Returns:
        (height, width) uint16.
    """
    backward = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]).astype(np.float64))
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    x, y = (row[0] * columns + row[1] * rows + row[2] for row in backward[:2])
    # Rounded first: a pixel that falls between two must not depend on the last bit of a sum.
    x, y = (np.floor(np.round(values, 6) + 0.5).astype(np.int64) for values in (x, y))
    inside = (x >= 0) & (x < plane.shape[1]) & (y >= 0) & (y < plane.shape[0])
    cut = plane[np.where(inside, y, 0), np.where(inside, x, 0)] * inside
    return np.asarray(cut, np.uint16)
