"""What lies over the face in the picture plane: glasses and things in the way, as coverage masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from shards.render.geometry import Float32
from shards.render.scene import Glasses, Occluder

_OVERSAMPLING = 4


def _mask(polygons: list[NDArray[np.float64]], size: int, hollow_width: float = 0.0) -> Float32:
    """(size, size) coverage 0..1 of polygons (N, 2) in pixels, filled or as outlines."""
    scale = _OVERSAMPLING
    image = Image.new("L", (size * scale, size * scale))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        points = [(float(px) * scale, float(py) * scale) for px, py in polygon]
        if hollow_width:
            draw.line(points, fill=255, width=max(1, round(hollow_width * scale)), joint="curve")
        else:
            draw.polygon(points, fill=255)
    return np.asarray(image.reduce(scale), np.float32) / np.float32(255)


def glasses_points(glasses: Glasses) -> dict[str, NDArray[np.float64]]:
    """Named polylines (N, 3) in head coordinates, dm: two rims, bridge, two temples."""
    turn = np.linspace(0, 2 * np.pi, 25)
    power = 2 / glasses.squareness
    cos, sin = np.cos(turn), np.sin(turn)
    x = np.sign(cos) * np.abs(cos) ** power * glasses.radius[0]
    y = np.sign(sin) * np.abs(sin) ** power * glasses.radius[1] - 0.03
    bridge = np.array([[-0.09, 0.02, 0.345], [0.0, 0.05, 0.36], [0.09, 0.02, 0.345]])
    lines = {"bridge": bridge}
    for name, side in (("left", 1.0), ("right", -1.0)):
        bend = 0.33 - 0.25 * (np.abs(x + 0.30) / 0.5) ** 2
        lines[f"rim_{name}"] = np.stack([side * (x + 0.30), y, bend], axis=1)
        lines[f"temple_{name}"] = np.array(
            [[side * (0.30 + glasses.radius[0]), 0.03, 0.2], [side * 0.76, 0.02, -0.35]]
        )
    return lines


def glasses_masks(
    glasses: Glasses, lines: dict[str, NDArray[np.float64]], size: int, yaw: float
) -> tuple[Float32, Float32]:
    """Coverage of frame and lenses, both (size, size).

    Args:
        lines: the polylines of `glasses_points`, projected to pixels (N, 2).
        yaw: of the head; the temple on the far side is hidden.
    """
    rims = [lines["rim_left"], lines["rim_right"]]
    width = float(np.ptp(lines["rim_left"][:, 0]) + np.ptp(lines["rim_right"][:, 0])) / 4
    stroke = glasses.rim / glasses.radius[0] * width
    drawn = [*rims, lines["bridge"]]
    if yaw < 0.25:
        drawn.append(lines["temple_left"])
    if yaw > -0.25:
        drawn.append(lines["temple_right"])
    return _mask(drawn, size, max(stroke, 0.4)), _mask(rims, size)


def occluder_mask(occluder: Occluder, size: int) -> Float32:
    """(size, size) coverage of the thing in the way, its corners rounded."""
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon(
        [(float(px) * size, float(py) * size) for px, py in occluder.points], fill=255
    )
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(size / 40)), np.float32) / 255
    return np.asarray(np.clip((soft - 0.5) * 6 + 0.5, 0, 1), np.float32)
