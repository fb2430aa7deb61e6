"""What is chosen for a run on one named split and kept with it: thresholds, smoothing, post-processing.

It is used on every other split, and on its own only where that is said.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.postprocess import apply_chain, fit_chain, is_fitted_on, load_chain, save_chain
from pipelines.predictions import Predictions
from pipelines.scores import Scores, figures_of, is_video, score
from pipelines.smoothing import Smoothing, choose_smoothing, smooth
from pipelines.thresholds import apply_thresholds, load_thresholds, save_thresholds, tune_thresholds
from shards.files import write_atomic
from shards.labels import DataError

THRESHOLDS, SMOOTHING, POSTPROCESS = "thresholds.json", "smoothing.json", "postprocess.json"
_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
_MEDIANS = (3, 7, 15, 31)


class KeptSmoothing(NamedTuple):
    """A smoothing and the name of the split that it was chosen on."""

    smoothing: Smoothing
    split: str


def score_run(run: Path, predictions: Predictions, tuned_here: bool = False) -> Scores:
    """Scores with what `tune` chose for the run: smoothing or post-processing over frames, and thresholds of
    action units.

    None is used on the split that it was tuned on, where it would flatter, unless that is the wish.
    """
    if (run / POSTPROCESS).is_file() and predictions.heads == ("va_pred",) and is_video(predictions):
        predictions, processing = _postprocessed(run / POSTPROCESS, predictions, tuned_here)
    else:
        predictions, processing = _smoothed(run, predictions, tuned_here)
    return replace(_score(run / THRESHOLDS, predictions, tuned_here), processing=processing)


def _score(path: Path, predictions: Predictions, tuned_here: bool) -> Scores:
    """Scores with the thresholds at `path`, where they are of use."""
    if not path.is_file() or predictions.au_probs is None:
        return score(predictions)
    kept = load_thresholds(path)
    notice = apply_thresholds(kept, predictions, allow_tuned_split=True).notice
    if notice and not tuned_here:
        return score(predictions, threshold_note="0.5 (the run's thresholds were tuned on this split)")
    by_name = {unit.au: unit.threshold for unit in kept.units}
    limits = [by_name[name] for name in predictions.au_names]
    return score(predictions, limits, notice or f"thresholds tuned on split {kept.split}")


def tune(run: Path, predictions: Predictions) -> list[str]:
    """Chooses on one named split, and keeps with the run: AU thresholds; for videos, a smoothing, or where
    they have valence and arousal alone, the chain of `pipelines.postprocess`.

    Args:
        run: run directory, or a folder for those of an ensemble.
        predictions: with labels.

    Returns:
        Lines that say what was chosen.
    """
    lines = []
    if is_video(predictions) and predictions.heads == ("va_pred",):
        chain = fit_chain(predictions)
        save_chain(chain, run / POSTPROCESS)
        lines.append(f"post-processing, fitted on {chain.split}:")
        lines += [
            f"  {step.output:8s} {step.step:7s} CCC {step.before:.4f} -> {step.after:.4f}, "
            f"{'kept' if step.kept else 'left out'}"
            for step in chain.tried
        ]
        lines.append(f"  {chain}")
    elif is_video(predictions):
        choice = choose_smoothing(
            predictions,
            [Smoothing("gaussian", sigma) for sigma in _SIGMAS] + [Smoothing("median", w) for w in _MEDIANS],
            lambda smoothed: figures_of(smoothed)["score"](np.arange(len(smoothed))),
        )
        write_atomic(run / SMOOTHING, json.dumps(asdict(choice), indent=1).encode())
        predictions = smooth(predictions, choice.smoothing)
        lines.append(
            f"smoothing: {choice.smoothing}; score {choice.score:.4f} on {choice.split} "
            f"(without: {choice.scores[0][1]:.4f})"
        )
    if predictions.au_probs is not None and (predictions.au >= 0).any():
        thresholds = tune_thresholds(predictions)
        save_thresholds(thresholds, run / THRESHOLDS)
        shown = ", ".join(f"{unit.au} {unit.threshold:.2f}" for unit in thresholds.units)
        lines.append(f"thresholds, tuned on {thresholds.split}: {shown}")
    return lines or ["nothing to tune: no action units, and no frame numbers"]


class _Processed(NamedTuple):
    """Predictions, and in words what was done to them ("" = nothing)."""

    predictions: Predictions
    said: str


def _smoothed(run: Path, predictions: Predictions, tuned_here: bool) -> _Processed:
    """Smoothed as kept with the run, which says so, unless it was chosen on this very split."""
    kept = kept_smoothing(run)
    if kept is None or not kept.smoothing.width:
        return _Processed(predictions, "")
    if kept.split == predictions.split and not tuned_here:
        print(f"not smoothed: the run's smoothing was tuned on this split ({kept.split})")
        return _Processed(predictions, "")
    said = f"smoothed as tuned on {kept.split}: {kept.smoothing}"
    print(said)
    return _Processed(smooth(predictions, kept.smoothing), said)


def _postprocessed(path: Path, predictions: Predictions, tuned_here: bool) -> _Processed:
    """Post-processed by the chain at `path`, which says so, unless it was fitted on this very split."""
    chain = load_chain(path)
    if is_fitted_on(chain, predictions) and not tuned_here:
        print(f"not post-processed: the run's post-processing was fitted on this split ({chain.split})")
        return _Processed(predictions, "")
    before = figures_of(predictions)["score"](np.arange(len(predictions)))
    said = f"post-processed as fitted on {chain.split} (without it, score {before:.4f}): {chain}"
    print(said)
    if is_fitted_on(chain, predictions):
        print("this is the split that post-processing was fitted on: its figures are too high")
    return _Processed(apply_chain(chain, predictions, allow_tuned_split=True), said)


def kept_smoothing(run: Path) -> KeptSmoothing | None:
    """The smoothing that `tune` chose for a run, if it did.

    Raises:
        DataError: the file is damaged.
    """
    path = run / SMOOTHING
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_bytes())
        chosen = data["smoothing"]
        smoothing = Smoothing(str(chosen["kind"]), float(chosen["width"]), tuple(chosen["heads"]))
        return KeptSmoothing(smoothing, str(data["split"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); tune again") from error
