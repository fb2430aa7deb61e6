"""What a person does over a clip: trajectories of units, pose, gaze, breath and of the skin's blood flow.

Expressions come, are held and give way to others; talking and blinks lie over them. Valence and arousal are
those of the expressions, without the talking and the blinks, and arousal has a second part, the autonomic
state, of which the face's muscles and the colour camera know nothing: see `Motion`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.render import constants as c
from shards.render.actions import affect, draw_expression
from shards.render.scene import Frame, Pose, draw_frame

Float64 = NDArray[np.float64]

_BEFORE_S = 2.0
"""What went on before the clip began."""


@dataclass(frozen=True)
class Motion:
    """One person over T frames.

    Attributes:
        first: what does not change: the light, the two sides' difference; and the means of what does.
        units: (T, 17) intensities 0..1, talking and blinks included.
        felt: (T, 17) the expression alone, which the labels speak of.
        autonomic: (T,) the autonomic state, 0..1: part of arousal.
        skin: (T,) 0..1, how far the skin has followed it: the state of `AUTONOMIC_LAG_S` ago. It shows in the
            thermal camera alone.
        pose: (T, 3) yaw, pitch and roll, radians. gaze: (T, 2). light: (T,) factor on the light.
        distance: (T,) dm. breath: (T,) -1 in .. 1 out.
        jitter: (T, 5, 2) what the tracker gets wrong of each landmark, pixels of a 112 frame.
    """

    first: Frame
    units: Float64
    felt: Float64
    autonomic: Float64
    skin: Float64
    pose: Float64
    gaze: Float64
    light: Float64
    distance: Float64
    breath: Float64
    jitter: Float64

    def __len__(self) -> int:
        return len(self.units)

    def affect(self) -> tuple[Float64, Float64]:
        """(T,) valence and (T,) arousal in (-1, 1).

        Valence is that of the units. Arousal = `AROUSAL_FROM_UNITS` * that of the units +
        `AROUSAL_FROM_AUTONOMIC` * (2 * autonomic - 1).
        """
        valence, of_units = np.array([affect(units) for units in self.felt]).T
        arousal = c.AROUSAL_FROM_UNITS * of_units + c.AROUSAL_FROM_AUTONOMIC * (2 * self.autonomic - 1)
        return valence, arousal

    def frame(self, number: int) -> Frame:
        """Everything about the head at one instant."""
        light, level = self.first.light, float(self.light[number])
        yaw, pitch, roll = (float(angle) for angle in self.pose[number])
        right, up = (float(part) for part in self.gaze[number])
        return replace(
            self.first,
            units=self.units[number],
            pose=Pose(yaw, pitch, roll),
            light=replace(light, key=_times(light.key, level), ambient=_times(light.ambient, level)),
            gaze=(right, up),
            distance=float(self.distance[number]),
            autonomic=c.AUTONOMIC_GAIN * float(self.skin[number]),
            breath=float(self.breath[number]),
        )


def _times(rgb: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return rgb[0] * factor, rgb[1] * factor, rgb[2] * factor


def draw_motion(rng: np.random.Generator, num_frames: int, fps: float) -> Motion:
    """A random motion over `num_frames` frames at `fps`."""
    times = np.arange(num_frames) / fps
    first = draw_frame(rng, np.zeros(len(c.UNITS)))
    felt = _expressions(rng, times)
    units = _blink(rng, _talk(rng, felt, times), times)
    state = _autonomic(rng)
    pose = np.array([first.pose.yaw, first.pose.pitch, first.pose.roll])
    return Motion(
        first=first,
        units=units,
        felt=felt,
        autonomic=state(times),
        skin=state(times - c.AUTONOMIC_LAG_S),
        pose=pose + (0.10, 0.06, 0.04) * _wander(rng, times, 0.1, 0.6, 3),
        gaze=_gaze(rng, times, np.array(first.gaze)),
        light=1 + 0.04 * _wander(rng, times, 0.05, 0.4, 1)[:, 0],
        distance=first.distance * (1 + 0.015 * _wander(rng, times, 0.05, 0.4, 1)[:, 0]),
        breath=np.sin(2 * np.pi * (rng.uniform(*c.BREATH_HZ) * times + rng.random())),
        jitter=c.TRACKER_JITTER * _wander(rng, times, 0.3, 2.0, 10).reshape(-1, 5, 2),
    )


def _smooth(values: Float64) -> Float64:
    """Smooth step from 0 at 0 to 1 at 1."""
    t = np.clip(values, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _wander(rng: np.random.Generator, times: Float64, low: float, high: float, count: int) -> Float64:
    """(T, count) smooth noise of about unit variance: four waves of `low` to `high` Hz each."""
    hertz, phase = rng.uniform(low, high, (4, count)), rng.random((4, count))
    waves = np.sin(2 * np.pi * (hertz * times[:, None, None] + phase))
    return np.asarray(waves.sum(axis=1) / np.sqrt(2))


def _expressions(rng: np.random.Generator, times: Float64) -> Float64:
    """(T, 17) units of expressions that give way to each other; blinks are laid over them later."""
    blink = c.UNITS.index("AU43")

    def drawn() -> Float64:
        units = draw_expression(rng).units
        units[blink] = 0.0
        return units

    now = drawn()
    units = np.tile(now, (len(times), 1))
    start = -_BEFORE_S + rng.uniform(*c.HOLD_S)
    while start < times[-1]:
        length, then = rng.uniform(*c.CHANGE_S), drawn()
        units += _smooth((times - start) / length)[:, None] * (then - now)
        start, now = start + length + rng.uniform(*c.HOLD_S), then
    return np.asarray(np.clip(units, 0, 1))


def _talk(rng: np.random.Generator, felt: Float64, times: Float64) -> Float64:
    """(T, 17) units with, in some clips, a jaw that goes up and down for a while."""
    talks, start = rng.random() < c.TALK_RATE, rng.uniform(-0.5, max(0.0, times[-1] - 0.5))
    length, hertz, phase = rng.uniform(*c.TALK_S), rng.uniform(*c.TALK_HZ), rng.random()
    units = felt.copy()
    if not talks:
        return units
    during = _smooth((times - start) / 0.2) * _smooth((start + length - times) / 0.2)
    opening = during * (0.5 + 0.5 * np.sin(2 * np.pi * (hertz * times + phase)))
    parted, dropped, pressed = (c.UNITS.index(unit) for unit in ("AU25", "AU26", "AU24"))
    units[:, parted] = np.maximum(units[:, parted], 0.7 * opening)
    units[:, dropped] = np.maximum(units[:, dropped], 0.5 * opening)
    units[:, pressed] *= 1 - during
    return units


def _blink(rng: np.random.Generator, units: Float64, times: Float64) -> Float64:
    """(T, 17) units with the lids closed now and then."""
    at = rng.uniform(0, times[-1], rng.poisson(c.BLINK_HZ * times[-1]))
    closed = np.clip(1 - np.abs(times[:, None] - at) / (c.BLINK_S / 2), 0, 1).max(axis=1, initial=0.0)
    out = units.copy()
    out[:, c.UNITS.index("AU43")] = np.maximum(out[:, c.UNITS.index("AU43")], _smooth(1.5 * closed))
    return out


@dataclass(frozen=True)
class _State:
    """The autonomic state as a function of time: from one level to another."""

    before: float
    after: float
    start: float
    length: float

    def __call__(self, times: Float64) -> Float64:
        return self.before + (self.after - self.before) * _smooth((times - self.start) / self.length)


def _autonomic(rng: np.random.Generator) -> _State:
    before, after = rng.random(2)
    return _State(before, after, float(rng.uniform(-1.0, 2.0)), float(rng.uniform(*c.AUTONOMIC_CHANGE_S)))


def _gaze(rng: np.random.Generator, times: Float64, rest: Float64) -> Float64:
    """(T, 2) right and up, as sines: held, then elsewhere at once."""
    gaze = np.empty((len(times), 2))
    start = 0.0
    while start <= times[-1]:
        gaze[times >= start] = np.clip(rest + rng.normal(0, (0.10, 0.05)), (-0.35, -0.2), (0.35, 0.2))
        start += rng.uniform(*c.GAZE_S)
    return gaze
