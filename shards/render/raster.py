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
    return owner, np.arange(len(owner), dtype=np.int32) - (ends - counts)[owner]


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
    left, right, top, bottom = left[some], right[some], top[some], bottom[some]
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
    last = (right - left)[owner].astype(np.float32)
    for weight, slope in ((w1, d1), (w2, d2), (1 - w1 - w2, -d1 - d2)):
        crossing = (_SLACK - weight) / np.where(slope == 0, np.float32(1e-12), slope)
        rising = slope >= 0
        first = np.where(rising, np.maximum(first, crossing), first)
        last = np.where(rising, last, np.minimum(last, crossing))
    first = np.ceil(first)
    span = np.maximum(np.floor(last) - first + 1, 0).astype(np.int32)
    filled = np.flatnonzero(span)
    owner, first = owner[filled], first[filled]
    start_pixel = (top[owner] + row[filled]) * np.int32(width) + left[owner] + first.astype(np.int32)
    w1, w2, d1, d2 = w1[filled], w2[filled], d1[filled], d2[filled]
    w1 += d1 * first
    w2 += d2 * first
    z0, z1, z2 = zs.take(some[owner], axis=1)
    z, dz = z0 + w1 * (z1 - z0) + w2 * (z2 - z0), d1 * (z1 - z0) + d2 * (z2 - z0)
    # One entry for each pixel of each row.
    entry, column = _counting(span[filled])
    pixel = start_pixel[entry] + column
    depth = z[entry] + dz[entry] * column
    far, near = depth.max(initial=1.0), depth.min(initial=0.0)
    order = np.argsort(
        ((far - depth) * np.float32(65535 / (far - near + 1e-6))).astype(np.uint16), kind="stable"
    )
    nearest = np.full(width * height, -1, np.int32)
    nearest[pixel[order]] = order
    shown = np.flatnonzero(nearest >= 0)
    winner = nearest[shown]
    entry, column = entry[winner], column[winner]
    w1, w2 = w1[entry] + d1[entry] * column, w2[entry] + d2[entry] * column
    return Hits(shown, triangles[some[owner[entry]]], np.stack([1 - w1 - w2, w1, w2]), depth[winner])
