"""One split and all it takes to predict it: what the model says of each face or frame, with its labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.clip_scoring import clip_predictions, predict_clips
from pipelines.evaluate import predict_split
from pipelines.models import ModelSpec
from pipelines.predictions import Predictions, build_predictions, unique_keys
from pipelines.processes import Processes
from pretrain.task import Task
from shards.labels import DataError, FaceLabels
from shards.shardset import ShardSet


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
