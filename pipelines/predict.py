"""`predict`: pictures and videos -> their faces, cut out as in training -> what the model says of each.

    Media -> frames -> `FacePredictor` -> rows of a csv or json, annotated pictures
    Media -> recordings -> `ClipPredictor`, where the model reads video -> rows, a picture of each curve

Frames are worked on in chunks, so that memory is the same for ten pictures and for a million.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from pipelines.annotate import annotated
from pipelines.clip_predictor import ClipPredictor, clip_sets, recordings_of, seen_text
from pipelines.config import ConfigError
from pipelines.curve_folder import CurveFolder
from pipelines.facetable import UNREADABLE, FacePrediction, check_table_name, face_table
from pipelines.models import LoadedModel, load_model
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import FacePredictor, FramePrediction, chunks
from shards.align import encode_jpeg
from shards.clips import read_clip_labels
from shards.files import clear_disk_errors, write_atomic
from shards.shardset import ShardSet
from shards.sources.media import Media, MediaFrame

_QUALITY = 90


Predictor: TypeAlias = FacePredictor | ClipPredictor


@dataclass(frozen=True)
class Input:
    """What a prediction reads: media, or named splits of clips; and where they lie."""

    path: Path
    media: Media | None = None
    clips: Sequence[tuple[str, ShardSet]] = ()


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
        unreadable = any(row.status.startswith(UNREADABLE) for row in found.rows)
        self.num_frames += 1
        self.num_faces += faces
        self.num_unreadable += unreadable
        self.num_empty += not unreadable and not faces

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

    A model that reads video (`ClipPredictor`) takes each video, and the pictures of each folder in the order
    of the numbers in their names, for one recording, and clip shards with all the cameras they have.

    Args:
        model: run, checkpoint or model.safetensors of `faceprior finetune`.
        source: picture, video, or a folder that is searched for both; for a video model also clip shards.
        out: .csv or .json to write as well.
        pictures: folder that gets annotated pictures, or of a video model a picture of each curve.
        config: options.

    Returns:
        One record per face; one with a reason for a picture or frame without a face or that cannot be read.
        Of a video model, one record per frame.

    Raises:
        CheckpointError: no such model.
        ConfigError: an option that cannot be used.
        DataError: nothing at `source`, a template that is not known, or a disk that cannot be written.
    """
    rows: list[FacePrediction] = []
    predictor = build_predictor(load_model(model), config or PredictConfig())
    _run(predictor, open_input(predictor, source), out, pictures, lambda found: rows.extend(found.rows))
    return rows


def build_predictor(loaded: LoadedModel, config: PredictConfig) -> Predictor:
    """The predictor of a model: of single pictures, or of video. Errors as of the two classes."""
    return (ClipPredictor if loaded.spec.kind == "mran" else FacePredictor)(loaded, config)


def open_input(predictor: Predictor, source: Path) -> Input:
    """What there is at `source` for this predictor.

    Raises:
        DataError: nothing that it reads.
    """
    clips = clip_sets(source) if isinstance(predictor, ClipPredictor) else []
    return Input(source, clips=clips) if clips else Input(source, Media(source))


def write_predictions(predictor: Predictor, source: Path, out: Path, pictures: Path | None = None) -> Summary:
    """The same into files alone, however much there is; see `predict`."""
    given = open_input(predictor, source)
    summary = Summary(num_left_out=given.media.num_left_out if given.media else 0)
    _run(predictor, given, out, pictures, summary.count)
    return summary


def check_picture_folder(folder: Path, source: Path) -> None:
    """Refuses a folder where pictures would replace those they are made from, or be taken for more of them.

    Raises:
        ConfigError: it is such a folder.
    """
    here, there = folder.resolve(), source.resolve()
    if (there.is_dir() and here.is_relative_to(there)) or here == there.parent:
        raise ConfigError(f"pictures={folder}: is where INPUT lies; choose a folder of its own")


class _PictureFolder:
    """Annotated pictures, in a folder that mirrors the source's: FILE.jpg, or VIDEO/FRAME.jpg."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Args: folder: see `check_picture_folder`. seconds: see `PredictConfig.picture_seconds`."""
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
    predictor: Predictor,
    given: Input,
    out: Path | None,
    pictures: Path | None,
    take: Callable[[FramePrediction], None],
) -> None:
    """Predicts, writes, and hands each frame's part to `take` once it is written."""
    config = predictor.config
    folder: _PictureFolder | CurveFolder | None = None
    if pictures is not None:
        check_picture_folder(pictures, given.path)
        if isinstance(predictor, ClipPredictor):
            folder = CurveFolder(pictures)
        else:
            folder = _PictureFolder(pictures, config.picture_seconds)
    with contextlib.ExitStack() as stack:
        table = None if out is None else stack.enter_context(face_table(out, predictor.columns))
        total = len(given.media.names) if given.media else 0
        bar = stack.enter_context(tqdm(total=total, desc="predict", unit="img", disable=config.quiet))
        for found in _found(predictor, given, bar):
            if folder is not None:
                folder.add(found)
            if table is not None:
                table.add(found.rows)
            take(found)
            bar.update()
        if isinstance(folder, CurveFolder):
            folder.finish()


def _found(predictor: Predictor, given: Input, bar: Any) -> Iterator[FramePrediction]:
    """What is said of each frame, in order."""
    if isinstance(predictor, FacePredictor):
        assert given.media is not None
        for chunk in chunks(_frames(given.media, given.media.names, bar), predictor.config.batch_size):
            yield from predictor(chunk)
    elif given.media is not None:
        for recording, names in recordings_of(given.media):
            yield from predictor.of_frames(_frames(given.media, names, bar), recording)
    for name, shards in given.clips:
        assert isinstance(predictor, ClipPredictor)
        bar.total += sum(read_clip_labels(shards, sample).num_frames for sample in range(len(shards)))
        yield from predictor.of_clips(shards, name)


def _frames(media: Media, names: Sequence[str], bar: Any) -> Iterator[MediaFrame]:
    """All frames of these files; the bar's total grows by a video's frames when it is opened."""
    for name in names:
        bar.total += media.num_frames(name) - 1
        yield from media.frames_of(name)


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
    predictor = build_predictor(loaded, config)
    if predictor.note:
        print(f"note: {predictor.note}")
    if predictor.rendered:
        print("note: this model learned from rendered faces, of people who do not exist")
    if isinstance(predictor, ClipPredictor):
        print("note: this model reads video: a row for each frame, of several faces the largest")
    with _interrupted_by_sigterm():
        summary = write_predictions(predictor, source, out, arguments.pictures)
    print(f"{out}: {summary}")
    if isinstance(predictor, ClipPredictor):
        print(seen_text(predictor))
    if arguments.pictures is not None:
        what = "curves" if isinstance(predictor, ClipPredictor) else "annotated pictures"
        print(f"{what}: {arguments.pictures}")
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
