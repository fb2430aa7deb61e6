"""Triangles to pixels: a z-buffer without loops, in numpy.

Each triangle is cut into rows of pixels and each row into the exact span its edges leave, all triangles at
once; the nearest hit of each pixel is found by one radix sort on 16-bit depths and one scatter, in which the
last write (the nearest) wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.render.geometry import Float32

_SLACK = np.float32(-1e-4)
"""Of the inside test, so that rounding leaves no cracks between neighbours."""
_FLAT, _FAR = np.float32(1e-12), np.float32(1e9)
"""A slope that stands for none, and a column beyond every frame."""


@dataclass(frozen=True)
class Hits:
    """The nearest surface at each pixel that shows one, in order of pixel.

    Attributes:
        pixel: (N,) y * width + x. triangle: (N,) column of `triangles`.
        weights: (3, N) barycentric weights of its corners. z: (N,) distance from the camera.
    """

    pixel: NDArray[np.intp]
    triangle: NDArray[np.intp]
    weights: Float32
    z: Float32


def _counting(counts: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each i, counts[i] times: i itself, and 0, 1, 2, …."""
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    ends = np.cumsum(counts, dtype=np.int32)
    return owner, np.arange(len(owner), dtype=np.int32) - (ends - counts).take(owner)


def rasterise(
    corners: tuple[Float32, Float32, Float32],
    triangles: NDArray[np.intp],
    width: int,
    height: int,
) -> Hits:
    """The visible surface.

    Args:
        corners: x, y in pixels (y down; pixel (0, 0) spans [0, 1)) and distance from the camera, each (3, F).
        triangles: (F,) the columns of `corners` to draw (back faces are the caller's to leave out).
        width, height: of the frame, pixels.
    """
    xs, ys, zs = (values.take(triangles, axis=1) for values in corners)
    left = np.maximum(np.ceil(xs.min(0) - np.float32(0.5)), 0).astype(np.int32)
    right = np.minimum(np.floor(xs.max(0) - np.float32(0.5)), width - 1).astype(np.int32)
    top = np.maximum(np.ceil(ys.min(0) - np.float32(0.5)), 0).astype(np.int32)
    bottom = np.minimum(np.floor(ys.max(0) - np.float32(0.5)), height - 1).astype(np.int32)
    some = np.flatnonzero((right >= left) & (bottom >= top))
    left, right, top, bottom = (edge.take(some) for edge in (left, right, top, bottom))
    x0, x1, x2 = xs.take(some, axis=1)
    y0, y1, y2 = ys.take(some, axis=1)
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    inverse = 1 / np.where(np.abs(area) < 1e-9, np.float32(1e-9), area)
    # Weights of corners 1 and 2 as value at the box's first pixel, slope along x, slope along y.
    slopes = np.stack([y2 - y0, y0 - y1, x0 - x2, x1 - x0]) * inverse
    across = left + np.float32(0.5) - x0
    down = top + np.float32(0.5) - y0
    start = slopes[:2] * across + slopes[2:] * down
    # One entry for each row of each triangle.
    owner, row = _counting(bottom - top + 1)
    w1, w2 = start.take(owner, axis=1) + slopes[2:].take(owner, axis=1) * row
    d1, d2 = slopes[:2].take(owner, axis=1)
    first = np.zeros(len(owner), np.float32)
    last = (right - left).astype(np.float32).take(owner)
    for weight, slope in ((w1, d1), (w2, d2), (1 - w1 - w2, -d1 - d2)):
        # A rising weight bounds the span from the left, a falling one from the right.
        slope = slope + _FLAT
        crossing = (_SLACK - weight) / slope
        other_side = np.copysign(_FAR, slope)
        np.maximum(first, np.minimum(crossing, other_side), out=first)
        np.minimum(last, np.maximum(crossing, other_side), out=last)
    first = np.ceil(first)
    span = np.maximum(np.floor(last) - first + 1, 0).astype(np.int32)
    filled = np.flatnonzero(span)
    owner, first, span = owner.take(filled), first.take(filled), span.take(filled)
    corner = (top * np.int32(width) + left).take(owner)
    start_pixel = corner + row.take(filled) * np.int32(width) + first.astype(np.int32)
    w1, w2, d1, d2 = (values.take(filled) for values in (w1, w2, d1, d2))
    w1 += d1 * first
    w2 += d2 * first
    z0, z1, z2 = zs.take(some.take(owner), axis=1)
    z, dz = z0 + w1 * (z1 - z0) + w2 * (z2 - z0), d1 * (z1 - z0) + d2 * (z2 - z0)
    # One entry for each pixel of each row.
    entry, column = _counting(span)
    pixel = start_pixel.take(entry) + column
    depth = z.take(entry) + dz.take(entry) * column
    far, near = depth.max(initial=1.0), depth.min(initial=0.0)
    order = np.argsort(
        ((far - depth) * np.float32(65535 / (far - near + 1e-6))).astype(np.uint16), kind="stable"
    )
    nearest = np.full(width * height, -1, np.int32)
    nearest[pixel.take(order)] = order
    shown = np.flatnonzero(nearest >= 0)
    winner = nearest.take(shown)
    entry, column = entry.take(winner), column.take(winner)
    weights = np.empty((3, len(shown)), np.float32)
    weights[1] = w1.take(entry) + d1.take(entry) * column
    weights[2] = w2.take(entry) + d2.take(entry) * column
    weights[0] = 1 - weights[1] - weights[2]
    return Hits(shown, triangles.take(some.take(owner.take(entry))), weights, depth.take(winner))
