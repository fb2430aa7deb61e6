"""Pictures and videos to look at, as one stream of frames; what cannot be read is a frame with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.align.decode import ImageError, load_image
from shards.labels import DataError
from shards.sources.pictures import FolderPictures, is_picture
from shards.sources.video import check_reader, count_frames, is_video, read_frames


@dataclass(frozen=True)
class MediaFrame:
    """A picture, or a frame of a video.

    Attributes:
        file: its name, in a folder relative to it.
        frame: number in the video from 0; None for a picture.
        seconds: since the video's start; None for a picture, or where the video does not say.
        picture: (H, W, 3) uint8 RGB, upright; None where it cannot be read.
        reason: why it cannot be read.
    """

    file: str
    frame: int | None = None
    seconds: float | None = None
    picture: NDArray[np.uint8] | None = None
    reason: str = ""


class Media:
    """A picture, a video, or all of them below a folder.

    Attributes:
        path: file or folder.
        names: files, sorted; in a folder relative to it.
        num_left_out: files in the folder that are neither picture nor video.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: a file, or a folder that is searched through.

        Raises:
            DataError: nothing there to look at, or it is a video and PyAV is not installed.
        """
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check INPUT")
        self.path = path
        self.num_left_out = 0
        if path.is_dir():
            names = FolderPictures(path).names()
            self.names = [name for name in names if is_picture(name) or is_video(name)]
            self.num_left_out = len(names) - len(self.names)
            if not self.names:
                raise DataError(f"{path}: no picture or video in this folder")
        else:
            self.names = [path.name]
            if is_video(path.name):
                check_reader()
        self._folder = FolderPictures(path if path.is_dir() else path.parent)

    def num_frames(self, name: str) -> int:
        """How many frames `frames_of` will give, as far as the file says."""
        if not is_video(name):
            return 1
        try:
            return count_frames(self._folder.path / name) or 1
        except DataError:
            return 1

    def frames_of(self, name: str) -> Iterator[MediaFrame]:
        """Yields what is in one file; where that breaks off, a frame with the reason comes last."""
        if not is_video(name):
            yield self._picture(name)
            return
        frame = -1
        try:
            for found in read_frames(self._folder.path / name):
                frame = found.index
                yield MediaFrame(name, frame, found.seconds, found.picture)
        except DataError as error:
            yield MediaFrame(name, frame + 1 if frame >= 0 else None, reason=str(error))

    def _picture(self, name: str) -> MediaFrame:
        try:
            return MediaFrame(name, picture=load_image(self._folder.read(name)))
        except (ImageError, DataError) as error:
            return MediaFrame(name, reason=str(error))
