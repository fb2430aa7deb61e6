"""What a finished model says of every sample; `pipelines.predictions_csv` is the file that holds it.

Submission, smoothing, ensembles, thresholds and comparisons read these, never the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.labels import AU12, EXPR8, DataError
from shards.records import canonical_json

HEADS = ("expr_probs", "au_probs", "va_pred")

_SUM_TOLERANCE = 0.01  # of class probabilities: a softmax in bf16 is off by thousandths
MAX_FRAME = 2**53  # whole numbers up to it are exact as float64


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels and outputs of N > 0 samples of one split, in one label space. See `build_predictions`.

    Attributes:
        split: where the samples are from ("val"); "" unknown.
        keys: N unique keys.
        group: N videos or subjects, "" unknown.
        frame: (N,) int64 frame numbers from 0, −1 unknown.
        name: N names as the data set has them (`video/00001.jpg`), "" unknown.
        expr_names: C class names, of labels and probabilities alike.
        au_names: A unit names, of labels and probabilities alike.
        expr: (N,) int64 labels in 0..C−1, −1 missing.
        va: (N, 2) float64 labels, valence and arousal in [−1, 1], NaN missing.
        au: (N, A) int8 labels 0 or 1, −1 missing.
        expr_probs: (N, C) float64, rows sum to 1; None without that head.
        au_probs: (N, A) float64 in [0, 1]; None without that head.
        va_pred: (N, 2) float64 in [−1, 1]; None without that head.

    Raises:
        DataError: no samples, a key that is empty or there twice, or a value that is not finite or out of
            range; names the key.
        ValueError: arrays of other shapes or types.
    """

    split: str
    keys: tuple[str, ...]
    group: tuple[str, ...]
    frame: NDArray[np.int64]
    name: tuple[str, ...]
    expr_names: tuple[str, ...]
    au_names: tuple[str, ...]
    expr: NDArray[np.int64]
    va: NDArray[np.float64]
    au: NDArray[np.int8]
    expr_probs: NDArray[np.float64] | None = None
    au_probs: NDArray[np.float64] | None = None
    va_pred: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        _check_form(self)
        _check_keys(self.keys)
        for names, kind in ((self.expr_names, "class"), (self.au_names, "unit")):
            if len(set(names)) < len(names) or "" in names:
                raise DataError(f"{kind} names must be there once each and not empty: {', '.join(names)}")
        frames = (self.frame >= -1) & (self.frame <= MAX_FRAME)
        self._require("frame", frames, "a number from 0, or −1")
        inside = (self.expr >= -1) & (self.expr < len(self.expr_names))
        self._require("expr", inside, f"a class 0..{len(self.expr_names) - 1}, or −1")
        self._require("va", (np.abs(self.va) <= 1) | np.isnan(self.va), "in [−1, 1], or NaN")
        self._require("au", (self.au >= -1) & (self.au <= 1), "0, 1 or −1")
        if self.expr_probs is not None:
            self._require("expr_probs", (self.expr_probs >= 0) & (self.expr_probs <= 1), "in [0, 1]")
            sums = np.abs(self.expr_probs.sum(1) - 1) <= _SUM_TOLERANCE
            self._require("expr_probs", sums, "probabilities that sum to 1")
        if self.au_probs is not None:
            self._require("au_probs", (self.au_probs >= 0) & (self.au_probs <= 1), "in [0, 1]")
        if self.va_pred is not None:
            self._require("va_pred", np.abs(self.va_pred) <= 1, "in [−1, 1] (clip it)")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the outputs that are there, of `HEADS`."""
        return tuple(head for head in HEADS if getattr(self, head) is not None)

    @property
    def data_hash(self) -> str:
        """Hex sha256 of keys and labels, the same for any model and order of rows."""
        rows = key_order(self.keys)
        digest = hashlib.sha256()
        digest.update(canonical_json([[self.keys[row] for row in rows], self.expr_names, self.au_names]))
        va = np.where(np.isnan(self.va), np.nan, self.va + 0.0)
        for values, kind in ((self.expr, "<i8"), (va, "<f8"), (self.au, "i1")):
            digest.update(values[rows].astype(kind).tobytes())
        return digest.hexdigest()

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Predictions:
        """The samples at `rows`, in that order."""
        index = np.asarray(rows, np.int64)
        changed: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in index.tolist())
            for name in ("keys", "group", "name")
        }
        changed |= {name: getattr(self, name)[index] for name in ("frame", "expr", "va", "au", *self.heads)}
        return replace(self, **changed)

    def _require(self, field: str, good: NDArray[np.bool_], wanted: str) -> None:
        if not good.all():
            row = int(np.argwhere(~good)[0][0])
            value = getattr(self, field)[row].tolist()
            raise DataError(f"sample {self.keys[row]}: {field} {value!r:.80} must be {wanted}")


def build_predictions(
    split: str,
    keys: Sequence[str],
    *,
    group: Sequence[str] | None = None,
    frame: ArrayLike | None = None,
    name: Sequence[str] | None = None,
    expr_names: Sequence[str] = EXPR8,
    au_names: Sequence[str] = AU12,
    expr: ArrayLike | None = None,
    va: ArrayLike | None = None,
    au: ArrayLike | None = None,
    expr_probs: ArrayLike | None = None,
    au_probs: ArrayLike | None = None,
    va_pred: ArrayLike | None = None,
) -> Predictions:
    """Predictions from whatever is known; arrays are brought to the types of `Predictions`.

    Args:
        As the attributes of `Predictions`; None = unknown, unlabelled, or no such head.

    Raises:
        DataError, ValueError: see `Predictions`.
    """
    count = len(keys)

    def outputs(values: ArrayLike | None) -> NDArray[np.float64] | None:
        return None if values is None else np.asarray(values, np.float64)

    return Predictions(
        split=split,
        keys=tuple(keys),
        group=tuple(group) if group is not None else ("",) * count,
        frame=np.asarray(frame if frame is not None else np.full(count, -1), np.int64),
        name=tuple(name) if name is not None else ("",) * count,
        expr_names=tuple(expr_names),
        au_names=tuple(au_names),
        expr=np.asarray(expr if expr is not None else np.full(count, -1), np.int64),
        va=np.asarray(va if va is not None else np.full((count, 2), np.nan), np.float64),
        au=np.asarray(au if au is not None else np.full((count, len(au_names)), -1), np.int8),
        expr_probs=outputs(expr_probs),
        au_probs=outputs(au_probs),
        va_pred=outputs(va_pred),
    )


def unique_keys(keys: list[str]) -> list[str]:
    """Keys of joined shard sets: one that was there before gets the number of its row behind it."""
    seen: set[str] = set()
    unique = []
    for row, key in enumerate(keys):
        unique.append(f"{key}~{row}" if key in seen else key)
        seen.add(key)
    return unique


def named_split(predictions: Predictions) -> str:
    """The split's name, for a choice that must say where it was made.

    Raises:
        DataError: the split is not named.
    """
    if not predictions.split:
        raise DataError("predictions of a split without a name: a choice made on them could not say where")
    return predictions.split


def _check_form(predictions: Predictions) -> None:
    """Shapes and types, which are the caller's to get right."""
    count, classes, units = len(predictions), len(predictions.expr_names), len(predictions.au_names)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "frame": ((count,), np.int64),
        "expr": ((count,), np.int64),
        "va": ((count, 2), np.float64),
        "au": ((count, units), np.int8),
        "expr_probs": ((count, classes), np.float64),
        "au_probs": ((count, units), np.float64),
        "va_pred": ((count, 2), np.float64),
    }
    for field, (shape, kind) in shapes.items():
        values = getattr(predictions, field)
        if field in HEADS and values is None:
            continue
        if field in HEADS and 0 in shape[1:]:
            raise ValueError(f"{field} without names of what it gives")
        if values.shape != shape or values.dtype != kind:
            wanted = f"{shape} {np.dtype(kind).name}"
            raise ValueError(f"{field} must be {wanted}, got {values.shape} {values.dtype}")
    for field in ("group", "name"):
        if len(getattr(predictions, field)) != count:
            raise ValueError(f"{field} must have {count} entries, got {len(getattr(predictions, field))}")


def _check_keys(keys: tuple[str, ...]) -> None:
    if not keys:
        raise DataError("predictions of no samples")
    seen: set[str] = set()
    for key in keys:
        if not key or key in seen:
            raise DataError(f"key {key!r:.80} is there twice" if key else "a sample's key is empty")
        seen.add(key)


def key_order(keys: tuple[str, ...]) -> NDArray[np.int64]:
    """The rows in the order of their keys."""
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
