"""What a finetuning run measures of itself: predictions of the held-out faces and their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.clip_scoring import clip_predictions, predict_clips
from pipelines.evaluate import predict_split
from pipelines.mistakes import may_be_shown, mistakes_picture
from pipelines.models import ModelSpec
from pipelines.pictures import save_picture
from pipelines.predictions import Predictions, build_predictions, unique_keys
from pipelines.processes import Processes
from pipelines.stage import Context, loader_workers
from pretrain.task import Task
from shards.labels import DataError, FaceLabels
from shards.shardset import ShardSet

MISTAKES = Path("predictions") / "val.mistakes.png"


class AffectObserver:
    """Evaluation of a finetuning run on faces or clips that it does not learn from."""

    def __init__(self, context: Context, model: nn.Module, task: Task[Any, Any], spec: ModelSpec) -> None:
        self._context, self._model, self._task, self._spec = context, model, task, spec

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Scores the held-out split; the main process writes predictions/val.csv.

        Returns:
            The task's metrics, each under `val_`.
        """
        val = self._context.splits.val
        if val is None:
            return {}
        context, config = self._context, self._context.config
        is_last = step >= context.plan.total_steps  # the scores that stay are of every face
        count = len(val) if is_last else min(config.eval.max_samples or len(val), len(val))
        spread = np.linspace(0, len(val) - 1, count).round().astype(int).tolist()
        columns = model_columns(
            self._model,
            self._task,
            self._spec,
            val,
            config.eval.batch_size,
            context.processes,
            context.device,
            loader_workers(config.data.num_workers, context.device),
            spread,
        )
        if context.processes.is_main:
            predictions = to_predictions("val", val, columns, self._spec, spread)
            predictions.write_csv(context.run.path / "predictions" / "val.csv")
            if is_last and config.data_kind == "faces":
                save_mistakes(context.run.path / MISTAKES, val, predictions, spread)
        return {f"val_{name}": value for name, value in self._task.metrics(columns).items()}


def model_columns(
    model: nn.Module,
    task: Task[Any, Any],
    spec: ModelSpec,
    shards: ShardSet,
    batch_size: int,
    processes: Processes,
    device: torch.device,
    num_workers: int,
    samples: list[int] | None = None,
) -> dict[str, Tensor]:
    """The columns of `task.predict` over `samples` of a split, in eval mode; in every process.

    A row is a face; of clips it is a frame, and the columns are those of `clip_scoring.join_windows`.
    """
    model.eval()
    with torch.inference_mode():
        if spec.kind == "mran":
            return predict_clips(
                partial(task.predict, model),
                spec,
                shards,
                batch_size,
                processes,
                device,
                num_workers,
                samples,
            )
        return predict_split(
            partial(task.predict, model),
            shards,
            spec.image_size,
            batch_size,
            processes,
            device,
            num_workers,
            samples,
        )


def save_mistakes(path: Path, shards: ShardSet, predictions: Predictions, samples: Sequence[int]) -> None:
    """Draws the most confident mistakes, if there are any and the licence of the faces allows it."""
    picture = mistakes_picture(shards, predictions, samples) if may_be_shown(shards) else None
    if picture is not None:
        save_picture(picture, path)


def to_predictions(
    split: str, shards: ShardSet, columns: Mapping[str, Tensor], spec: ModelSpec, samples: list[int]
) -> Predictions:
    """Columns as the record that csv files hold, with what the shards say of each sample besides."""
    if spec.kind == "mran":
        return clip_predictions(split, shards, columns)
    about = [_about(shards, sample) for sample in samples]
    arrays = {name: values.numpy() for name, values in columns.items()}
    va = arrays.get("va")
    return build_predictions(
        split,
        unique_keys([shards.key(sample) for sample in samples]),
        group=[labels.group or labels.identity or "" for labels in about],
        frame=[_frame(labels) for labels in about],
        name=[str(labels.extra.get("name", "")) for labels in about],
        expr_names=shards.label_space.expr,
        au_names=shards.label_space.au,
        expr=arrays["expr"].astype(np.int64),
        va=arrays["va_target"],
        au=arrays["au"].astype(np.int8),
        expr_probs=arrays.get("expr_probs"),
        au_probs=arrays.get("au_probs"),
        va_pred=None if va is None else np.clip(va, -1, 1),
    )


def _about(shards: ShardSet, sample: int) -> FaceLabels:
    raw = shards.read(sample)
    try:
        return FaceLabels.from_json(json.loads(raw.members.get("json", b"{}")), raw.where)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{raw.where}: labels are not JSON ({error})") from error


def _frame(labels: FaceLabels) -> int:
    frame = labels.extra.get("frame", -1)
    return frame if isinstance(frame, int) and not isinstance(frame, bool) and frame >= 0 else -1
