"""Commands on finished runs: score a split, tune on a named one, join runs, write a challenge's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from pipelines.config import ConfigError, RunConfig, load_config
from pipelines.cores import scoring_workers, set_threads
from pipelines.data import DAMAGED, named_shards, open_split
from pipelines.ensemble import mean_predictions
from pipelines.finetuning import build_task
from pipelines.folds import check_folds, pool
from pipelines.loop import build_accelerator
from pipelines.models import ModelSpec, load_model
from pipelines.predictions import Predictions
from pipelines.predictions_csv import read_csv, write_csv
from pipelines.processes import Processes
from pipelines.scores import Scores, as_text, is_labelled, score
from pipelines.smoothing import smooth
from pipelines.split_predictor import SplitPredictor
from pipelines.submission import read_names, write_lsd, write_mtl
from pipelines.submission_check import LSD_HEADER, MTL_HEADER, check_lsd, check_mtl
from pipelines.thresholds import load_thresholds
from pipelines.tuning import THRESHOLDS, kept_smoothing, score_run, tune
from shards.files import clear_disk_errors
from shards.labels import DataError
from shards.shardset import open_shards


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


def open_predictor(
    run: Path, spec: ModelSpec, split: str, shards: str = "", batch_size: int = 0
) -> SplitPredictor:
    """Opens a split for the models of a run.

    Args:
        run: run directory or one of its checkpoints; samples that it left out as damaged stay left out.
        spec: of its model.
        split: "val", "test" or "train".
        shards: folders, comma-separated; "" = those of the run, or the default faces.
        batch_size: 0 = the run's.

    Raises:
        ConfigError, DataError: no such split, or one of other classes than the model's.
    """
    config = run_config(run)
    accelerator = build_accelerator(config.train)
    processes = Processes()
    set_threads(config.train.threads)
    names = named_shards(shards or config.data.shards, processes, config.data_kind)
    listed = run_folder(run) / DAMAGED
    opened = open_shards(names, split) if shards else open_split(config.data, names, split, listed)
    if shards and config.data.fold and processes.is_main:
        print(f"--shards: taken whole; data.fold={config.data.fold} is of the run's own shards")
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
        scoring_workers(config.data.num_workers, accelerator.device),
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
    predictor, model = _open(run, split, shards, batch_size)
    columns = predictor.columns(model)
    return predictor.predictions(columns) if predictor.processes.is_main else None


def _open(run: Path, split: str, shards: str, batch_size: int) -> tuple[SplitPredictor, nn.Module]:
    """A split and the run's model for it; says which checkpoint that is."""
    loaded = load_model(run)
    predictor = open_predictor(run, loaded.spec, split, shards, batch_size)
    if predictor.processes.is_main and loaded.checkpoint:
        print(f"{run}: {loaded.checkpoint}")
    return predictor, loaded.model


def evaluate(
    run: Path, split: str, shards: str = "", tune_here: bool = False, batch_size: int = 0
) -> Scores | None:
    """Predicts and scores one split; writes predictions/<split>.csv and scores/<split>.json of the run.

    Of clips, what `pipelines.clip_views` makes comes with it.

    Args:
        run: run directory.
        split: which.
        shards: as for `predict_run`.
        tune_here: choose thresholds, smoothing or post-processing on this split, and keep them: see `tune`.
        batch_size: as for `predict_run`.

    Returns:
        The scores in the main process; None if nothing is labelled.
    """
    predictor, model = _open(run, split, shards, batch_size)
    columns = predictor.columns(model)
    if predictor.spec.kind == "mran":
        from pipelines.clip_views import save_clip_views  # draws: half a second to load

        save_clip_views(run / "predictions", predictor, model, columns)
    if not predictor.processes.is_main:
        return None
    predictions = predictor.predictions(columns)
    write_csv(predictions, run / "predictions" / f"{split}.csv")
    if tune_here:
        print("\n".join(tune(run, predictions)))
    if not is_labelled(predictions):
        print(f"split {split} has no labels to score; its predictions are written")
        return None
    scores = score_run(run, predictions, tune_here)
    scores.save(run / "scores" / f"{split}.json")
    print(as_text(scores))
    return scores


def evaluate_folds(
    runs: Sequence[Path], split: str = "val", shards: str = "", tune_here: bool = False, batch_size: int = 0
) -> Scores | None:
    """Evaluates the runs of a cross-validation, then scores the samples of all their folds together.

    Pooled are the predictions as the models gave them: no run's smoothing or post-processing is used.

    Args:
        runs: of one cross-validation (`data.fold`), each fold once.
        split: "val"; any other is the same or overlaps from fold to fold.
        shards, tune_here: refused: folds are of the runs' own shards, and a choice is made for one run.
        batch_size: as for `evaluate`.

    Returns:
        The pooled scores in the main process, if there are labels.

    Raises:
        ConfigError: see `check_folds`, or what is refused.
        DataError: see `folds.pool`.
    """
    if split != "val" or shards or tune_here:
        raise ConfigError(
            "several runs are pooled on their own folds, as they are: leave --split, --shards and --tune out"
        )
    configs = [run_config(run) for run in runs]
    said = check_folds(configs)
    scored = [evaluate(run, split, batch_size=batch_size) for run in runs]
    if not Processes().is_main or not any(scored):
        return None
    pooled = score(pool([read_csv(run / "predictions" / f"{split}.csv") for run in runs]))
    print(
        f"\npooled over {said}: each sample once, as predicted by the run that did not learn from its person"
    )
    if any(config.eval.every for config in configs):
        print(
            "eval.every is set: of each run the checkpoint that scored best on its own held-out fold is "
            "taken, so these figures are too high; eval.every=0 takes the last one"
        )
    print(as_text(pooled))
    return pooled


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
    write_csv(joined, out)
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
