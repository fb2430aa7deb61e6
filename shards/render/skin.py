"""A person's traits, and the texture they give the chart: skin, brows, stubble, hair, warmth at rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shards.render import constants as c
from shards.render.chart import HEIGHT, WIDTH, Chart, load_chart
from shards.render.geometry import Float32, linear_rgb, ramp

CHANNELS = 5
"""Of a head's texture: linear red, green, blue; temperature in degrees Celsius; gloss."""

HAIR_STYLES = ("bald", "buzz", "short", "full", "long")


@dataclass(frozen=True)
class Traits:
    """What was drawn for one person, in plain numbers.

    Attributes:
        ethnicity: (African, Asian, European) weights, sum 1. gender: 0 female .. 1 male. age: 0 young .. 1
            old.
        tone: 0 light .. 1 dark skin. hair: one of `HAIR_STYLES`. hair_colour: row of `HAIR_COLOURS`.
        fringe: hair falls over the forehead. beard: 0 none .. 1 full. make_up: 0 none .. 1 full.
        wears_glasses: some of the pictures show glasses.
    """

    ethnicity: tuple[float, float, float]
    gender: float
    age: float
    tone: float
    hair: str
    hair_colour: int
    fringe: bool
    beard: float
    make_up: float
    wears_glasses: bool

    def to_json(self) -> dict[str, Any]:
        """The traits a reader may want to group by, as plain JSON values."""
        return {
            "ethnicity": [round(weight, 3) for weight in self.ethnicity],
            "gender": round(self.gender, 3),
            "age": round(self.age, 3),
            "tone": round(self.tone, 3),
            "hair": self.hair,
            "beard": round(self.beard, 3),
        }


@dataclass(frozen=True)
class Paint:
    """What painting a head gives.

    Attributes:
        texture: (CHANNELS, T). hair: (T,) cover of the scalp, 0..1, which also thickens the head there.
        skin, lips, lashes: (3,) linear colours. skin_c: base temperature.
    """

    texture: Float32
    hair: Float32
    skin: Float32
    lips: Float32
    lashes: Float32
    skin_c: float


def draw_traits(rng: np.random.Generator) -> Traits:
    """One person's traits; hair, beard and skin go with the others as they tend to."""
    african, asian, european = (float(weight) for weight in rng.dirichlet([0.6, 0.6, 0.6]))
    gender, age = float(rng.beta(0.5, 0.5)), float(rng.beta(1.2, 2.0))
    tone = 0.82 * african + 0.34 * asian + 0.2 * european + 0.12 * float(rng.standard_normal())
    odds = np.array(
        [0.02 + 0.22 * gender * age, 0.03 + 0.2 * gender, 0.30, 0.25, 0.55 * (1 - gender)],
    )
    grey = age > 0.6 and rng.random() < 0.6
    light_hair = rng.random() < european
    colours = np.array(c.HAIR_ODDS) * ([1] * 7 if light_hair else [1, 1, 0.2, 0, 0, 0.1, 0])
    return Traits(
        ethnicity=(african, asian, european),
        gender=gender,
        age=age,
        tone=float(np.clip(tone, 0, 1)),
        hair=HAIR_STYLES[int(rng.choice(5, p=odds / odds.sum()))],
        hair_colour=5 if grey else int(rng.choice(7, p=colours / colours.sum())),
        fringe=bool(rng.random() < 0.25),
        beard=float((rng.random() < 0.5) * (gender > 0.6) * rng.uniform(0.15, 1.0)),
        make_up=float((rng.random() < 0.5) * (gender < 0.4) * rng.uniform(0.2, 1.0)),
        wears_glasses=bool(rng.random() < 0.25),
    )


def skin_colour(tone: float) -> Float32:
    """(3,) linear colour of skin, 0 light .. 1 dark."""
    stops = np.array(c.SKIN_TONES, np.float64)
    place = tone * (len(stops) - 1)
    return linear_rgb(np.stack([np.interp(place, range(len(stops)), stops[:, k]) for k in range(3)]))


def _noise(rng: np.random.Generator, rows: int, columns: int) -> Float32:
    """(T,) smooth noise in [-1, 1]: a random grid, bilinear."""
    grid = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), np.float32).ravel()


def _scalp(rng: np.random.Generator, chart: Chart, traits: Traits) -> Float32:
    """(T,) how much of the skin the hair hides."""
    centre = 0.66 + 0.06 * rng.standard_normal() + 0.12 * traits.age * traits.gender
    temple = centre - rng.uniform(0.02, 0.12)
    side = -0.12 + 0.1 * rng.standard_normal()
    if traits.fringe and traits.hair in ("full", "long"):
        centre, temple = rng.uniform(0.38, 0.46), rng.uniform(0.30, 0.42)
    knots = [0, 0.5, 0.75, 0.95, 1.2, 1.6, 1.9]
    heights = [centre, temple + 0.03, temple - 0.06, 0.25, side, -0.3, -0.8]
    line = np.tile(np.interp(chart.angle[:WIDTH], knots, heights).astype(np.float32), HEIGHT)
    line += 0.03 * _noise(rng, 2, 26) + 0.02 * _noise(rng, 2, 80)
    if traits.hair == "bald":
        return np.zeros_like(line)
    soft = 0.10 if traits.hair == "buzz" else 0.045
    return ramp(chart.y - line, -soft, soft) * np.float32(0.8 if traits.hair == "buzz" else 1.0)


def _brows(rng: np.random.Generator, chart: Chart, traits: Traits) -> Float32:
    """(T,) how much of the skin the brows hide."""
    lift, arch = rng.uniform(*c.BROW_LIFT), rng.uniform(*c.BROW_ARCH)
    rise = c.BROW_SLOPE * rng.standard_normal()
    thick = (0.024 + 0.014 * traits.gender) * rng.uniform(*c.BROW_WIDTH)
    cover = np.zeros(chart.x.shape, np.float32)
    x, y = chart.x[chart.brow_texels], chart.y[chart.brow_texels]
    t = np.clip((x - 0.09) / 0.42, 0, 1)
    middle = 0.162 + lift + arch * np.sin(np.pi * t**1.15) - 0.02 * t + rise * (t - 0.5)
    width = thick * (1.15 - 0.6 * t)
    band = np.exp(-(((y - middle) / width) ** 2)) * ramp(x, 0.07, 0.13) * ramp(x, 0.53, 0.45)
    cover[chart.brow_texels] = rng.uniform(0.65, 0.95) * band
    return cover


def _blend(colour: Float32, cover: Float32, other: Float32) -> None:
    """Paints `other` (3,) over `colour` (3, T) where `cover` (T,) is not 0, in place."""
    at = np.flatnonzero(cover > 0.002)
    cover = cover[at]
    for plane, value in zip(colour, other):
        plane[at] += cover * (value - plane[at])


def _warmth(rng: np.random.Generator, chart: Chart, skin_c: float, hair: Float32, beard: Float32) -> Float32:
    """(T,) degrees Celsius at rest: warm inner canthi and neck, cool nose tip, cheeks and chin, cold hair."""
    warmth = (
        skin_c
        + c.CANTHUS_C * chart.canthus
        + c.NOSE_TIP_C * chart.nose
        + c.CHEEK_C * chart.cheek
        + c.FOREHEAD_C * chart.forehead
        + c.CHIN_C * chart.chin
        + c.NECK_C * chart.neck
        + 0.2 * _noise(rng, 8, 10)
    )
    warmth += np.maximum(hair, 0.5 * beard) * (c.HAIR_C - warmth)
    return np.asarray(warmth, np.float32)


def paint(rng: np.random.Generator, traits: Traits) -> Paint:
    """The texture of one person; about 8 ms."""
    chart = load_chart()
    skin = skin_colour(traits.tone) * np.asarray(1 + 0.03 * rng.standard_normal(3), np.float32)
    hair_colour = linear_rgb(c.HAIR_COLOURS[traits.hair_colour]) * np.float32(rng.uniform(0.8, 1.3))
    flush = skin * np.array([1.0, 0.70, 0.66], np.float32)
    lips = skin * np.array([0.86, 0.52, 0.52], np.float32)
    lips = lips + np.float32(traits.make_up * 0.5) * (linear_rgb((170, 40, 60)) - lips)
    planes = np.empty((CHANNELS, WIDTH * HEIGHT), np.float32)
    colour = planes[:3]
    colour[:] = skin[:, None]
    _blend(colour, (0.55 + 0.2 * rng.random()) * chart.redness, flush)
    mottling = 1 + 0.05 * _noise(rng, 14, 18) + 0.04 * _noise(rng, 60, 76)
    freckles = ramp(_noise(rng, 80, 100), 0.55, 0.8) * chart.cheek * (rng.random() < 0.2)
    shade = mottling * (1 - rng.uniform(*c.SOCKET_SHADE) * chart.sockets) * (1 - 0.25 * freckles)
    colour *= shade * (1 - chart.occlusion)
    scalp = _scalp(rng, chart, traits)
    strands = 1 + 0.28 * _noise(rng, 5, 90) + 0.18 * _noise(rng, 16, 60)
    stubble = chart.beard * traits.beard * (1 + 0.3 * _noise(rng, 70, 90))
    _blend(colour, np.clip(0.85 * stubble, 0, 0.95), 0.8 * hair_colour)
    _blend(colour, _brows(rng, chart, traits), 0.55 * hair_colour + 0.10 * skin)
    _blend(colour, scalp, hair_colour)
    colour *= 1 + scalp * (strands - 1)
    skin_c = c.SKIN_C + c.SKIN_SPREAD_C * float(rng.standard_normal())
    planes[3] = _warmth(rng, chart, skin_c, scalp, stubble)
    planes[4] = (1 - scalp) * rng.uniform(0.5, 1.3) * (1 + 0.5 * chart.nose + 0.3 * chart.forehead)
    lashes = np.asarray(0.30 * skin + 0.01 - 0.1 * traits.make_up * skin, np.float32)
    return Paint(planes, scalp, skin, lips, lashes, skin_c)
