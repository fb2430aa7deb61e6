"""What people wear on their heads and shoulders: geometry that is added to the mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.render.chart import BOTTOM, HEIGHT, TOP, WIDTH
from shards.render.geometry import Float32
from shards.render.mesh import AXIS_Z, CLOTHES, LOCKS

_HAIR_ROWS, _HAIR_COLUMNS = 9, 11
_COLLAR = (
    (-1.36, 0.95, 0.62),
    (-1.50, 1.45, 0.72),
    (-1.68, 1.85, 0.80),
    (-2.40, 2.05, 0.88),
    (-3.60, 2.05, 0.90),
)
"""Rings of the clothes: height, half width, half depth, dm."""


@dataclass(frozen=True)
class Part:
    """Geometry: vertices (N, 3), triangles (M, 3), group, the vertices' fixed attributes (N, 5)."""

    vertices: Float32
    triangles: NDArray[np.intp]
    group: int
    fixed: Float32


def _grid_triangles(rows: int, columns: int) -> NDArray[np.intp]:
    """(2 * (rows - 1) * (columns - 1), 3) vertex numbers of a grid, row by row."""
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    b = a + columns
    return np.concatenate([np.stack([a, b, a + 1], axis=1), np.stack([a + 1, b, b + 1], axis=1)])


def hanging_hair(rng: np.random.Generator, scalp_radius: float) -> Part:
    """A curtain round the back of the head, open at the face; seen from both sides.

    Args:
        scalp_radius: half the head's width, dm.
    """
    length, opening = rng.uniform(0.9, 1.9), rng.uniform(1.12, 1.3)
    wave, phase = rng.uniform(0, 0.05), rng.uniform(0, 6.28)
    t = np.linspace(0, 1, _HAIR_ROWS)[:, None]
    angle = opening + 0.12 * np.sin(3 * t + phase) * t + np.linspace(0, np.pi - opening, _HAIR_COLUMNS)
    radius = scalp_radius - 0.03 + 0.12 * np.sin(np.pi * t**0.6) - 0.06 * t
    radius = radius + wave * np.sin(5 * angle + 9 * t + phase)
    y = np.broadcast_to(0.35 - t * (0.35 + length), angle.shape)
    # An always hairy part of the chart: strands run down it, so one column is one strand.
    row = np.broadcast_to((TOP - (1.02 - 0.06 * t)) * HEIGHT / (TOP - BOTTOM), angle.shape)
    vertices, fixed = [], []
    for side in (-1.0, 1.0):
        x, z = side * radius * np.sin(angle), AXIS_Z + 1.02 * radius * np.cos(angle)
        vertices.append(np.stack([x, y, z], axis=-1).reshape(-1, 3))
        column = np.broadcast_to(WIDTH / 2 + side * np.linspace(20, 70, _HAIR_COLUMNS), angle.shape)
        zero = np.zeros_like(column)
        fixed.append(np.stack([column, row, zero, zero, zero], axis=-1).reshape(-1, 5))
    half = _grid_triangles(_HAIR_ROWS, _HAIR_COLUMNS)
    return Part(
        np.concatenate(vertices).astype(np.float32),
        np.concatenate([half, half + len(vertices[0])]),
        LOCKS,
        np.concatenate(fixed).astype(np.float32),
    )


def clothes() -> Part:
    """The front of a shirt: from the collar down, below anything an aligned face shows."""
    angle = np.linspace(-2.0, 2.0, 21)
    rings = []
    for height, width, depth in _COLLAR:
        fall = 0.16 * np.cos(angle) * (height > -1.9)
        rings.append(np.stack([width * np.sin(angle), height - fall, -0.93 + depth * np.cos(angle)], axis=1))
    vertices = np.concatenate(rings).astype(np.float32)
    return Part(
        vertices, _grid_triangles(len(_COLLAR), len(angle)), CLOTHES, np.zeros((len(vertices), 5), np.float32)
    )
