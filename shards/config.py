"""What can be set about training images and clips: how they are cut and coloured anew each time they are
seen, and which windows are taken from a clip.

Without torch, as every package's `config`: the command line reads settings before it loads what they are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MODALITIES = ("color", "depth", "thermal")
"""What a clip may hold of each frame, in the order in which it is stored."""


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


@dataclass(frozen=True)
class ClipConfig:
    """Which windows are taken from clips, and of what.

    Attributes:
        num_frames: frames of a window.
        stride: frames from one window of an evaluation to the next; smaller than `num_frames`, windows
            overlap. Training draws the places of its windows.
        frame_step: every how manieth frame is taken; an evaluation goes through all `frame_step` phases.
        modalities: what is read of each frame, of `MODALITIES`.
        lag_seconds: how much later than the face the annotation moves (RECOLA: 2 to 2.8 s). Each label is
            paired with the picture from so much before it; see `shards.clips`.

    Raises:
        ValueError: a value out of its range.
    """

    num_frames: int = 16
    stride: int = 8
    frame_step: int = 1
    modalities: tuple[str, ...] = MODALITIES
    lag_seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        for name in ("num_frames", "stride", "frame_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip.{name}={getattr(self, name)}: must be 1 or more")
        if self.stride > self.num_frames:
            raise ValueError(
                f"clip.stride={self.stride} is more than clip.num_frames={self.num_frames}: "
                "frames between two windows would never be seen"
            )
        if not self.modalities or sorted(self.modalities) != sorted({*self.modalities} & {*MODALITIES}):
            raise ValueError(
                f"clip.modalities={list(self.modalities)}: one or more of {', '.join(MODALITIES)}, each once"
            )
        _check_range("clip.lag_seconds", self.lag_seconds, 60)
