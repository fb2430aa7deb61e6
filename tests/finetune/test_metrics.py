"""Metrics against scikit-learn and NumPy, small checks by hand, and what has no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from finetune.metrics import (
    Compared,
    Interval,
    accuracy,
    always_positive_f1,
    au_f1,
    au_scores,
    balanced_accuracy,
    bootstrap,
    bootstrap_difference,
    cc,
    ccc,
    class_scores,
    confusion_matrix,
    macro_f1,
    rmse,
)

X, Y = np.array([0.1, 0.4, -0.3, 0.8, 0]), np.array([0.2, 0.5, -0.1, 0.6, -0.2])


def related(count: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that have to do with their targets, and which are valid; the others hold NaN."""
    rng = np.random.default_rng(0)
    pred, target = rng.standard_normal(count), rng.standard_normal(count) * 2 + 1
    valid = rng.random(count) < 0.8
    return pred, np.where(valid, target + pred, np.nan), valid


def classes(count: int = 400, num_classes: int = 8, of: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class numbers of the first `of` classes, right in half of the cases; −1 where not valid."""
    rng = np.random.default_rng(1)
    target, pred = rng.integers(of, size=count), rng.integers(of, size=count)
    pred = np.where(rng.random(count) < 0.5, target, pred)
    valid = rng.random(count) < 0.8
    return pred, np.where(valid, target, -1), valid


def units(count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, targets and valid of 12 units; −1 where not valid; unit 5 never occurs."""
    rng = np.random.default_rng(2)
    target = (rng.random((count, 12)) < np.linspace(0.05, 0.6, 12)).astype(np.int64)
    target[:, 5] = 0
    pred = np.clip(0.6 * target + rng.random((count, 12)) * 0.7, 0, 1)
    valid = rng.random((count, 12)) < 0.8
    return pred, np.where(valid, target, -1), valid


def test_ccc_of_a_small_example() -> None:
    assert ccc(X, Y) == pytest.approx(0.88333334, abs=1e-8)


def test_ccc_is_correlation_times_how_near_means_and_spreads_are() -> None:
    pred, target, valid = related()
    x, y = pred[valid], target[valid]
    r = np.corrcoef(x, y)[0, 1]
    expected = 2 * r * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert ccc(pred, target, valid) == pytest.approx(expected, abs=1e-12)
    assert ccc(x, y) == pytest.approx(expected, abs=1e-12)
    assert ccc(x, x) == pytest.approx(1) and ccc(x, -x) < -0.9


def test_cc_and_rmse_are_those_of_the_libraries() -> None:
    pred, target, valid = related()
    x, y = pred[valid], target[valid]
    assert cc(pred, target, valid) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    expected = sklearn_metrics.root_mean_squared_error(y, x)
    assert rmse(pred, target, valid) == pytest.approx(expected, abs=1e-12)
    assert cc(x, 3 * x + 2) == pytest.approx(1) and rmse(x, x) == 0


@pytest.mark.parametrize("metric", [ccc, cc])
def test_a_constant_says_nothing(metric) -> None:
    ramp = np.arange(5)
    for value in (0.0, 0.1, 1e9):  # the variance of ten times 0.1 is not quite 0
        same = np.full(5, value)
        assert metric(same, ramp) == metric(ramp, same) == metric(same, same) == 0
    assert metric(np.ones(1), np.ones(1)) == 0 and metric(np.ones(0), np.ones(0)) == 0
    assert metric(ramp, ramp, np.arange(5) < 1) == 0


def test_no_samples() -> None:
    nothing = np.zeros(0)
    assert accuracy(nothing, nothing) == macro_f1(nothing, nothing, 8) == 0
    assert balanced_accuracy(nothing, nothing, 8) == 0
    assert math.isnan(rmse(nothing, nothing))
    assert au_f1(np.zeros((0, 12)), np.zeros((0, 12))) == 0


def test_accuracy() -> None:
    assert accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 3, 4])) == 0.75
    assert accuracy(np.array([1, 2, 3]), np.array([1, -1, 4]), np.array([True, False, True])) == 0.5


def test_class_scores_are_those_of_scikit_learn() -> None:
    pred, target, valid = classes()
    p, t = pred[valid], target[valid]
    expected = sklearn_metrics.precision_recall_fscore_support(t, p, labels=range(8), zero_division=0)
    found = class_scores(pred, target, 8, valid)
    for own, name in zip(expected, ("precision", "recall", "f1", "support")):
        np.testing.assert_allclose(getattr(found, name), own, atol=1e-12)
    matrix = confusion_matrix(pred, target, 8, valid)
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(t, p, labels=range(8)))
    assert accuracy(pred, target, valid) == pytest.approx(sklearn_metrics.accuracy_score(t, p), abs=1e-12)
    macro = sklearn_metrics.f1_score(t, p, average="macro")
    assert macro_f1(pred, target, 8, valid) == pytest.approx(macro, abs=1e-12)
    balanced = sklearn_metrics.balanced_accuracy_score(t, p)
    assert balanced_accuracy(pred, target, 8, valid) == pytest.approx(balanced, abs=1e-12)


def test_a_class_that_is_nowhere_counts_zero_in_macro_f1_and_not_at_all_in_balanced_accuracy() -> None:
    pred, target, valid = classes(of=6)
    p, t = pred[valid], target[valid]
    expected = sklearn_metrics.f1_score(t, p, average="macro", labels=range(8), zero_division=0)
    assert macro_f1(pred, target, 8, valid) == pytest.approx(expected, abs=1e-12)
    assert macro_f1(pred, target, 8, valid) == pytest.approx(macro_f1(pred, target, 6, valid) * 6 / 8)
    balanced = sklearn_metrics.balanced_accuracy_score(t, p)
    assert balanced_accuracy(pred, target, 8, valid) == pytest.approx(balanced, abs=1e-12)


def test_a_class_only_predicted_has_recall_and_f1_zero() -> None:
    scores = class_scores(np.array([0, 1, 2]), np.array([0, 0, 2]), 4)
    assert scores.f1.tolist() == [2 / 3, 0, 1, 0] and scores.support.tolist() == [2, 0, 1, 0]
    assert scores.precision.tolist() == [1, 0, 1, 0] and scores.recall.tolist() == [0.5, 0, 1, 0]


@pytest.mark.parametrize("strange", [-1, 8, 0.5, np.nan])
def test_what_is_no_class_is_refused(strange: float) -> None:
    with pytest.raises(ValueError, match=r"target holds .*valid"):
        confusion_matrix(np.array([0, 1]), np.array([strange, 1]), 8)
    with pytest.raises(ValueError, match="pred holds"):
        macro_f1(np.array([strange, 1]), np.array([0, 1]), 8)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        accuracy(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="one shape"):
        ccc(np.zeros(3), np.zeros(3), np.ones(2, bool))


@pytest.mark.parametrize("threshold", [0.5, 0.3, np.linspace(0.2, 0.9, 12)])
def test_action_units_are_scored_as_by_scikit_learn(threshold) -> None:
    pred, target, valid = units()
    found = au_scores(pred, target, valid, threshold)
    limits = np.broadcast_to(threshold, 12)
    for unit in range(12):
        t, p = target[valid[:, unit], unit], pred[valid[:, unit], unit] > limits[unit]
        expected = sklearn_metrics.precision_recall_fscore_support(t, p, average="binary", zero_division=0)
        assert (found.precision[unit], found.recall[unit], found.f1[unit]) == pytest.approx(
            expected[:3], abs=1e-12
        )
        assert found.support[unit] == t.sum()
    assert au_f1(pred, target, valid, threshold) == pytest.approx(found.f1.mean(), abs=1e-12)
    assert found.f1[5] == 0


def test_strange_action_units_are_refused_unless_missing() -> None:
    pred, target = np.zeros((2, 12)), np.full((2, 12), -1)
    with pytest.raises(ValueError, match="missing in valid"):
        au_scores(pred, target)
    assert au_f1(pred, target, np.zeros((2, 12), bool)) == 0


def test_always_positive_is_two_rates_over_one_plus_the_rate() -> None:
    _, target, valid = units()
    rates = np.array([target[valid[:, unit], unit].mean() for unit in range(12)])
    np.testing.assert_allclose(always_positive_f1(target, valid), 2 * rates / (1 + rates), atol=1e-12)


def test_a_bootstrap_resamples_whole_groups() -> None:
    groups = np.array(["b", "a", "c", "a", "c", "c"])
    seen: list[np.ndarray] = []

    def metric(rows: np.ndarray) -> float:
        seen.append(rows)
        return 0.0

    bootstrap(metric, groups, 200, seed=0)
    assert len(seen) == 200
    for rows in seen:
        times = np.bincount(rows, minlength=6)
        assert times[1] == times[3] and times[2] == times[4] == times[5]
        assert times[0] + times[1] + times[2] == 3
    assert {tuple(np.bincount(rows, minlength=6)[:3]) for rows in seen} == {
        (b, a, 3 - a - b) for a in range(4) for b in range(4 - a)
    }


def test_a_bootstrap_of_the_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), np.arange(400), 4000, seed=1)
    error = values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )
    # twenty groups of twenty equal samples: as wide as twenty samples are, not as 400
    groups = np.repeat(np.arange(20), 20)
    means = np.repeat(values[:20], 20)
    wide = bootstrap(lambda rows: float(means[rows].mean()), groups, 1000, seed=1)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * values[:20].std() / 20**0.5, rel=0.15)


def test_a_bootstrap_follows_its_seed() -> None:
    pred, target, valid = classes()
    compared = Compared(pred, target, valid)

    def metric(rows: np.ndarray) -> float:
        p, t, v = compared.take(rows)
        return macro_f1(p, t, 8, v)

    groups = np.arange(400) // 10
    first = bootstrap(metric, groups, 50, seed=3)
    assert first == bootstrap(metric, groups, 50, seed=3) != bootstrap(metric, groups, 50, seed=4)
    assert first.low < metric(np.arange(400)) < first.high
    inner = bootstrap(metric, groups, 50, seed=3, confidence=0.5)
    assert first.low < inner.low < inner.high < first.high


def test_two_systems_are_compared_on_the_same_resamples() -> None:
    target = np.random.default_rng(0).standard_normal(200)
    groups = np.arange(200) // 4

    def mean(rows: np.ndarray) -> float:
        return float(target[rows].mean())

    difference = bootstrap_difference(lambda rows: mean(rows) + 0.01, mean, groups, 100, seed=0)
    assert difference == pytest.approx((0.01, 0.01))
    one = bootstrap(mean, groups, 100, seed=0)
    assert one.high - one.low > 0.1


def test_a_bootstrap_needs_something_to_draw_from() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        bootstrap(lambda rows: 0.0, np.zeros(0), 10, seed=0)
    with pytest.raises(ValueError, match="num_resamples=0"):
        bootstrap(lambda rows: 0.0, np.zeros(3), 0, seed=0)
    with pytest.raises(ValueError, match="confidence=95"):
        bootstrap(lambda rows: 0.0, np.zeros(3), 10, seed=0, confidence=95)
    assert bootstrap(lambda rows: float(len(rows)), np.zeros(3), 10, seed=0) == Interval(3.0, 3.0)
