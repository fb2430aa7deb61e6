"""Metrics of affect analysis as pure functions of whole sets of predictions, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def ccc(pred: Array, target: Array) -> float:
    """Concordance correlation coefficient (Lin 1989) with population statistics.

    Args:
        pred, target: (N,) values; nothing missing.

    Returns:
        In [−1, 1]; 0 where either is constant and they differ, or N < 2: a constant says nothing.
    """
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    if len(pred) < 2:
        return 0.0
    covariance = float(np.mean((pred - pred.mean()) * (target - target.mean())))
    spread = float(pred.var() + target.var() + (pred.mean() - target.mean()) ** 2)
    return 2 * covariance / spread if spread > 0 else 0.0


def accuracy(pred: Array, target: Array) -> float:
    """Share of equal class numbers; 0 for no samples."""
    return float(np.mean(np.asarray(pred) == np.asarray(target))) if len(target) else 0.0
