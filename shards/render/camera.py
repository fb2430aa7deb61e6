"""Cameras: from linear light, millimetres and degrees to stored integers, with each sensor's faults."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from shards.frames import ZERO_CELSIUS_CK
from shards.render.geometry import Float32

UInt8 = NDArray[np.uint8]
UInt16 = NDArray[np.uint16]

_TONE_STEPS = 2048
_NORMAL = np.array([NormalDist().inv_cdf((step + 0.5) / 256) for step in range(256)])
"""Quantiles of the normal distribution, one for each value of a random byte."""


@dataclass(frozen=True)
class Camera:
    """What a camera does to a picture. The default does nothing but expose: the clean render.

    Attributes:
        exposure: factor on linear light, beside the automatic one. tint: factors on red, green, blue.
        gamma: of the tone curve. lift: black level 0..1. saturation: 1 leaves colour, 0 gives grey.
        blur: reach of the blur to each side, fraction of the frame's width. shrink: the picture is taken at
            this fraction of the size and enlarged.
        noise: standard deviation in 0..255 at mid grey. quality: of the JPEG.
        depth_noise_mm, depth_holes: of the depth sensor: noise at 0.7 m (grows with the square of the
            distance), fraction of lost pixels. thermal_noise_c: of the thermal sensor.
    """

    exposure: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 2.2
    lift: float = 0.0
    saturation: float = 1.0
    blur: float = 0.0
    shrink: float = 1.0
    noise: float = 0.0
    quality: int = 92
    depth_noise_mm: float = 0.0
    depth_holes: float = 0.0
    thermal_noise_c: float = 0.0


CLEAN = Camera()


def draw_camera(rng: np.random.Generator) -> Camera:
    """A random camera: from a good one in good light to a cheap one in the dark."""
    warmth = rng.normal(0, 0.06)
    shrink = float(rng.uniform(0.45, 0.9)) if rng.random() < 0.2 else 1.0
    return Camera(
        exposure=float(np.exp(np.clip(rng.normal(0, 0.38), -0.9, 0.8))),
        tint=(float(1 + warmth), 1.0, float(1 - warmth)),
        gamma=float(rng.uniform(1.9, 2.5)),
        lift=float(rng.uniform(0, 0.05)),
        saturation=0.0 if rng.random() < 0.03 else float(rng.uniform(0.7, 1.2)),
        blur=float(rng.uniform(0.002, 0.005) if rng.random() < 0.75 else rng.uniform(0.005, 0.012)),
        shrink=shrink,
        noise=float(rng.gamma(1.5, 1.6)),
        quality=int(rng.integers(55, 96)),
        depth_noise_mm=float(rng.uniform(0.5, 2.0)),
        depth_holes=float(rng.uniform(0, 0.01)),
        thermal_noise_c=float(rng.uniform(0.03, 0.08)),
    )


def expose(linear: Float32, camera: Camera, automatic: float) -> UInt8:
    """(H, W, 3) colour from linear light, before the sensor's noise.

    Args:
        automatic: the factor that brings a lit face to a middling grey.
    """
    gain = np.float32(camera.exposure * automatic * _TONE_STEPS)
    grey = np.array([0.21, 0.72, 0.07]) * (1 - camera.saturation)
    mixing = camera.saturation * np.eye(3) + grey[:, None]
    light = linear @ (gain * mixing * camera.tint).astype(np.float32)
    # A shoulder instead of clipping: highlights roll off between 0.8 and 2.
    level = np.arange(2 * _TONE_STEPS, dtype=np.float32) / _TONE_STEPS
    rolled = np.where(level < 0.7, level, 0.7 + 0.3 * (1 - np.exp(-(level - 0.7) / 0.3)))
    tone = 255 * (camera.lift + (1 - camera.lift) * rolled ** (1 / camera.gamma))
    return np.round(tone).astype(np.uint8).take(light.astype(np.intp), mode="clip")


def take_colour(linear: Float32, camera: Camera, automatic: float, rng: np.random.Generator | None) -> UInt8:
    """(H, W, 3) uint8 picture: exposure, optics, sensor.

    Args:
        rng: for the noise; needed only by a camera that has any.
    """
    image = expose(linear, camera, automatic)
    height, width = image.shape[:2]
    if camera.blur or camera.shrink < 1:
        picture = Image.fromarray(image)
        if camera.blur:
            picture = picture.filter(ImageFilter.BoxBlur(camera.blur * width))
        if camera.shrink < 1:
            small = (max(8, round(width * camera.shrink)), max(8, round(height * camera.shrink)))
            picture = picture.resize(small, Image.Resampling.BOX).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        image = np.asarray(picture)
    if not camera.noise or rng is None:
        return image
    grain = np.round(camera.noise / _NORMAL.std() * _NORMAL).astype(np.int16)
    values = grain.take(np.frombuffer(rng.bytes(image.size), np.uint8)).reshape(image.shape)
    values += image
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def take_depth(
    millimetres: Float32, camera: Camera, grazing: NDArray[np.bool_], rng: np.random.Generator | None
) -> UInt16:
    """(H, W) uint16 millimetres, 0 = hole.

    Args:
        grazing: (H, W) where the sensor's light does not come back: steep surfaces and silhouettes.
    """
    depth = millimetres
    if rng is not None and camera.depth_noise_mm:
        spread = np.float32(camera.depth_noise_mm / 700**2) * depth**2
        depth = depth + spread * rng.standard_normal(depth.shape, np.float32)
    stored: UInt16 = np.clip(depth + 0.5, 1, 65535).astype(np.uint16)
    if rng is not None and camera.depth_holes:
        lost = rng.random(depth.shape, np.float32) < np.float32(camera.depth_holes)
        stored[lost | (grazing & (rng.random(depth.shape, np.float32) < 0.7))] = 0
    return stored


def take_thermal(celsius: Float32, camera: Camera, rng: np.random.Generator | None) -> UInt16:
    """(H, W) uint16 centi-kelvin."""
    if rng is not None and camera.thermal_noise_c:
        celsius = celsius + np.float32(camera.thermal_noise_c) * rng.standard_normal(
            celsius.shape, np.float32
        )
    stored: UInt16 = np.round(celsius * 100 + ZERO_CELSIUS_CK).astype(np.uint16)
    return stored
