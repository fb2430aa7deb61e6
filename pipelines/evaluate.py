"""Predictions over a whole split: every sample once, the same to the last bit for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pipelines.processes import Processes
from shards.shardset import ShardSet
from shards.stream import Batch, eval_batches

Predict = Callable[[Batch], Mapping[str, Tensor]]


class Movable(Protocol):
    """A batch that can be put on a device."""

    def to(self, device: torch.device) -> Movable: ...


BatchT = TypeVar("BatchT", bound=Movable)


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
    batches = eval_batches(
        shards, batch_size, size, rank, world, num_workers, samples, with_labels=with_labels, seed=seed
    )
    return predict_batches(predict, batches, count, processes, device)


def predict_batches(
    predict: Callable[[BatchT], Mapping[str, Tensor]],
    batches: Iterable[BatchT],
    count: int,
    processes: Processes,
    device: torch.device,
) -> dict[str, Tensor]:
    """Runs `predict` over this process's batches of an evaluation and joins all processes' columns.

    Args:
        predict: a batch on the device -> named columns (B, …).
        batches: this process's, padded alike: every world-th batch of all.
        count: N samples in the batches of all processes, padding not counted.
        processes: all of them call this.
        device: that computes.

    Returns:
        name -> (N, …) float64 on the CPU, in order; in every process.
    """
    parts: dict[str, list[Tensor]] = {}
    for batch in batches:
        moved: BatchT = batch.to(device)  # type: ignore[assignment]
        for name, values in predict(moved).items():
            parts.setdefault(name, []).append(values.double().cpu())
    columns = {}
    for name in sorted(parts):
        own = torch.stack(parts[name])  # (rounds, batch_size, …); rank r made every world-th batch
        gathered = torch.stack(processes.gather(own), dim=1)
        columns[name] = gathered.flatten(0, 2)[:count]
    return columns
