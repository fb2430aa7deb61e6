"""`render`: one head in one frame of one scene -> colour, depth, thermal and landmarks, in register."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.render import constants as c
from shards.render.camera import CLEAN, Camera, UInt8, UInt16, take_colour, take_depth, take_thermal
from shards.render.geometry import Float32, Similarity, fit_similarity, linear_rgb, rotation
from shards.render.head import Head
from shards.render.mesh import LEFT_EYE, RIGHT_EYE, load_mesh
from shards.render.overlay import glasses_masks, glasses_points, occluder_mask
from shards.render.raster import rasterise
from shards.render.scene import Frame, Light, Scene
from shards.render.shading import albedo_of, lit, surface_of, temperature_of
from shards.template import template_points

DEFAULT_MARGIN = 0.0
_LINEAR = linear_rgb(np.arange(256, dtype=np.float64))
_PIVOT = np.array([0.0, -0.4, -0.9])
_FACE_LEVEL = 0.30
"""Linear level to which the automatic exposure brings most of the way a lit face."""


@dataclass(frozen=True)
class View:
    """The frame that faces are aligned to.

    Attributes:
        size: pixels.
        margin: room on each side of the template, as a fraction of its side (see `shards.template`).
        jitter: (5, 2) what a detector gets wrong of each landmark, in pixels of a 112 frame.
        fixed: a similarity to use instead of fitting one, to compare frames of one head pixel by pixel.
    """

    size: int = 112
    margin: float = DEFAULT_MARGIN
    jitter: NDArray[np.float64] | None = None
    fixed: Similarity | None = None


@dataclass(frozen=True)
class Picture:
    """What the three cameras saw.

    Attributes:
        color: (H, W, 3) uint8. depth: (H, W) uint16 mm, 0 = hole. thermal: (H, W) uint16 centi-kelvin, 0 =
            missing; both None if colour alone was asked for.
        landmarks: (5, 2) true landmarks, x and y in pixels as in `shards.template`: eyes, nose tip, mouth
            corners, left of the image first.
        transform: the similarity that aligned the face.
    """

    color: UInt8
    depth: UInt16 | None
    thermal: UInt16 | None
    landmarks: NDArray[np.float64]
    transform: Similarity


def _normals(posed: Float32, corners: NDArray[np.intp]) -> Float32:
    """(3, V) sums, at each vertex, of the normals of the triangles `corners` (3, F)."""
    places = np.ascontiguousarray(posed.T)
    a, b, c = (places.take(corner, axis=1) for corner in corners)
    u, v = b - a, c - a
    total = np.empty((3, len(posed)), np.float32)
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        normal = (u[i] * v[j] - u[j] * v[i]).astype(np.float64)
        total[axis] = sum(np.bincount(corner, normal, len(posed)) for corner in corners)
    return total


def _automatic_exposure(head: Head, light: Light) -> float:
    """Brings lit skin most of the way to a middling level; depends on skin and light, not on pixels."""
    direction = np.asarray(light.direction) / np.linalg.norm(light.direction)
    facing = max(0.0, 0.82 * float(direction[2]) + 0.18)
    level = head.skin_luminance * (facing * light.key[1] + light.ambient[1])
    return float((_FACE_LEVEL / max(level, 1e-3)) ** 0.65)


class _Projection:
    """Head coordinates to pixels of the aligned frame."""

    def __init__(self, frame: Frame) -> None:
        self.turn = rotation(frame.pose.yaw, frame.pose.pitch, frame.pose.roll)
        self.distance = frame.distance
        self.align = Similarity(1, 0)

    def posed(self, points: Float32) -> Float32:
        """(N, 3) in camera axes."""
        turn, shift = self.turn.astype(np.float32), (_PIVOT - self.turn @ _PIVOT).astype(np.float32)
        return np.asarray(points @ turn.T + shift, np.float32)

    def pixels(self, posed: Float32) -> tuple[Float32, Float32, Float32]:
        """x, y in pixels (y down) and distance from the camera in dm, each (N,)."""
        z = np.float32(self.distance) - posed[:, 2]
        x, y = self.align(posed[:, 0] / z, -posed[:, 1] / z)
        return x, y, z


def _landmark_points(head: Head, moved: Float32) -> Float32:
    """(5, 3): pupils, nose tip, mouth corners; the image's left is the head's right."""
    mesh = load_mesh()
    eyes = []
    for eye in (RIGHT_EYE, LEFT_EYE):
        ball = moved[: len(mesh.group)][mesh.group == eye]
        centre = (ball.min(0) + ball.max(0)) / 2
        centre[2] = ball[:, 2].max()
        eyes.append(centre)
    return np.stack([*eyes, moved[mesh.nose_tip], moved[mesh.mouth_left], moved[mesh.mouth_right]])


def _move(head: Head, frame: Frame) -> Float32:
    """(V, 3) vertices at rest plus what the units do to them."""
    mesh = load_mesh()
    weights = frame.units[mesh.column_unit] * (1 + 0.5 * mesh.column_side * frame.asymmetry[mesh.column_unit])
    active = np.flatnonzero(weights > 1e-4)
    moved = head.neutral.copy()
    if len(active):
        # einsum, not BLAS: the sum's order, and with it every byte, must not depend on threads.
        flat = np.einsum("c,cv->v", weights[active].astype(np.float32), mesh.flat_columns[active])
        moved[: len(mesh.group)] += flat.reshape(-1, 3)
    return moved


def _put_glasses(
    scene: Scene, frame: Frame, projection: _Projection, size: int, linear: Float32, celsius: Float32
) -> None:
    glasses = scene.glasses
    if glasses is None:
        return
    lines = {}
    for name, points in glasses_points(glasses).items():
        x, y, _ = projection.pixels(projection.posed(points.astype(np.float32)))
        lines[name] = np.stack([x, y], axis=1).astype(np.float64)
    rims, lenses = (mask.ravel()[:, None] for mask in glasses_masks(glasses, lines, size, frame.pose.yaw))
    linear *= 1 - lenses * np.float32(1 - glasses.passes)
    linear += rims * (np.asarray(glasses.colour, np.float32) - linear)
    cold = np.maximum(rims, lenses)[:, 0]
    celsius += cold * (np.float32(c.GLASSES_C) - celsius)


def _put_occluder(scene: Scene, size: int, linear: Float32, millimetres: Float32, celsius: Float32) -> None:
    occluder = scene.occluder
    if occluder is None:
        return
    cover = occluder_mask(occluder, size).ravel()
    linear += cover[:, None] * (0.7 * np.asarray(occluder.colour, np.float32) - linear)
    celsius += cover * (np.float32(occluder.celsius) - celsius)
    nearest = millimetres.min() - np.float32(occluder.nearer_mm)
    millimetres[cover > 0.5] = nearest


def _backdrop(scene: Scene, size: int) -> Float32:
    """(size * size, 3) linear light."""
    picture = Image.fromarray(scene.backdrop).resize((size, size), Image.Resampling.BILINEAR)
    return _LINEAR.take(np.asarray(picture)).reshape(-1, 3)


def render(
    head: Head,
    frame: Frame,
    scene: Scene,
    view: View,
    camera: Camera = CLEAN,
    rng: np.random.Generator | None = None,
    color_only: bool = False,
) -> Picture:
    """Renders one frame straight into alignment (nothing is resampled).

    Args:
        rng: for the sensors' noise; may be None with a camera that has none.
        color_only: leaves out depth and thermal.
    """
    size = view.size
    moved = _move(head, frame)
    projection = _Projection(frame)
    posed = projection.posed(moved)
    x, y, _ = projection.pixels(projection.posed(_landmark_points(head, moved)))
    points = np.stack([x, y], axis=1)
    target = template_points(size, view.margin) + 0.5  # pixels count from their corner here
    if view.jitter is not None:
        target = target + view.jitter * (size / 112)
    projection.align = view.fixed or fit_similarity(points.astype(np.float64), target)
    x, y, z = projection.pixels(posed)
    xs, ys = x.take(head.corners), y.take(head.corners)
    doubled = (xs[1] - xs[0]) * (ys[2] - ys[0]) - (xs[2] - xs[0]) * (ys[1] - ys[0])
    facing = np.flatnonzero((doubled < -1e-9) | head.two_sided)
    hits = rasterise((xs, ys, z.take(head.corners)), facing, size, size)
    surface = surface_of(head, hits, _normals(posed, head.corners.take(facing, axis=1)))
    linear = _backdrop(scene, size)
    rgb, gloss = albedo_of(surface, head, frame)
    linear[hits.pixel] = lit(rgb, gloss, surface.normal, frame.light).T
    millimetres = np.full(size * size, 100 * frame.distance + scene.wall_mm, np.float32)
    celsius = np.full(size * size, scene.room_c, np.float32)
    if not color_only:
        millimetres[hits.pixel] = 100 * hits.z
        celsius[hits.pixel] = temperature_of(surface, head, frame, scene)
    _put_glasses(scene, frame, projection, size, linear, celsius)
    _put_occluder(scene, size, linear, millimetres, celsius)
    color = take_colour(linear.reshape(size, size, 3), camera, _automatic_exposure(head, frame.light), rng)
    landmarks = np.stack(projection.align(points[:, 0], points[:, 1]), axis=1).astype(np.float64) - 0.5
    if color_only:
        return Picture(color, None, None, landmarks, projection.align)
    grazing = np.zeros(size * size, np.bool_)
    grazing[hits.pixel] = surface.normal[2] < 0.2
    frame_shape = (size, size)
    depth = take_depth(millimetres.reshape(frame_shape), camera, grazing.reshape(frame_shape), rng)
    return Picture(
        color, depth, take_thermal(celsius.reshape(frame_shape), camera, rng), landmarks, projection.align
    )
