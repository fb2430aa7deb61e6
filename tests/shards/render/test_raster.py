"""The z-buffer against a slow loop over pixels and triangles."""

from __future__ import annotations

import numpy as np

from shards.render.raster import rasterise


def slow_raster(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest triangle (or -1) and depth of each pixel; corners (3 axes, 3, F), float64."""
    owner, depth = np.full((size, size), -1), np.full((size, size), np.inf)
    for triangle in range(corners.shape[2]):
        x, y, z = corners[:, :, triangle]
        area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
        for row in range(size):
            for column in range(size):
                px, py = column + 0.5, row + 0.5
                w1 = ((px - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (py - y[0])) / area
                w2 = ((x[1] - x[0]) * (py - y[0]) - (px - x[0]) * (y[1] - y[0])) / area
                if min(w1, w2, 1 - w1 - w2) >= 0:
                    at = (1 - w1 - w2) * z[0] + w1 * z[1] + w2 * z[2]
                    if at < depth[row, column]:
                        owner[row, column], depth[row, column] = triangle, at
    return owner, depth


def test_agrees_with_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    size = 16
    centre = rng.uniform(-2, size + 2, (2, 1, 40))
    plane = centre + rng.uniform(-5, 5, (2, 3, 40))
    corners = np.concatenate([plane, rng.uniform(3, 9, (1, 3, 40))]).astype(np.float32)
    hits = rasterise((corners[0], corners[1], corners[2]), np.arange(40), size, size)
    owner, depth = slow_raster(corners.astype(np.float64), size)
    found = np.full(size * size, -1)
    found[hits.pixel] = hits.triangle
    assert (found == owner.ravel()).mean() > 0.99
    same = found[hits.pixel] == owner.ravel()[hits.pixel]
    np.testing.assert_allclose(hits.z[same], depth.ravel()[hits.pixel][same], atol=1e-3)
    np.testing.assert_allclose(hits.weights.sum(0), 1, atol=1e-5)


def test_neighbouring_triangles_leave_no_crack() -> None:
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.linspace(-1, 33, 30), np.linspace(-1, 33, 30)), axis=-1)
    grid[1:-1, 1:-1] += rng.uniform(-0.4, 0.4, (28, 28, 2))
    points = grid.reshape(-1, 2)
    first = (np.arange(29)[:, None] * 30 + np.arange(29)).ravel()
    triangles = np.concatenate([[first, first + 30, first + 1], [first + 1, first + 30, first + 31]], axis=1)
    x, y = (points[triangles, axis].astype(np.float32) for axis in (0, 1))
    hits = rasterise((x, y, np.full_like(x, 5)), np.arange(x.shape[1]), 32, 32)
    assert len(hits.pixel) == 32 * 32


def test_nothing_in_sight_gives_no_hits() -> None:
    away = np.full((3, 2), 100, np.float32)
    assert len(rasterise((away, away, away), np.arange(2), 8, 8).pixel) == 0
