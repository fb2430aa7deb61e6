"""Which sample comes when: pure functions of the position, the same for any number of processes and workers.

A position counts samples since the start of training; the stream has no end. Epoch e covers positions
[e·N, (e+1)·N).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards import keyed
from shards.labels import DataError

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """What lies at some positions.

    Attributes:
        samples: (n,) global sample numbers.
        rng: (n,) uint64, the random key of each draw.
    """

    samples: Int64
    rng: NDArray[np.uint64]


class Order(Protocol):
    """A global order of samples."""

    def __len__(self) -> int:
        """Positions to an epoch."""
        ...

    def draw(self, positions: Int64) -> Draws:
        """What lies at `positions`, (n,) int64."""
        ...


class EpochOrder:
    """Each sample once an epoch, shuffled with locality.

    Shards are shuffled; then samples within a window of shards, so that at any time only that many tars are
    read.
    """

    def __init__(self, shard_sizes: Sequence[int] | Int64, seed: int, window_shards: int = 16) -> None:
        """`shard_sizes`: samples in each shard; `window_shards`: shards shuffled together."""
        self._sizes = np.asarray(shard_sizes, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed = seed
        self._window = max(1, window_shards)
        self._plans: OrderedDict[int, tuple[Int64, Int64]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Int64] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def draw(self, positions: Int64) -> Draws:
        """What lies at `positions`; see `Order`."""
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, len(self))
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            _, starts = self._plan(epoch)
            here = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(starts, places[here], side="right") - 1
            for window in np.unique(windows).tolist():
                chosen = here[windows == window]
                samples[chosen] = self._window_samples(epoch, window)[places[chosen] - starts[window]]
        keys = keyed.mix_array(keyed.mix(0, self._seed), epochs)
        return Draws(samples, keyed.mix_array(keys, samples))

    def _plan(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's order of shards, and the first place of each window."""
        if epoch not in self._plans:
            shards = keyed.permutation(self._key(epoch, "shards"), len(self._sizes))
            sizes = np.add.reduceat(self._sizes[shards], np.arange(0, len(shards), self._window))
            self._plans[epoch] = (shards, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
            _forget(self._plans, 2)
        return self._plans[epoch]

    def _window_samples(self, epoch: int, window: int) -> Int64:
        """The samples of one window in their order."""
        if (epoch, window) not in self._windows:
            shards = self._plan(epoch)[0][window * self._window : (window + 1) * self._window]
            samples = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
            shuffle = keyed.permutation(keyed.mix(self._key(epoch, "samples"), window), len(samples))
            self._windows[epoch, window] = samples[shuffle]
            _forget(self._windows, 2)
        return self._windows[epoch, window]

    def _key(self, epoch: int, stream: str) -> int:
        return keyed.mix(keyed.mix(keyed.mix(0, self._seed), epoch), keyed.stream_id(stream))


class WeightedOrder:
    """Draws with replacement, each sample in proportion to its weight (DAN's 1/frequency sampler)."""

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        """`weights`: (N,) non-negative.

        Raises:
            DataError: no weight is positive, or one is negative or not finite.
        """
        if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
            raise DataError("weighted order needs finite, non-negative weights, at least one positive")
        self._cumulative = np.cumsum(weights)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._cumulative)

    def draw(self, positions: Int64) -> Draws:
        """What lies at `positions`; see `Order`."""
        positions = np.asarray(positions, np.int64)
        key = keyed.mix(keyed.mix(0, self._seed), keyed.stream_id("weighted"))
        bits = keyed.mix_array(key, positions)
        targets = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 * self._cumulative[-1]
        samples = np.minimum(np.searchsorted(self._cumulative, targets, side="right"), len(self) - 1)
        rng = keyed.mix_array(keyed.mix_array(keyed.mix(0, self._seed), positions), samples)
        return Draws(samples.astype(np.int64), rng)


def inverse_frequency(classes: NDArray[np.int16]) -> NDArray[np.float64]:
    """(N,) weights 1/frequency of each sample's class; 0 where the class is missing (−1).

    Raises:
        DataError: no sample has a class.
    """
    present = classes >= 0
    if not present.any():
        raise DataError("order=weighted needs expression labels, and these shards have none")
    counts = np.bincount(classes[present])
    weights = np.zeros(len(classes))
    weights[present] = 1.0 / counts[classes[present]]
    return weights


def _forget(cache: OrderedDict[Any, Any], keep: int) -> None:
    while len(cache) > keep:
        cache.popitem(last=False)
