"""What is made of a video model's valence and arousal before they are scored: a chain of four steps.

    predictions -> median filter -> bias -> scale -> delay -> clipped to [−1, 1]

The chain of the AVEC challenges' baselines (Valstar et al. 2016), for each output by itself: every step is
fitted on what the steps before it give, and kept only where the CCC of the tuning split, all its frames
together, rises. Filter and delay go by frame number within a recording; bias and scale are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import ccc
from pipelines.predictions import Predictions, named_split
from pipelines.smoothing import median_filter, videos_of
from pipelines.tunedfile import Kind, damaged, read_tuned, write_tuned
from shards.labels import DataError

OUTPUTS = ("valence", "arousal")

_KIND = Kind("post-processing", "faceprior-postprocess", 1)
_MEDIANS = (3, 5, 9, 15, 25, 41, 65, 101, 161, 251, 401)
_MAX_DELAY = 300  # frames: 10 s at 30 frames a second
_DELAY_SHARE = 4  # and no more than this part of the longest recording: most of one would be held values
_LEAST = 1e-6  # a rise of CCC that is more than rounding

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """What is done to one output; as it stands here, nothing.

    Attributes:
        median: odd number of frames; 0 = no filter.
        bias: that is added.
        scale: by which distances from `centre` are multiplied. centre: the mean of the tuning split's
            predictions, bias included.
        delay: frames by which predictions are moved to later ones, as labels lag the face; below 0 to
            earlier ones. Where that frame is missing, the nearest that there is stands for it.

    Raises:
        DataError: a number that cannot be.
    """

    median: int = 0
    bias: float = 0.0
    scale: float = 1.0
    centre: float = 0.0
    delay: int = 0

    def __post_init__(self) -> None:
        whole = all(type(number) is int for number in (self.median, self.delay))
        if not whole or self.median < 0 or (self.median and self.median % 2 != 1):
            raise DataError(
                f"post-processing: median={self.median!r:.40}, delay={self.delay!r:.40}: whole numbers of "
                "frames, the median's odd or 0"
            )
        for name in ("bias", "scale", "centre"):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"post-processing: {name}={value!r:.40} must be a number")

    def __str__(self) -> str:
        said = [
            *([f"median of {self.median} frames"] if self.median else []),
            *([f"bias {self.bias:+.3f}"] if self.bias else []),
            *([f"scale {self.scale:.3f}"] if self.scale != 1 else []),
            *([f"delay of {self.delay} frames"] if self.delay else []),
        ]
        return ", ".join(said) or "nothing"


@dataclass(frozen=True)
class Tried:
    """One step as it was tried: on top of the steps kept before it, CCC without and with it."""

    output: str
    step: str
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class Chain:
    """The steps of both outputs, and where they come from.

    Attributes:
        valence, arousal: what is done.
        split: on whose labels it was fitted. data_hash: `Predictions.data_hash` of it.
        tried: every step, in order.
    """

    valence: Steps
    arousal: Steps
    split: str
    data_hash: str
    tried: tuple[Tried, ...] = ()

    def __str__(self) -> str:
        return f"valence: {self.valence}; arousal: {self.arousal}"


def fit_chain(predictions: Predictions) -> Chain:
    """Fits each step, and keeps it where it raises the CCC of these predictions.

    Args:
        predictions: of a named split that is not the one to be reported; frames of recordings.

    Raises:
        DataError: no valence and arousal, no label, a split without a name, or recordings or frame numbers
            that are not known.
    """
    split, pred = named_split(predictions), _va_of(predictions)
    if not np.isfinite(predictions.va).any():
        raise DataError(f"split {split!r} has no labels of valence or arousal to fit post-processing on")
    videos = list(videos_of(predictions))
    longest = max(int(np.ptp(predictions.frame[rows])) for rows in videos) + 1
    widths = [width for width in _MEDIANS if width <= longest]
    filtered = {width: _filtered(predictions.frame, videos, pred, width) for width in widths}
    found, tried = [], []
    for k, output in enumerate(OUTPUTS):
        fit = _Fit(output, predictions.frame, videos, predictions.va[:, k])
        found.append(fit.steps({width: values[:, k] for width, values in filtered.items()}, pred[:, k]))
        tried += fit.tried
    return Chain(found[0], found[1], split, predictions.data_hash, tuple(tried))


def apply_chain(chain: Chain, predictions: Predictions, allow_tuned_split: bool = False) -> Predictions:
    """The same predictions with valence and arousal post-processed; labels and the order of rows stay.

    Args:
        chain: see `fit_chain`.
        predictions: frames of recordings.
        allow_tuned_split: also of the split that the chain was fitted on.

    Raises:
        DataError: no valence and arousal, recordings or frame numbers that are not known, or the split that
            the chain was fitted on (by name, or the same frames and labels under another name).
    """
    pred = _va_of(predictions)
    if is_fitted_on(chain, predictions) and not allow_tuned_split:
        raise DataError(
            f"post-processing was fitted on this split ({chain.split}), whose figures it would flatter; fit "
            "it on another split, or allow it (allow_tuned_split) and say so"
        )
    videos = list(videos_of(predictions))
    out = np.empty_like(pred)
    for k, steps in enumerate((chain.valence, chain.arousal)):
        values = _filtered(predictions.frame, videos, pred[:, k : k + 1], steps.median)[:, 0]
        out[:, k] = _rest(steps, predictions.frame, videos, values)
    return replace(predictions, va_pred=out)


def is_fitted_on(chain: Chain, predictions: Predictions) -> bool:
    """Whether these are the split that the chain was fitted on: by name, or by frames and labels."""
    return chain.split == predictions.split or chain.data_hash == predictions.data_hash


def save_chain(chain: Chain, path: Path) -> None:
    """Writes JSON that `load_chain` reads.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    write_tuned(path, _KIND, asdict(chain))


def load_chain(path: Path) -> Chain:
    """Reads what `save_chain` wrote.

    Raises:
        DataError: not to be read, another format or version, a field missing or of the wrong type.
    """
    data = read_tuned(path, _KIND)
    try:
        steps = [Steps(**data[output]) for output in OUTPUTS]
        split, data_hash = data["split"], data["data_hash"]
        if not split or not isinstance(split, str) or not isinstance(data_hash, str):
            raise TypeError("split or data_hash")
        return Chain(steps[0], steps[1], split, data_hash, tuple(Tried(**row) for row in data["tried"]))
    except (KeyError, TypeError, DataError) as error:
        raise damaged(path, error) from error


class _Fit:
    """The steps of one output, fitted one after the other.

    Args:
        output: its name.
        frame: (N,) frame numbers. videos: rows of each recording, by rising frame number.
        target: (N,) labels, NaN missing.
    """

    def __init__(
        self, output: str, frame: NDArray[np.int64], videos: list[NDArray[np.int64]], target: Array
    ) -> None:
        self.tried: list[Tried] = []
        self._output, self._frame, self._videos, self._target = output, frame, videos, target
        self._known = np.isfinite(target)

    def steps(self, filtered: Mapping[int, Array], plain: Array) -> Steps:
        """Args: filtered: width -> (N,) predictions so filtered. plain: (N,) as the model gave them."""
        if not self._known.any():
            return Steps()
        best = max(filtered, key=lambda width: self._score(Steps(), filtered[width]), default=0)
        kept = Steps()
        values = plain
        if best and self._keep("median", self._score(kept, plain), self._score(kept, filtered[best])):
            kept, values = replace(kept, median=best), filtered[best]
        target, known = self._target[self._known], values[self._known]
        kept = self._try("bias", kept, replace(kept, bias=float(target.mean() - known.mean())), values)
        if known.std() > 0:
            ratio, centre = float(target.std() / known.std()), float(known.mean() + kept.bias)
            kept = self._try("scale", kept, replace(kept, scale=ratio, centre=centre), values)
        moved = [replace(kept, delay=delay) for delay in self._delays()]
        scores = [self._score(steps, values) for steps in moved]
        if moved and self._keep("delay", self._score(kept, values), max(scores)):
            kept = moved[int(np.argmax(scores))]
        return kept

    def _try(self, step: str, before: Steps, after: Steps, values: Array) -> Steps:
        kept = self._keep(step, self._score(before, values), self._score(after, values))
        return after if kept else before

    def _keep(self, step: str, before: float, after: float) -> bool:
        kept = after > before + _LEAST
        self.tried.append(Tried(self._output, step, before, after, kept))
        return kept

    def _score(self, steps: Steps, values: Array) -> float:
        """CCC over all labelled frames; `values` are filtered already."""
        done = _rest(steps, self._frame, self._videos, values)
        return ccc(done[self._known], self._target[self._known])

    def _delays(self) -> Iterator[int]:
        """Short ones first, so that of equally good ones the shortest is taken."""
        longest = max(int(self._frame[rows[-1]] - self._frame[rows[0]]) for rows in self._videos)
        for delay in range(1, min(_MAX_DELAY, longest // _DELAY_SHARE) + 1):
            yield delay
            yield -delay


def _filtered(frame: NDArray[np.int64], videos: list[NDArray[np.int64]], values: Array, width: int) -> Array:
    """(N, V) medians of each recording; of width 0 the values themselves."""
    if not width:
        return values
    out = np.empty_like(values)
    for rows in videos:
        out[rows] = median_filter(frame[rows], values[rows], width)
    return out


def _rest(steps: Steps, frame: NDArray[np.int64], videos: list[NDArray[np.int64]], values: Array) -> Array:
    """(N,) filtered values -> (N,) with the other steps."""
    moved = steps.centre + steps.scale * (values + steps.bias - steps.centre)
    if steps.delay:
        late = np.empty_like(moved)
        for rows in videos:
            late[rows] = moved[rows[_nearest(frame[rows], frame[rows] - steps.delay)]]
        moved = late
    return np.clip(moved, -1, 1)


def _nearest(frames: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in the rising `frames` of those nearest to `wanted`; of two as near, the earlier."""
    after = np.clip(np.searchsorted(frames, wanted), 0, len(frames) - 1)
    before = np.maximum(after - 1, 0)
    closer = np.abs(wanted - frames[before]) <= np.abs(frames[after] - wanted)
    return np.where(closer, before, after)


def _va_of(predictions: Predictions) -> Array:
    if predictions.va_pred is None:
        raise DataError("the predictions have no valence and arousal (the run has no such head)")
    return predictions.va_pred
