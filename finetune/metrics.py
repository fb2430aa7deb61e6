"""Metrics of affect analysis as pure functions of whole sets of predictions, in float64.

All take predictions, targets and, last or by name, `valid`: True where the label is present, None where all
are. What stands in an invalid entry is never read. No function gives NaN but `rmse` of nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


class Compared(NamedTuple):
    """Predictions beside what is known; unpacks into the arguments of the functions here.

    Attributes:
        pred, target: (N, ...).
        valid: like `target`, bool; None = all.
    """

    pred: Array
    target: Array
    valid: Array | None = None

    def take(self, rows: Array) -> Compared:
        """The rows of these numbers, as `bootstrap` draws them."""
        valid = None if self.valid is None else self.valid[rows]
        return Compared(self.pred[rows], self.target[rows], valid)


class ClassScores(NamedTuple):
    """Scores of each class or action unit, each (C,); 0 where its denominator is 0.

    Attributes:
        f1, precision, recall: float64 in [0, 1].
        support: int64, valid labels of the class (positive labels of the unit).
    """

    f1: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    support: NDArray[np.int64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def ccc(pred: Array, target: Array, valid: Array | None = None) -> float:
    """Concordance correlation coefficient (Lin 1989) with population statistics.

    Args:
        pred, target: (N,) values.
        valid: (N,) bool.

    Returns:
        In [−1, 1]; 0 where either is constant, or fewer than 2 are valid: a constant says nothing.
    """
    pred, target = _floats(pred, target, valid)
    if _constant(pred) or _constant(target):
        return 0.0
    covariance = float(np.mean((pred - pred.mean()) * (target - target.mean())))
    spread = float(pred.var() + target.var() + (pred.mean() - target.mean()) ** 2)
    return 2 * covariance / spread if spread > 0 else 0.0


def cc(pred: Array, target: Array, valid: Array | None = None) -> float:
    """Pearson's correlation coefficient; 0 where either is constant. Arguments as for `ccc`."""
    pred, target = _floats(pred, target, valid)
    if _constant(pred) or _constant(target):
        return 0.0
    pred, target = pred - pred.mean(), target - target.mean()
    spread = float(np.linalg.norm(pred) * np.linalg.norm(target))
    return float(np.clip(pred @ target / spread, -1, 1)) if spread > 0 else 0.0


def rmse(pred: Array, target: Array, valid: Array | None = None) -> float:
    """Root mean squared error; NaN for no values, as 0 would be perfect. Arguments as for `ccc`."""
    pred, target = _floats(pred, target, valid)
    return float(np.sqrt(np.mean((pred - target) ** 2))) if len(pred) else float("nan")


def accuracy(pred: Array, target: Array, valid: Array | None = None) -> float:
    """Share of equal class numbers; 0 for no samples.

    Args:
        pred, target: (N,) class numbers.
        valid: (N,) bool.
    """
    pred, target = _valid_only(pred, target, valid)
    return float(np.mean(pred == target)) if len(target) else 0.0


def balanced_accuracy(pred: Array, target: Array, num_classes: int, valid: Array | None = None) -> float:
    """Mean recall over the classes that have labels ("macro accuracy"); 0 for no samples.

    Arguments and errors as for `confusion_matrix`.
    """
    scores = class_scores(pred, target, num_classes, valid)
    present = scores.support > 0
    return float(scores.recall[present].mean()) if present.any() else 0.0


def confusion_matrix(
    pred: Array, target: Array, num_classes: int, valid: Array | None = None
) -> NDArray[np.int64]:
    """How often each class was taken for each.

    Args:
        pred, target: (N,) class numbers in [0, num_classes).
        num_classes: C.
        valid: (N,) bool.

    Returns:
        (C, C): rows are targets, columns predictions.

    Raises:
        ValueError: a valid entry is no class number.
    """
    pred, target = _valid_only(pred, target, valid)
    for name, classes in (("pred", pred), ("target", target)):
        strange = classes[~np.isin(classes, np.arange(num_classes))]
        if len(strange):
            raise ValueError(
                f"{name} holds {strange[0]!r}, not a class in [0, {num_classes}): give class numbers, and "
                "mark missing labels in valid"
            )
    cells = target.astype(np.int64) * num_classes + pred.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def class_scores(pred: Array, target: Array, num_classes: int, valid: Array | None = None) -> ClassScores:
    """F1, precision, recall and support of each class. Arguments and errors as for `confusion_matrix`."""
    matrix = confusion_matrix(pred, target, num_classes, valid)
    return _scores(np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1))


def macro_f1(pred: Array, target: Array, num_classes: int, valid: Array | None = None) -> float:
    """Mean F1 over all `num_classes` classes; one that is neither labelled nor predicted counts 0.

    Arguments and errors as for `confusion_matrix`.
    """
    return float(class_scores(pred, target, num_classes, valid).f1.mean())


def au_scores(
    pred: Array, target: Array, valid: Array | None = None, threshold: ArrayLike = 0.5
) -> ClassScores:
    """F1, precision, recall and positive labels of each action unit.

    Args:
        pred: (N, A) probabilities, or logits with thresholds to match.
        target: (N, A) 0 or 1.
        valid: (N, A) bool.
        threshold: a unit is predicted where `pred` is above; one number or (A,).

    Returns:
        Of A units; one that is neither labelled nor predicted scores 0.

    Raises:
        ValueError: shapes differ, or a valid target is neither 0 nor 1.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    known = _mask(pred, target, valid)
    if np.any(known & (target != 0) & (target != 1)):
        strange = target[known & (target != 0) & (target != 1)][0]
        raise ValueError(f"an action unit is labelled {strange!r}: use 0 and 1, and mark missing in valid")
    positive = known & (target == 1)
    claimed = known & (pred > np.broadcast_to(np.asarray(threshold, np.float64), pred.shape[1:]))
    return _scores((positive & claimed).sum(axis=0), claimed.sum(axis=0), positive.sum(axis=0))


def au_f1(pred: Array, target: Array, valid: Array | None = None, threshold: ArrayLike = 0.5) -> float:
    """Mean F1 over the action units. Arguments and errors as for `au_scores`."""
    return float(au_scores(pred, target, valid, threshold).f1.mean())


def always_positive_f1(target: Array, valid: Array | None = None) -> NDArray[np.float64]:
    """(A,) F1 of claiming every unit in every face: what a detector has to beat.

    Args:
        target: (N, A) 0 or 1.
        valid: (N, A) bool.
    """
    return au_scores(np.ones(np.shape(target)), target, valid).f1


def bootstrap(
    metric: Callable[[NDArray[np.int64]], float],
    groups: Array,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap by group: frames of one video, or of one subject, are not independent.

    Each resample draws as many groups as there are, with replacement, and takes all samples of each. One
    group alone gives an interval of no width, which says nothing.

    Args:
        metric: figure of the samples of these numbers, (M,) with repetitions.
        groups: (N,) video or subject of each sample, any values that compare.
        num_resamples: 1000, say.
        seed: of the draws.
        confidence: share of the resamples inside.

    Raises:
        ValueError: no sample, no resample, or a confidence not in (0, 1).
    """
    groups = np.asarray(groups)
    if not len(groups) or num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"a bootstrap needs samples, resamples and a confidence in (0, 1), got {len(groups)} samples, "
            f"num_resamples={num_resamples}, confidence={confidence}"
        )
    _, member_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.argsort(member_of, kind="stable")
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    figures = []
    for _ in range(num_resamples):
        drawn = rng.integers(len(sizes), size=len(sizes))
        lengths = sizes[drawn]
        shift = starts[drawn] - (np.cumsum(lengths) - lengths)
        figures.append(metric(members[np.repeat(shift, lengths) + np.arange(lengths.sum())]))
    low, high = np.quantile(np.asarray(figures, np.float64), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def bootstrap_difference(
    metric_a: Callable[[NDArray[np.int64]], float],
    metric_b: Callable[[NDArray[np.int64]], float],
    groups: Array,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Interval of metric_a − metric_b for two systems on the same samples, both on each resample.

    Arguments and errors as for `bootstrap`.
    """
    return bootstrap(lambda rows: metric_a(rows) - metric_b(rows), groups, num_resamples, seed, confidence)


def _mask(pred: Array, target: Array, valid: Array | None) -> NDArray[np.bool_]:
    """`valid` of the target's shape.

    Raises:
        ValueError: shapes differ.
    """
    known = np.ones(target.shape, bool) if valid is None else np.asarray(valid, bool)
    if not pred.shape == target.shape == known.shape:
        raise ValueError(
            f"pred {pred.shape}, target {target.shape} and valid {known.shape} must be of one shape"
        )
    return known


def _valid_only(pred: Array, target: Array, valid: Array | None) -> tuple[Array, Array]:
    pred, target = np.asarray(pred), np.asarray(target)
    known = _mask(pred, target, valid)
    return pred[known], target[known]


def _floats(pred: Array, target: Array, valid: Array | None) -> tuple[Array, Array]:
    pred, target = _valid_only(pred, target, valid)
    return pred.astype(np.float64), target.astype(np.float64)


def _constant(values: Array) -> bool:
    """Exact, where a variance may be rounding alone; true of fewer than 2 values."""
    return len(values) < 2 or bool(values.min() == values.max())


def _scores(hits: Array, predicted: Array, support: Array) -> ClassScores:
    """From counts (C,) of true positives, predictions and labels."""

    def share(part: Array, whole: Array) -> NDArray[np.float64]:
        return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)

    return ClassScores(
        f1=share(2 * hits, predicted + support),
        precision=share(hits, predicted),
        recall=share(hits, support),
        support=support.astype(np.int64),
    )
