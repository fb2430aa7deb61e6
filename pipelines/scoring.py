"""What a finetuning run measures of itself: predictions of the held-out faces and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipelines.cores import loader_workers
from pipelines.mistakes import may_be_shown, mistakes_picture
from pipelines.models import ModelSpec
from pipelines.pictures import save_picture
from pipelines.predictions import Predictions
from pipelines.predictions_csv import write_csv
from pipelines.split_predictor import SplitPredictor, model_columns, to_predictions
from pipelines.stage import Context
from pretrain.task import Task
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
            write_csv(predictions, context.run.path / "predictions" / "val.csv")
            if is_last and config.data_kind == "faces":
                save_mistakes(context.run.path / MISTAKES, val, predictions, spread)
        if is_last and config.data_kind == "clips":
            from pipelines.clip_views import save_clip_views  # draws: half a second to load

            folder = context.run.path / "predictions"
            save_clip_views(folder, self._as_predictor(val), self._model, columns, leaving_out=False)
        return {f"val_{name}": value for name, value in self._task.metrics(columns).items()}

    def _as_predictor(self, val: ShardSet) -> SplitPredictor:
        context, config = self._context, self._context.config
        workers = loader_workers(config.data.num_workers, context.device)
        size = config.eval.batch_size
        return SplitPredictor(
            "val", val, self._spec, self._task, context.processes, context.device, size, workers
        )


def save_mistakes(path: Path, shards: ShardSet, predictions: Predictions, samples: Sequence[int]) -> None:
    """Draws the most confident mistakes, if there are any and the licence of the faces allows it."""
    picture = mistakes_picture(shards, predictions, samples) if may_be_shown(shards) else None
    if picture is not None:
        save_picture(picture, path)
