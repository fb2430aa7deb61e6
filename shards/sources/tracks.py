"""Where the pictures of a recording lie, and reading them one after the other: never a whole recording."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.align.decode import ImageError, Picture, load_image
from shards.frames import UInt16, decode_plane
from shards.labels import DataError, ReadError
from shards.sources.pictures import open_pictures
from shards.sources.raw import patiently
from shards.sources.video import DecodedFrame, check_reader, decode_frames


@dataclass(frozen=True)
class Calibration:
    """What the raw values and places of a depth or thermal camera mean.

    Attributes:
        scale, offset: raw · scale + offset is mm (depth) or centi-kelvin (thermal), rounded to the nearest; a
            raw 0, and what comes out below 1 or above 65535, is missing.
        affine: (a, b, c, d, e, f): its pixel (x, y) shows what the colour picture shows at
            (a·x + b·y + c, d·x + e·y + f), with the centre of the first pixel at (0, 0). None: both pictures
            show the same, perhaps in other sizes.
    """

    scale: float = 1.0
    offset: float = 0.0
    affine: tuple[float, ...] | None = None

    def values(self, raw: UInt16) -> UInt16:
        """(H, W) raw -> (H, W) mm or centi-kelvin, 0 = missing."""
        if self.scale == 1 and self.offset == 0:
            return raw
        units = np.floor(raw.astype(np.float64) * self.scale + self.offset + 0.5)
        known = (raw > 0) & (units >= 1) & (units <= 65535)
        return np.where(known, units, 0).astype(np.uint16)

    def to_color(self, shape: tuple[int, ...], color: tuple[int, ...]) -> NDArray[np.float64]:
        """(2, 3), from pixels of a plane to those of the colour picture.

        Args:
            shape: (height, width) of the plane. color: (height, width, …) of the colour picture.
        """
        if self.affine is not None:
            return np.array(self.affine, np.float64).reshape(2, 3)
        x, y = color[1] / shape[1], color[0] / shape[0]
        return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


@dataclass(frozen=True)
class Track:
    """Where one camera's picture of each frame is.

    Attributes:
        path: a folder or zip of pictures, or a video.
        frames: for each frame the picture's name in it, or its number in the video from 0, in the order
            shown; None where there is none. Several frames may share a picture.
        calibration: of depth and thermal.
    """

    path: Path
    frames: tuple[str | int | None, ...]
    calibration: Calibration = field(default_factory=Calibration)

    def cut(self, start: int, stop: int) -> Track:
        """The same for frames `start` … `stop` − 1."""
        return replace(self, frames=self.frames[start:stop])


class TrackReader:
    """Reads the pictures of tracks. Of a video it holds a few frames, and goes forward as long as it can:
    asked for an earlier frame it begins anew, so that what comes out depends on the frame alone."""

    def __init__(self) -> None:
        self._videos: dict[Path, _Video] = {}
        self._open = functools.lru_cache(maxsize=8)(open_pictures)

    def keep(self, paths: set[Path]) -> None:
        """Closes all videos but these."""
        for path in self._videos.keys() - paths:
            self._videos.pop(path).close()

    def picture(self, track: Track, frame: int, lost: Counter[str]) -> Picture | None:
        """(H, W, 3) uint8 RGB of one frame; None, and one more of the reason in `lost`, if there is none.

        Raises:
            ReadError: a file cannot be read, however often it is tried.
            DataError: PyAV is not installed.
        """
        where = track.frames[frame]
        if isinstance(where, int):
            found = self._video(track.path).frame(where)
            if found is None:
                lost["not in the video"] += 1
                return None
            return found.picture()
        if where is None:
            lost["no picture"] += 1
            return None
        try:
            return load_image(self.read(track, where))
        except ReadError:
            raise
        except (ImageError, DataError):
            lost["damaged picture"] += 1
            return None

    def plane(self, track: Track, frame: int, what: str, lost: Counter[str]) -> UInt16 | None:
        """(H, W) uint16 mm or centi-kelvin of one frame, 0 = missing; as `picture`.

        Args:
            what: "depth" or "thermal", for the reasons in `lost`.

        Raises:
            DataError: also a video or picture that is not 16-bit grey: it would be so throughout.
        """
        where = track.frames[frame]
        if where is None:
            lost[f"{what}: none near"] += 1
            return None
        if isinstance(where, int):
            found = self._video(track.path).frame(where)
            if found is None:
                lost[f"{what}: not in the video"] += 1
                return None
            try:
                return track.calibration.values(found.plane())
            except DataError as error:
                raise DataError(f"{track.path}: {error}") from None
        try:
            data = self.read(track, where)
        except ReadError:
            raise
        except DataError as error:
            raise DataError(f"{track.path}/{where}: {error}") from None
        try:
            raw = decode_plane(data, f"{track.path}/{where}", ("PNG", "TIFF"))
        except DataError as error:
            if error.__cause__ is None:  # another kind of picture, not damage
                raise
            lost[f"{what}: damaged picture"] += 1
            return None
        return track.calibration.values(raw)

    def read(self, track: Track, name: str) -> bytes:
        """One file of a track.

        Raises:
            ReadError: it cannot be read, however often it is tried.
            DataError: too large, or a damaged member of a zip.
        """

        def load() -> bytes:
            try:
                pictures = self._open(track.path)
            except DataError as error:  # it was there when it was listed
                raise ReadError(str(error)) from error
            return pictures.read(name)

        return patiently(load, f"{track.path}/{name}")

    def _video(self, path: Path) -> _Video:
        if path not in self._videos:
            self._videos[path] = _Video(path)
        return self._videos[path]


class _Video:
    """A video and the frame it is at."""

    def __init__(self, path: Path) -> None:
        check_reader()
        self.path = path
        self._frames: Iterator[DecodedFrame] = iter(())
        self._current: DecodedFrame | None = None
        self._ended = False

    def frame(self, number: int) -> DecodedFrame | None:
        """A frame by its number; None where the video ends or breaks off before it."""
        begun = self._ended if self._current is None else number >= self._current.index
        if not begun:
            patiently(functools.partial(_touch, self.path), str(self.path))
            self.close()
            self._frames, self._ended = decode_frames(self.path), False
        while not self._ended and (self._current is None or self._current.index < number):
            try:
                self._current = next(self._frames)
            except StopIteration:
                self._ended = True
            except DataError:
                patiently(
                    functools.partial(_touch, self.path), str(self.path)
                )  # a disk that is gone: no damage
                self._ended = True
        return self._current if self._current is not None and self._current.index == number else None

    def close(self) -> None:
        """Lets go of the file."""
        if isinstance(self._frames, Generator):
            self._frames.close()
        self._frames, self._current = iter(()), None


def _touch(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)
