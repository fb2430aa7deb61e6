"""Windows of clips: which frames they take, where training puts them, and how an evaluation covers a clip.

A window counts in label frames. The annotation lags the face by `lag` frames, so label frame g is paired
with the picture of frame g − lag; before the clip's first picture that one is held. What a model says of a
window therefore belongs to its label frames, with no shift left to undo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards import keyed
from shards.config import ClipConfig


class Window(NamedTuple):
    """One window: number of its clip in the shard set, and its first label frame in the clip."""

    sample: int
    start: int


@dataclass(frozen=True)
class WindowFrames:
    """The frames of one window of T.

    Attributes:
        labels: (T,) label frames, in the clip; beyond its end they only count on.
        pictures: (T,) frames whose pictures go with them, from 0 on.
        inside: (T,) bool, False where a clip shorter than the window is padded.
        held: (T,) bool, True where the clip's first picture stands for one from before the clip.
    """

    labels: NDArray[np.int64]
    pictures: NDArray[np.int64]
    inside: NDArray[np.bool_]
    held: NDArray[np.bool_]


def lag_frames(config: ClipConfig, fps: float) -> int:
    """The annotation's lag in frames, to the nearest."""
    return round(config.lag_seconds * fps)


def window_frames(start: int, num_frames: int, lag: int, config: ClipConfig) -> WindowFrames:
    """The frames of the window that starts at label frame `start` of a clip of `num_frames`."""
    labels = start + config.frame_step * np.arange(config.num_frames, dtype=np.int64)
    return WindowFrames(labels, np.maximum(labels - lag, 0), labels < num_frames, labels < lag)


def draw_start(rng: int, num_frames: int, lag: int, config: ClipConfig) -> int:
    """First label frame of a training window: every place that the clip has room for is equally likely.

    Places where pictures would be held are left out as long as there are others.

    Args:
        rng: the draw's random key.
        num_frames: of the clip.
        lag: in frames.
    """
    last = max(0, num_frames - _reach(config))
    first = min(lag, last)
    return first + int(keyed.uniforms(rng, "window", 1)[0] * (last - first + 1))


def plan_windows(num_frames: int, config: ClipConfig) -> list[int]:
    """First label frames of the windows that cover a clip: every frame is in at least one.

    For each phase p of `frame_step`, the windows of frames p, p + step, p + 2·step, … begin at every
    `stride`-th of them as long as they end within the clip, and one more ends with its last frame. A phase of
    fewer frames than a window is one window, padded.
    """
    starts = []
    for phase in range(min(config.frame_step, num_frames)):
        count = -(-(num_frames - phase) // config.frame_step)
        last = max(0, count - config.num_frames)
        places = [*range(0, last, config.stride), last]
        starts += [phase + config.frame_step * place for place in places]
    return starts


def windows_of(samples: Sequence[int], counts: Sequence[int], config: ClipConfig) -> Iterator[Window]:
    """The windows of an evaluation, clip after clip.

    Args:
        samples: numbers of the clips. counts: frames of each.
    """
    for sample, count in zip(samples, counts, strict=True):
        for start in plan_windows(count, config):
            yield Window(sample, start)


def _reach(config: ClipConfig) -> int:
    """Frames of a clip from a window's first to its last."""
    return (config.num_frames - 1) * config.frame_step + 1
