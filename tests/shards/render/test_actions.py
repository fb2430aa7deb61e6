"""Expressions: affect follows from units; contradictions do not occur."""

from __future__ import annotations

import numpy as np
import pytest

from shards.labels import EXPR8
from shards.render import constants as c
from shards.render.actions import affect, draw_expression, prototype, unit_vector


def test_a_smile_is_pleasant_and_fear_is_not() -> None:
    happy, afraid, sad = (prototype(name) for name in ("happiness", "fear", "sadness"))
    assert happy.valence > 0.5
    assert afraid.valence < -0.3
    assert afraid.arousal > 0.5
    assert sad.valence < -0.3
    assert sad.arousal < -0.2


def test_affect_is_smooth_in_the_units() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        units = rng.random(len(c.UNITS))
        step = 1e-3 * rng.standard_normal(len(c.UNITS))
        there, here = np.array(affect(units + step)), np.array(affect(units))
        assert np.abs(there - here).max() < 0.02
        assert np.abs(here).max() < 1


def test_intensities_stay_in_range_and_contradictions_do_not_occur() -> None:
    rng = np.random.default_rng(1)
    pressed, parted, dropped = (c.UNITS.index(unit) for unit in ("AU24", "AU25", "AU26"))
    for _ in range(2000):
        units = draw_expression(rng).units
        active = units >= c.AU_THRESHOLD
        assert units.min() >= 0
        assert units.max() <= 1
        assert not (active[pressed] and active[parted])
        assert active[parted] or not active[dropped]


def test_every_expression_has_a_prototype_and_strangers_are_refused() -> None:
    assert [prototype(name).name for name in EXPR8] == list(EXPR8)
    assert prototype("neutral").units.sum() == 0
    with pytest.raises(ValueError, match="joy"):
        prototype("joy")
    with pytest.raises(ValueError, match="AU99"):
        unit_vector(AU99=1.0)
