"""What sets people apart before they do anything: faces at rest and the folds in them."""

from __future__ import annotations

import numpy as np
import pytest

from shards.render import constants as c
from shards.render.actions import unit_vector
from shards.render.head import Head, build_head, resting_shape
from shards.render.mesh import load_mesh
from shards.render.shading import fold_weights

NUM_PEOPLE = 200


@pytest.fixture(scope="module")
def offsets() -> dict[str, np.ndarray]:
    """How far each person's face at rest lies along each unit, found back from its vertices."""
    mesh = load_mesh()
    units = list(c.RESTING)
    columns = np.stack(
        [
            mesh.flat_columns[mesh.column_unit == c.UNITS.index(unit)].sum(0, dtype=np.float64)
            for unit in units
        ],
        axis=1,
    )
    shapes = [resting_shape(np.random.default_rng(n)).ravel() for n in range(NUM_PEOPLE)]
    found = np.linalg.lstsq(columns, np.stack(shapes, axis=1), rcond=None)[0]
    assert np.abs(columns @ found - np.stack(shapes, axis=1)).max() < 1e-5  # nothing but units moves
    return dict(zip(units, found))


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    return [build_head(np.random.default_rng(n)) for n in range(60)]


@pytest.mark.parametrize("unit", c.RESTING)
def test_faces_at_rest_differ_along_units_either_way(unit: str, offsets: dict[str, np.ndarray]) -> None:
    spread = c.RESTING[unit]
    # A normal distribution cut at two standard deviations onto the cut has 0.96 of its spread.
    assert np.std(offsets[unit]) == pytest.approx(0.96 * spread, rel=0.2)
    assert np.mean(offsets[unit]) == pytest.approx(0, abs=0.25 * spread)
    assert np.abs(offsets[unit]).max() <= 2 * spread + 1e-4


def test_people_have_folds_that_no_unit_drew_and_age_adds_to_them(heads: list[Head]) -> None:
    folds = np.stack([head.fold_rest for head in heads])
    ages = np.array([head.traits.age for head in heads])
    assert folds.shape == (len(heads), len(c.WRINKLES))
    assert folds.min() >= 0
    assert folds.max() <= c.FOLD_REST[2]
    assert folds[ages > 0.5].mean() > 1.3 * folds[ages < 0.3].mean()
    between_people = folds.std(0) / folds.mean(0)
    assert between_people.min() > 0.5


def test_units_deepen_folds_by_what_the_person_has_of_them(heads: list[Head]) -> None:
    smile = unit_vector(AU12=1.0)
    nasolabial = list(c.WRINKLES).index("nasolabial")
    for head in heads[:10]:
        rest, smiling = fold_weights(unit_vector(), head), fold_weights(smile, head)
        assert np.allclose(rest, c.WRINKLE_DEPTH * head.fold_rest)
        deeper = c.WRINKLE_DEPTH * c.WRINKLES["nasolabial"]["AU12"] * head.fold_gain
        assert smiling[nasolabial] - rest[nasolabial] == pytest.approx(deeper, rel=1e-4)
