"""Ratings over time: raters joined by AVEC's recipe, rows brought to frames, each accounted for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shards.labels import DataError
from shards.sources.listing import Ledger
from shards.sources.series import (
    Series,
    check_times,
    columns_of,
    gold_standard,
    nearest,
    rating_in,
    resample,
    to_frames,
)

NAN = math.nan


def series(*pairs: tuple[float, float]) -> Series:
    return Series(np.array([t for t, _ in pairs]), np.array([v for _, v in pairs]))


def listed(values: Any) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 9) for v in values]


def ccc_by_hand(x: list[float], y: list[float]) -> float:
    n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
    vx, vy = (sum((v - m) ** 2 for v in values) / n for values, m in ((x, mx), (y, my)))
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y)) / n
    return 2 * cov / (vx + vy + (mx - my) ** 2)


def test_the_gold_standard_is_the_recipe_spelt_out() -> None:
    """Three raters; the agreeing two weigh more in where the whole curve lies, not in its shape."""
    raters = [[0.1, 0.3, 0.5, 0.2], [0.2, 0.4, 0.5, 0.2], [-0.3, 0.1, -0.2, 0.0]]
    means = [sum(r) / 4 for r in raters]
    pairs = {(i, j): ccc_by_hand(raters[i], raters[j]) for i in range(3) for j in range(3) if i != j}
    weights = [sum(pairs[i, j] for j in range(3) if j != i) / 2 for i in range(3)]
    assert weights[0] > weights[2] and weights[1] > weights[2]
    level = sum(w * m for w, m in zip(weights, means)) / sum(weights)
    expected = [sum(r[t] for r in raters) / 3 - sum(means) / 3 + level for t in range(4)]
    assert gold_standard(np.array(raters).T) == pytest.approx(expected, abs=1e-12)


def test_raters_that_say_nothing_or_all_disagree() -> None:
    one = np.array([[0.1, NAN], [0.5, NAN], [NAN, NAN]])
    assert listed(gold_standard(one)) == [0.1, 0.5, None]
    opposed = np.array([[0.5, -0.5], [-0.5, 0.5]])  # weights −1: they count alike
    assert listed(gold_standard(opposed)) == [0.0, 0.0]
    flat = np.full((3, 2), 0.25)
    assert listed(gold_standard(flat)) == [0.25] * 3
    assert listed(gold_standard(np.full((2, 2), NAN))) == [None, None]
    # One who contradicts has no say in the level: with weights .019, .035 and −.018 it would be .78.
    mixed = np.array([[0.1, 0.2, -0.6], [0.3, 0.1, -0.9], [0.2, 0.4, -0.8], [0.5, 0.3, -1.0]])
    assert 0.25 < gold_standard(mixed).mean() < 0.275  # between the means of the other two
    # A rater who drops out for a while is missed without a jump in level.
    drop = np.array([[0.0, 0.4], [0.2, 0.6], [0.4, NAN], [0.2, 0.6]])
    found = gold_standard(drop)
    assert found[2] - found[1] == pytest.approx(0.2 - ((0.2 - 0.2) + (0.6 - 1.6 / 3)) / 2, abs=1e-9)


def test_the_nearest_row_of_two_the_earlier_within_the_gap() -> None:
    seconds = np.array([0.0, 0.1, 0.2, 0.5])
    at = np.array([-0.2, -0.05, 0.05, 0.051, 0.1, 0.34, 0.351, 0.6, 0.61])
    assert nearest(seconds, at, 0.1).tolist() == [-1, 0, 0, 1, 1, -1, -1, 3, -1]
    assert nearest(seconds, at, 0.2).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert nearest(np.zeros(0), at, 1.0).tolist() == [-1] * 9


def test_linear_joins_rows_and_holds_no_bridge_over_what_is_missing() -> None:
    rated = series((0.0, 0.0), (0.1, 0.4), (0.2, NAN), (0.3, 1.0), (0.4, 0.0))
    at = np.array([-0.05, 0.0, 0.025, 0.1, 0.15, 0.2, 0.3, 0.375, 0.45, 0.6])
    expected = [0.0, 0.0, 0.1, 0.4, None, None, 1.0, 0.25, 0.0, None]
    assert listed(resample(rated, at, "linear", 0.1)) == expected
    # 0.15 and 0.25 are as near to two rows: the earlier.
    near = [0.0, 0.0, 0.0, 0.4, 0.4, None, 1.0, 0.0, 0.0, None]
    assert listed(resample(rated, at, "nearest", 0.1)) == near


def test_a_hole_between_far_rows_is_missing_in_its_middle() -> None:
    rated = series((0.0, 0.0), (1.0, 1.0))
    assert listed(resample(rated, np.array([0.1, 0.5, 0.9]), "linear", 0.2)) == [0.1, None, 0.9]


def test_every_row_is_accounted_for() -> None:
    ledger = Ledger("x")
    rated = Series(np.arange(6) * 0.04, np.array([0.1, NAN, 0.3, NAN, 0.5, 0.6]), num_invalid=1)
    found = to_frames(rated, np.array([0.0, 0.04, 0.08]), "nearest", "valence", ledger)
    assert listed(found) == [0.1, None, 0.3]
    assert (ledger.num_used, dict(ledger.dropped)) == (2, {"outside the video": 2, "missing": 1})
    assert ledger.labels == {"valence": 2}


@pytest.mark.parametrize(
    ("cell", "value", "reason"),
    [
        ("0.5", 0.05, ""),
        (" -10 ", -1.0, ""),
        ("", NAN, ""),
        ("NaN", NAN, ""),
        ("-5", NAN, ""),
        ("10.5", NAN, "f line 2: v must be from -10 to 10, got '10.5'"),
        ("inf", NAN, "must be from -10 to 10"),
        ("0,5", NAN, "f line 2: v must be a number, got '0,5'; write decimal points, not commas"),
        ("high", NAN, "must be a number, got 'high'"),
    ],
)
def test_a_rating_is_a_number_or_missing_or_refused(cell: str, value: float, reason: str) -> None:
    ledger = Ledger("x")
    found, invalid = rating_in(cell, "f line 2: v", ledger, 10.0, (-5.0,))
    assert found == pytest.approx(value, nan_ok=True) and invalid == bool(reason)
    if reason:
        with pytest.raises(DataError, match=reason):
            ledger.close(0.0)


def test_times_must_come_one_after_the_other() -> None:
    assert check_times([0.0, 0.5], ["f line 2", "f line 3"]).tolist() == [0.0, 0.5]
    with pytest.raises(DataError, match=r"f line 3: time 0\.5 s does not come after 0\.5 s: sort the rows"):
        check_times([0.5, 0.5], ["f line 2", "f line 3"])
    with pytest.raises(DataError, match="f line 2: no time in this row"):
        check_times([NAN], ["f line 2"])


def test_a_column_that_is_missing_names_those_there_are() -> None:
    assert columns_of(["'Time' ", "VALENCE"], ("valence", "time"), "f") == ["VALENCE", "'Time' "]
    with pytest.raises(DataError, match=r"f line 1: no column 'time', only 'time FM1': mend the header, or"):
        columns_of(["time FM1"], ("time",), "f line 1")
