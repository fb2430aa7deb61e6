"""Predictions over a whole split: every sample once, the same to the last bit for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipelines.processes import Processes
from shards.shardset import ShardSet
from shards.stream import Batch, eval_batches

Predict = Callable[[Batch], Mapping[str, Tensor]]


def predict_split(
    predict: Predict,
    shards: ShardSet,
    size: tuple[int, int],
    batch_size: int,
    processes: Processes,
    device: torch.device,
    num_workers: int = 0,
    samples: Sequence[int] | None = None,
    with_labels: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Runs `predict` over a split, its batches shared by the processes.

    Batches hold the same samples for any number of processes, the last one padded, so each sample is computed
    alike.

    Args:
        predict: a batch on the device -> named columns (B, …).
        shards: the split.
        size: (height, width) of the images.
        batch_size: of every batch.
        processes: all of them call this.
        device: that computes.
        num_workers: loader processes.
        samples: which; None = all.
        with_labels, seed: as for `eval_batches`.

    Returns:
        name -> (N, …) float64 on the CPU, in the order of `samples`; in every process.
    """
    count = len(shards) if samples is None else len(samples)
    rank, world = processes.rank, processes.world_size
    parts: dict[str, list[Tensor]] = {}
    batches = eval_batches(
        shards, batch_size, size, rank, world, num_workers, samples, with_labels=with_labels, seed=seed
    )
    for batch in batches:
        for name, values in predict(batch.to(device)).items():
            parts.setdefault(name, []).append(values.double().cpu())
    columns = {}
    for name in sorted(parts):
        own = torch.stack(parts[name])  # (rounds, batch_size, …); rank r made every world-th batch
        gathered = torch.stack(processes.gather(own), dim=1)
        columns[name] = gathered.flatten(0, 2)[:count]
    return columns
