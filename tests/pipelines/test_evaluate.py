"""Predictions of a split: every sample once, in order, the same bits for any number of processes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.evaluate import predict_split
from pipelines.processes import Processes
from shards import transforms
from shards.shardset import ShardSet, open_shards
from shards.stream import Batch, decode_image

SIZE, BATCH_SIZE = (24, 24), 8  # 30 samples: 4 batches, the last one padded
CPU = torch.device("cpu")
Columns = dict[str, Tensor]


def predict(batch: Batch) -> Mapping[str, Tensor]:
    """Something with rounding in it, what a batch holds, and its labels."""
    pixels = batch.images.float().flatten(1)
    weight = torch.sin(torch.arange(pixels.shape[1] * 3, dtype=torch.float32)).view(-1, 3)
    labels = batch.labels
    return {
        "scores": pixels @ weight,
        "mean": pixels.mean(1),
        "size": torch.full((batch.size,), batch.size),
        "expr": labels.expr.where(labels.expr_valid, -1),
        "seen": labels.au_valid,
        "rng": batch.rng % 1000003,
    }


class Thread:
    """One of several processes, played by a thread."""

    def __init__(self, rank: int, world_size: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._table, self._barrier = rank, world_size, table, barrier

    def gather(self, values: Tensor) -> list[Tensor]:
        self._table[self.rank] = values
        self._barrier.wait(60)
        gathered = list(self._table)
        self._barrier.wait(60)
        assert len({part.shape for part in gathered}) == 1
        return gathered


def columns_of(world_size: int, folder: Path, **settings: Any) -> list[Columns]:
    """What each of `world_size` processes, played by threads, has in the end."""
    table: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size)
    found: list[Columns] = [{} for _ in range(world_size)]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        processes = cast(Processes, Thread(rank, world_size, table, barrier))
        try:
            shards = open_shards(str(folder), "val")
            found[rank] = predict_split(predict, shards, SIZE, BATCH_SIZE, processes, CPU, **settings)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return found


def gloo_process(rank: int, folder: str, shards: str) -> None:
    """One of two real processes; writes its columns."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = predict_split(predict, open_shards(shards, "val"), SIZE, BATCH_SIZE, Processes(), CPU)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture
def shards(smooth: Path) -> ShardSet:
    return open_shards(str(smooth), "val")


@pytest.fixture
def alone(shards: ShardSet) -> Columns:
    return predict_split(predict, shards, SIZE, BATCH_SIZE, Processes(), CPU)


def same(found: Columns, expected: Columns) -> bool:
    assert list(found) == list(expected)
    return all(torch.equal(values, expected[name]) for name, values in found.items())


def test_every_sample_is_there_once_in_order_with_its_labels(shards: ShardSet, alone: Columns) -> None:
    assert len(shards) == 30 and {len(values) for values in alone.values()} == {30}
    pictures = [transforms.fit(decode_image(shards.read(i)), SIZE).float().mean() for i in range(30)]
    torch.testing.assert_close(alone["mean"], torch.stack(pictures).double(), rtol=1e-6, atol=0)
    assert len(set(alone["mean"].tolist())) == 30
    assert alone["expr"].tolist() == shards.expr.tolist()
    assert (alone["expr"] < 0).any()
    assert all(values.dtype == torch.float64 for values in alone.values())
    assert alone["seen"].shape == (30, 12) and alone["seen"][:, 0].all() and not alone["seen"][:, 1].any()


def test_all_batches_are_of_one_size_so_that_all_are_computed_alike(alone: Columns) -> None:
    assert (alone["size"] == BATCH_SIZE).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_processes_gives_the_same_bits_to_each(
    smooth: Path, alone: Columns, world_size: int
) -> None:
    for found in columns_of(world_size, smooth):
        assert same(found, alone)


def test_two_real_processes_give_the_same_bits(smooth: Path, alone: Columns, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(gloo_process, args=(str(tmp_path), str(smooth)), nprocs=2)
    for rank in (0, 1):
        assert same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)


def test_chosen_samples_come_in_the_order_chosen(smooth: Path, alone: Columns) -> None:
    samples = np.random.default_rng(0).permutation(30)[:11].tolist()
    for world_size in (1, 3):
        for found in columns_of(world_size, smooth, samples=samples):
            assert torch.equal(found["mean"], alone["mean"][samples])
            assert torch.equal(found["rng"], alone["rng"][samples])
            torch.testing.assert_close(found["scores"], alone["scores"][samples], rtol=1e-5, atol=1e-3)


def test_loader_processes_change_nothing(smooth: Path, alone: Columns) -> None:
    (found,) = columns_of(1, smooth, num_workers=2)
    assert same(found, alone)


def test_without_labels_none_is_read_and_the_seed_keys_the_samples(smooth: Path, alone: Columns) -> None:
    (found,) = columns_of(1, smooth, with_labels=False, seed=7)
    assert (found["expr"] == -1).all() and not found["seen"].any()
    assert torch.equal(found["mean"], alone["mean"]) and not torch.equal(found["rng"], alone["rng"])
