"""A soup as a run directory: the mean of several checkpoints' weights (Wortsman et al. 2022), ready for use.

The mathematics is in `ensemble`; here checkpoints are read and compared, candidates scored, the mean written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from finetune.config import CoTEXConfig
from pipelines.checkpoint import Checkpoint, CheckpointStore, encoder_file
from pipelines.config import ConfigError, RunConfig
from pipelines.ensemble import Soup, State, greedy_soup, uniform_soup
from pipelines.evaluation import open_predictor, run_config, run_folder
from pipelines.loop import build_accelerator
from pipelines.models import LoadedModel, ModelSpec, build_model, encoders_of, load_model, model_file
from pipelines.processes import Processes
from pipelines.rundir import RunDir
from shards.labels import DataError


def make_soup(
    paths: Sequence[Path], out: Path, greedy: str = "", shards: str = "", batch_size: int = 0
) -> int:
    """Writes the mean of several models' weights as a run: to be evaluated, predicted with or started from.

    Args:
        paths: runs (their best checkpoints) or checkpoints, of models that are built alike.
        out: run directory to make.
        greedy: split to choose the members on, see `ensemble.greedy_soup`; "" takes all.
        shards, batch_size: for the scores of `greedy`; as for `evaluation.open_predictor`.

    Returns:
        Exit status.

    Raises:
        ConfigError: `out` holds a run, a path is there twice, or no run is at one.
        CheckpointError: a checkpoint that cannot be read.
        DataError: models that are not built alike, or a split without labels.
    """
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"{max(names, key=names.count)} is there twice: each counts once in a soup")
    if RunDir(out).has_saved:
        raise ConfigError(f"{out}: there is a run already; give another --out")
    config = run_config(paths[0])
    device = build_accelerator(config.train).device
    loaded = {name: load_model(path) for name, path in zip(names, paths)}
    first = loaded[names[0]]
    for name, other in loaded.items():
        _check_alike(names[0], first.spec, name, other.spec)
    states = {name: dict(other.model.state_dict()) for name, other in loaded.items()}
    if greedy:
        soup = _choose(paths[0], first.spec, states, greedy, shards, batch_size)
    else:
        soup = Soup(uniform_soup(list(states.values())), tuple(names), "", math.nan, ())
    if Processes().is_main:
        made_of = _made_of(soup, {name: other.checkpoint for name, other in loaded.items()})
        _write(RunDir(out), config, first, soup.state, made_of, RunDir(run_folder(paths[0])).facts(), device)
        print("\n".join(_lines(out, soup, len(paths))))
    return 0


def _check_alike(first: str, spec: ModelSpec, name: str, other: ModelSpec) -> None:
    """
    Raises:
        DataError: models whose specifications differ in more than how they were trained.
    """
    one, two = _as_used(spec), _as_used(other)
    for field in fields(ModelSpec):
        here, there = getattr(one, field.name), getattr(two, field.name)
        if here != there:
            raise DataError(
                f"{first} and {name} are not built alike and have no mean: {field.name} is {here!r:.200} and "
                f"{there!r:.200}"
            )


def _as_used(spec: ModelSpec) -> ModelSpec:
    """A specification without what only matters in training."""
    encoder = replace(spec.encoder, drop_path_rate=0.0, patch_drop_rate=0.0)
    return replace(spec, encoder=encoder, cotex=CoTEXConfig(), stop_gradient=True, freeze_cnn=True)


def _choose(
    run: Path, spec: ModelSpec, states: Mapping[str, State], split: str, shards: str, batch_size: int
) -> Soup:
    """The greedy soup by the score of the task's metrics; the same in every process."""
    predictor = open_predictor(run, spec, split, shards, batch_size)
    model = build_model(spec)

    def score(state: State) -> float:
        model.load_state_dict(dict(state), strict=True)
        metrics = predictor.task.metrics(predictor.columns(model))
        if "score" not in metrics:
            raise DataError(f"split {split} has no label of what these models predict: choose on another one")
        return metrics["score"]

    return greedy_soup(states, score, split)


def _made_of(soup: Soup, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """What the model's file and run.json say of a soup, as plain JSON values."""
    members = [f"{name} ({checkpoints[name]})" if checkpoints[name] else name for name in soup.members]
    if not soup.split:
        return {"members": members}
    return {"members": members, "chosen_on": soup.split, "score": soup.score, "scores": dict(soup.scores)}


def _lines(out: Path, soup: Soup, count: int) -> Iterator[str]:
    """What was chosen, for the terminal."""
    yield f"{out}: mean of the weights of {len(soup.members)} of {count}"
    for name, score in soup.scores:
        yield f"  {name}: {score:.4f}{'' if name in soup.members else ', left out'}"
    if soup.split:
        yield f"  the mean: {soup.score:.4f} on {soup.split}, where it was chosen: too high to report"


def _write(
    run: RunDir,
    config: RunConfig,
    first: LoadedModel,
    state: State,
    made_of: Mapping[str, Any],
    facts: Mapping[str, Any],
    device: torch.device,
) -> None:
    """The run directory: settings and data of the first member, one checkpoint, and what it is made of.

    Args:
        run: to write.
        config: of the first member.
        first: that member.
        state: the mean of the weights.
        made_of: see `_made_of`.
        facts: run.json of the first member.
        device: that computed.
    """
    model = build_model(first.spec)
    model.load_state_dict(dict(state), strict=True)
    files = {"model": model_file(model, first.spec, {**first.facts, "soup": made_of})}
    for encoder in encoders_of(model)[:1]:
        alignment, rendered = first.facts.get("alignment", []), bool(first.facts.get("rendered"))
        files["encoder"] = encoder_file(encoder, first.spec.encoder, alignment, rendered)
    try:
        run.open(replace(config, run=str(run.path)))
        about = {"task": config.task, "total_steps": 0, "soup": made_of, "data": facts.get("data", {})}
        run.record(about, 0, device)
        CheckpointStore(run.checkpoints).save(Checkpoint(0, 0, files))
        run.end("finished", 0)
    finally:
        run.close()
