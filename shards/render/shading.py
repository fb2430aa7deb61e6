"""Light and heat of the visible surface: from hits to linear colour and degrees Celsius."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

_FLAT_PARTS = {
    UPPER_TEETH: "teeth",
    LOWER_TEETH: "teeth",
    TONGUE: "tongue",
    LASHES: "lashes",
    CLOTHES: "clothes",
}


@dataclass(frozen=True)
class Surface:
    """What shading needs to know of each hit.

    Attributes:
        normal: (3, N) unit, camera axes. place: (2, N) chart column and row, or direction on the eyeball.
        lips, inside, ears: (N,). group: (N,). texture: (CHANNELS, N) of skin and hair. texel: (N,).
    """

    normal: Float32
    place: Float32
    lips: Float32
    inside: Float32
    ears: Float32
    group: NDArray[np.uint8]
    texture: Float32
    texel: NDArray[np.intp]


def surface_of(head: Head, hits: Hits, normals: Float32) -> Surface:
    """Interpolates vertex attributes at the hits.

    Args:
        normals: (3, V) of the posed mesh, any length.
    """
    first, second, third = head.corners.take(hits.triangle, axis=1)
    mixed = np.empty((8, len(hits.pixel)), np.float32)
    for values, attribute in zip(mixed, (*normals, *head.fixed)):
        np.multiply(hits.weights[0], attribute.take(first), out=values)
        values += hits.weights[1] * attribute.take(second)
        values += hits.weights[2] * attribute.take(third)
    normal = mixed[:3]
    normal /= np.sqrt(np.einsum("cn,cn->n", normal, normal)) + np.float32(1e-9)
    group = head.group[hits.triangle]
    locks = np.flatnonzero(group == LOCKS)
    normal[:, locks] *= np.sign(normal[2, locks] + np.float32(1e-6))
    texel = texels(mixed[3], mixed[4])
    texture = head.texture.take(texel, axis=1)
    return Surface(normal, mixed[3:5], mixed[5], mixed[6], mixed[7], group, texture, texel)


def fold_weights(units: NDArray[np.float64], head: Head) -> Float32:
    """(K,) depth of each painted fold: what the units drive on this face, and what it has at rest."""
    table = [[drivers.get(unit, 0.0) for unit in c.UNITS] for drivers in c.WRINKLES.values()]
    driven = np.clip(np.asarray(table) @ units, 0, 1.3)
    return np.asarray(c.WRINKLE_DEPTH * (driven * head.fold_gain + head.fold_rest), np.float32)


def _mix(rgb: Float32, at: NDArray[np.intp], cover: Float32, colour: Float32) -> None:
    """Paints `colour` (3,) over the hits `at` of `rgb` (3, N) as far as `cover` goes, in place."""
    for plane, value in zip(rgb, colour):
        plane[at] += cover * (value - plane[at])


def _eyes(rgb: Float32, gloss: Float32, surface: Surface, head: Head, frame: Frame) -> None:
    """Sclera, iris, pupil and the light's reflection; overwrites the hits on eyeballs."""
    at = np.flatnonzero((surface.group == LEFT_EYE) | (surface.group == RIGHT_EYE))
    if not len(at):
        return
    right, up = surface.place.take(at, axis=1)
    dx, dy = right - np.float32(frame.gaze[0]), up - np.float32(frame.gaze[1])
    radius = np.hypot(dx, dy)
    lid_shadow = 1 - 0.45 * ramp(up, 0.1, 0.5)
    veins = np.outer([0.1, 0.25, 0.25], ramp(np.abs(right), 0.3, 0.8))
    white = head.colours["sclera"][:, None] * lid_shadow * (1 - veins)
    brightness = 0.75 + 1.1 * ramp(radius, _PUPIL, _IRIS) * (dy < 0.1)
    iris = head.colours["iris"][:, None] * brightness * (1 - 0.55 * ramp(radius, _IRIS - _LIMBUS, _IRIS))
    eye = white + ramp(radius, _IRIS + 0.02, _IRIS - 0.05) * (iris - white)
    eye = eye * (1 - 0.95 * ramp(radius, _PUPIL + 0.04, _PUPIL - 0.04))
    side = float(np.sign(frame.light.direction[0] or 1.0))
    glint = np.hypot(dx - np.float32(0.13 * side), dy - np.float32(0.14))
    rgb[:, at] = eye + 0.85 * ramp(glint, 0.14, 0.05)
    gloss[at] = 0.3


def _flat_parts(rgb: Float32, gloss: Float32, surface: Surface, head: Head) -> None:
    """Teeth, tongue, lashes and clothes; overwrites their hits."""
    for group, part in _FLAT_PARTS.items():
        at = np.flatnonzero(surface.group == group)
        if len(at):
            behind, before = c.TEETH_SHADE if part == "teeth" else (1.0, 0.0)
            shade = np.float32(behind) + np.float32(before) * surface.lips[at]
            rgb[:, at] = head.colours[part][:, None] * shade
            gloss[at] = 0.2


def albedo_of(surface: Surface, head: Head, frame: Frame) -> tuple[Float32, Float32]:
    """(3, N) linear colour and (N,) gloss of the hits."""
    rgb, gloss = surface.texture[:3].copy(), surface.texture[4].copy()
    ears = np.flatnonzero(surface.ears > 0.3)
    rgb[:, ears] = head.colours["ear"][:, None]
    skin = surface.group == SKIN
    chart = load_chart()
    folded = np.flatnonzero(skin & chart.folds.take(surface.texel))
    texel = surface.texel.take(folded)
    fold = np.zeros(len(folded), np.float32)
    for k, depth in enumerate(fold_weights(frame.units, head)):
        if depth > 0.01:
            fold -= depth * chart.wrinkles[k].take(texel)
    for plane, tint in zip(rgb, c.WRINKLE_TINT):
        plane[folded] *= np.exp(np.float32(tint) * fold)
    pale = np.float32(1 - 0.5 * max(frame.units[c.UNITS.index("AU23")], frame.units[c.UNITS.index("AU24")]))
    lips = np.flatnonzero((surface.lips > 0.02) & skin)
    _mix(rgb, lips, pale * surface.lips[lips], head.colours["lips"])
    gloss[lips] += 0.6 * surface.lips[lips]
    cavity = np.flatnonzero((surface.inside > 0.02) & skin)
    _mix(rgb, cavity, ramp(surface.inside[cavity], 0.25, 0.8), head.colours["cavity"])
    _flat_parts(rgb, gloss, surface, head)
    _eyes(rgb, gloss, surface, head, frame)
    return rgb, gloss


def lit(rgb: Float32, gloss: Float32, normal: Float32, light: Light) -> Float32:
    """(3, N) linear light towards the camera: soft diffuse, sky above and floor below, a highlight.

    Args:
        rgb, normal: (3, N) colour and unit normals. gloss: (N,).
    """
    direction = np.asarray(light.direction, np.float64)
    direction = direction / np.linalg.norm(direction)
    half = direction + np.array([0, 0, 1])
    half = half / np.linalg.norm(half)
    toward, shine = (
        np.float32(axis[0]) * normal[0] + np.float32(axis[1]) * normal[1] + np.float32(axis[2]) * normal[2]
        for axis in (direction, half)
    )
    # Light wraps a little round edges, red more than blue, as it does under skin.
    diffuse = np.maximum(0.82 * toward + 0.18, 0)
    red = np.maximum(0.72 * toward + 0.28, 0)
    sky = 0.75 + 0.25 * normal[1]
    np.maximum(shine, 0, out=shine)
    for _ in range(3):
        shine *= shine
    shine *= np.float32(0.05) * shine * shine * gloss
    planes = []
    for k, (key, ambient) in enumerate(zip(light.key, light.ambient)):
        received = (red if k == 0 else diffuse) * np.float32(key) + sky * np.float32(ambient)
        planes.append(rgb[k] * received + np.float32(key) * shine)
    return np.stack(planes)


def temperature_of(surface: Surface, head: Head, frame: Frame, scene: Scene) -> Float32:
    """(N,) degrees Celsius that the camera reads: skin, breath, the room mirrored at grazing angles."""
    chart = load_chart()
    celsius = surface.texture[3].copy()
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
    grazing = 1 - np.clip(surface.normal[2], 0, 1)
    emissivity = c.EMISSIVITY - c.GRAZING_EMISSIVITY_LOSS * grazing * grazing * grazing
    return np.asarray(scene.room_c + emissivity * (celsius - scene.room_c), np.float32)
