"""Metrics against small checks by hand and against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics import accuracy, ccc


def test_ccc_of_a_small_example() -> None:
    assert ccc(np.array([0.1, 0.4, -0.3, 0.8, 0]), np.array([0.2, 0.5, -0.1, 0.6, -0.2])) == pytest.approx(
        0.88333334
    )


def test_ccc_is_correlation_times_how_near_means_and_spreads_are() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(500), rng.standard_normal(500) * 2 + 1
    y += x
    r = np.corrcoef(x, y)[0, 1]
    expected = 2 * r * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert ccc(x, y) == pytest.approx(expected) and ccc(x, x) == pytest.approx(1) and ccc(x, -x) < -0.9


def test_a_constant_says_nothing() -> None:
    assert ccc(np.zeros(5), np.arange(5)) == 0 and ccc(np.zeros(5), np.zeros(5)) == 0
    assert ccc(np.ones(1), np.ones(1)) == 0 and ccc(np.ones(0), np.ones(0)) == 0


def test_accuracy() -> None:
    assert accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 3, 4])) == 0.75
    assert accuracy(np.zeros(0), np.zeros(0)) == 0
