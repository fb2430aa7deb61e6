"""Where the five landmarks of an aligned face lie: one home for the aligner and the renderer.

Coordinates are (x, y) in pixels with the centre of the first pixel at (0, 0), as in landmark files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEMPLATE_NAME = "arcface-112"
_FINE = 8  # subdivisions of a grid's cell, each way
TEMPLATE_SIDE = 112
# Left eye, right eye (as seen), nose, left and right corner of the mouth, in a 112×112 image.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)


def template_points(size: int = TEMPLATE_SIDE, margin: float = 0.0) -> NDArray[np.float64]:
    """Where the five landmarks of an aligned face lie.

    Args:
        size: side of the image, pixels.
        margin: room added on each side, as a fraction of the template's side.

    Returns:
        (5, 2) float64.
    """
    return np.asarray(((TEMPLATE + 0.5) / TEMPLATE_SIDE + margin) / (1 + 2 * margin) * size - 0.5)


def template_geometry(size: int, margin: float) -> dict[str, Any]:
    """What an alignment recipe says under `geometry` of faces that lie by this template."""
    return {
        "size": size,
        "margin": margin,
        "template": TEMPLATE_NAME,
        "points": TEMPLATE.tolist(),
        "transform": "similarity",
    }


@dataclass(frozen=True)
class RelativeGeometry:
    """Where faces lie in their images, whatever the images' size: a template, and the room around it."""

    template: str
    margin: float
    points: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        return f"template {self.template}, margin {self.margin:g}"


def relative_geometry(recipe: Mapping[str, Any]) -> RelativeGeometry | None:
    """Where an alignment recipe's faces lie in their images; None where it does not say.

    Sizes do not count: every image is brought to the size of the model.

    Args:
        recipe: of a manifest; plain JSON values from a file, so of any shape.
    """
    geometry = recipe.get("geometry")
    try:
        points = np.asarray(geometry["points"], np.float64)  # type: ignore[index]
        margin, template = float(geometry["margin"]), str(geometry["template"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None
    if points.shape != TEMPLATE.shape:
        return None
    return RelativeGeometry(template, margin, tuple((float(x), float(y)) for x, y in points.round(2)))


def face_oval(geometry: RelativeGeometry, height: int, width: int) -> NDArray[np.float64]:
    """Which part of an aligned picture is face: about from brows to chin.

    An ellipse about the middle between eyes and mouth. Its half axes are the distance between the pupils and
    that between the middle of the eyes and the middle of the mouth.

    Args:
        height, width: of a grid over the picture.

    Returns:
        (height, width) share of each cell inside the ellipse, 0..1.
    """
    places = (np.asarray(geometry.points) + 0.5) / TEMPLATE_SIDE
    right_eye, left_eye, _, *corners = (places + geometry.margin) / (1 + 2 * geometry.margin)
    eyes, mouth = (right_eye + left_eye) / 2, sum(corners) / 2
    across, down = np.linalg.norm(left_eye - right_eye), np.linalg.norm(mouth - eyes)
    y, x = np.mgrid[: height * _FINE, : width * _FINE] + 0.5
    x, y = x / (width * _FINE) - (eyes + mouth)[0] / 2, y / (height * _FINE) - (eyes + mouth)[1] / 2
    inside = (x / across) ** 2 + (y / down) ** 2 <= 1
    return np.asarray(inside.reshape(height, _FINE, width, _FINE).mean((1, 3)))
