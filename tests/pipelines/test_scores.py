"""Figures of video: pooled over all frames, and averaged over recordings; which is which is printed."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.predictions import Predictions, build_predictions
from pipelines.scores import as_text, recording_figures, score


def recordings(**changed: object) -> Predictions:
    """Recording a is predicted exactly; of b the prediction never moves; c has no label of valence."""
    known: dict[str, object] = {
        "group": ["a", "a", "b", "b", "b", "c"],
        "frame": [0, 1, 0, 1, 2, 0],
        "va": np.array([[0, 0], [1, 0.5], [1, 0], [-1, 0], [0, np.nan], [np.nan, 0.5]]),
        "va_pred": np.array([[0, 0.5], [1, 0], [0, 0], [0, 0.5], [0, 1], [0.2, 0.5]]),
    }
    return build_predictions("val", list("uvwxyz"), **(known | changed))  # type: ignore[arg-type]


def test_both_ways_by_hand() -> None:
    scores = score(recordings(), num_resamples=0)
    # Pooled: p = 0 1 0 0 0, t = 0 1 1 -1 0; means .2, covariance .16, variances .16 and .56.
    assert scores.headline["ccc_valence"].value == pytest.approx(0.32 / 0.72)
    assert scores.headline["cc_valence"].value == pytest.approx(0.16 / (0.16 * 0.56) ** 0.5)
    assert scores.headline["rmse_valence"].value == pytest.approx((2 / 5) ** 0.5)
    means = {name: figure.value for name, figure in scores.recordings.items()}
    assert [means["ccc_valence"], means["cc_valence"]] == pytest.approx([(1 + 0) / 2] * 2)
    assert means["rmse_valence"] == pytest.approx((0 + (2 / 3) ** 0.5) / 2)
    assert means["ccc_arousal"] == pytest.approx((-1 + 0 + 0) / 3)  # c has one frame: it says nothing
    assert means["rmse_arousal"] == pytest.approx((0.5 + 0.5 * 0.5**0.5 + 0) / 3)


def test_valence_alone_is_the_whole_score_where_arousal_has_no_label() -> None:
    va = np.array([[0, np.nan], [1, np.nan], [1, np.nan], [-1, np.nan], [0, np.nan], [np.nan, np.nan]])
    scores = score(recordings(va=va), num_resamples=10)
    assert scores.headline["score"] == scores.headline["ccc_valence"]
    assert (
        scores.headline["score"].value == pytest.approx(0.32 / 0.72) and "ccc_arousal" not in scores.headline
    )


def test_intervals_draw_whole_recordings() -> None:
    figure = recording_figures(recordings())["ccc_valence"]
    assert figure(np.array([0, 1, 0, 1, 2, 3, 4])) == pytest.approx(2 / 3)  # a twice, b once
    assert figure(np.array([5, 5])) == 0.0
    assert np.isnan(recording_figures(recordings())["rmse_valence"](np.array([5, 5])))  # 0 would be perfect
    interval = score(recordings(), num_resamples=200).recordings["ccc_valence"]
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_what_is_printed_says_which_is_which() -> None:
    text = as_text(score(recordings(), num_resamples=10))
    pooled, means = text.split("per recording")
    assert "pooled" in pooled and "ccc_valence               0.4444" in pooled
    assert "each that has labels" in means and "ccc_valence               0.5000" in means


@pytest.mark.parametrize(
    "unknown",
    [{"group": ["a", "a", "b", "b", "b", ""]}, {"frame": [-1] * 6}, {"frame": [0, 1, 0, 1, 1, 0]}],
    ids=["no group", "no frame", "two faces of a frame"],
)
def test_what_is_no_video_has_no_recordings(unknown: dict[str, object]) -> None:
    scores = score(recordings(**unknown), num_resamples=0)
    assert not scores.recordings and "pooled" not in as_text(scores)
