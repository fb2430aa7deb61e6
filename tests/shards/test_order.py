"""The global order is a pure function of the position."""

from __future__ import annotations

import numpy as np
import pytest

from shards.labels import DataError
from shards.order import EpochOrder, WeightedOrder, inverse_frequency

SIZES = [40, 7, 33, 21, 1, 64]


@pytest.mark.parametrize("window", [1, 2, 16])
def test_each_sample_once_an_epoch(window: int) -> None:
    order = EpochOrder(SIZES, seed=3, window_shards=window)
    for epoch in range(3):
        drawn = order.draw(np.arange(len(order)) + epoch * len(order))
        assert sorted(drawn.samples.tolist()) == list(range(len(order)))


def test_any_position_can_be_asked_for_at_any_time() -> None:
    whole = EpochOrder(SIZES, 3, 2).draw(np.arange(500))
    scattered = EpochOrder(SIZES, 3, 2)
    for start in (431, 0, 160, 165, 166):
        part = scattered.draw(np.arange(start, start + 30))
        assert part.samples.tolist() == whole.samples[start : start + 30].tolist()
        assert part.rng.tolist() == whole.rng[start : start + 30].tolist()


def test_epochs_and_seeds_differ() -> None:
    order = EpochOrder(SIZES, 3, 2)
    first, second = order.draw(np.arange(166)), order.draw(np.arange(166, 332))
    other = EpochOrder(SIZES, 4, 2).draw(np.arange(166))
    assert first.samples.tolist() != second.samples.tolist() != other.samples.tolist()
    assert not set(first.rng.tolist()) & set(second.rng.tolist())


def test_a_window_reads_few_shards() -> None:
    """Locality: the first two shards' worth of positions come from two shards."""
    drawn = EpochOrder([50] * 10, 1, 2).draw(np.arange(100))
    assert len(set((drawn.samples // 50).tolist())) == 2


def test_shuffling_reaches_across_the_shards_of_a_window() -> None:
    drawn = EpochOrder([50] * 10, 1, 5).draw(np.arange(250))
    firsts = {tuple(np.unique(drawn.samples[i : i + 25] // 50)) for i in range(0, 250, 25)}
    assert all(len(shards) >= 4 for shards in firsts)


def test_weighted_order_draws_in_proportion_and_never_the_unlabelled() -> None:
    classes = np.array([0] * 900 + [1] * 90 + [-1] * 10, np.int16)
    order = WeightedOrder(inverse_frequency(classes), seed=5)
    drawn = classes[order.draw(np.arange(20000)).samples]
    assert (drawn >= 0).all() and abs(float((drawn == 1).mean()) - 0.5) < 0.02
    again = order.draw(np.arange(777, 787)).samples
    assert again.tolist() == order.draw(np.arange(20000)).samples[777:787].tolist()


def test_weights_that_make_no_sense_are_refused() -> None:
    for weights in ([0.0, 0.0], [1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(DataError, match="weighted"):
            WeightedOrder(np.array(weights), 0)
    with pytest.raises(DataError, match="expression labels"):
        inverse_frequency(np.array([-1, -1], np.int16))
