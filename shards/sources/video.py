"""Frames of a video, one after the other, upright: colour, or 16-bit grey to the bit.

PyAV is optional: the extra `video` installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.align.decode import MAX_PIXELS
from shards.frames import UInt16
from shards.labels import DataError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".ts")

# Containers only: a playlist that calls itself .mp4 would make FFmpeg open the files and hosts it names.
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg"}


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        index: from 0, in the order shown.
        seconds: since the video's start; None where the file does not say.
        picture: (H, W, 3) uint8 RGB, rotated as the file asks for, with square pixels.
    """

    index: int
    seconds: float | None
    picture: NDArray[np.uint8]


@dataclass(frozen=True)
class VideoFacts:
    """What a video says of itself: how many frames it has, and how many a second."""

    num_frames: int
    fps: float


class DecodedFrame:
    """One frame as the decoder has it: turned into pixels when it is asked for, so that others cost less."""

    def __init__(self, index: int, seconds: float | None, frame: Any, aspect: Fraction | None) -> None:
        """
        Args:
            index, seconds: as in `VideoFrame`.
            frame: PyAV's. aspect: of its pixels.
        """
        self.index, self.seconds, self._frame, self._aspect = index, seconds, frame, aspect

    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, as in `VideoFrame`."""
        return _upright(self._frame, self._aspect)

    def plane(self) -> UInt16:
        """(H, W) uint16, the very values that were encoded; rotated as the file asks for.

        Raises:
            DataError: not 16-bit grey.
        """
        name = self._frame.format.name
        if name not in ("gray16le", "gray16be"):
            raise DataError(
                f"pixels of format {name}, not 16-bit grey: write it anew without loss, as by "
                "ffmpeg -i IN -pix_fmt gray16le -c:v ffv1 OUT.mkv from 16-bit pictures"
            )
        values: UInt16 = self._frame.to_ndarray().astype(np.uint16)
        return np.ascontiguousarray(np.rot90(values, round(self._frame.rotation / 90) % 4))


def is_video(name: str) -> bool:
    """True if the file's name ends like that of a video, in any case."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def check_reader() -> None:
    """Asks for PyAV, to fail before any work is done.

    Raises:
        DataError: it is not installed.
    """
    _library()


def count_frames(path: Path) -> int | None:
    """How many frames the file says it has, or its length and rate imply; None where it does not say.

    Raises:
        DataError: see `read_frames`.
    """
    av = _library()
    try:
        with av.open(_url(path), container_options=_OPTIONS) as container:
            for stream in container.streams.video[:1]:
                if stream.frames:
                    return int(stream.frames)
                if container.duration and stream.average_rate:
                    return round(float(container.duration / av.time_base * stream.average_rate))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"cannot read the video: {_reason(error)}") from None
    return None


def video_facts(path: Path) -> VideoFacts:
    """How many frames a video has, and how many a second; its packets are counted where it does not say.

    Raises:
        DataError: see `read_frames`, or it states no rate; names the file and the remedy.
    """
    av = _library()
    remedy = "fetch it again, or remove it with its labels"
    try:
        with av.open(_url(path), container_options=_OPTIONS) as container:
            if not container.streams.video:
                raise DataError(f"{path}: no picture stream in it; {remedy}")
            stream = container.streams.video[0]
            rate, count = stream.average_rate or stream.guessed_rate, int(stream.frames)
            count = count or sum(1 for packet in container.demux(stream) if packet.size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the video: {_reason(error)}; {remedy}") from None
    if not rate or count < 1:
        raise DataError(f"{path}: the video states no rate, or has no frame; {remedy}")
    if not 0.01 <= rate <= 1000:
        raise DataError(f"{path}: states {float(rate):g} frames a second; write it anew with its true rate")
    return VideoFacts(count, float(rate))


def read_frames(path: Path) -> Iterator[VideoFrame]:
    """Yields the frames of the first video stream as pictures; see `decode_frames`."""
    for frame in decode_frames(path):
        yield VideoFrame(frame.index, frame.seconds, frame.picture())


def decode_frames(path: Path) -> Iterator[DecodedFrame]:
    """Yields the frames of the first video stream; holds a few at a time, however long the video is.

    Args:
        path: a file in one of the containers of `SUFFIXES`.

    Raises:
        DataError: PyAV is not installed, the file is no video, or it is damaged; then, what comes before the
            damage was yielded. The message is short and does not name the file.
    """
    av = _library()
    index = 0
    try:
        with av.open(_url(path), container_options=_OPTIONS) as container:
            if not container.streams.video:
                raise DataError("cannot read the video: no picture stream in it")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start = stream.start_time or 0
            seconds: float | None = None
            for frame in container.decode(stream):
                if _shown_width(frame.width, stream.sample_aspect_ratio) * frame.height > MAX_PIXELS:
                    raise DataError(f"frames of {frame.width}x{frame.height}: too many pixels")
                seconds = None if frame.pts is None else float((frame.pts - start) * frame.time_base)
                yield DecodedFrame(index, seconds, frame, stream.sample_aspect_ratio)
                index += 1
            if _breaks_off(stream, index, seconds):
                raise DataError(
                    f"cannot read the video after frame {index - 1} of {stream.frames}: cut short"
                )
    except (av.FFmpegError, OSError, ValueError) as error:
        where = f" after frame {index - 1}" if index else ""
        raise DataError(f"cannot read the video{where}: {_reason(error)}") from None
    if not index:
        raise DataError("cannot read the video: no frame in it")


def _breaks_off(stream: Any, count: int, seconds: float | None) -> bool:
    """FFmpeg ends a file that was cut short without a word; the file's header knows of more.

    Edit lists leave frames out, and a last frame may stand for long, so both counts must be well missed.
    """
    if not stream.frames or not stream.duration or not count or seconds is None:
        return False
    return count < 0.95 * stream.frames and seconds + 1 < float(stream.duration * stream.time_base)


def _upright(frame: Any, aspect: Fraction | None) -> NDArray[np.uint8]:
    """(H, W, 3) RGB as a player shows it."""
    width = _shown_width(frame.width, aspect)
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    turns = round(frame.rotation / 90) % 4  # counterclockwise, as numpy's
    return np.ascontiguousarray(np.rot90(picture, turns))


def _shown_width(width: int, aspect: Fraction | None) -> int:
    """The width that makes pixels square."""
    return max(1, round(width * aspect)) if aspect and 0.1 < aspect < 10 else width


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError(
            "videos are read with PyAV, which is not installed: pip install 'faceprior[video]' "
            "(in a checkout: pip install -e '.[video]')"
        ) from error
    return av


def _url(path: Path) -> str:
    """So that no part of a name is taken for a protocol."""
    return f"file:{path.absolute()}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
