"""What can be set about training images: how they are cut and coloured anew each time they are seen.

Without torch, as every package's `config`: the command line reads settings before it loads what they are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CropConfig:
    """Random resized crop and flip, as He et al. 2022 use them for MAE.

    Attributes:
        scale_min, scale_max: area of the crop as a share of the image.
        ratio: largest aspect ratio (and its inverse the smallest).
        flip: probability of a horizontal flip.
        resize: side in pixels; if set, the image is resized to its square and the wanted size is cut from it
            at a random place (EMMA: 232 for 224; CoTEX: 228), instead of a crop of random area and ratio.

    Raises:
        ValueError: a value out of its range.
    """

    scale_min: float = 0.2
    scale_max: float = 1.0
    ratio: float = 4 / 3
    flip: float = 0.5
    resize: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale_min <= self.scale_max <= 1:
            raise ValueError(
                f"crop.scale_min={self.scale_min} and crop.scale_max={self.scale_max}: shares of the image's "
                "area, so above 0 and up to 1, the smaller one first"
            )
        if not 1 <= self.ratio < math.inf:
            raise ValueError(f"crop.ratio={self.ratio}: the largest ratio of the sides must be at least 1")
        _check_range("crop.flip", self.flip, 1)
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"crop.resize={self.resize}: must be a side in pixels, or left out")


@dataclass(frozen=True)
class JitterConfig:
    """Random changes of colour (EMMA: .4, .4, .4, .1 with probability .2), as torchvision's ColorJitter.

    Attributes:
        probability: that an image is changed at all.
        brightness, contrast, saturation: each factor is uniform in [1 − x, 1 + x].
        hue: shift uniform in [−x, x] turns of the colour wheel, at most .5.

    Raises:
        ValueError: a value out of its range.
    """

    probability: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __post_init__(self) -> None:
        _check_range("jitter.probability", self.probability, 1)
        _check_range("jitter.hue", self.hue, 0.5)
        for name in ("brightness", "contrast", "saturation"):
            _check_range(f"jitter.{name}", getattr(self, name), 100)


def _check_range(name: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        raise ValueError(f"{name}={value}: must be from 0 to {high:g}")


@dataclass(frozen=True)
class AugmentConfig:
    """Everything random that is done to a training image.

    Attributes:
        crop: crop and flip.
        jitter: colours.
    """

    crop: CropConfig = field(default_factory=CropConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
