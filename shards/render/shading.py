"""Light and heat of the visible surface: from hits to linear colour and degrees Celsius."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.render import constants as c
from shards.render.chart import load_chart, texels
from shards.render.geometry import Float32, ramp
from shards.render.head import Head
from shards.render.mesh import (
    CLOTHES,
    LASHES,
    LEFT_EYE,
    LOCKS,
    LOWER_TEETH,
    RIGHT_EYE,
    SKIN,
    TONGUE,
    UPPER_TEETH,
)
from shards.render.raster import Hits
from shards.render.scene import Frame, Light, Scene

_IRIS, _PUPIL, _LIMBUS = 0.44, 0.17, 0.06
"""Sines of the angles at the eyeball's centre."""


@dataclass(frozen=True)
class Surface:
    """What shading needs to know of each hit.

    Attributes:
        normal: (N, 3) unit, camera axes. place: (2, N) chart column and row, or direction on the eyeball.
        lips, inside, ears: (N,). group: (N,). texture: (N, CHANNELS) of skin and hair. texel: (N,).
    """

    normal: Float32
    place: Float32
    lips: Float32
    inside: Float32
    ears: Float32
    group: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    texture: Float32
    texel: np.ndarray[tuple[int, ...], np.dtype[np.intp]]


def surface_of(head: Head, hits: Hits, normals: Float32) -> Surface:
    """Interpolates vertex attributes at the hits.

    Args:
        normals: (3, V) of the posed mesh, any length.
    """
    corners = head.corners.take(hits.triangle, axis=1)
    mixed = np.empty((8, len(hits.pixel)), np.float32)
    for row, attribute in enumerate((*normals, *head.fixed)):
        mixed[row] = np.einsum("kn,kn->n", hits.weights, attribute.take(corners))
    normal = mixed[:3].T
    group = head.group[hits.triangle]
    normal = normal / (np.sqrt(np.einsum("nc,nc->n", normal, normal)) + np.float32(1e-9))[:, None]
    locks = np.flatnonzero(group == LOCKS)
    normal[locks] *= np.sign(normal[locks, 2:] + np.float32(1e-6))
    texel = texels(mixed[3], mixed[4])
    return Surface(
        normal, mixed[3:5], mixed[5], mixed[6], mixed[7], group, head.texture.take(texel, axis=0), texel
    )


def fold_weights(units: np.ndarray[tuple[int, ...], np.dtype[np.float64]], head: Head) -> Float32:
    """(K,) depth of each painted fold: what the units drive, deepened by age, and what age leaves at rest."""
    table = [[drivers.get(unit, 0.0) for unit in c.UNITS] for drivers in c.WRINKLES.values()]
    driven = np.clip(np.asarray(table) @ units, 0, 1.3)
    rest = np.array([name in ("nasolabial", "forehead_middle", "lower_lid") for name in c.WRINKLES])
    depth = c.WRINKLE_DEPTH * (driven * head.fold_gain + 0.6 * rest * head.fold_rest)
    return np.asarray(depth, np.float32)


def _eyes(rgb: Float32, gloss: Float32, surface: Surface, head: Head, frame: Frame) -> None:
    """Sclera, iris, pupil and the light's reflection; overwrites the hits on eyeballs."""
    at = np.flatnonzero((surface.group == LEFT_EYE) | (surface.group == RIGHT_EYE))
    if not len(at):
        return
    right, up = surface.place.take(at, axis=1)
    dx, dy = right - np.float32(frame.gaze[0]), up - np.float32(frame.gaze[1])
    radius = np.hypot(dx, dy)
    white = head.colours["sclera"] * (1 - 0.45 * ramp(up, 0.1, 0.5))[:, None]
    white = white * (1 - np.array([0.1, 0.25, 0.25], np.float32) * ramp(np.abs(right), 0.3, 0.8)[:, None])
    iris = head.colours["iris"] * (0.75 + 1.1 * ramp(radius, _PUPIL, _IRIS) * (dy < 0.1))[:, None]
    iris = iris * (1 - 0.55 * ramp(radius, _IRIS - _LIMBUS, _IRIS))[:, None]
    eye = white + ramp(radius, _IRIS + 0.02, _IRIS - 0.05)[:, None] * (iris - white)
    eye = eye * (1 - 0.95 * ramp(radius, _PUPIL + 0.04, _PUPIL - 0.04))[:, None]
    side = float(np.sign(frame.light.direction[0] or 1.0))
    glint = np.hypot(dx - np.float32(0.13 * side), dy - np.float32(0.14))
    rgb[at] = eye + 0.85 * ramp(glint, 0.14, 0.05)[:, None]
    gloss[at] = 0.3


def _flat_parts(rgb: Float32, gloss: Float32, surface: Surface, head: Head) -> None:
    """Teeth, tongue, lashes and clothes; overwrites their hits."""
    for group, part in (
        (UPPER_TEETH, "teeth"),
        (LOWER_TEETH, "teeth"),
        (TONGUE, "tongue"),
        (LASHES, "lashes"),
        (CLOTHES, "clothes"),
    ):
        at = np.flatnonzero(surface.group == group)
        if len(at):
            colour = np.tile(head.colours[part], (len(at), 1))
            if part == "teeth":
                colour *= (0.25 + 0.65 * surface.lips[at])[:, None]
            rgb[at] = colour
            gloss[at] = 0.2


def albedo_of(surface: Surface, head: Head, frame: Frame) -> tuple[Float32, Float32]:
    """(N, 3) linear colour and (N,) gloss of the hits."""
    rgb = surface.texture[:, :3].copy()
    gloss = surface.texture[:, 4].copy()
    hair_on_ears = np.flatnonzero(surface.ears > 0.3)
    rgb[hair_on_ears] = head.colours["ear"]
    skin = surface.group == SKIN
    fold = np.zeros(len(rgb), np.float32)
    wrinkles = load_chart().wrinkles
    for k, depth in enumerate(fold_weights(frame.units, head)):
        if depth > 0.01:
            fold -= depth * wrinkles[k].take(surface.texel)
    rgb *= np.exp((fold * skin)[:, None] * np.asarray(c.WRINKLE_TINT, np.float32))
    pale = np.float32(1 - 0.5 * max(frame.units[c.UNITS.index("AU23")], frame.units[c.UNITS.index("AU24")]))
    lips = np.flatnonzero((surface.lips > 0.02) & skin)
    rgb[lips] += (pale * surface.lips[lips])[:, None] * (head.colours["lips"] - rgb[lips])
    gloss[lips] += 0.6 * surface.lips[lips]
    cavity = np.flatnonzero((surface.inside > 0.02) & skin)
    covered = ramp(surface.inside[cavity], 0.25, 0.8)
    rgb[cavity] += covered[:, None] * (head.colours["cavity"] - rgb[cavity])
    _flat_parts(rgb, gloss, surface, head)
    _eyes(rgb, gloss, surface, head, frame)
    return rgb, gloss


def lit(rgb: Float32, gloss: Float32, normal: Float32, light: Light) -> Float32:
    """(N, 3) linear light towards the camera: soft diffuse, sky above and floor below, a highlight."""
    direction = np.asarray(light.direction, np.float64)
    direction = direction / np.linalg.norm(direction)
    half = direction + np.array([0, 0, 1])
    half = half / np.linalg.norm(half)
    toward = normal @ np.stack([direction, half], axis=1).astype(np.float32)
    # Light wraps a little round edges, red more than blue, as it does under skin.
    key = np.asarray(light.key, np.float32)
    diffuse = np.maximum(0.82 * toward[:, 0] + 0.18, 0)
    red = np.maximum(0.72 * toward[:, 0] + 0.28, 0)
    sky = 0.75 + 0.25 * normal[:, 1]
    out = np.empty_like(rgb)
    for k in range(3):
        received = (red if k == 0 else diffuse) * key[k] + sky * np.float32(light.ambient[k])
        out[:, k] = rgb[:, k] * received
    shine = np.maximum(toward[:, 1], 0)
    shine = shine * shine
    shine = shine * shine
    shine = shine * shine
    shine = shine * shine * shine
    out += (0.05 * shine * gloss)[:, None] * key
    return out


def temperature_of(surface: Surface, head: Head, frame: Frame, scene: Scene) -> Float32:
    """(N,) degrees Celsius that the camera reads: skin, breath, the room mirrored at grazing angles."""
    chart = load_chart()
    celsius = surface.texture[:, 3].copy()
    nose, eyes = chart.nose[surface.texel], chart.eyes[surface.texel]
    celsius += np.float32(c.AROUSED_NOSE_C * frame.autonomic) * nose
    celsius += np.float32(c.AROUSED_EYES_C * frame.autonomic) * eyes
    celsius += np.float32(c.BREATH_C * frame.breath) * chart.nostrils[surface.texel]
    celsius += np.float32(c.EAR_C) * surface.ears
    celsius += ramp(surface.inside, 0.25, 0.8) * (c.MOUTH_C - celsius)
    eyeball = (surface.group == LEFT_EYE) | (surface.group == RIGHT_EYE)
    celsius[eyeball] = head.skin_c + c.EYE_C + 0.5 * c.AROUSED_EYES_C * frame.autonomic
    celsius[(surface.group == UPPER_TEETH) | (surface.group == LOWER_TEETH) | (surface.group == TONGUE)] = (
        c.MOUTH_C - 0.8
    )
    celsius[surface.group == LOCKS] = c.HAIR_C - 1.0
    celsius[surface.group == CLOTHES] = c.CLOTHES_C
    grazing = 1 - np.clip(surface.normal[:, 2], 0, 1)
    emissivity = c.EMISSIVITY - c.GRAZING_EMISSIVITY_LOSS * grazing**3
    return np.asarray(scene.room_c + emissivity * (celsius - scene.room_c), np.float32)
