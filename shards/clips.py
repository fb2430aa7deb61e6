"""From positions to batches of windows: what `shards.stream` is for faces, for clips of several cameras.

    positions -> draws -> windows -> read and decode their frames -> cut -> collate -> ClipBatch

Draws, order, layout, checksums and loader are those of faces: a sample is a clip, and where its window
begins is drawn from the draw's random key. Of each window only its own frames are read and decoded.

Colour, depth and thermal pictures of a window are cut and mirrored alike. Colour is resized smoothly. Depth
and thermal planes take the nearest stored pixel, so that a hole stays one and does not bleed into what lies
beside it; they keep their units, on scales that are the same for all clips (`shards.planes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards import keyed, transforms
from shards.config import AugmentConfig, ClipConfig
from shards.draws import Draw, Layout, eval_draws, one_by_one, train_draws
from shards.frames import decode_plane, frame_extensions
from shards.labels import ClipLabels, DataError
from shards.order import Order
from shards.planes import depth_units, face_depth, thermal_units
from shards.shardset import RawSample, ShardSet
from shards.stream import Stage, check_kind, in_batches, load, parse_json
from shards.transforms import Cut
from shards.windows import Window, WindowFrames, draw_start, lag_frames, window_frames, windows_of


@dataclass(frozen=True)
class ClipSample:
    """One decoded window of T frames; fields as in `ClipBatch`, without the batch's dimension."""

    key: str
    group: str
    images: dict[str, torch.Tensor]
    valid: dict[str, torch.Tensor]
    va: torch.Tensor
    va_valid: torch.Tensor
    frames: torch.Tensor
    inside: torch.Tensor
    rng: int
    counts: bool = True


@dataclass(frozen=True)
class ClipBatch:
    """Windows that are computed together.

    Attributes:
        keys: the clips' keys; an evaluation has several windows of one clip.
        groups: the recordings they are of (the key where the clip does not say).
        images: modality -> pictures. color: (B, T, 3, H, W) uint8 RGB. depth: (B, T, 1, H, W) float32 in
            [−3, 3], see `planes.depth_units`. thermal: (B, T, 1, H, W) float32 in [−2.5, 2.5], see
            `planes.thermal_units`. All zeros where not `valid`.
        valid: modality -> (B, T) bool, True where there is a picture.
        va: (B, T, 2) float32, valence and arousal in [−1, 1]; va_valid: (B, T, 2) bool. Where not valid 0.
        frames: (B, T) int64, number in its recording of the frame that the label belongs to (with a lag, that
            many after the picture's).
        inside: (B, T) bool, False where a short clip is padded: no frame, nothing valid.
        rng: (B,) int64, random key of each draw (see `shards.keyed`).
        num_valid: windows that count; the rest pad an evaluation's last batch.
    """

    keys: list[str]
    groups: list[str]
    images: dict[str, torch.Tensor]
    valid: dict[str, torch.Tensor]
    va: torch.Tensor
    va_valid: torch.Tensor
    frames: torch.Tensor
    inside: torch.Tensor
    rng: torch.Tensor
    num_valid: int

    @property
    def size(self) -> int:
        """B, padding included."""
        return len(self.keys)

    def to(self, device: torch.device) -> ClipBatch:
        """This batch on `device`; from pinned memory the copy does not block."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ClipBatch:
        """Called by the loader's pinning thread."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Any) -> ClipBatch:
        plain = {name: change(getattr(self, name)) for name in ("va", "va_valid", "frames", "inside", "rng")}
        images, valid = ({m: change(t) for m, t in part.items()} for part in (self.images, self.valid))
        return replace(self, images=images, valid=valid, **plain)


def clip_train_batches(
    shards: ShardSet,
    order: Order,
    layout: Layout,
    position: int,
    size: tuple[int, int],
    config: ClipConfig,
    augmentation: AugmentConfig,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[ClipBatch]:
    """This process's micro-batches from `position` on, without end: one window of each clip an epoch.

    Args:
        shards: where clips are read.
        order: which clip comes when.
        layout: this process's share.
        position: samples of the optimiser steps completed so far.
        size: (height, width) of the pictures.
        config: length of windows, modalities, lag.
        augmentation: random crop and flip of each window as a whole, and colours of its colour pictures.
        num_workers: loader processes; 0 reads in this one.
        pin_memory: for transfers to a GPU.

    Raises:
        DataError: the shards hold something else than clips.
    """
    check_kind(shards, "clips")
    draws = partial(train_draws, order, layout, position)
    reader = _Reader(shards, size, config, augmentation)
    stages: list[Stage] = [
        partial(one_by_one, draws),
        partial(_train_samples, reader),
        partial(in_batches, collate_clips, layout.batch_size),
    ]
    return load(stages, num_workers, pin_memory)


def clip_eval_batches(
    shards: ShardSet,
    batch_size: int,
    size: tuple[int, int],
    config: ClipConfig,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    samples: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[ClipBatch]:
    """The windows of `eval_windows`, each once and in order, in the same batches for any number of processes.

    The whole picture, nothing random. Padding is that of `shards.stream.eval_batches`.

    Args:
        samples: which clips; None = all.
        seed: random keys are those of epoch 0 under this seed, by the number of the window.
        Others as for `clip_train_batches`.

    Raises:
        DataError: the shards hold something else than clips, or labels that cannot be read.
    """
    windows = eval_windows(shards, config, samples)
    draws = partial(eval_draws, range(len(windows)), batch_size, rank, world_size, seed)
    reader = _Reader(shards, size, config, None)
    stages: list[Stage] = [
        partial(one_by_one, draws),
        partial(_eval_samples, reader, windows),
        partial(in_batches, collate_clips, batch_size),
    ]
    return load(stages, num_workers)


def eval_windows(shards: ShardSet, config: ClipConfig, samples: Sequence[int] | None = None) -> list[Window]:
    """The windows by which an evaluation covers every frame of every clip: see `windows.plan_windows`.

    Args:
        samples: which clips; None = all.

    Raises:
        DataError: the shards hold something else than clips, or labels that cannot be read.
    """
    check_kind(shards, "clips")
    chosen = range(len(shards)) if samples is None else list(samples)
    counts = [read_clip_labels(shards, sample).num_frames for sample in chosen]
    return list(windows_of(chosen, counts, config))


def read_clip_labels(shards: ShardSet, sample: int) -> ClipLabels:
    """The labels of one clip; no picture of it is read.

    Raises:
        DataError: damage, no labels, or labels that are not valid.
    """
    return decode_clip_labels(shards.read(sample, ("json",)))


def decode_clip_labels(raw: RawSample) -> ClipLabels:
    """The labels of a clip, of which it must say at least how many frames it has, and how many a second.

    Raises:
        DataError: no json member, not JSON, or values out of range.
    """
    if "json" not in raw.members:
        raise DataError(f"{raw.where}: no json member: a clip must state its num_frames and fps")
    return ClipLabels.from_json(parse_json(raw), raw.where)


@dataclass(frozen=True)
class _Reader:
    """What turns windows into samples; picklable. Without an augmentation the whole pictures are taken."""

    shards: ShardSet
    size: tuple[int, int]
    config: ClipConfig
    augmentation: AugmentConfig | None

    def train_sample(self, draw: Draw) -> ClipSample:
        """The window of a clip that this draw's random key says."""
        labels = read_clip_labels(self.shards, draw.sample)
        lag = lag_frames(self.config, labels.fps)
        start = draw_start(draw.rng, labels.num_frames, lag, self.config)
        found = window_frames(start, labels.num_frames, lag, self.config)
        # A label from before the first picture says nothing of that picture.
        return self._sample(draw, labels, found, found.inside & ~found.held)

    def eval_sample(self, draw: Draw, window: Window) -> ClipSample:
        """The given window; all its labels count."""
        labels = read_clip_labels(self.shards, window.sample)
        lag = lag_frames(self.config, labels.fps)
        found = window_frames(window.start, labels.num_frames, lag, self.config)
        return self._sample(draw._replace(sample=window.sample), labels, found, found.inside)

    def _sample(
        self, draw: Draw, labels: ClipLabels, found: WindowFrames, labelled: NDArray[np.bool_]
    ) -> ClipSample:
        pictures = np.where(found.inside, found.pictures, -1).tolist()
        planes, where = self._decode(draw.sample, sorted(set(pictures) - {-1}))
        cut = self._cut(draw.rng, planes)
        images, valid = {}, {}
        for modality in self.config.modalities:
            finished = self._finish(modality, planes[modality], cut, draw.rng)
            channels = 3 if modality == "color" else 1
            dtype = torch.uint8 if modality == "color" else torch.float32
            stack = torch.zeros(len(pictures), channels, *self.size, dtype=dtype)
            for i, frame in enumerate(pictures):
                if frame in finished:
                    stack[i] = finished[frame]
            images[modality] = stack
            valid[modality] = torch.tensor([frame in finished for frame in pictures])
        va, va_valid = _labels_of(labels, found, labelled)
        return ClipSample(
            key=where.key,
            group=labels.group or where.key,
            images=images,
            valid=valid,
            va=va,
            va_valid=va_valid,
            frames=torch.from_numpy(labels.start_frame + found.labels),
            inside=torch.from_numpy(found.inside),
            rng=draw.rng,
            counts=draw.counts,
        )

    def _decode(self, sample: int, frames: Sequence[int]) -> tuple[dict[str, dict[int, Any]], RawSample]:
        """Modality -> frame -> what is stored: (3, H, W) uint8 tensors of colour, (H, W) uint16 of others."""
        wanted = {
            (modality, frame): frame_extensions(modality, frame)
            for modality in self.config.modalities
            for frame in frames
        }
        raw = self.shards.read(sample, [name for names in wanted.values() for name in names])
        planes: dict[str, dict[int, Any]] = {modality: {} for modality in self.config.modalities}
        for (modality, frame), names in wanted.items():
            name = next((name for name in names if name in raw.members), None)
            if name is None:
                continue
            decode = transforms.decode if modality == "color" else decode_plane
            image: Any = decode(raw.members[name], f"{raw.where}: member {name}")
            if modality == "color" or image.any():  # a plane of nothing but holes is as good as absent
                planes[modality][frame] = image
        return planes, raw

    def _cut(self, rng: int, planes: dict[str, dict[int, Any]]) -> Cut:
        """The one cut of a window; by the first picture there is, colour before the others."""
        shape = next((image.shape[-2:] for part in planes.values() for image in part.values()), None)
        if self.augmentation is None or shape is None:
            return Cut()
        return transforms.draw_cut(rng, shape[0], shape[1], self.size, self.augmentation.crop)

    def _finish(self, modality: str, stored: dict[int, Any], cut: Cut, rng: int) -> dict[int, torch.Tensor]:
        """Frame -> (C, height, width) as it goes into a batch."""
        if modality == "color":
            images = {frame: transforms.cut_image(image, cut, self.size) for frame, image in stored.items()}
            if self.augmentation is not None and self.augmentation.jitter.probability > 0:
                jitter = self.augmentation.jitter
                return {frame: transforms.color_jitter(image, rng, jitter) for frame, image in images.items()}
            return images
        if modality == "thermal":
            values = {frame: thermal_units(plane) for frame, plane in stored.items()}
        else:
            face = face_depth(list(stored.values()))
            values = {frame: depth_units(plane, face) for frame, plane in stored.items()}
        return {
            frame: torch.from_numpy(transforms.cut_plane(plane, cut, self.size))[None]
            for frame, plane in values.items()
        }


def _train_samples(reader: _Reader, stream: Iterable[Draw]) -> Iterator[ClipSample]:
    return map(reader.train_sample, stream)


def _eval_samples(reader: _Reader, windows: Sequence[Window], stream: Iterable[Draw]) -> Iterator[ClipSample]:
    for draw in stream:
        yield reader.eval_sample(draw, windows[draw.sample])


def _labels_of(
    labels: ClipLabels, found: WindowFrames, labelled: NDArray[np.bool_]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, 2) valence and arousal, and (T, 2) where they are known."""
    va = np.zeros((len(found.labels), 2), np.float32)
    va_valid = np.zeros(va.shape, bool)
    for column, values in enumerate((labels.valence, labels.arousal)):
        for i in np.flatnonzero(labelled) if values else ():
            value = values[found.labels[i]]
            if value is not None:
                va[i, column], va_valid[i, column] = value, True
    return torch.from_numpy(va), torch.from_numpy(va_valid)


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Stacks windows of one length, size and choice of modalities."""

    def stack(name: str) -> torch.Tensor:
        return torch.stack([getattr(sample, name) for sample in samples])

    modalities = list(samples[0].images)
    return ClipBatch(
        keys=[sample.key for sample in samples],
        groups=[sample.group for sample in samples],
        images={m: torch.stack([sample.images[m] for sample in samples]) for m in modalities},
        valid={m: torch.stack([sample.valid[m] for sample in samples]) for m in modalities},
        va=stack("va"),
        va_valid=stack("va_valid"),
        frames=stack("frames"),
        inside=stack("inside"),
        rng=keyed.to_tensor(np.array([sample.rng for sample in samples], np.uint64)),
        num_valid=sum(sample.counts for sample in samples),
    )
