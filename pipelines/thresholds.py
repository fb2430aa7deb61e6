"""From probabilities of action units to yes or no: fixed thresholds, or tuned ones that remember where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.predictions import Predictions, named_split
from pipelines.tunedfile import Kind, damaged, read_tuned, write_tuned
from shards.labels import DataError

DEFAULT = 0.5
_KIND = Kind("thresholds", "faceprior-au-thresholds", 1)


@dataclass(frozen=True)
class UnitThreshold:
    """One unit's threshold; the unit is said to be present where its probability is above.

    Attributes:
        au: the unit.
        threshold: in [−1, 1); below 0 = always present.
        f1: on the samples it was tuned on, in [0, 1]; 0 if it was not tuned.
        num_positive, num_valid: labels it was tuned on; without a positive one it stays at `DEFAULT`.
    """

    au: str
    threshold: float = DEFAULT
    f1: float = 0.0
    num_positive: int = 0
    num_valid: int = 0


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of all units, and where they come from.

    Attributes:
        units: in the order of the label space.
        split: what they were tuned on; "" = not tuned.
        data_hash: `Predictions.data_hash` of it; "" = not tuned.
    """

    units: tuple[UnitThreshold, ...]
    split: str = ""
    data_hash: str = ""


class UnitPredictions(NamedTuple):
    """Units said to be present.

    Attributes:
        pred: (N, A) int8, 0 or 1.
        notice: what a reader of scores must be told; "" if nothing.
    """

    pred: NDArray[np.int8]
    notice: str


def fixed_thresholds(au_names: Sequence[str], threshold: float = DEFAULT) -> Thresholds:
    """The same threshold for every unit.

    Raises:
        DataError: a threshold outside [−1, 1).
    """
    units = tuple(UnitThreshold(name, threshold) for name in au_names)
    for unit in units:
        _check(unit, "thresholds")
    return Thresholds(units)


def tune_thresholds(predictions: Predictions) -> Thresholds:
    """For each unit the threshold of the highest F1, among all that tell these samples apart differently.

    Every cut between neighbouring probabilities is tried; of equal ones the threshold nearest to `DEFAULT` is
    taken. A unit without a positive label stays at `DEFAULT`.

    Args:
        predictions: of a named split, with probabilities and labels of units.

    Raises:
        DataError: no such probabilities, no label at all, or a split without a name.
    """
    split, probs = named_split(predictions), _unit_probs(predictions)
    if not (predictions.au >= 0).any():
        raise DataError(f"split {split!r} has no labels of action units to tune thresholds on")
    units = tuple(
        _tune(name, probs[:, i], predictions.au[:, i]) for i, name in enumerate(predictions.au_names)
    )
    return Thresholds(units, split, predictions.data_hash)


def apply_thresholds(
    thresholds: Thresholds, predictions: Predictions, allow_tuned_split: bool = False
) -> UnitPredictions:
    """Units that are present: probability above the threshold.

    Args:
        thresholds: one for each unit of the predictions, by name.
        predictions: with probabilities of units.
        allow_tuned_split: also on the split that the thresholds were tuned on, which `notice` then says.

    Raises:
        DataError: no probabilities of units, other units, or the split the thresholds were tuned on
            (by name, or the same keys and labels under another name).
    """
    probs = _unit_probs(predictions)
    by_name = {unit.au: unit.threshold for unit in thresholds.units}
    for name in predictions.au_names:
        if name not in by_name:
            raise DataError(f"no threshold for {name}: there are {', '.join(by_name)}")
    notice = ""
    if thresholds.split and (
        thresholds.split == predictions.split or thresholds.data_hash == predictions.data_hash
    ):
        notice = f"AU thresholds were tuned on this split ({thresholds.split}): their F1 is too high"
        if not allow_tuned_split:
            raise DataError(
                f"{notice}; tune them on another split, or allow it (allow_tuned_split) and say so"
            )
    limits = np.array([by_name[name] for name in predictions.au_names])
    return UnitPredictions((probs > limits).astype(np.int8), notice)


def save_thresholds(thresholds: Thresholds, path: Path) -> None:
    """Writes JSON that `load_thresholds` reads.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    write_tuned(path, _KIND, asdict(thresholds))


def load_thresholds(path: Path) -> Thresholds:
    """Reads what `save_thresholds` wrote.

    Raises:
        DataError: not to be read, another format or version, a field missing or of the wrong type.
    """
    data = read_tuned(path, _KIND)
    try:
        units = tuple(UnitThreshold(**unit) for unit in data["units"])
        for unit in units:
            _check(unit, str(path))
        split, data_hash = data["split"], data["data_hash"]
        if not units or not isinstance(split, str) or not isinstance(data_hash, str):
            raise TypeError("units, split or data_hash")
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error
    return Thresholds(units, split, data_hash)


def _unit_probs(predictions: Predictions) -> NDArray[np.float64]:
    if predictions.au_probs is None:
        raise DataError("the predictions have no action units (the run has no such head)")
    return predictions.au_probs


def _tune(name: str, probs: NDArray[np.float64], labels: NDArray[np.int8]) -> UnitThreshold:
    """Scans the samples by falling probability; after each, all so far are said to be present."""
    valid = labels >= 0
    num_valid, num_positive = int(valid.sum()), int((labels == 1).sum())
    if not num_positive:
        return UnitThreshold(name, num_valid=num_valid)
    order = np.argsort(-probs[valid], kind="stable")
    falling, positive = probs[valid][order], labels[valid][order] == 1
    f1 = 2 * np.cumsum(positive) / (np.arange(1, num_valid + 1) + num_positive)
    lower = np.append(falling[1:], 0.0 if falling[-1] > 0 else -1.0)
    cuts = np.flatnonzero(lower < falling)
    middle = (falling[cuts] + lower[cuts]) / 2
    limits = np.where(middle < falling[cuts], middle, lower[cuts])
    best = np.flatnonzero(f1[cuts] == f1[cuts].max())
    chosen = best[np.argmin(np.abs(limits[best] - DEFAULT))]
    return UnitThreshold(name, float(limits[chosen]), float(f1[cuts][chosen]), num_positive, num_valid)


def _check(unit: UnitThreshold, where: str) -> None:
    value: Any = unit.threshold
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value < 1:
        raise DataError(f"{where}: threshold of {unit.au} must be a number in [−1, 1), got {value!r:.80}")
