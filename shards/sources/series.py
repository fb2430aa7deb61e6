"""Ratings over time: checked, joined into one gold standard, and brought to the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from shards.labels import DataError
from shards.sources.listing import Ledger

Floats = NDArray[np.float64]

RESAMPLING = ("nearest", "linear")

_CLOSE = 1e-6  # seconds: times are written with few digits


@dataclass(frozen=True)
class Series:
    """One rating over time.

    Attributes:
        seconds: (N,) increasing. values: (N,) in [−1, 1], NaN = missing.
        num_invalid: of the missing, how many were written but could not be used.
    """

    seconds: Floats
    values: Floats
    num_invalid: int = 0


def check_resampling(how: str) -> None:
    """
    Raises:
        DataError: not one of `RESAMPLING`.
    """
    if how not in RESAMPLING:
        raise DataError(f"resample={how}: must be one of {', '.join(RESAMPLING)}")


def number_in(cell: str, where: str) -> float:
    """The number that a cell holds; NaN where it is empty or says so.

    Raises:
        DataError: no number; names the place and the remedy.
    """
    text = cell.strip()
    try:
        return float(text) if text else math.nan
    except ValueError:
        hint = "; write decimal points, not commas" if "," in text else ""
        raise DataError(f"{where} must be a number, got {cell!r:.40}{hint}") from None


def rating_in(
    cell: str, where: str, ledger: Ledger, scale: float = 1.0, missing: Sequence[float] = ()
) -> tuple[float, bool]:
    """One rating as (value in [−1, 1] or NaN, was it unusable); the ledger gets what is unusable.

    Args:
        cell: as written; empty, "nan" or one of `missing` = missing.
        where: file, line and column.
        ledger: of labels.
        scale: what stands for 1.
        missing: numbers that mean missing.
    """
    try:
        value = number_in(cell, where)
    except DataError as error:
        ledger.refuse("invalid", str(error))
        return math.nan, True
    if math.isnan(value) or value in missing:
        return math.nan, False
    if not abs(value) <= scale:
        ledger.refuse("invalid", f"{where} must be from {-scale:g} to {scale:g}, got {cell!r:.40}")
        return math.nan, True
    return value / scale, False


def check_times(seconds: Sequence[float], lines: Sequence[str]) -> Floats:
    """Times of rows, checked.

    Args:
        seconds: (N,). lines: (N,) file and line of each, for the message.

    Raises:
        DataError: not finite, or not after the one before; names the line.
    """
    times = np.asarray(seconds, np.float64)
    for i in np.flatnonzero(~np.isfinite(times)).tolist():
        raise DataError(f"{lines[i]}: no time in this row; mend or remove the line")
    for i in (np.flatnonzero(np.diff(times) <= 0) + 1).tolist():
        raise DataError(
            f"{lines[i]}: time {times[i]:g} s does not come after {times[i - 1]:g} s: sort the rows, "
            "each time once"
        )
    return times


def step_of(seconds: Floats) -> float:
    """The usual time from one row to the next, in s; 0 with fewer than two."""
    return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0


def nearest(seconds: Floats, at: Floats, max_gap: float) -> NDArray[np.int64]:
    """For each time of `at` the number of the nearest of `seconds`, of two the earlier; −1 if none is near.

    Args:
        seconds: (N,) increasing. at: (M,).
        max_gap: s, how far the nearest may be.

    Returns:
        (M,) int64.
    """
    if not len(seconds):
        return np.full(len(at), -1, np.int64)
    right = np.clip(np.searchsorted(seconds, at), 0, len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    # The earlier, unless the later is clearly nearer.
    found = np.where(at - seconds[left] <= seconds[right] - at + _CLOSE, left, right)
    return np.where(np.abs(seconds[found] - at) <= max_gap + _CLOSE, found, -1).astype(np.int64)


def resample(series: Series, at: Floats, how: str, max_gap: float) -> Floats:
    """A rating at other times.

    Args:
        series: to be read.
        at: (M,) s.
        how: "nearest" takes the nearest row; "linear" joins the rows before and after by a straight line, and
            where one of them is missing, or there is none, takes only what was said at that very time (before
            the first and after the last row, the nearest).
        max_gap: s; where the nearest row is farther, the rating is missing.

    Returns:
        (M,) float64, NaN = missing.
    """
    found = nearest(series.seconds, at, max_gap)
    if not len(series.values):
        return np.full(len(at), np.nan)
    near = np.where(found >= 0, series.values[found], np.nan)
    if how == "nearest" or len(series.values) < 2:
        return near
    times, values = series.seconds, series.values
    left = np.clip(np.searchsorted(times, at + _CLOSE, side="right") - 1, 0, len(times) - 2)
    share = (at - times[left]) / (times[left + 1] - times[left])
    between = (1 - share) * values[left] + share * values[left + 1]
    exact = np.abs(at - times[np.maximum(found, 0)]) <= _CLOSE
    outside = (at < times[0]) | (at > times[-1])
    return np.where((found < 0) | exact | outside, near, between)


def to_frames(series: Series, at: Floats, how: str, name: str, ledger: Ledger) -> Floats:
    """A rating at the frames of a video, each of its rows accounted for.

    A row counts up to one usual step of the rows away, or one of the frames if that is longer.

    Args:
        series: to be read.
        at: (M,) s, times of the frames.
        how: see `resample`.
        name: "valence" or "arousal", for the account.
        ledger: of labels: rows are used, missing, or outside the video.

    Returns:
        (M,) float64, NaN = missing.
    """
    gap = max(step_of(series.seconds), step_of(at))
    known = np.isfinite(series.values)
    inside = (series.seconds >= at[0] - gap - _CLOSE) & (series.seconds <= at[-1] + gap + _CLOSE)
    ledger.use_many(int((known & inside).sum()), {name: int((known & inside).sum())})
    ledger.drop("outside the video", int((known & ~inside).sum()))
    ledger.drop("missing", int((~known).sum()) - series.num_invalid)
    return resample(series, at, how, gap)


def gold_standard(ratings: Floats) -> Floats:
    """Several raters of one recording as one rating, by the recipe of AVEC 2016.

    Each rating is centred on its own mean, all are averaged, and the mean of the raters' means is put back,
    weighted by how well each rater agrees with the others (mean CCC over pairs): with r̄ the mean of rater r,
    gold(t) = mean_r(x_r(t) − r̄) + Σ w_r r̄ / Σ w_r. A weight below 0 counts as 0 (else the level may lie far
    outside all raters' means); if none is above 0, all count alike. What leaves [−1, 1] by this is cut off
    there. These three are ours.

    Args:
        ratings: (N, R), NaN = missing.

    Returns:
        (N,) in [−1, 1], NaN where no rater said anything.
    """
    known = np.isfinite(ratings)
    raters = ratings[:, known.any(0)]
    if not raters.shape[1]:
        return np.full(len(ratings), np.nan)
    means = np.array([rating[np.isfinite(rating)].mean() for rating in raters.T])
    agreement = np.zeros((len(means), len(means)))
    for i, j in combinations(range(len(means)), 2):
        agreement[i, j] = agreement[j, i] = _ccc(raters[:, i], raters[:, j])
    weights = np.maximum(agreement.sum(0), 0)  # a common factor, to make them means, cancels
    if not weights.any():
        weights = np.ones(len(means))
    centred = np.where(np.isfinite(raters), raters - means, 0).sum(1)
    counts = np.isfinite(raters).sum(1)
    gold = centred / np.maximum(counts, 1) + (weights * means).sum() / weights.sum()
    return np.asarray(np.where(counts > 0, np.clip(gold, -1, 1), np.nan))


def _ccc(first: Floats, second: Floats) -> float:
    """Concordance over the times that both rated; 0 where neither moves."""
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        return 0.0
    x, y = first[both], second[both]
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 0.0


def columns_of(columns: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """Names of columns as they are written, found in any case and with any quotes.

    Args:
        columns: of the table. wanted: lower case. where: file and line.

    Raises:
        DataError: one is missing; names it, those there are, and the remedy.
    """
    found = {column.lower().strip("'\" "): column for column in columns}
    for name in wanted:
        if name not in found:
            raise DataError(
                f"{where}: no column {name!r}, only {', '.join(map(repr, columns)) or 'none'}: mend the "
                "header, or the character that parts its columns (semicolon, comma or tab)"
            )
    return [found[name] for name in wanted]
