"""The chart: the mean head's skin unrolled about its vertical axis, in which every feature is painted once.

The mesh of all heads has one topology, so a vertex keeps its place on the chart whoever's head it is and
however it moves: brows, folds and warm or cool zones are painted here and travel with the skin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.render.constants import WRINKLES
from shards.render.geometry import Float32, ramp
from shards.render.mesh import AXIS_Z, SKIN, load_mesh
from shards.render.raster import rasterise

WIDTH, HEIGHT = 320, 256
HALF_ANGLE, TOP, BOTTOM = 1.9, 1.15, -1.7

_WRINKLE_ORDER = tuple(WRINKLES)


@dataclass(frozen=True)
class Chart:
    """Where each texel lies on the mean head, and what is painted there for everybody. All flat, row by row.

    Attributes:
        x, y, z: (T,) canonical position, dm; x is unsigned (the painting is symmetric).
        angle: (T,) unsigned angle about the vertical axis, 0 at the nose.
        wrinkles: (K, T) fold profiles in the order of `constants.WRINKLES`: 1 in a fold's floor, below 0 on
            its rim. folds: (T,) where any of them is.
        redness, sockets, beard, occlusion, nose, cheek, canthus, forehead, chin, neck, eyes, nostrils: (T,)
            zones, 0..1.
        brow_texels: (B,) numbers of the texels where brows may grow.
    """

    x: Float32
    y: Float32
    z: Float32
    angle: Float32
    wrinkles: Float32
    folds: NDArray[np.bool_]
    redness: Float32
    sockets: Float32
    beard: Float32
    occlusion: Float32
    nose: Float32
    cheek: Float32
    canthus: Float32
    forehead: Float32
    chin: Float32
    neck: Float32
    eyes: Float32
    nostrils: Float32
    brow_texels: NDArray[np.intp]


def chart_position(points: Float32) -> Float32:
    """(N, 2) column and row on the chart, fractional, of canonical points (N, 3)."""
    angle = np.arctan2(points[:, 0], points[:, 2] - AXIS_Z)
    column = (angle + HALF_ANGLE) * (WIDTH / (2 * HALF_ANGLE))
    row = (TOP - points[:, 1]) * (HEIGHT / (TOP - BOTTOM))
    return np.asarray(np.stack([column, row], axis=1), np.float32)


def texels(column: Float32, row: Float32) -> NDArray[np.intp]:
    """The nearest texel of each chart position, clamped to the chart."""
    c = np.clip(column, 0, WIDTH - 1).astype(np.intp)
    return np.clip(row, 0, HEIGHT - 1).astype(np.intp) * WIDTH + c


def _bake() -> tuple[Float32, Float32, Float32, Float32]:
    mesh = load_mesh()
    place = chart_position(mesh.mean)
    radius = np.hypot(mesh.mean[:, 0], mesh.mean[:, 2] - AXIS_Z)
    outer = (mesh.triangle_group == SKIN) & (mesh.inside[mesh.triangles].max(1) < 0.5)
    outer &= np.ptp(place[mesh.triangles, 0], axis=1) < WIDTH / 4
    corners = (place[mesh.triangles.T, 0], place[mesh.triangles.T, 1], 10 - radius[mesh.triangles.T])
    hits = rasterise(corners, np.flatnonzero(outer), WIDTH, HEIGHT)
    column, row = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    angle = (column / WIDTH * 2 - 1) * HALF_ANGLE
    y = TOP - row / HEIGHT * (TOP - BOTTOM)
    place_on_cylinder = np.stack([0.85 * np.sin(angle), y, AXIS_Z + 0.85 * np.cos(angle)], axis=-1)
    position = place_on_cylinder.reshape(-1, 3).astype(np.float32)
    position[hits.pixel] = np.einsum("kn,nkc->nc", hits.weights, mesh.mean[mesh.triangles[hits.triangle]])
    return np.abs(position[:, 0]), position[:, 1], position[:, 2], np.abs(angle.ravel()).astype(np.float32)


def stroke(
    x: Float32, y: Float32, points: Sequence[tuple[float, float]], width: float, rim: float = 0.5
) -> Float32:
    """A soft line through `points`: 1 on the line, `-rim` just below it, fading at both ends.

    Args:
        x, y: (T,) canonical position of the texels. points: the polyline. width: of the dark line, dm.
        rim: how bright the lower edge is: skin bulges beside a fold.
    """
    line = np.asarray(points, np.float32)
    length = np.r_[0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))]
    nearest = np.full(x.shape, 9.0, np.float32)
    along = np.zeros_like(nearest)
    side = np.zeros_like(nearest)
    for k in range(len(line) - 1):
        (ax, ay), (bx, by) = line[k], line[k + 1]
        dx, dy = bx - ax, by - ay
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.hypot(x - ax - t * dx, y - ay - t * dy)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        along[closer] = (length[k] + t * (length[k + 1] - length[k]))[closer] / length[-1]
        across = ((x - ax) * dy - (y - ay) * dx) * (1 if dx >= 0 else -1)
        side[closer] = np.sign(across)[closer]
    fade = ramp(along, -0.05, 0.2) * ramp(along, 1.05, 0.8)
    dark = np.exp(-((nearest / width) ** 2))
    bright = np.exp(-(((nearest - 2 * width) / width) ** 2)) * (side > 0)
    return np.asarray((dark - rim * bright) * fade, np.float32)


def blob(x: Float32, y: Float32, cx: float, cy: float, rx: float, ry: float) -> Float32:
    """A soft ellipse: 1 at its centre, 1/e at radii (rx, ry)."""
    return np.asarray(np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2), np.float32)


def _wrinkles(x: Float32, y: Float32, front: Float32) -> Float32:
    """(K, T) the folds, drawn on the right half and mirrored by the unsigned x."""
    rows = (0.37, 0.46, 0.55)
    painted: dict[str, Float32] = {
        "forehead_middle": sum(
            (stroke(x, y, [(-0.26, h), (0.0, h - 0.025), (0.26, h)], 0.020, 0.8) for h in rows),
            np.zeros_like(x),
        )
        + 0.5 * stroke(x, y, [(0.03, 0.28), (0.16, 0.30)], 0.018),
        "forehead_sides": sum(
            (stroke(x, y, [(0.20, h), (0.38, h + 0.02), (0.54, h - 0.08)], 0.020, 0.8) for h in rows),
            np.zeros_like(x),
        ),
        "glabella": 1.1 * stroke(x, y, [(0.058, 0.27), (0.046, 0.12)], 0.022, 0.4)
        + 0.8 * blob(x, y, 0.0, 0.14, 0.09, 0.07)
        + 0.5 * blob(x, y, 0.20, 0.09, 0.11, 0.05),
        "crows_feet": sum(
            (
                stroke(x, y, [(0.435, 0.0 + 0.3 * s * 0.05), (0.56, s * 0.09)], 0.014, 0.5)
                for s in (-1.1, -0.2, 0.8)
            ),
            np.zeros_like(x),
        ),
        "lower_lid": 1.2 * stroke(x, y, [(0.17, -0.10), (0.28, -0.135), (0.42, -0.095)], 0.018, 0.7)
        + 0.6 * stroke(x, y, [(0.19, 0.055), (0.28, 0.085), (0.40, 0.055)], 0.015, 0.0),
        "nasolabial": 1.5
        * stroke(x, y, [(0.13, -0.33), (0.20, -0.42), (0.27, -0.54), (0.31, -0.68)], 0.026, 0.0)
        - 0.45 * blob(x, y, 0.30, -0.40, 0.09, 0.09),
        "nose_root": sum(
            (stroke(x, y, [(0.0, h), (0.10, h + 0.05)], 0.016, 0.6) for h in (-0.02, -0.08, -0.14)),
            np.zeros_like(x),
        )
        + 0.8 * stroke(x, y, [(0.12, -0.24), (0.16, -0.36)], 0.02),
        "cheek_bulge": 0.9 * stroke(x, y, [(0.16, -0.19), (0.30, -0.24), (0.46, -0.17)], 0.022, 0.6)
        - 0.28 * blob(x, y, 0.38, -0.34, 0.14, 0.09),
        "mouth_corner": 1.1 * stroke(x, y, [(0.29, -0.56), (0.31, -0.66), (0.29, -0.75)], 0.026, 0.0),
        "marionette": 1.5 * stroke(x, y, [(0.225, -0.69), (0.275, -0.79), (0.285, -0.92)], 0.032, 0.0)
        + 0.8 * stroke(x, y, [(0.0, -0.86), (0.12, -0.875), (0.2, -0.85)], 0.03, 0.2)
        - 0.35 * blob(x, y, 0.36, -0.80, 0.06, 0.09),
        "chin": 0.7 * blob(x, y, 0.06, -0.95, 0.06, 0.03)
        + 0.6 * blob(x, y, 0.13, -1.02, 0.04, 0.03)
        + 0.6 * blob(x, y, 0.0, -1.04, 0.04, 0.03),
        "lip_lines": sum(
            (
                0.35 * stroke(x, y, [(c, -0.52), (c * 1.06, -0.60)], 0.014, 0.0)
                + 0.35 * stroke(x, y, [(c, -0.80), (c * 1.06, -0.88)], 0.014, 0.0)
                for c in (0.04, 0.11, 0.18)
            ),
            np.zeros_like(x),
        )
        + 0.8 * blob(x, y, 0.0, -0.85, 0.15, 0.04)
        - 0.3 * blob(x, y, 0.0, -0.53, 0.2, 0.05),
        "lip_press": 1.3 * blob(x, y, 0.255, -0.665, 0.04, 0.05)
        + 1.1 * stroke(x, y, [(0.0, -0.835), (0.13, -0.83), (0.21, -0.79)], 0.025, 0.5)
        - 0.4 * blob(x, y, 0.0, -0.53, 0.17, 0.03),
        "lip_shadow": stroke(x, y, [(0.0, -0.86), (0.12, -0.86), (0.19, -0.82)], 0.03, 0.2),
    }
    if tuple(painted) != _WRINKLE_ORDER:
        raise AssertionError(f"painted folds {tuple(painted)} are not those of the table {_WRINKLE_ORDER}")
    return np.stack([mask * front for mask in painted.values()]).astype(np.float32)


@lru_cache(maxsize=1)
def load_chart() -> Chart:
    """The chart, painted once per process; about 0.1 s."""
    x, y, z, angle = _bake()
    front = ramp(z, -0.45, -0.2)
    nose = blob(x, y, 0.0, -0.36, 0.12, 0.11) * ramp(z, 0.05, 0.2)
    cheek = blob(x, y, 0.38, -0.36, 0.17, 0.16) * front
    sockets = (blob(x, y, 0.22, 0.03, 0.14, 0.08) + 0.6 * blob(x, y, 0.26, -0.12, 0.13, 0.05)) * front
    under_nose = blob(x, y, 0.0, -0.475, 0.12, 0.035)
    under_lip = blob(x, y, 0.0, -0.87, 0.14, 0.04)
    neck = ramp(np.asarray(-y - 0.35 * np.maximum(z, -0.6), np.float32), 1.02, 1.25)
    wrinkles = _wrinkles(x, y, front)
    nostrils = blob(x, y, 0.065, -0.455, 0.035, 0.02) * front
    lid_line = blob(x, y, 0.29, 0.047, 0.10, 0.018) * front
    upper_lip = blob(x, y, 0.0, -0.56, 0.22, 0.06)
    beard = np.maximum.reduce(
        [
            ramp(-y, 0.78, 0.86) * ramp(z, -0.55, -0.2) * ramp(-y, 1.45, 1.25),
            upper_lip * 1.2 * ramp(x, 0.01, 0.04),
            ramp(-y, 0.2, 0.6) * ramp(angle, 0.66, 0.85) * ramp(angle, 1.35, 1.2) * ramp(-y, 1.4, 1.2),
            ramp(-y, 0.5, 0.7) * ramp(x, 0.27, 0.34) * ramp(-y, 1.4, 1.2),
        ]
    )
    return Chart(
        x=x,
        y=y,
        z=z,
        angle=angle,
        wrinkles=wrinkles,
        folds=np.asarray((np.abs(wrinkles) > 0.004).any(0)),
        redness=np.clip(0.8 * cheek + 0.7 * nose + 0.25 * blob(x, y, 0.0, -0.98, 0.12, 0.1), 0, 1),
        sockets=np.clip(sockets, 0, 1),
        beard=np.clip(beard, 0, 1) * ramp(np.hypot(x / 0.28, (y + 0.69) / 0.12), 0.9, 1.1),
        occlusion=np.clip(
            0.5 * under_nose + 0.3 * under_lip + 0.55 * neck + 0.9 * nostrils + 0.5 * lid_line, 0, 0.95
        ),
        nose=nose,
        cheek=cheek,
        canthus=blob(x, y, 0.14, -0.02, 0.08, 0.08) * front,
        forehead=ramp(y, 0.18, 0.45) * front,
        chin=blob(x, y, 0.0, -0.98, 0.28, 0.18) * front,
        neck=neck,
        eyes=blob(x, y, 0.20, 0.0, 0.16, 0.12) * front,
        brow_texels=np.flatnonzero((x < 0.55) & (np.abs(y - 0.2) < 0.2) & (z > -0.4)),
        nostrils=blob(x, y, 0.0, -0.50, 0.12, 0.05) * front,
    )
