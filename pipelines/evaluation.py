"""Commands on finished runs: score a split, tune on a named one, join runs, write a challenge's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.config import ConfigError, RunConfig, load_config
from pipelines.data import named_shards
from pipelines.ensemble import mean_predictions
from pipelines.finetuning import build_task
from pipelines.loop import build_accelerator
from pipelines.models import ModelSpec, load_model
from pipelines.predictions import Predictions, read_csv
from pipelines.processes import Processes
from pipelines.scores import Scores, as_text, figures_of, is_labelled, score
from pipelines.scoring import model_columns, to_predictions
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
from pretrain.task import Task
from shards.files import clear_disk_errors, write_atomic
from shards.labels import DataError
from shards.shardset import ShardSet, open_shards

_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
_MEDIANS = (3, 7, 15, 31)
THRESHOLDS, SMOOTHING = "thresholds.json", "smoothing.json"


class KeptSmoothing(NamedTuple):
    """A smoothing and the name of the split that it was chosen on."""

    smoothing: Smoothing
    split: str


def run_folder(run: Path) -> Path:
    """The run directory itself, or the one that a checkpoint folder is in.

    Raises:
        ConfigError: there is none.
    """
    for folder in (run, *run.resolve().parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"{run}: no run there (no config.yaml); give a run directory")


def run_config(run: Path) -> RunConfig:
    """The configuration of a run; see `run_folder`."""
    return load_config(str(run_folder(run) / "config.yaml"))


@dataclass(frozen=True)
class SplitPredictor:
    """One split of faces or clips, and what it takes to predict it with models of one specification.

    Attributes:
        split: its name.
        shards: the opened split.
        spec: of the models.
        task: that their run learned.
        processes: all of them predict together.
        device: that computes.
        batch_size: of every batch.
        num_workers: loader processes.
    """

    split: str
    shards: ShardSet
    spec: ModelSpec
    task: Task[Any, Any]
    processes: Processes
    device: torch.device
    batch_size: int
    num_workers: int

    def columns(self, model: nn.Module) -> dict[str, Tensor]:
        """What `task.predict` says of each face or frame, with its labels; in every process.

        Valence and arousal are clipped to [−1, 1], as in every file that is written of them.
        """
        columns = model_columns(
            model.to(self.device),
            self.task,
            self.spec,
            self.shards,
            self.batch_size,
            self.processes,
            self.device,
            self.num_workers,
        )
        if "va" in columns:
            columns["va"] = columns["va"].clamp(-1, 1)
        return columns

    def predictions(self, columns: Mapping[str, Tensor]) -> Predictions:
        """The same as the record that csv files hold."""
        return to_predictions(self.split, self.shards, columns, self.spec, list(range(len(self.shards))))


def open_predictor(
    config: RunConfig, spec: ModelSpec, split: str, shards: str = "", batch_size: int = 0
) -> SplitPredictor:
    """Opens a split for the models of a run.

    Args:
        config: of the run.
        spec: of its model.
        split: "val", "test" or "train".
        shards: folders, comma-separated; "" = those of the run, or the default faces.
        batch_size: 0 = the run's.

    Raises:
        ConfigError, DataError: no such split, or one of other classes than the model's.
    """
    accelerator = build_accelerator(config.train)
    processes = Processes()
    set_threads(config.train.threads)
    names = named_shards(shards or config.data.shards, processes, config.data_kind)
    opened = open_shards(names, split)
    space = opened.label_space
    if spec.expr and space.expr and tuple(space.expr) != spec.expr:
        raise DataError(
            f"{names}: its expressions are {', '.join(space.expr)}; the model's are "
            f"{', '.join(spec.expr)}: build the shards with the model's classes"
        )
    return SplitPredictor(
        split,
        opened,
        spec,
        build_task(config, spec),
        processes,
        accelerator.device,
        batch_size or config.eval.batch_size,
        loader_workers(config.data.num_workers, accelerator.device),
    )


def predict_run(run: Path, split: str, shards: str = "", batch_size: int = 0) -> Predictions | None:
    """A run's predictions of one split; every process of a launcher takes its share.

    Args:
        run: a run directory or one of its checkpoints.
        split, shards, batch_size: as for `open_predictor`.

    Returns:
        The predictions in the main process, None in the others.

    Raises:
        ConfigError, DataError, CheckpointError: no run, no such split, no model.
    """
    config, loaded = run_config(run), load_model(run)
    predictor = open_predictor(config, loaded.spec, split, shards, batch_size)
    if predictor.processes.is_main and loaded.checkpoint:
        print(f"{run}: {loaded.checkpoint}")
    columns = predictor.columns(loaded.model)
    return predictor.predictions(columns) if predictor.processes.is_main else None


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

    Args:
        run: run directory, or a folder for those of an ensemble.
        predictions: with labels.

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
            f"smoothing: {choice.smoothing}; score {choice.score:.4f} on {choice.split} "
            f"(without: {choice.scores[0][1]:.4f})"
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


def ensemble(paths: Sequence[Path], out: Path, weights: str = "", tune_in: Path | None = None) -> int:
    """Writes the mean of several predictions, and prints its scores where there are labels.

    Args:
        paths: predictions/<split>.csv of runs or epochs, of the same samples.
        out: csv to write.
        weights: one number for each, comma-separated; "" = equal.
        tune_in: folder that gets the ensemble's own thresholds and smoothing, chosen on this split.

    Returns:
        Exit status.

    Raises:
        ConfigError: weights that are not numbers.
        DataError: see `ensemble.mean_predictions`, or nothing labelled to tune on.
    """
    try:
        numbers = [float(word) for word in weights.split(",")] if weights else None
    except ValueError as error:
        raise ConfigError(f"--weights {weights!r}: give numbers, as in 1,2,1") from error
    joined = mean_predictions([read_csv(path) for path in paths], numbers)
    joined.write_csv(out)
    print(f"{out}: mean of {len(paths)}")
    if tune_in is not None:
        with clear_disk_errors(tune_in):
            tune_in.mkdir(parents=True, exist_ok=True)
        print("\n".join(tune(tune_in, joined)))
        print(as_text(score_run(tune_in, joined, tuned_here=True)))
    elif is_labelled(joined):
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
        tuned: run, or folder of an ensemble, whose thresholds and smoothing are used.

    Returns:
        Exit status.

    Raises:
        ConfigError: nothing was tuned there.
        DataError: see `submission.write_mtl`.
    """
    found, wanted = read_csv(predictions), read_names(names)
    smoothing, thresholds = kept_smoothing(tuned) if tuned else None, None
    if tuned and (tuned / THRESHOLDS).is_file():
        thresholds = load_thresholds(tuned / THRESHOLDS)
    if tuned and smoothing is None and thresholds is None:
        raise ConfigError(
            f"--tuned {tuned}: nothing was tuned there; run `faceprior evaluate {tuned} --tune` (for an "
            "ensemble `faceprior ensemble … --tune FOLDER`), or leave --tuned away"
        )
    if smoothing is not None:
        found = smooth(found, smoothing.smoothing)
        print(f"smoothing as tuned on {smoothing.split}: {smoothing.smoothing}")
    if challenge == "lsd":
        print(write_lsd(out, found, wanted))
        return 0
    where = f"as tuned on {thresholds.split}" if thresholds else "0.5 for every unit"
    print(f"thresholds of action units: {where}")
    print(write_mtl(out, found, wanted, thresholds))
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
