"""From windows of clips back to frames: predictions of overlapping windows averaged, one row a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluate import predict_batches
from pipelines.models import ModelSpec
from pipelines.predictions import Predictions, build_predictions, unique_keys
from pipelines.processes import Processes
from shards.clips import clip_eval_batches, eval_windows, read_clip_labels
from shards.shardset import ShardSet


def predict_clips(
    predict: Callable[[Any], Mapping[str, Tensor]],
    spec: ModelSpec,
    shards: ShardSet,
    batch_size: int,
    processes: Processes,
    device: torch.device,
    num_workers: int = 0,
    samples: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Runs `predict` over windows that cover every frame of a split, shared by the processes.

    Args:
        predict: a batch of windows on the device -> va, va_target (B, T, 2) and frames (B, T).
        spec: of the model.
        shards: the split.
        batch_size: windows of every batch.
        processes: all of them call this.
        device: that computes.
        num_workers: loader processes.
        samples: which clips; None = all.

    Returns:
        As `join_windows`, in every process.
    """
    windows = eval_windows(shards, spec.clip, samples)
    batches = clip_eval_batches(
        shards,
        batch_size,
        spec.image_size,
        spec.clip,
        processes.rank,
        processes.world_size,
        num_workers,
        samples,
    )
    columns = predict_batches(predict, batches, len(windows), processes, device)
    return join_windows(columns, [window.sample for window in windows])


def join_windows(columns: Mapping[str, Tensor], samples: Sequence[int]) -> dict[str, Tensor]:
    """One row for every frame of every clip: the mean of the windows that it is in.

    Args:
        columns: of N windows of T frames: va (N, T, 2); va_target (N, T, 2), NaN if missing; frames (N, T),
            −1 where a window is padded.
        samples: (N,) number of each window's clip.

    Returns:
        sample (F,), frame (F,), va (F, 2), va_target (F, 2), sorted by clip, then frame; float64.
    """
    frames = columns["frames"].numpy()
    clips = np.broadcast_to(np.asarray(samples, np.float64)[:, None], frames.shape)
    inside = frames >= 0
    places, rows = np.unique(np.stack([clips[inside], frames[inside]], 1), axis=0, return_inverse=True)
    rows = rows.reshape(-1)
    va, target = (columns[name].numpy()[inside] for name in ("va", "va_target"))
    total, counts = np.zeros((len(places), 2)), np.bincount(rows, minlength=len(places))
    np.add.at(total, rows, va)
    targets = np.full((len(places), 2), np.nan)
    targets[rows] = target  # every window says the same of a frame
    joined = {
        "sample": places[:, 0],
        "frame": places[:, 1],
        "va": total / counts[:, None],
        "va_target": targets,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in joined.items()}


def clip_predictions(split: str, shards: ShardSet, columns: Mapping[str, Tensor]) -> Predictions:
    """Columns of `join_windows` as the record that csv files hold: a row a frame, grouped by recording."""
    sample = columns["sample"].numpy().astype(np.int64)
    frame = columns["frame"].numpy().astype(np.int64)
    clips = np.unique(sample)
    names = dict(zip(clips.tolist(), unique_keys([shards.key(clip) for clip in clips.tolist()]), strict=True))
    groups = _recordings(shards, names)
    count = len(sample)
    return build_predictions(
        split,
        [f"{names[clip]}-{number:06d}" for clip, number in zip(sample.tolist(), frame.tolist(), strict=True)],
        group=[groups[clip] for clip in sample.tolist()],
        frame=frame.tolist(),
        name=[""] * count,
        expr_names=shards.label_space.expr,
        au_names=shards.label_space.au,
        expr=np.full(count, -1, np.int64),
        va=columns["va_target"].numpy(),
        au=np.full((count, len(shards.label_space.au)), -1, np.int8),
        expr_probs=None,
        au_probs=None,
        va_pred=np.clip(columns["va"].numpy(), -1, 1),
    )


def _recordings(shards: ShardSet, names: Mapping[int, str]) -> dict[int, str]:
    """The recording of each clip; those of joined sets are not the same, though they be called so.

    Args:
        shards: of all clips.
        names: unique name of each clip, which stands for a recording that is not named.
    """
    sets = list(dict.fromkeys(folder.parent for folder in shards.folders))
    found = {}
    for clip, name in names.items():
        number = sets.index(shards.folders[shards.place(clip)[0]].parent)
        group = read_clip_labels(shards, clip).group or name
        found[clip] = f"{group}~{number}" if number else group
    return found
