"""One person's head: shape, colours and warmth at rest. Built once, then rendered in any number of frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.render import constants as c
from shards.render.attire import clothes, hanging_hair
from shards.render.chart import chart_position, texels
from shards.render.geometry import Float32, linear_rgb, ramp
from shards.render.mesh import (
    LEFT_EYE,
    LOCKS,
    LOWER_TEETH,
    RIGHT_EYE,
    SKIN,
    UPPER_TEETH,
    Mesh,
    load_mesh,
)
from shards.render.skin import Traits, draw_traits, paint

HAIR_THICKNESS = {"bald": 0.0, "buzz": 0.01, "short": 0.05, "full": 0.13, "long": 0.09}
"""Decimetres that the hair stands off the scalp."""


@dataclass(frozen=True)
class Head:
    """A person, ready to be rendered. Arrays are float32.

    Attributes:
        traits: what was drawn.
        neutral: (V, 3) vertices at rest, dm, origin midway between the eyeballs.
        corners: (3, F) vertices of each triangle. group: (F,) kind of surface. two_sided: (F,) drawn from
            behind as well.
        fixed: (5, V) chart column and row (eyes: direction x, y from the eyeball's centre), lips (teeth: how
            far forward), inside of the mouth, ears.
        texture: (CHANNELS, T) what is painted on the chart.
        colours: part -> (3,) linear colour: "lips", "ear", "iris", "sclera", "teeth", "tongue", "cavity",
            "lashes", "clothes".
        fold_gain: how much deeper or shallower units draw folds than they do on average. fold_rest: (K,)
            depth of each fold of `constants.WRINKLES` at rest.
        skin: (3,) linear colour. skin_luminance: linear, for the exposure. skin_c: base temperature.
    """

    traits: Traits
    neutral: Float32
    corners: NDArray[np.intp]
    group: NDArray[np.uint8]
    two_sided: NDArray[np.bool_]
    fixed: Float32
    texture: Float32
    colours: Mapping[str, Float32]
    fold_gain: float
    fold_rest: Float32
    skin: Float32
    skin_luminance: float
    skin_c: float


def _shape(rng: np.random.Generator, mesh: Mesh, traits: Traits) -> Float32:
    """(V, 3) the bare head at rest."""
    gender = np.array([1 - traits.gender, traits.gender])
    age = np.array([1 - traits.age, traits.age])
    weights = np.einsum("e,g,a->ega", traits.ethnicity, gender, age).astype(np.float32)
    build = np.einsum("g,a,w->gaw", gender, age, rng.dirichlet([1, 2, 1])).astype(np.float32)
    vertices = mesh.base + np.tensordot(weights, mesh.ethnicity, 3) + np.tensordot(build, mesh.build, 3)
    low, high = np.array(list(c.PROPORTIONS.values())).T
    drawn = (low + (high - low) * rng.random(len(low))).astype(np.float32)
    vertices = vertices + np.einsum("p,pvk->vk", drawn, mesh.proportions)
    count = int(mesh.local_key.max()) + 1
    trait = rng.random(count) * (rng.random(count) < 0.25) * 0.75
    # Chins vary more than jaws: teeth stay behind the skin.
    vertices[mesh.group == LOWER_TEETH, 2] -= 0.12
    vertices[mesh.group == UPPER_TEETH, 2] -= 0.04
    strength = trait[mesh.local_key].astype(np.float32)
    shown = np.flatnonzero(strength)
    vertices = vertices + np.tensordot(strength[shown], mesh.local[shown], 1)
    centre = (vertices[mesh.group == LEFT_EYE].mean(0) + vertices[mesh.group == RIGHT_EYE].mean(0)) / 2
    return np.asarray(vertices - centre, np.float32)


def resting_shape(rng: np.random.Generator) -> Float32:
    """(V, 3) what sets one face at rest apart from others along the units, dm; see `constants.RESTING`."""
    mesh = load_mesh()
    offsets = np.zeros(len(c.UNITS), np.float32)
    for unit, spread in c.RESTING.items():
        offsets[c.UNITS.index(unit)] = spread * np.clip(rng.standard_normal(), -2, 2)
    columns = np.flatnonzero(offsets[mesh.column_unit])
    flat = np.einsum("c,cv->v", offsets[mesh.column_unit[columns]], mesh.flat_columns[columns])
    return np.asarray(flat.reshape(-1, 3), np.float32)


def _fixed_attributes(mesh: Mesh, neutral: Float32) -> Float32:
    """(V, 5), see `Head.fixed`."""
    fixed = np.zeros((len(neutral), 5), np.float32)
    fixed[:, :2] = chart_position(mesh.mean)
    fixed[:, 2], fixed[:, 3], fixed[:, 4] = mesh.lips, mesh.inside, mesh.ears
    for eye in (LEFT_EYE, RIGHT_EYE):
        ball = mesh.group == eye
        centre = neutral[ball].mean(0) * [1, 1, 0]
        centre[2] = neutral[ball][:, 2].max() - np.ptp(neutral[ball][:, 1]) / 2
        arm = neutral[ball] - centre
        fixed[ball, :2] = (arm / np.linalg.norm(arm, axis=1, keepdims=True))[:, :2]
    for jaw in (UPPER_TEETH, LOWER_TEETH):
        fixed[mesh.group == jaw, 2] = ramp(mesh.mean[mesh.group == jaw, 2], -0.12, 0.12)
    return fixed


def build_head(rng: np.random.Generator) -> Head:
    """Draws and builds one person; about 15 ms."""
    mesh = load_mesh()
    traits = draw_traits(rng)
    bare = _shape(rng, mesh, traits) + resting_shape(rng)
    painted = paint(rng, traits)
    fixed = _fixed_attributes(mesh, bare)
    hair = painted.hair[texels(fixed[:, 0], fixed[:, 1])] * (mesh.group == SKIN) * (1 - mesh.ears)
    thickness = HAIR_THICKNESS[traits.hair] * rng.uniform(0.7, 1.3)
    neutral = bare + (hair * thickness)[:, None] * mesh.mean_normals
    parts = [clothes()]
    if traits.hair == "long":
        head_only = (mesh.ears < 0.1) & (neutral[:, 1] > -0.3)
        parts.append(hanging_hair(rng, float(neutral[head_only, 0].max())))
    vertices, triangles, group, attributes = [neutral], [mesh.triangles], [mesh.triangle_group], [fixed]
    for part in parts:
        triangles.append(part.triangles + sum(len(block) for block in vertices))
        vertices.append(part.vertices)
        group.append(np.full(len(part.triangles), part.group, np.uint8))
        attributes.append(part.fixed)
    groups = np.concatenate(group)
    iris = linear_rgb(c.IRIS_COLOURS[int(rng.choice(6, p=_iris_odds(traits)))])
    return Head(
        traits=traits,
        neutral=np.concatenate(vertices).astype(np.float32),
        corners=np.ascontiguousarray(np.concatenate(triangles).T),
        group=groups,
        two_sided=groups == LOCKS,
        fixed=np.ascontiguousarray(np.concatenate(attributes).T),
        texture=painted.texture,
        colours={
            "lips": painted.lips,
            "ear": painted.skin * np.float32(0.8),
            "iris": iris,
            "sclera": linear_rgb(c.SCLERA),
            "teeth": linear_rgb(c.TEETH),
            "tongue": linear_rgb(c.TONGUE),
            "cavity": linear_rgb(c.MOUTH_CAVITY),
            "lashes": painted.lashes,
            "clothes": linear_rgb(np.clip(rng.uniform(20, 225) + rng.normal(0, 30, 3), 8, 245)),
        },
        fold_gain=float(rng.uniform(*c.FOLD_GAIN[:2])) + c.FOLD_GAIN[2] * traits.age,
        fold_rest=_folds_at_rest(rng, traits.age),
        skin=painted.skin,
        skin_luminance=float(painted.skin @ np.array([0.21, 0.72, 0.07], np.float32)),
        skin_c=painted.skin_c,
    )


def _folds_at_rest(rng: np.random.Generator, age: float) -> Float32:
    mean, by_age, most = c.FOLD_REST
    depth = rng.exponential(mean + by_age * age**1.5, len(c.WRINKLES))
    return np.asarray(np.minimum(depth, most), np.float32)


def _iris_odds(traits: Traits) -> NDArray[np.float64]:
    light = traits.ethnicity[2] ** 2
    odds = np.array([1.0, 1.0 - 0.7 * light, light, light, 0.6 * light, 0.5 * light])
    return np.asarray(odds / odds.sum())
