"""From positions to batches: a webdataset pipeline that reads through the index.

    positions -> draws -> read -> decode -> crop -> collate -> Batch

A batch of this process is a pure function of its number, so the stream can start at any position, and each
worker makes every W-th batch; the loader hands them out in order. `shards.clips` puts other stages between
the same draws and the same loader.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from shards import keyed, transforms
from shards.config import AugmentConfig
from shards.draws import Draw, Layout, eval_draws, one_by_one, plan_layout, train_draws
from shards.frames import IMAGE_EXTENSIONS
from shards.labels import DataError, FaceLabels
from shards.order import Order
from shards.records import LabelSpace
from shards.shardset import RawSample, ShardSet

__all__ = [
    "Batch",
    "FaceSample",
    "Labels",
    "Layout",
    "Stage",
    "check_kind",
    "collate_faces",
    "decode_image",
    "decode_labels",
    "eval_batches",
    "in_batches",
    "load",
    "parse_json",
    "plan_layout",
    "train_batches",
]

Sample = TypeVar("Sample")
SomeBatch = TypeVar("SomeBatch")
Stage = Callable[..., Iterator[Any]]
"""Takes what the stage before it yields; the first takes nothing."""

_DEATH_NOTICE = 5.0
"""Seconds; the signal takes milliseconds and ends the wait."""


class Labels(NamedTuple):
    """Labels of a batch; where `valid` is False the value is 0 and means nothing.

    Attributes:
        va: (B, 2) float32, valence and arousal in [-1, 1]; va_valid: (B, 2) bool.
        expr: (B,) int64, class in the label space; expr_valid: (B,) bool.
        au: (B, A) float32, 0 or 1; au_valid: (B, A) bool.
    """

    va: torch.Tensor
    va_valid: torch.Tensor
    expr: torch.Tensor
    expr_valid: torch.Tensor
    au: torch.Tensor
    au_valid: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Samples that are computed together.

    Attributes:
        keys: the samples' keys.
        images: (B, 3, H, W) uint8 RGB.
        rng: (B,) int64, random key of each draw (see shards.keyed).
        labels: on the same device as the images.
        num_valid: samples that count; the rest pad an evaluation's last batch.
    """

    keys: list[str]
    images: torch.Tensor
    rng: torch.Tensor
    labels: Labels
    num_valid: int

    @property
    def size(self) -> int:
        """B, padding included."""
        return len(self.keys)

    def to(self, device: torch.device) -> Batch:
        """This batch on `device`; from pinned memory the copy does not block."""
        labels = Labels(*(t.to(device, non_blocking=True) for t in self.labels))
        images, rng = (t.to(device, non_blocking=True) for t in (self.images, self.rng))
        return replace(self, images=images, rng=rng, labels=labels)

    def pin_memory(self) -> Batch:
        """Called by the loader's pinning thread."""
        labels = Labels(*(t.pin_memory() for t in self.labels))
        return replace(self, images=self.images.pin_memory(), rng=self.rng.pin_memory(), labels=labels)


@dataclass(frozen=True)
class FaceSample:
    """One decoded face: image (3, H, W) uint8, its labels, its random key and whether it counts."""

    key: str
    image: torch.Tensor
    labels: FaceLabels
    rng: int
    counts: bool = True


def train_batches(
    shards: ShardSet,
    order: Order,
    layout: Layout,
    position: int,
    size: tuple[int, int],
    augmentation: AugmentConfig,
    num_workers: int = 0,
    with_labels: bool = False,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This process's micro-batches from `position` on, without end.

    Args:
        shards: where samples are read.
        order: which sample comes when.
        layout: this process's share.
        position: samples of the optimiser steps completed so far.
        size: (height, width) of the images.
        augmentation: random crop, flip and colours.
        num_workers: loader processes; 0 reads in this one.
        with_labels: decode labels too.
        pin_memory: for transfers to a GPU.

    Raises:
        DataError: the shards hold something else than faces.
    """
    draws = partial(train_draws, order, layout, position)
    augment = partial(_augment, size=size, config=augmentation)
    stages = _stages(shards, draws, augment, layout.batch_size, with_labels)
    return load(stages, num_workers, pin_memory)


def eval_batches(
    shards: ShardSet,
    batch_size: int,
    size: tuple[int, int],
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    samples: Sequence[int] | None = None,
    with_labels: bool = True,
    seed: int = 0,
) -> Iterator[Batch]:
    """Every sample once, in order, in batches that are the same for any number of processes.

    The last batch is padded by the last sample (`num_valid`), so that all batches are computed alike; where a
    process would have a batch less than the others it gets one of padding alone, so that all keep step.

    Args:
        samples: which samples; None = all.
        seed: random keys are those of epoch 0 under this seed (masks of a held-out loss).
        Others as for `train_batches`.

    Raises:
        DataError: the shards hold something else than faces.
    """
    chosen = list(range(len(shards))) if samples is None else list(samples)
    draws = partial(eval_draws, chosen, batch_size, rank, world_size, seed)
    stages = _stages(shards, draws, partial(_fit, size=size), batch_size, with_labels)
    return load(stages, num_workers)


def _stages(
    shards: ShardSet,
    draws: Callable[[], Iterator[list[Draw]]],
    augment: Callable[[FaceSample], FaceSample],
    batch_size: int,
    with_labels: bool,
) -> list[Stage]:
    check_kind(shards, "faces")
    return [
        partial(one_by_one, draws),
        partial(_read, shards),
        partial(_decode, with_labels),
        partial(_augmented, augment),
        partial(in_batches, partial(collate_faces, space=shards.label_space), batch_size),
    ]


def check_kind(shards: ShardSet, wanted: str) -> None:
    """
    Raises:
        DataError: the shards hold something else than `wanted`, "faces" or "clips".
    """
    kind = shards.manifests[0].kind
    if kind != wanted:
        raise DataError(f"{shards.folders[0]}: holds {kind}, and this task reads {wanted}: give other shards")


def load(stages: Sequence[Stage], num_workers: int = 0, pin_memory: bool = False) -> Iterator[Any]:
    """The stages as one webdataset pipeline, run in loader workers: what the last of them yields, in order.

    Args:
        stages: from draws to batches; functions of a module with their arguments, so that workers can be
            started in any way (fork, spawn, forkserver).
        num_workers, pin_memory: as for `train_batches`.
    """
    loader = DataLoader(
        wds.DataPipeline(*stages),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_start_worker,
    )
    return _plain_errors(iter(loader))


def _read(shards: ShardSet, stream: Iterable[Draw]) -> Iterator[tuple[Draw, RawSample]]:
    for draw in stream:
        yield draw, shards.read(draw.sample)


def _decode(with_labels: bool, stream: Iterable[tuple[Draw, RawSample]]) -> Iterator[FaceSample]:
    for draw, raw in stream:
        labels = decode_labels(raw) if with_labels else FaceLabels()
        yield FaceSample(raw.key, decode_image(raw), labels, draw.rng, draw.counts)


def _augmented(
    augment: Callable[[FaceSample], FaceSample], stream: Iterable[FaceSample]
) -> Iterator[FaceSample]:
    return map(augment, stream)


def in_batches(
    collate: Callable[[list[Sample]], SomeBatch], batch_size: int, stream: Iterable[Sample]
) -> Iterator[SomeBatch]:
    """Last stage: every `batch_size` samples as one batch."""
    samples: list[Sample] = []
    for sample in stream:
        samples.append(sample)
        if len(samples) == batch_size:
            yield collate(samples)
            samples = []


def _augment(sample: FaceSample, size: tuple[int, int], config: AugmentConfig) -> FaceSample:
    return replace(sample, image=transforms.augment(sample.image, sample.rng, size, config))


def _fit(sample: FaceSample, size: tuple[int, int]) -> FaceSample:
    return replace(sample, image=transforms.fit(sample.image, size))


def _plain_errors(batches: Iterator[SomeBatch]) -> Iterator[SomeBatch]:
    """Passes batches on; of an error in a loader process only its message, not that process's traceback.

    A batch's memory is fetched from the process that made it. Where that one dies just then, the connection
    breaks a moment before the kernel's signal has torch raise the error that names it: that one is awaited.
    """
    try:
        yield from batches
    except (EOFError, ConnectionError):
        time.sleep(_DEATH_NOTICE)
        raise
    except DataError as error:
        lines = str(error).strip().splitlines()
        if len(lines) < 2:
            raise
        raise DataError(lines[-1].partition("DataError: ")[2] or lines[-1]) from None


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)


def decode_image(raw: RawSample) -> torch.Tensor:
    """(3, H, W) uint8 of the sample's image member.

    Raises:
        DataError: no image member, or it cannot be decoded.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in raw.members:
            return transforms.decode(raw.members[extension], raw.where)
    raise DataError(f"{raw.where}: no image member (looked for {', '.join(IMAGE_EXTENSIONS)})")


def decode_labels(raw: RawSample) -> FaceLabels:
    """The sample's labels; none if it has no json member.

    Raises:
        DataError: not JSON, or values out of range.
    """
    if "json" not in raw.members:
        return FaceLabels()
    return FaceLabels.from_json(parse_json(raw), raw.where)


def parse_json(raw: RawSample) -> Any:
    """The sample's json member as plain values.

    Raises:
        DataError: not JSON.
    """
    try:
        return json.loads(raw.members["json"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{raw.where}: labels are not JSON ({error})") from error


def collate_faces(samples: Sequence[FaceSample], space: LabelSpace) -> Batch:
    """Stacks samples of one size; missing labels become valid = False here, once.

    Raises:
        DataError: an expression that the label space does not name.
    """
    count, num_au = len(samples), len(space.au)
    va, va_valid = np.zeros((count, 2), np.float32), np.zeros((count, 2), bool)
    expr, expr_valid = np.zeros(count, np.int64), np.zeros(count, bool)
    au, au_valid = np.zeros((count, num_au), np.float32), np.zeros((count, num_au), bool)
    for i, sample in enumerate(samples):
        labels = sample.labels
        for j, value in enumerate((labels.valence, labels.arousal)):
            if value is not None:
                va[i, j], va_valid[i, j] = value, True
        if labels.expr is not None and space.expr:
            if labels.expr not in space.expr:
                raise DataError(
                    f"sample {sample.key}: expression {labels.expr!r} is none of {', '.join(space.expr)}"
                )
            expr[i], expr_valid[i] = space.expr.index(labels.expr), True
        for j, name in enumerate(space.au):
            if name in labels.au:
                au[i, j], au_valid[i, j] = labels.au[name], True
    images = torch.empty(count, *samples[0].image.shape, dtype=torch.uint8)
    for place, sample in zip(images.numpy(), samples):
        place[:] = sample.image.numpy()  # numpy parts colours into planes several times as fast as torch
    tensors = Labels(*(torch.from_numpy(a) for a in (va, va_valid, expr, expr_valid, au, au_valid)))
    return Batch(
        keys=[sample.key for sample in samples],
        images=images,
        rng=keyed.to_tensor(np.array([sample.rng for sample in samples], np.uint64)),
        labels=tensors,
        num_valid=sum(sample.counts for sample in samples),
    )
