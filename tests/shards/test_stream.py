"""Batches: one global order in every layout, every sample once, crops that depend on the sample alone."""

from __future__ import annotations

import itertools
import multiprocessing.connection
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from shards import stream, transforms
from shards.config import AugmentConfig, CropConfig, JitterConfig
from shards.labels import DataError, FaceLabels
from shards.order import EpochOrder
from shards.records import LabelSpace, SourceInfo
from shards.shardset import open_shards
from shards.stream import Batch, FaceSample, Layout, collate_faces, eval_batches, plan_layout, train_batches
from tests.shards.faces import build_smooth, smooth_jpeg


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 training pictures in six tars."""
    return build_smooth(tmp_path_factory.mktemp("smooth"))


AUGMENT = AugmentConfig(jitter=JitterConfig(probability=0.5))
Step = dict[tuple[str, int], bytes]


def steps(smooth: Path, layout: tuple[int, int, int], workers: int, start: int, count: int) -> list[Step]:
    """`count` optimiser steps of all processes together: (key, random key) -> the picture's bytes."""
    world, batch_size, accum = layout
    shards = open_shards(str(smooth), "train")
    order = EpochOrder(shards.shard_sizes, 7, 2)
    out: list[Step] = [{} for _ in range(count)]
    for rank in range(world):
        share = Layout(rank, world, batch_size, accum)
        batches = train_batches(shards, order, share, start, (24, 24), AugmentConfig(), workers)
        for number, batch in enumerate(itertools.islice(batches, count * accum)):
            for key, rng, image in zip(batch.keys, batch.rng.tolist(), batch.images):
                assert (key, rng) not in out[number // accum]
                out[number // accum][key, rng] = image.numpy().tobytes()
    return out


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("layout", [(1, 12, 1), (2, 6, 1), (3, 4, 1), (1, 4, 3), (3, 2, 2), (2, 1, 6)])
def test_every_layout_sees_the_same_samples_crops_and_keys(
    smooth: Path, layout: tuple[int, int, int], workers: int
) -> None:
    """Steps across an epoch's edge; with as many readers as tars and more."""
    assert steps(smooth, layout, workers, 60, 4) == steps(smooth, (1, 12, 1), 0, 60, 4)


def test_started_anywhere_it_goes_on_as_if_never_stopped(smooth: Path) -> None:
    whole = steps(smooth, (1, 12, 1), 0, 0, 16)
    for start in (1, 7, 8, 15):
        assert steps(smooth, (1, 12, 1), 0, 12 * start, 16 - start) == whole[start:]


def test_an_epoch_is_every_sample_once(smooth: Path) -> None:
    seen = [key for step in steps(smooth, (2, 5, 3), 1, 0, 9) for key, _ in step]
    assert len(seen) == 270
    for epoch in range(3):
        assert len(set(seen[90 * epoch : 90 * epoch + 90])) == 90


def test_what_does_not_divide_is_refused_with_what_would() -> None:
    with pytest.raises(DataError, match="multiple of 3"):
        plan_layout(32, 0, 0, 3)
    with pytest.raises(DataError, match="batch_size=8"):
        plan_layout(32, 12, 0, 2)
    assert plan_layout(32, 0, 1, 2) == Layout(1, 2, 16, 1)
    assert plan_layout(32, 4, 0, 2).accum_steps == 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_scores_every_sample_once_in_the_same_batches(smooth: Path, world: int) -> None:
    shards = open_shards(str(smooth), "val")
    batches: dict[int, Batch] = {}
    for rank in range(world):
        for number, batch in enumerate(eval_batches(shards, 8, (24, 24), rank, world)):
            batches[rank + number * world] = batch
    assert len(batches) % world == 0
    ordered = [batches[i] for i in sorted(batches) if batches[i].num_valid]
    assert [key for b in ordered for key in b.keys[: b.num_valid]] == [shards.key(i) for i in range(30)]
    assert all(b.size == 8 for b in ordered) and ordered[-1].num_valid == 6
    alone = list(eval_batches(shards, 8, (24, 24)))
    assert all(torch.equal(a.images, b.images) and torch.equal(a.rng, b.rng) for a, b in zip(alone, ordered))


def test_missing_labels_are_not_valid() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    labels = [FaceLabels("fear", {"AU2": 1}, valence=0.5), FaceLabels(arousal=-1.0)]
    space = LabelSpace(("neutral", "fear"), ("AU1", "AU2"))
    batch = collate_faces([FaceSample(str(i), image, lab, i) for i, lab in enumerate(labels)], space)
    found = batch.labels
    assert found.expr.tolist() == [1, 0] and found.expr_valid.tolist() == [True, False]
    assert found.va.tolist() == [[0.5, 0.0], [0.0, -1.0]]
    assert found.va_valid.tolist() == [[True, False], [False, True]]
    assert found.au.tolist() == [[0, 1], [0, 0]] and found.au_valid.tolist() == [
        [False, True],
        [False, False],
    ]
    with pytest.raises(DataError, match="'rage' is none of"):
        collate_faces([FaceSample("x", image, FaceLabels("rage"), 0)], space)


def test_crops_lie_inside_and_have_the_area_that_was_asked_for() -> None:
    config = CropConfig(scale_min=0.2, scale_max=0.6)
    boxes = np.array([transforms.crop_box(key, 90, 120, config) for key in range(500)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 90).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 120).all()
    areas, ratios = boxes[:, 2] * boxes[:, 3] / (90 * 120), boxes[:, 3] / boxes[:, 2]
    assert 0.19 < areas.min() < 0.25 and 0.5 < areas.max() < 0.62
    assert ratios.min() > 0.72 and ratios.max() < 1.38


def test_a_crop_that_never_fits_is_the_centre() -> None:
    top, left, height, width = transforms.crop_box(1, 10, 1000, CropConfig(scale_min=1.0))
    assert (top, height) == (0, 10) and left == (1000 - width) // 2 and width == 13


def test_half_of_the_faces_are_flipped() -> None:
    image = transforms.decode(smooth_jpeg(3), "x")
    whole = CropConfig(scale_min=1.0, ratio=1.0)
    flips = [
        torch.equal(transforms.random_crop(image, k, (32, 32), whole), image.flip(2)) for k in range(400)
    ]
    assert 160 < sum(flips) < 240


def test_workers_can_be_started_anew_as_well_as_forked(smooth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forkserver`, the rule since Python 3.14, pickles the whole pipeline as `spawn` does."""
    shards, share = open_shards(str(smooth), "train"), Layout(0, 1, 6, 1)
    made = [
        next(train_batches(shards, EpochOrder(shards.shard_sizes, 7, 2), share, 12, (24, 24), AUGMENT, 0)),
        next(eval_batches(shards, 6, (24, 24), samples=[4, 2, 80])),
    ]
    monkeypatch.setattr(stream, "DataLoader", partial(DataLoader, multiprocessing_context="forkserver"))
    anew = [
        next(train_batches(shards, EpochOrder(shards.shard_sizes, 7, 2), share, 12, (24, 24), AUGMENT, 1)),
        next(eval_batches(shards, 6, (24, 24), samples=[4, 2, 80], num_workers=1)),
    ]
    for one, other in zip(made, anew):
        assert one.keys == other.keys and torch.equal(one.images, other.images)


def _dies_as_its_batch_is_fetched() -> Iterator[torch.Tensor]:
    """In a loader process: who asks for the memory of its batch finds it dead."""
    vars(multiprocessing.connection)["deliver_challenge"] = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    while True:
        yield torch.zeros(3)


def test_a_loader_process_that_dies_while_it_hands_over_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.* (is killed|exited)"):
        next(stream.load([_dies_as_its_batch_is_fetched], num_workers=1))


def test_clips_are_refused_at_the_door(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set", counts={"train": 4}, info=SourceInfo("c", "CC0", kind="clips"))
    shards = open_shards(str(out), "train")
    order = EpochOrder(shards.shard_sizes, 0)
    with pytest.raises(DataError, match=r"set/train: holds clips, and this task reads faces"):
        train_batches(shards, order, Layout(0, 1, 2, 1), 0, (24, 24), AUGMENT)
    with pytest.raises(DataError, match="holds clips"):
        eval_batches(shards, 2, (24, 24))
