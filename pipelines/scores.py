"""Scores of predictions with their uncertainty: what `evaluate` prints, saves and the report draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import (
    Compared,
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
from pipelines.predictions import Predictions
from shards.files import write_atomic
from shards.labels import DataError

RESAMPLES = 1000
Rows = NDArray[np.int64]
Figure = Callable[[Rows], float]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval over groups (videos or subjects) of the samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassRow:
    """Scores of one expression or action unit; `baseline` is the F1 of always claiming a unit."""

    name: str
    f1: float
    precision: float
    recall: float
    support: int
    baseline: float | None = None


@dataclass(frozen=True)
class Scores:
    """All figures of one split.

    Attributes:
        split: its name.
        num_samples, num_groups: how many samples, and how many videos or subjects.
        grouped: whether groups were known; otherwise intervals are over single samples, too narrow where
            samples belong together.
        headline: name -> figure over all samples together, the sum of the parts that are there first
            ("score": P_MTL with all three).
        recordings: of video, the figures of `recording_figures`: means over recordings.
        classes: per expression. units: per action unit.
        confusion: rows are labels, columns predictions; over `classes`.
        thresholds: how action units were decided.
        processing: what was done to the outputs before, and on which split it was chosen; "" = nothing.
    """

    split: str
    num_samples: int
    num_groups: int
    grouped: bool
    headline: Mapping[str, Estimate]
    classes: Sequence[ClassRow] = ()
    units: Sequence[ClassRow] = ()
    confusion: Sequence[Sequence[int]] = ()
    thresholds: str = "0.5 for every unit"
    recordings: Mapping[str, Estimate] = field(default_factory=dict)
    processing: str = ""

    def save(self, path: Path) -> None:
        """Writes the figures as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(self), indent=1).encode())


def is_labelled(predictions: Predictions) -> bool:
    """Whether anything that was predicted has a label."""
    pairs = (
        (predictions.va_pred, np.isfinite(predictions.va)),
        (predictions.expr_probs, predictions.expr >= 0),
        (predictions.au_probs, predictions.au >= 0),
    )
    return any(output is not None and bool(known.any()) for output, known in pairs)


def figures_of(predictions: Predictions, thresholds: Sequence[float] | float = 0.5) -> dict[str, Figure]:
    """Every figure that these predictions and labels allow, as a function of row numbers; "score" first.

    Raises:
        DataError: no head has a label.
    """
    found: dict[str, Figure] = {}
    parts: list[Figure] = []
    if predictions.va_pred is not None and np.isfinite(predictions.va).any():
        columns = {
            name: Compared(predictions.va_pred[:, k], predictions.va[:, k], np.isfinite(predictions.va[:, k]))
            for k, name in enumerate(("valence", "arousal"))
            if np.isfinite(predictions.va[:, k]).any()
        }
        parts.append(lambda rows: float(np.mean([ccc(*column.take(rows)) for column in columns.values()])))
        for name, column in columns.items():
            for short, metric in (("ccc", ccc), ("cc", cc), ("rmse", rmse)):
                found[f"{short}_{name}"] = _figure(metric, column)
    if predictions.expr_probs is not None and (predictions.expr >= 0).any():
        count = len(predictions.expr_names)
        seen = Compared(predictions.expr_probs.argmax(1), predictions.expr, predictions.expr >= 0)
        found["expr_macro_f1"] = lambda rows: macro_f1(*_three(seen, rows, count))
        found["expr_accuracy"] = _figure(accuracy, seen)
        found["expr_balanced_accuracy"] = lambda rows: balanced_accuracy(*_three(seen, rows, count))
        parts.append(found["expr_macro_f1"])
    if predictions.au_probs is not None and (predictions.au >= 0).any():
        units = Compared(predictions.au_probs, predictions.au, predictions.au >= 0)
        found["au_f1"] = lambda rows: au_f1(*units.take(rows), thresholds)
        parts.append(found["au_f1"])
    if not parts:
        raise DataError(f"split {predictions.split!r}: no sample has a label of what was predicted")
    return {"score": lambda rows: float(sum(part(rows) for part in parts)), **found}


def is_video(predictions: Predictions) -> bool:
    """Whether every sample is a frame of a recording: number and group are known, and no two share both.

    Two faces of one frame in one group are two people: the group is then a film, and no row follows another.
    """
    if not (bool((predictions.frame >= 0).all()) and all(predictions.group)):
        return False
    return len(set(zip(predictions.group, predictions.frame.tolist()))) == len(predictions)


def recording_figures(predictions: Predictions) -> dict[str, Figure]:
    """RMSE, CC and CCC of each recording (group) by itself, averaged over recordings; none if it is no video.

    A recording without a label of the output is left out. One in which prediction or label never moves has
    CC and CCC 0, as everywhere here.

    Returns:
        ccc_valence, cc_valence, … -> the mean, as a function of rows that hold each of their groups whole,
        once or several times, as `metrics.bootstrap` draws them.
    """
    if predictions.va_pred is None or not is_video(predictions):
        return {}
    found: dict[str, Figure] = {}
    names, codes, sizes = np.unique(predictions.group, return_inverse=True, return_counts=True)
    members = [np.flatnonzero(codes == code) for code in range(len(names))]
    for k, output in enumerate(("valence", "arousal")):
        known = np.isfinite(predictions.va[:, k])
        if not known.any():
            continue
        compared = Compared(predictions.va_pred[:, k], predictions.va[:, k], known)
        for short, metric in (("ccc", ccc), ("cc", cc), ("rmse", rmse)):
            values = np.array([metric(*compared.take(m)) if known[m].any() else np.nan for m in members])
            nothing = metric(np.zeros(0), np.zeros(0))
            found[f"{short}_{output}"] = partial(_mean_of_groups, codes, sizes, values, nothing)
    return found


def _mean_of_groups(
    codes: Rows, sizes: Rows, values: NDArray[np.float64], nothing: float, rows: Rows
) -> float:
    """Mean of the groups' values over the groups drawn, each as often as it is there; else `nothing`."""
    times = np.bincount(codes[rows], minlength=len(sizes)) // sizes
    times[np.isnan(values)] = 0
    return float(np.nansum(times * values) / times.sum()) if times.any() else nothing


def _figure(metric: Callable[..., float], compared: Compared) -> Figure:
    return lambda rows: metric(*compared.take(rows))


def _three(compared: Compared, rows: Rows, count: int) -> tuple[Any, Any, int, Any]:
    taken = compared.take(rows)
    return taken.pred, taken.target, count, taken.valid


def groups_of(predictions: Predictions) -> tuple[NDArray[Any], bool]:
    """The group of each sample for resampling, and whether groups are known."""
    groups = np.array(predictions.group)
    known = bool((groups != "").all())
    return (groups if known else np.arange(len(predictions))), known


def score(
    predictions: Predictions,
    thresholds: Sequence[float] | float = 0.5,
    threshold_note: str = "0.5 for every unit",
    num_resamples: int = RESAMPLES,
) -> Scores:
    """Figures with 95 % intervals, by a bootstrap over videos or subjects.

    Args:
        predictions: of one split.
        thresholds: a unit is present where its probability is above; one or A.
        threshold_note: where they come from.
        num_resamples: of the bootstrap; 0 leaves the intervals out (NaN).

    Raises:
        DataError: nothing is labelled.
    """
    figures = figures_of(predictions, thresholds)
    groups, grouped = groups_of(predictions)
    every = np.arange(len(predictions))

    def estimates(of: Mapping[str, Figure]) -> dict[str, Estimate]:
        found = {}
        for name, figure in of.items():
            ends = bootstrap(figure, groups, num_resamples, seed=0) if num_resamples else (float("nan"),) * 2
            found[name] = Estimate(figure(every), *ends)
        return found

    classes, units, confusion = [], [], np.zeros((0, 0), int)
    if "expr_macro_f1" in figures and predictions.expr_probs is not None:
        pred, valid = predictions.expr_probs.argmax(1), predictions.expr >= 0
        count = len(predictions.expr_names)
        classes = _rows(predictions.expr_names, class_scores(pred, predictions.expr, count, valid))
        confusion = confusion_matrix(pred, predictions.expr, count, valid)
    if "au_f1" in figures and predictions.au_probs is not None:
        valid = predictions.au >= 0
        found = au_scores(predictions.au_probs, predictions.au, valid, thresholds)
        baseline = always_positive_f1(predictions.au, valid)
        units = _rows(predictions.au_names, found, baseline)
    return Scores(
        predictions.split,
        len(predictions),
        len(np.unique(groups)),
        grouped,
        estimates(figures),
        classes,
        units,
        confusion.tolist(),
        threshold_note,
        estimates(recording_figures(predictions)),
    )


def _rows(names: Sequence[str], scores: Any, baseline: Any = None) -> list[ClassRow]:
    return [
        ClassRow(
            name,
            float(scores.f1[i]),
            float(scores.precision[i]),
            float(scores.recall[i]),
            int(scores.support[i]),
            None if baseline is None else float(baseline[i]),
        )
        for i, name in enumerate(names)
    ]


def compare(first: Predictions, second: Predictions, num_resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """How much better the first is than the second, figure by figure, on the same resamples.

    Raises:
        DataError: they are not of the same samples and labels.
    """
    if first.data_hash != second.data_hash:
        raise DataError(
            f"split {first.split!r}: the two predictions are not of the same samples and labels, so they "
            "cannot be paired; predict the same split with both"
        )
    order = {key: row for row, key in enumerate(second.keys)}
    second = second.take([order[key] for key in first.keys])
    ours, theirs = figures_of(first), figures_of(second)
    groups, _ = groups_of(first)
    every = np.arange(len(first))
    differences = {}
    for name in (name for name in ours if name in theirs):
        low, high = bootstrap_difference(ours[name], theirs[name], groups, num_resamples, seed=0)
        differences[name] = Estimate(ours[name](every) - theirs[name](every), low, high)
    return differences


def as_text(scores: Scores) -> str:
    """A table for the terminal."""
    over = (
        "videos or subjects" if scores.grouped else "samples (no groups known: intervals may be too narrow)"
    )
    lines = [
        f"split {scores.split}: {scores.num_samples} samples; 95 % intervals over {scores.num_groups} {over}"
    ]
    if scores.recordings:
        lines.append("  pooled: all frames of all recordings together, as AVEC does")
    lines += _lines_of(scores.headline)
    if scores.recordings:
        lines.append("  per recording: each that has labels by itself, then their mean")
        lines += _lines_of(scores.recordings)
    for title, rows in (("expression", scores.classes), ("action unit", scores.units)):
        if rows:
            extra = "  always" if rows[0].baseline is not None else ""
            lines.append(f"  {title:24s}      F1  precision  recall  labels{extra}")
            for row in rows:
                always = f"  {row.baseline:6.3f}" if row.baseline is not None else ""
                lines.append(
                    f"    {row.name:22s} {row.f1:7.3f}  {row.precision:9.3f}  {row.recall:6.3f}  "
                    f"{row.support:6d}{always}"
                )
    if scores.units:
        lines.append(f"  action units are present above {scores.thresholds}")
    return "\n".join(lines)


def _lines_of(figures: Mapping[str, Estimate]) -> list[str]:
    return [
        f"  {name:24s} {figure.value:7.4f}   [{figure.low:.4f}, {figure.high:.4f}]"
        for name, figure in figures.items()
    ]
