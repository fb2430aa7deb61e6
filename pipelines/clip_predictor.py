"""A video model and the way to what it reads: a video, a folder of frames, or clips -> a row for each frame.

    frames -> detected, aligned faces -> windows -> what the model says, averaged over a frame's windows

The windows are those by which an evaluation covers a recording. Each is computed as soon as its last frame is
there, and a frame is done when no window to come can hold it: so memory is that of two windows, however long
the recording. A row is of the picture of its frame: a lag of the labels that the model was trained with is
not added.

A video has no depth and no heat: there, these modalities are not valid. A frame without a face takes its
time in the windows, so that those after it are where they were; of the frame itself nothing is said.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config import ConfigError
from pipelines.facetable import NO_FACE, OK, FaceColumns, FacePrediction
from pipelines.models import LoadedModel
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import FaceFinder, FramePrediction, align_config, chunks, device_of, face_place
from shards.clips import clip_eval_batches, read_clip_labels
from shards.manifest import NAME
from shards.records import SPLITS
from shards.shardset import ShardSet
from shards.sources.media import Media, MediaFrame
from shards.sources.video import is_video
from shards.stream import check_kind
from shards.transforms import fit
from shards.windows import plan_windows

_FIND_AT_ONCE = 16
_FACES_OF_CLIP = 48  # at most, to be drawn


@dataclass
class _Held:
    """A frame whose windows are not all computed yet."""

    frame: MediaFrame
    row: FacePrediction
    image: Tensor | None
    face: NDArray[np.uint8] | None
    total: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    times: int = 0

    def finished(self, recording: str) -> FramePrediction:
        row = self.row
        if self.times and row.is_face:
            valence, arousal = (self.total / self.times).tolist()
            row = replace(row, valence=valence, arousal=arousal)
        faces = () if self.face is None else (self.face,)
        return FramePrediction(self.frame, (row,), faces, recording)


class ClipPredictor:
    """A model that reads video, over recordings one after the other.

    Attributes:
        config: options; of several faces in a frame the largest is taken.
        columns: of the table.
        rendered: whether it learned from rendered faces.
        note: what is to be said of how faces are cut out ("" = nothing).
        seen: frames in which each modality was there, "frames" all of them.
    """

    def __init__(self, loaded: LoadedModel, config: PredictConfig) -> None:
        """
        Raises:
            DataError: its faces were aligned to a template that is not known.
            ConfigError: a device that is not there, a model that reads single pictures, or several looks.
        """
        if loaded.spec.kind != "mran":
            raise ConfigError(f"a model of kind {loaded.spec.kind} reads single pictures: use FacePredictor")
        if config.looks not in (None, 1):
            raise ConfigError(f"looks={config.looks}: a model that reads video looks at each frame once")
        self.config = config
        self.spec = loaded.spec
        self.rendered = bool(loaded.facts.get("rendered"))
        self.columns = FaceColumns((), ())
        self.seen: Counter[str] = Counter()
        options = replace(config, faces="largest")
        self.align, self.note = align_config(loaded.facts.get("alignment", ()), options)
        self._device = device_of(config.device)
        self._model = loaded.model.eval().to(self._device)
        self._clip = replace(loaded.spec.clip, lag_seconds=0.0)
        self._finder: FaceFinder | None = None
        self._at_once = max(1, config.batch_size // self._clip.num_frames)  # windows

    @property
    def guides(self) -> tuple[str, ...]:
        """The modalities beside colour that the model was trained with."""
        return tuple(name for name in self._clip.modalities if name != "color")

    def of_frames(self, frames: Iterable[MediaFrame], recording: str) -> Iterator[FramePrediction]:
        """What is said of each frame of one recording, in order, as soon as nothing can change it.

        Args:
            frames: in order; memory does not grow with their number.
            recording: its name.
        """
        config = self._clip
        span = config.frame_step * config.stride
        keep = config.frame_step * config.num_frames
        held: deque[_Held] = deque()
        starts = list(range(config.frame_step))  # of the next window of each phase
        first = count = 0
        if self._finder is None:
            self._finder = FaceFinder(self.align, self.config.every, self._device)
        for chunk in chunks(frames, _FIND_AT_ONCE):
            held.extend(self._held(chunk, count, self._finder))
            count += len(chunk)
            due = []
            for phase in range(config.frame_step):
                while starts[phase] + config.frame_step * (config.num_frames - 1) < count:
                    due.append(starts[phase])
                    starts[phase] += span
            self._compute(held, first, due)
            while len(held) > keep:
                yield held.popleft().finished(recording)
                first += 1
        last = [
            start
            for start in (plan_windows(count, config) if count else [])
            if start >= starts[start % config.frame_step] or (start - start % config.frame_step) % span
        ]
        self._compute(held, first, last)
        yield from (left.finished(recording) for left in held)

    def of_clips(self, shards: ShardSet, name: str = "") -> Iterator[FramePrediction]:
        """What is said of each frame of each clip of a shard set, with all the modalities it has.

        Args:
            shards: of clips.
            name: put before the clips' keys, with a slash.

        Raises:
            DataError: the shards hold something else than clips, or damage.
        """
        check_kind(shards, "clips")
        for sample in range(len(shards)):
            yield from self._of_clip(shards, sample, f"{name}/" if name else "")

    def _of_clip(self, shards: ShardSet, sample: int, prefix: str) -> Iterator[FramePrediction]:
        labels = read_clip_labels(shards, sample)
        file = prefix + shards.key(sample)
        held = []
        for number in range(labels.start_frame, labels.start_frame + labels.num_frames):
            frame = MediaFrame(file, number, number / labels.fps)
            row = FacePrediction(file, frame.frame, frame.seconds, status=NO_FACE)
            held.append(_Held(frame, row, None, None))
        with_modality: dict[str, set[int]] = {name: set() for name in self._clip.modalities}
        size, every = self.spec.image_size, -(-labels.num_frames // _FACES_OF_CLIP)
        for batch in clip_eval_batches(shards, self._at_once, size, self._clip, samples=[sample]):
            va = self._va(batch.images, batch.valid)
            for window in range(batch.num_valid):
                for step in batch.inside[window].nonzero()[:, 0].tolist():
                    place = int(batch.frames[window, step]) - labels.start_frame
                    here = held[place]
                    for name, frames in with_modality.items():
                        if batch.valid[name][window, step]:
                            frames.add(place)
                    if batch.valid["color"][window, step] and here.row.face is None:
                        here.row = replace(here.row, face=1, status=OK)
                        if place % every == 0:
                            here.face = batch.images["color"][window, step].permute(1, 2, 0).numpy().copy()
                    here.total += va[window, step]
                    here.times += 1
        self.seen += Counter({name: len(frames) for name, frames in with_modality.items()})
        self.seen["frames"] += labels.num_frames
        yield from (one.finished(file) for one in held)

    def _held(self, frames: Sequence[MediaFrame], count: int, find: FaceFinder) -> Iterator[_Held]:
        """Frames with their faces; pictures are let go of."""
        for number, (frame, found) in enumerate(zip(frames, find(frames)), start=count):
            light = replace(frame, picture=None)
            row = FacePrediction(frame.file, number, frame.seconds)
            self.seen["frames"] += 1
            if not found.faces:
                yield _Held(light, replace(row, status=found.reason), None, None)
                continue
            self.seen["color"] += 1
            face = found.faces[0]
            image = fit(torch.from_numpy(np.array(face.image)).permute(2, 0, 1), self.spec.image_size)
            yield _Held(light, replace(row, face=1, **face_place(face)), image, face.image)

    def _compute(self, held: Sequence[_Held], first: int, starts: Sequence[int]) -> None:
        """Adds what the model says of windows to their frames.

        Args:
            held: frames from number `first` on.
            starts: first frames of the windows; those without any face are passed over.
        """
        config, size = self._clip, self.spec.image_size
        windows = []
        for start in starts:
            numbers = [start + config.frame_step * i - first for i in range(config.num_frames)]
            window = [held[number] if number < len(held) else None for number in numbers]
            if any(one is not None and one.image is not None for one in window):
                windows.append(window)
        for at in range(0, len(windows), self._at_once):
            part = windows[at : at + self._at_once]
            images = torch.zeros(len(part), config.num_frames, 3, *size, dtype=torch.uint8)
            valid = torch.zeros(len(part), config.num_frames, dtype=torch.bool)
            for row, window in enumerate(part):
                for step, one in enumerate(window):
                    if one is not None and one.image is not None:
                        images[row, step], valid[row, step] = one.image, True
            va = self._va({"color": images}, {"color": valid})
            for row, window in enumerate(part):
                for step, one in enumerate(window):
                    if one is not None:
                        one.total += va[row, step]
                        one.times += 1

    @torch.inference_mode()
    def _va(self, images: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """(B, T, 2) float64 on the CPU."""
        on = [{name: values.to(self._device) for name, values in part.items()} for part in (images, valid)]
        va: Tensor = self._model(*on).va
        return va.double().cpu()


def seen_text(predictor: ClipPredictor) -> str:
    """Says aloud in how many of the frames each modality of the model was there."""
    names, seen = ("color", *predictor.guides), predictor.seen
    counts = [f"{'faces' if name == 'color' else name} in {seen[name]:,}" for name in names]
    missing = " and ".join(name for name in predictor.guides if not seen[name])
    note = f"; {missing} absent: taken as not valid, the model goes on without" if missing else ""
    return f"of {seen['frames']:,} frames: {', '.join(counts)}{note}"


def recordings_of(media: Media) -> list[tuple[str, list[str]]]:
    """What is one recording: each video, and the pictures of each folder, by the numbers in their names.

    Returns:
        (name, its files); a folder's name is relative to the media's, "." for that one itself.
    """
    found: dict[str, list[str]] = {}
    for name in media.names:
        found.setdefault(name if is_video(name) else str(Path(name).parent), []).append(name)
    return [(recording, sorted(names, key=_by_number)) for recording, names in found.items()]


def clip_sets(path: Path) -> list[tuple[str, ShardSet]]:
    """The finished splits of clips at `path`, named, if it is a shard set or a split of one; else nothing."""
    if (path / NAME).is_file():
        return [("", ShardSet([path]))]
    return [(split, ShardSet([path / split])) for split in SPLITS if (path / split / NAME).is_file()]


def _by_number(name: str) -> list[tuple[int, str]]:
    """So that 10.png comes after 9.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
