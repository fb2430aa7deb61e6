"""Commands on finished runs: score a split, tune on a named one, join runs, write a challenge's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipelines.config import ConfigError, RunConfig, load_config
from pipelines.data import default_faces, make_default_faces
from pipelines.ensemble import mean_predictions
from pipelines.evaluate import predict_split
from pipelines.finetuning import build_task
from pipelines.loop import build_accelerator
from pipelines.models import load_model
from pipelines.predictions import Predictions, read_csv
from pipelines.processes import Processes
from pipelines.scores import Scores, as_text, figures_of, is_labelled, score
from pipelines.scoring import to_predictions
from pipelines.smoothing import Smoothing, choose_smoothing, smooth
from pipelines.stage import loader_workers, set_threads
from pipelines.submission import (
    LSD_HEADER,
    MTL_HEADER,
    check_lsd,
    check_mtl,
    read_names,
    write_lsd,
    write_mtl,
)
from pipelines.thresholds import apply_thresholds, load_thresholds, save_thresholds, tune_thresholds
from shards.files import write_atomic
from shards.labels import DataError
from shards.shardset import open_shards

_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
_MEDIANS = (3, 7, 15, 31)
THRESHOLDS, SMOOTHING = "thresholds.json", "smoothing.json"


class KeptSmoothing(NamedTuple):
    """A smoothing and the name of the split that it was chosen on."""

    smoothing: Smoothing
    split: str


def run_config(run: Path) -> RunConfig:
    """The configuration of a run directory, or of the run that a checkpoint folder is in.

    Raises:
        ConfigError: there is none.
    """
    for folder in (run, *run.resolve().parents[:2]):
        if (folder / "config.yaml").is_file():
            return load_config(str(folder / "config.yaml"))
    raise ConfigError(f"{run}: no run there (no config.yaml); give a run directory")


def predict_run(run: Path, split: str, shards: str = "", batch_size: int = 0) -> Predictions | None:
    """A run's predictions of one split; every process of a launcher takes its share.

    Args:
        run: a run directory or one of its checkpoints.
        split: "val", "test" or "train".
        shards: folders, comma-separated; "" = those of the run, or the default faces.
        batch_size: 0 = the run's.

    Returns:
        The predictions in the main process, None in the others.

    Raises:
        ConfigError, DataError, CheckpointError: no run, no such split, no model.
    """
    config = run_config(run)
    accelerator = build_accelerator(config.train)
    processes = Processes()
    set_threads(config.train.threads)
    loaded = load_model(run)
    if processes.is_main and loaded.checkpoint:
        print(f"{run}: {loaded.checkpoint}")
    names = shards or config.data.shards
    if not names:
        if processes.is_main:
            make_default_faces()
        processes.barrier()
        names = str(default_faces())
    opened = open_shards(names, split)
    space = opened.label_space
    if loaded.spec.expr and space.expr and tuple(space.expr) != loaded.spec.expr:
        raise DataError(
            f"{names}: its expressions are {', '.join(space.expr)}; the model's are "
            f"{', '.join(loaded.spec.expr)}: build the shards with the model's classes"
        )
    task = build_task(config, loaded.spec)
    model = loaded.model.to(accelerator.device)
    with torch.inference_mode():
        columns = predict_split(
            lambda batch: task.predict(model, batch),
            opened,
            loaded.spec.image_size,
            batch_size or config.eval.batch_size,
            processes,
            accelerator.device,
            loader_workers(config.data.num_workers, accelerator.device),
        )
    if not processes.is_main:
        return None
    return to_predictions(split, opened, columns, loaded.spec, list(range(len(opened))))


def score_run(run: Path, predictions: Predictions, tuned_here: bool = False) -> Scores:
    """Scores with what `tune` chose for the run: smoothing over frames, and thresholds of action units.

    Neither is used on the split that it was tuned on, where it would flatter, unless that is the wish.
    """
    smoothing = kept_smoothing(run)
    if smoothing is not None and smoothing.smoothing.width:
        if smoothing.split != predictions.split or tuned_here:
            predictions = smooth(predictions, smoothing.smoothing)
            print(f"smoothed as tuned on {smoothing.split}: {smoothing.smoothing}")
        else:
            print(f"not smoothed: the run's smoothing was tuned on this split ({smoothing.split})")
    path = run / THRESHOLDS
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
    """Chooses AU thresholds and, for videos, a smoothing on one named split, and keeps them with the run.

    Returns:
        Lines that say what was chosen.
    """
    lines = []
    if (predictions.frame >= 0).all() and all(predictions.group):
        choice = choose_smoothing(
            predictions,
            [Smoothing("gaussian", sigma) for sigma in _SIGMAS] + [Smoothing("median", w) for w in _MEDIANS],
            lambda smoothed: figures_of(smoothed)["score"](np.arange(len(smoothed))),
        )
        write_atomic(run / SMOOTHING, json.dumps(asdict(choice), indent=1).encode())
        predictions = smooth(predictions, choice.smoothing)
        lines.append(
            f"smoothing: {choice.smoothing.kind} {choice.smoothing.width:g} frames, score {choice.score:.4f} "
            f"on {choice.split} (without: {choice.scores[0][1]:.4f})"
        )
    if predictions.au_probs is not None and (predictions.au >= 0).any():
        thresholds = tune_thresholds(predictions)
        save_thresholds(thresholds, run / THRESHOLDS)
        shown = ", ".join(f"{unit.au} {unit.threshold:.2f}" for unit in thresholds.units)
        lines.append(f"thresholds, tuned on {thresholds.split}: {shown}")
    return lines or ["nothing to tune: no action units, and no frame numbers"]


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


def evaluate(
    run: Path, split: str, shards: str = "", tune_here: bool = False, batch_size: int = 0
) -> Scores | None:
    """Predicts and scores one split; writes predictions/<split>.csv and scores/<split>.json of the run.

    Args:
        run: run directory.
        split: which.
        shards: as for `predict_run`.
        tune_here: choose thresholds and smoothing on this split, and keep them.
        batch_size: as for `predict_run`.

    Returns:
        The scores in the main process; None if nothing is labelled.
    """
    predictions = predict_run(run, split, shards, batch_size)
    if predictions is None:
        return None
    predictions.write_csv(run / "predictions" / f"{split}.csv")
    if tune_here:
        print("\n".join(tune(run, predictions)))
    if not is_labelled(predictions):
        print(f"split {split} has no labels to score; its predictions are written")
        return None
    scores = score_run(run, predictions, tune_here)
    scores.save(run / "scores" / f"{split}.json")
    print(as_text(scores))
    return scores


def ensemble(paths: Sequence[Path], out: Path, weights: str = "") -> int:
    """Writes the mean of several predictions, and prints its scores where there are labels.

    Args:
        paths: predictions/<split>.csv of runs or epochs, of the same samples.
        out: csv to write.
        weights: one number for each, comma-separated; "" = equal.

    Returns:
        Exit status.

    Raises:
        ConfigError: weights that are not numbers. DataError: see `ensemble.mean_predictions`.
    """
    try:
        numbers = [float(word) for word in weights.split(",")] if weights else None
    except ValueError as error:
        raise ConfigError(f"--weights {weights!r}: give numbers, as in 1,2,1") from error
    joined = mean_predictions([read_csv(path) for path in paths], numbers)
    joined.write_csv(out)
    print(f"{out}: mean of {len(paths)}")
    if is_labelled(joined):
        print(as_text(score(joined)))
    return 0


def write_submission(
    predictions: Path, names: Path, out: Path, challenge: str = "mtl", tuned: Path | None = None
) -> int:
    """Writes a challenge's prediction file and checks it; see `submission.write_mtl` and `write_lsd`.

    Args:
        predictions: csv of a run or ensemble.
        names: the challenge's list.
        out: file to write.
        challenge: "mtl" or "lsd".
        tuned: run whose thresholds and smoothing are used.

    Returns:
        Exit status.
    """
    found, wanted = read_csv(predictions), read_names(names)
    smoothing = kept_smoothing(tuned) if tuned else None
    if smoothing is not None:
        found = smooth(found, smoothing.smoothing)
    if challenge == "lsd":
        print(write_lsd(out, found, wanted))
        return 0
    limits = tuned / THRESHOLDS if tuned else None
    print(write_mtl(out, found, wanted, load_thresholds(limits) if limits and limits.is_file() else None))
    return 0


def check_submission(out: Path, names: Path, challenge: str = "mtl") -> int:
    """Prints every fault of a challenge's prediction file; returns exit status 1 if there is one."""
    wanted = read_names(names)
    problems = (
        check_lsd(out, wanted, LSD_HEADER) if challenge == "lsd" else check_mtl(out, wanted, MTL_HEADER)
    )
    for problem in problems:
        print(problem)
    print(f"{out}: {len(problems)} fault(s)" if problems else f"{out}: as it should be")
    return 1 if problems else 0
