"""Who reads what: which samples each process and loader worker draws, as a pure function of the position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import get_worker_info

from shards import keyed
from shards.labels import DataError
from shards.order import Order


class Draw(NamedTuple):
    """One sample to be read: its number, random key, and whether it counts."""

    sample: int
    rng: int
    counts: bool


@dataclass(frozen=True)
class Layout:
    """Who computes what of one optimiser step.

    Attributes:
        rank, world_size: this process and their number.
        batch_size: samples in a micro-batch of one process.
        accum_steps: micro-batches of one process to a step.
    """

    rank: int
    world_size: int
    batch_size: int
    accum_steps: int

    @property
    def global_batch_size(self) -> int:
        """Samples to an optimiser step, over all processes and micro-batches."""
        return self.world_size * self.batch_size * self.accum_steps

    def positions(self, start: int, micro_step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions of this process's `micro_step`-th batch, counted from position `start`."""
        step, micro = divmod(micro_step, self.accum_steps)
        offset = step * self.global_batch_size + (micro * self.world_size + self.rank) * self.batch_size
        return np.arange(start + offset, start + offset + self.batch_size, dtype=np.int64)


def plan_layout(global_batch_size: int, batch_size: int, rank: int, world_size: int) -> Layout:
    """The layout that makes up `global_batch_size`; accumulation follows from it.

    Args:
        global_batch_size: samples to an optimiser step.
        batch_size: the largest micro-batch a process may have; 0 = no limit.

    Raises:
        DataError: what does not divide.
    """
    if global_batch_size < 1 or global_batch_size % world_size:
        raise DataError(
            f"global_batch_size={global_batch_size} cannot be shared by {world_size} processes: "
            f"use a multiple of {world_size}"
        )
    share = global_batch_size // world_size
    batch_size = min(batch_size or share, share)
    if share % batch_size:
        good = [b for b in range(1, share + 1) if share % b == 0 and b <= batch_size]
        raise DataError(
            f"global_batch_size={global_batch_size} over {world_size} processes is {share} each, which "
            f"batch_size={batch_size} does not divide: use batch_size={good[-1]}, say"
        )
    return Layout(rank, world_size, batch_size, share // batch_size)


def train_draws(order: Order, layout: Layout, position: int) -> Iterator[list[Draw]]:
    """Each of this process's micro-batches from `position` on, without end."""
    for micro_step in _mine():
        drawn = order.draw(layout.positions(position, micro_step))
        yield [Draw(s, r, True) for s, r in zip(drawn.samples.tolist(), drawn.rng.tolist())]


def eval_draws(
    chosen: Sequence[int], batch_size: int, rank: int, world_size: int, seed: int
) -> Iterator[list[Draw]]:
    """This process's batches of the numbers `chosen`, each once and in order.

    The last batch is padded by the last number, so that all batches are computed alike; where a process would
    have a batch less than the others it gets one of padding alone, so that all keep step.

    Args:
        seed: random keys are those of epoch 0 under this seed.
    """
    rounds = -(-len(chosen) // (batch_size * world_size))
    for number in _mine(rank, world_size):
        if number >= rounds * world_size:
            return
        part = chosen[number * batch_size : (number + 1) * batch_size]
        padded = [*part, *([chosen[-1]] * (batch_size - len(part)))]
        keys = [keyed.sample_key(seed, 0, s) for s in padded]
        yield [Draw(s, k, i < len(part)) for i, (s, k) in enumerate(zip(padded, keys))]


def _mine(first: int = 0, stride: int = 1) -> Iterator[int]:
    """Numbers of the batches that this loader worker makes, without end."""
    info = get_worker_info()
    worker, workers = (info.id, info.num_workers) if info else (0, 1)
    number = first + worker * stride
    while True:
        yield number
        number += workers * stride


def one_by_one(draws: Callable[[], Iterator[list[Draw]]]) -> Iterator[Draw]:
    """First stage: the draws of this worker's batches."""
    for batch in draws():
        yield from batch
