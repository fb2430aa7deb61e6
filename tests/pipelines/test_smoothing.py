"""Smoothing goes by frame number, within a video, whatever the order of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from finetune.metrics import ccc
from pipelines.predictions import Predictions, build_predictions
from pipelines.smoothing import Smoothing, choose_smoothing, smooth
from shards.labels import DataError


def videos(seed: int = 0, present: float = 0.6) -> Predictions:
    """Two videos of 80 frames, some missing; rows in disorder."""
    rng = np.random.default_rng(seed)
    pairs = [(group, frame) for group in ("a", "b") for frame in range(80) if rng.random() < present]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    probs = rng.random((len(pairs), 8)) ** 4
    return build_predictions(
        "val",
        [f"{group}_{frame}" for group, frame in pairs],
        group=[group for group, _ in pairs],
        frame=[frame for _, frame in pairs],
        expr_probs=probs / probs.sum(1, keepdims=True),
        au_probs=rng.random((len(pairs), 12)),
        va_pred=rng.uniform(-1, 1, (len(pairs), 2)),
    )


def by_hand(predictions: Predictions, head: str, row: int, smoothing: Smoothing) -> np.ndarray:
    """One row, from the definition."""
    values = getattr(predictions, head)
    window, weights = [], []
    for other in range(len(predictions)):
        distance = abs(int(predictions.frame[other]) - int(predictions.frame[row]))
        reach = 4 * smoothing.width if smoothing.kind == "gaussian" else (smoothing.width - 1) / 2
        if predictions.group[other] == predictions.group[row] and distance <= reach:
            window.append(values[other])
            weights.append(np.exp(-(distance**2) / (2 * smoothing.width**2)))
    if smoothing.kind == "gaussian":
        found = np.average(window, axis=0, weights=weights)
    else:
        found = np.median(window, axis=0)
    return found / found.sum() if head == "expr_probs" else found


@pytest.mark.parametrize(
    "smoothing", [Smoothing("gaussian", w) for w in (0.3, 2, 50)] + [Smoothing("median", w) for w in (5, 199)]
)
def test_it_is_what_the_definition_says(smoothing: Smoothing) -> None:
    before = videos()
    after = smooth(before, smoothing)
    assert after.keys == before.keys
    for head in ("expr_probs", "au_probs", "va_pred"):
        expected = np.stack([by_hand(before, head, row, smoothing) for row in range(len(before))])
        np.testing.assert_allclose(getattr(after, head), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [Smoothing("gaussian", 3), Smoothing("median", 7)])
def test_the_order_of_rows_does_not_matter(smoothing: Smoothing) -> None:
    before = videos()
    order = np.random.default_rng(1).permutation(len(before))
    one, other = smooth(before, smoothing).take(order), smooth(before.take(order), smoothing)
    assert one.keys == other.keys
    for head in one.heads:
        assert np.array_equal(getattr(one, head), getattr(other, head))


def test_a_gap_counts_as_time() -> None:
    frames = np.array([0, 1, 100])
    before = build_predictions(
        "val", list("abc"), group=["v"] * 3, frame=frames, va_pred=[[0, 0], [1, 1], [-1, -1]]
    )
    for smoothing in (Smoothing("gaussian", 5), Smoothing("median", 31)):
        after = smooth(before, smoothing).va_pred
        assert after is not None
        assert after[2].tolist() == [-1, -1]
        assert 0.4 < after[0, 0] < 0.6


def test_width_zero_and_heads_not_asked_for_stay_as_they_are() -> None:
    before = replace(videos(), frame=np.full(len(videos()), -1, np.int64))
    for smoothing in (Smoothing("gaussian", 0), Smoothing("median", 0)):
        after = smooth(before, smoothing)
        assert after is not before
        for head in before.heads:
            assert np.array_equal(getattr(after, head), getattr(before, head))
    after = smooth(videos(), Smoothing("gaussian", 3, ("va_pred",)))
    assert after.expr_probs is not None and np.array_equal(after.expr_probs, videos().expr_probs)
    assert after.va_pred is not None and not np.array_equal(after.va_pred, videos().va_pred)


def test_medians_that_are_all_zero_fall_back_to_the_mean() -> None:
    probs = np.eye(8)[[0, 1, 2, 0, 1, 2]]
    before = build_predictions("val", list("abcdef"), group=["v"] * 6, frame=range(6), expr_probs=probs)
    after = smooth(before, Smoothing("median", 3)).expr_probs
    assert after is not None
    np.testing.assert_allclose(after.sum(1), 1)
    np.testing.assert_allclose(after[2], np.eye(8)[:3].mean(0))


def test_what_cannot_be_smoothed_is_named() -> None:
    before = videos()
    some = replace(before, frame=np.where(np.arange(len(before)) == 3, -1, before.frame))
    with pytest.raises(DataError, match=f"1 of {len(before)} have none .first: {before.keys[3]}"):
        smooth(some, Smoothing("gaussian", 1))
    with pytest.raises(DataError, match="video and frame number"):
        smooth(replace(before, group=("",) * len(before)), Smoothing("median", 3))
    twice = build_predictions("val", ["x", "y"], group=["v", "v"], frame=[4, 4], va_pred=np.zeros((2, 2)))
    with pytest.raises(DataError, match="x and y are both frame 4"):
        smooth(twice, Smoothing("gaussian", 1))


@pytest.mark.parametrize(
    ("kind", "width"), [("mean", 3), ("median", 4), ("median", 2.5), ("gaussian", -1), ("gaussian", np.nan)]
)
def test_a_smoothing_that_cannot_be_is_refused(kind: str, width: float) -> None:
    with pytest.raises(DataError):
        Smoothing(kind, width)
    with pytest.raises(DataError, match="no output"):
        Smoothing("gaussian", 1, ("va",))


def valence_ccc(predictions: Predictions) -> float:
    assert predictions.va_pred is not None
    return ccc(predictions.va_pred[:, 0], predictions.va[:, 0])


def test_the_width_is_chosen_by_score_and_says_where() -> None:
    rng = np.random.default_rng(0)
    frames = np.arange(600)
    truth = np.stack([np.sin(frames / 40), np.cos(frames / 40)], 1)
    noisy = np.clip(0.6 * truth + rng.normal(0, 0.25, truth.shape), -1, 1)
    before = build_predictions(
        "tune", [f"{f:03d}" for f in frames], group=["v"] * 600, frame=frames, va=truth, va_pred=noisy
    )
    candidates = [Smoothing("gaussian", width) for width in (0, 4, 400)]
    choice = choose_smoothing(before, candidates, valence_ccc)
    assert (choice.smoothing, choice.split) == (candidates[1], "tune")
    assert (
        choice.score == max(score for _, score in choice.scores) == valence_ccc(smooth(before, candidates[1]))
    )
    assert [candidate for candidate, _ in choice.scores] == candidates
    assert choose_smoothing(before, candidates, lambda _: 1.0).smoothing == candidates[0]
    with pytest.raises(DataError, match="without a name"):
        choose_smoothing(replace(before, split=""), candidates, valence_ccc)
    with pytest.raises(DataError, match="scores nan"):
        choose_smoothing(before, candidates, lambda _: float("nan"))
    with pytest.raises(DataError, match="no smoothing"):
        choose_smoothing(before, [], valence_ccc)
