"""Geometry that several stages of the renderer need: ramps, rotations, the alignment's similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def ramp(values: Float32 | float, start: float, end: float) -> Float32:
    """Smooth step from 0 at `start` to 1 at `end` (either order of the two)."""
    t = np.clip((np.asarray(values, np.float32) - np.float32(start)) / np.float32(end - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def linear_rgb(srgb: tuple[float, ...] | NDArray[np.float64]) -> Float32:
    """sRGB 0..255 as linear light 0..1 (a plain 2.2 power)."""
    return np.asarray((np.asarray(srgb, np.float64) / 255) ** 2.2, np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """(3, 3) rotation: yaw about y, then pitch about x, then roll about z, in radians."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x @ about_y)


@dataclass(frozen=True)
class Similarity:
    """A scaled rotation and shift of the plane, as complex numbers: z -> factor * z + shift."""

    factor: complex
    shift: complex

    def __call__(self, x: Float32, y: Float32) -> tuple[Float32, Float32]:
        """Maps points given by their coordinates; shapes are kept."""
        a, b = np.float32(self.factor.real), np.float32(self.factor.imag)
        return a * x - b * y + np.float32(self.shift.real), b * x + a * y + np.float32(self.shift.imag)


def fit_similarity(points: NDArray[np.float64], target: NDArray[np.float64]) -> Similarity:
    """Least squares similarity (no mirroring) that takes `points` (N, 2) to `target` (N, 2)."""
    p, q = points[:, 0] + 1j * points[:, 1], target[:, 0] + 1j * target[:, 1]
    centred = p - p.mean()
    factor = complex(np.vdot(centred, q - q.mean()) / np.vdot(centred, centred).real)
    return Similarity(factor, complex(q.mean() - factor * p.mean()))
