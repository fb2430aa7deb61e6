"""`predict`: pictures and videos -> their faces, cut out as in training -> what the model says of each.

    Media -> frames -> `FacePredictor` -> rows of a csv or json, annotated pictures

Frames are worked on in chunks, so that memory is the same for ten pictures and for a million.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.annotate import annotated
from pipelines.config import ConfigError
from pipelines.facetable import FacePrediction, check_table_name, face_table
from pipelines.models import load_model
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import FacePredictor, FramePrediction
from shards.align import encode_jpeg
from shards.files import clear_disk_errors, write_atomic
from shards.sources.media import Media, MediaFrame

_CHUNK_PIXELS = 48_000_000  # of pictures held at once: 144 MB
_QUALITY = 90


@dataclass
class Summary:
    """What a prediction went through; a video that breaks off counts as one unreadable frame more."""

    num_frames: int = 0
    num_faces: int = 0
    num_empty: int = 0
    num_unreadable: int = 0
    num_left_out: int = 0
    started: float = field(default_factory=time.perf_counter)

    def count(self, found: FramePrediction) -> None:
        """Takes up one frame."""
        faces = sum(row.is_face for row in found.rows)
        self.num_frames += 1
        self.num_faces += faces
        self.num_unreadable += found.frame.picture is None
        self.num_empty += found.frame.picture is not None and not faces

    def __str__(self) -> str:
        pace = self.num_frames / max(time.perf_counter() - self.started, 1e-9)
        left_out = f"; {self.num_left_out:,} other files left out" if self.num_left_out else ""
        return (
            f"{self.num_faces:,} faces in {self.num_frames:,} pictures or frames; "
            f"{self.num_empty:,} without a face, {self.num_unreadable:,} unreadable{left_out}; {pace:.3g}/s"
        )


def predict(
    model: Path,
    source: Path,
    out: Path | None = None,
    pictures: Path | None = None,
    config: PredictConfig | None = None,
) -> list[FacePrediction]:
    """What a model says of the faces in pictures and videos.

    The records are all in memory at the end; for what does not fit, use `write_predictions`.

    Args:
        model: run, checkpoint or model.safetensors of `faceprior finetune`.
        source: picture, video, or a folder that is searched for both.
        out: .csv or .json to write as well.
        pictures: folder that gets annotated pictures.
        config: options.

    Returns:
        One record per face; one with a reason for a picture or frame without a face or that cannot be read.

    Raises:
        CheckpointError: no such model.
        ConfigError: an option that cannot be used.
        DataError: nothing at `source`, a template that is not known, or a disk that cannot be written.
    """
    rows: list[FacePrediction] = []
    predictor = FacePredictor(load_model(model), config or PredictConfig())
    _run(predictor, Media(source), out, pictures, lambda found: rows.extend(found.rows))
    return rows


def write_predictions(
    predictor: FacePredictor, source: Path, out: Path, pictures: Path | None = None
) -> Summary:
    """The same into files alone, however much there is; see `predict`."""
    media = Media(source)
    summary = Summary(num_left_out=media.num_left_out)
    _run(predictor, media, out, pictures, summary.count)
    return summary


class _PictureFolder:
    """Annotated pictures, in a folder that mirrors the source's: FILE.jpg, or VIDEO/FRAME.jpg."""

    def __init__(self, folder: Path, source: Path, seconds: float) -> None:
        """
        Raises:
            ConfigError: a folder where they would replace the pictures they are made from, or be taken for
                more of them the next time.
        """
        here, there = folder.resolve(), source.resolve()
        if (there.is_dir() and here.is_relative_to(there)) or here == there.parent:
            raise ConfigError(f"pictures={folder}: is where INPUT lies; choose a folder of its own")
        self._folder, self._seconds = folder, seconds
        self._video, self._next = "", 0.0

    def add(self, found: FramePrediction) -> None:
        """Draws a picture, or a video's frame when it is time for one."""
        frame = found.frame
        if frame.picture is None:
            return
        if frame.frame is not None:
            now = float(frame.frame) if frame.seconds is None else frame.seconds
            if frame.file == self._video and now < self._next:
                return
            self._video, self._next = frame.file, now + self._seconds
        path = self._folder / _picture_name(frame)
        page = np.asarray(annotated(frame.picture, found.rows, found.faces))
        with clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, encode_jpeg(page, _QUALITY))


def _picture_name(frame: MediaFrame) -> str:
    """No two frames have the same: a.png becomes a.png.jpg, beside a.jpg."""
    if frame.frame is not None:
        return f"{frame.file}/{frame.frame:06d}.jpg"
    return frame.file if frame.file.lower().endswith((".jpg", ".jpeg")) else f"{frame.file}.jpg"


def _run(
    predictor: FacePredictor,
    media: Media,
    out: Path | None,
    pictures: Path | None,
    take: Callable[[FramePrediction], None],
) -> None:
    """Predicts, writes, and hands each frame's part to `take` once it is written."""
    config = predictor.config
    folder = None if pictures is None else _PictureFolder(pictures, media.path, config.picture_seconds)
    with contextlib.ExitStack() as stack:
        table = None if out is None else stack.enter_context(face_table(out, predictor.columns))
        bar = stack.enter_context(
            tqdm(total=len(media.names), desc="predict", unit="img", disable=config.quiet)
        )
        for chunk in _chunks(_frames(media, bar), config.batch_size):
            for found in predictor(chunk):
                if folder is not None:
                    folder.add(found)
                if table is not None:
                    table.add(found.rows)
                take(found)
                bar.update()


def _frames(media: Media, bar: Any) -> Iterator[MediaFrame]:
    """All frames of all files; the bar's total grows by a video's frames when it is opened."""
    for name in media.names:
        bar.total += media.num_frames(name) - 1
        yield from media.frames_of(name)


def _chunks(frames: Iterable[MediaFrame], count: int) -> Iterator[list[MediaFrame]]:
    """Up to `count` frames, and of so many pixels that memory stays bounded."""
    chunk: list[MediaFrame] = []
    pixels = 0
    for frame in frames:
        chunk.append(frame)
        pixels += 0 if frame.picture is None else frame.picture.shape[0] * frame.picture.shape[1]
        if len(chunk) == count or pixels > _CHUNK_PIXELS:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def run_arguments(arguments: argparse.Namespace) -> int:
    """`faceprior predict` as parsed; see `predict`. Returns 1 if nothing could be read."""
    given = {name: getattr(arguments, name) for name in PredictConfig.__dataclass_fields__}
    config = PredictConfig(**given)
    source: Path = arguments.source
    out = arguments.out or Path(f"{source.resolve().name}.predictions.csv")
    check_table_name(out)
    loaded = load_model(arguments.run)
    if loaded.checkpoint:
        print(f"{arguments.run}: {loaded.checkpoint}")
    predictor = FacePredictor(loaded, config)
    if predictor.note:
        print(f"note: {predictor.note}")
    if predictor.rendered:
        print("note: this model learned from rendered faces, of people who do not exist")
    with _interrupted_by_sigterm():
        summary = write_predictions(predictor, source, out, arguments.pictures)
    print(f"{out}: {summary}")
    if arguments.pictures is not None:
        print(f"annotated pictures: {arguments.pictures}")
    return int(summary.num_unreadable == summary.num_frames)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """A scheduler's SIGTERM ends the work as Ctrl-C does: what was made so far is kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
