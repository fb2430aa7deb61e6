"""Smoothing of a video's predictions over time, by frame number: missing frames still take time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.predictions import HEADS, Predictions, named_split
from shards.labels import DataError

Array = NDArray[np.float64]
ScoreFn = Callable[[Predictions], float]

_REACH = 4.0  # a Gaussian's weights end at so many sigmas
_CELLS = 2**22  # values sorted at once by the median, which bounds memory


@dataclass(frozen=True)
class Smoothing:
    """How predictions are smoothed.

    Attributes:
        kind: "gaussian" or "median".
        width: Gaussian: sigma in frames; median: odd number of frames; 0 = not smoothed.
        heads: which outputs, of `HEADS`; those that the predictions lack do not matter.

    Raises:
        DataError: a kind or head that does not exist, or a width that cannot be.
    """

    kind: str
    width: float
    heads: tuple[str, ...] = HEADS

    def __str__(self) -> str:
        if not self.width:
            return "none"
        return f"{self.kind}, {'sigma ' if self.kind == 'gaussian' else ''}{self.width:g} frames"

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "median"):
            raise DataError(f"smoothing {self.kind!r:.80}: there are gaussian and median")
        if not (math.isfinite(self.width) and self.width >= 0):
            raise DataError(f"{self.kind} smoothing: width {self.width} must be a number from 0")
        if self.kind == "median" and self.width and self.width % 2 != 1:
            raise DataError(f"median smoothing: width {self.width} must be an odd number of frames, or 0")
        for head in self.heads:
            if head not in HEADS:
                raise DataError(f"no output {head!r:.80} to smooth: there are {', '.join(HEADS)}")


@dataclass(frozen=True)
class SmoothingChoice:
    """What was chosen, and where.

    Attributes:
        smoothing: the candidate with the highest score.
        split: on whose labels.
        score: its score there.
        scores: every candidate's, in their order.
    """

    smoothing: Smoothing
    split: str
    score: float
    scores: tuple[tuple[Smoothing, float], ...]


def smooth(predictions: Predictions, smoothing: Smoothing) -> Predictions:
    """Predictions whose outputs are smoothed within each group (video) over frame numbers.

    Gaussian: mean over the frames that are there within 4 sigma, with weights exp(−Δ²/2σ²) that sum to 1.
    Median: over the frames that are there within (width − 1)/2 frames, each column by itself; class
    probabilities are then divided by their sum (where all medians are 0, the window's mean stands for them).
    Labels and the order of rows stay; the order does not matter.

    Raises:
        DataError: a video or frame number that is unknown, or two samples of one frame.
    """
    heads = [head for head in predictions.heads if head in smoothing.heads]
    if not smoothing.width or not heads:
        return replace(predictions)
    values = np.concatenate([getattr(predictions, head) for head in heads], 1)
    out = np.empty_like(values)
    for rows in videos_of(predictions):
        frames = predictions.frame[rows]
        if smoothing.kind == "gaussian":
            out[rows] = _gaussian(frames, values[rows], smoothing.width)
        else:
            out[rows] = median_filter(frames, values[rows], int(smoothing.width))
    changed: dict[str, Any] = {}
    for head in heads:
        width = getattr(predictions, head).shape[1]
        changed[head], out = out[:, :width], out[:, width:]
    if "expr_probs" in changed:
        changed["expr_probs"] = _normalised(predictions, smoothing, changed["expr_probs"])
    return replace(predictions, **changed)


def choose_smoothing(
    predictions: Predictions, candidates: Sequence[Smoothing], score_fn: ScoreFn
) -> SmoothingChoice:
    """The candidate whose smoothed predictions score highest; of equal ones the first.

    Args:
        predictions: of a named split that is not the one to be reported.
        candidates: put `Smoothing("gaussian", 0)` first, so that smoothing has to win something.
        score_fn: of predictions; higher is better.

    Raises:
        DataError: no candidates, a split without a name, a score that is not finite, or see `smooth`.
    """
    split = named_split(predictions)
    if not candidates:
        raise DataError("no smoothing to choose from")
    scores = tuple((candidate, float(score_fn(smooth(predictions, candidate)))) for candidate in candidates)
    for candidate, score in scores:
        if not math.isfinite(score):
            raise DataError(f"{candidate.kind} smoothing of width {candidate.width:g} scores {score}")
    smoothing, score = max(scores, key=lambda pair: pair[1])
    return SmoothingChoice(smoothing, split, score, scores)


def videos_of(predictions: Predictions) -> Iterator[NDArray[np.int64]]:
    """Rows of each video (group), by rising frame number.

    Raises:
        DataError: a video or frame number that is unknown, or two samples of one frame.
    """
    unknown = [row for row, group in enumerate(predictions.group) if not group or predictions.frame[row] < 0]
    if unknown:
        raise DataError(
            f"smoothing needs each sample's video and frame number; {len(unknown)} of {len(predictions)} "
            f"have none (first: {predictions.keys[unknown[0]]})"
        )
    numbers = {group: number for number, group in enumerate(sorted(set(predictions.group)))}
    codes = np.array([numbers[group] for group in predictions.group], np.int64)
    order = np.lexsort((predictions.frame, codes))
    codes, frames = codes[order], predictions.frame[order]
    twice = np.flatnonzero((np.diff(codes) == 0) & (np.diff(frames) == 0))
    if len(twice):
        first, second = (predictions.keys[order[twice[0] + i]] for i in (0, 1))
        raise DataError(
            f"samples {first} and {second} are both frame {frames[twice[0]]} of one video; "
            "give each person of a video a group of their own"
        )
    yield from np.split(order, np.flatnonzero(np.diff(codes)) + 1)


def _gaussian(frames: NDArray[np.int64], values: Array, sigma: float) -> Array:
    """(n, V) weighted means of (n, V) values at n rising frames.

    Rows are paired with those s = 1, 2, … further on: as frames differ, s never exceeds their distance.
    """
    reach = _REACH * sigma
    total, weight = values.copy(), np.ones(len(frames))
    for shift in range(1, len(frames)):
        if shift > reach:
            break
        distance = frames[shift:] - frames[:-shift]
        weights = np.where(distance <= reach, np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
        if not weights.any():
            break
        total[:-shift] += weights[:, None] * values[shift:]
        total[shift:] += weights[:, None] * values[:-shift]
        weight[:-shift] += weights
        weight[shift:] += weights
    means: Array = np.clip(total / weight[:, None], values.min(0), values.max(0))
    return means


def median_filter(frames: NDArray[np.int64], values: Array, width: int) -> Array:
    """Medians over the frames that there are within (width − 1)/2 of each.

    Args:
        frames: (n,) rising frame numbers of one video.
        values: (n, V), each column by itself.
        width: odd number of frames.

    Returns:
        (n, V).
    """
    half = width // 2
    first = np.searchsorted(frames, frames - half)
    counts = np.searchsorted(frames, frames + half, "right") - first
    out = np.empty_like(values)
    step = max(1, _CELLS // (int(counts.max()) * values.shape[1]))
    for start in range(0, len(frames), step):
        here = slice(start, start + step)
        places = np.arange(counts[here].max())
        inside = places < counts[here, None]
        index = np.where(inside, first[here, None] + places, 0)
        window = np.sort(np.where(inside[..., None], values[index], np.inf), axis=1)
        rows, middle = np.arange(len(window)), counts[here]
        out[here] = (window[rows, (middle - 1) // 2] + window[rows, middle // 2]) / 2
    return out


def _normalised(predictions: Predictions, smoothing: Smoothing, probs: Array) -> Array:
    """Class probabilities (N, C) divided by their sums."""
    sums = probs.sum(1, keepdims=True)
    empty = np.flatnonzero(sums[:, 0] <= 0)
    if len(empty):
        probs = probs.copy()
        probs[empty] = _window_means(predictions, smoothing)[empty]
        sums = probs.sum(1, keepdims=True)
    normalised: Array = np.minimum(probs / sums, 1.0)
    return normalised


def _window_means(predictions: Predictions, smoothing: Smoothing) -> Array:
    """(N, C) plain means of class probabilities over the median's window."""
    assert predictions.expr_probs is not None
    out, half = np.empty_like(predictions.expr_probs), int(smoothing.width) // 2
    for rows in videos_of(predictions):
        frames, values = predictions.frame[rows], predictions.expr_probs[rows]
        first, last = np.searchsorted(frames, frames - half), np.searchsorted(frames, frames + half, "right")
        sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
        out[rows] = (sums[last] - sums[first]) / (last - first)[:, None]
    return out.clip(min=0.0)
