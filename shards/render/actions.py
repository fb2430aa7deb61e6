"""Expressions: which action units a face shows, how strongly, and what they say about valence and arousal.

A sample is drawn in two steps. First its expression, from `EXPR_PRIOR`; then, for every unit, whether it is
at or above `AU_THRESHOLD`, with the probability `AU_GIVEN_EXPR`. Units that belong to the expression's
prototype then take their strength from the expression's own intensity, the others from talking, squinting
and habit. Aff-Wild2's rates and prototypes disagree (12 % of faces are sad, 2.9 % show AU15): so a
prototype's unit that stays below the threshold is usually not absent but faint, and a sad mouth may be
visible without being labelled AU15.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.labels import AU12, EXPR8
from shards.render import constants as c

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Expression:
    """What a face does.

    Attributes:
        name: expression class. intensity: 0..1 of the expression as a whole (0 for neutral).
        units: (17,) intensities 0..1 in the order of `constants.UNITS`.
        valence, arousal: in (-1, 1).
    """

    name: str
    intensity: float
    units: Float64
    valence: float
    arousal: float

    def au_labels(self) -> dict[str, int]:
        """Labelled unit -> 1 where its intensity reaches the threshold."""
        return {unit: int(self.units[k] >= c.AU_THRESHOLD) for k, unit in enumerate(AU12)}


@lru_cache(maxsize=1)
def _tables() -> tuple[Float64, Float64]:
    """(8, 17) probability of being active, and how typical each unit is of each expression."""
    given = np.array([[c.AU_GIVEN_EXPR[unit][name] for unit in c.UNITS] for name in EXPR8])
    typical = np.array([[c.EXPR_UNITS[name].get(unit, 0.0) for unit in c.UNITS] for name in EXPR8])
    return given, typical


@lru_cache(maxsize=1)
def _affect_weights() -> Float64:
    return np.array([[table[unit] for unit in c.UNITS] for table in (c.VALENCE, c.AROUSAL)])


def affect(units: Float64) -> tuple[float, float]:
    """Valence and arousal in (-1, 1) of unit intensities (17,): a smooth function, the same for everybody."""
    valence, arousal = np.tanh(np.asarray(c.VA_BIAS) + _affect_weights() @ units)
    return float(valence), float(arousal)


def unit_vector(**intensities: float) -> Float64:
    """(17,) intensities from names: `unit_vector(AU6=0.8, AU12=1.0)`.

    Raises:
        ValueError: a name that is no unit.
    """
    unknown = sorted(set(intensities) - set(c.UNITS))
    if unknown:
        raise ValueError(f"unknown action units {unknown}; known: {list(c.UNITS)}")
    return np.array([intensities.get(unit, 0.0) for unit in c.UNITS])


def prototype(name: str, intensity: float = 1.0) -> Expression:
    """The textbook face of one expression, without chance.

    Raises:
        ValueError: `name` is no expression.
    """
    if name not in EXPR8:
        raise ValueError(f"unknown expression {name!r}; known: {list(EXPR8)}")
    units = intensity * _tables()[1][EXPR8.index(name)]
    return Expression(name, intensity, units, *affect(units))


def draw_expression(rng: np.random.Generator) -> Expression:
    """A random expression with all its units."""
    row = int(rng.choice(len(EXPR8), p=[c.EXPR_PRIOR[name] for name in EXPR8]))
    given, typical = (table[row] for table in _tables())
    chance = rng.random(len(c.UNITS))
    active = chance < given
    pressed, parted, dropped, blink = (c.UNITS.index(unit) for unit in ("AU24", "AU25", "AU26", "AU43"))
    # Pressed lips are not parted, and a dropped jaw parts them; both without changing the rates.
    active[parted] = not active[pressed] and chance[parted] < given[parted] / (1 - given[pressed])
    active[dropped] = active[parted] and chance[dropped] < given[dropped] / given[parted]
    active[c.UNITS.index("AU5")] &= not active[blink]
    intensity = float(rng.beta(2.6, 1.4)) if row else 0.0
    habit = rng.beta(1.3, 2.6, len(c.UNITS))
    own = np.clip(typical * intensity * rng.uniform(0.6, 1.3, len(c.UNITS)), 0, 1)
    above = c.AU_THRESHOLD + (1 - c.AU_THRESHOLD) * np.maximum(own, 0.7 * habit)
    faint = 0.25 * habit * (rng.random(len(c.UNITS)) < 0.4)
    if rng.random() < c.BLEND_RATE:
        second = _tables()[1][int(rng.integers(1, len(EXPR8)))]
        faint = np.maximum(faint, second * rng.uniform(0.2, 0.8))
    below = (c.AU_THRESHOLD - 0.01) * np.clip(np.maximum(faint, own), 0, 1)
    units = np.where(active, above, below)
    units[blink] = active[blink] * rng.uniform(0.5, 1.0)
    return Expression(EXPR8[row], intensity, units, *affect(units))
