"""A picture of each recording that a video model was shown: faces along time, and its curves below them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.predictor import FramePrediction
from shards.files import clear_disk_errors, write_atomic
from shards.labels import DataError

_FACES = 12  # in a picture; up to twice as many are held


class CurveFolder:
    """Curves in a folder that mirrors the source's: RECORDING.curves.png.

    Of a recording its figures are held, and a few faces, however long it is.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: see `predict.check_picture_folder`."""
        self._folder = folder
        self._begin("")

    def _begin(self, recording: str) -> None:
        self._recording = recording
        self._frames: list[int] = []
        self._va: list[tuple[float, float]] = []
        self._empty: list[bool] = []
        self._faces: list[tuple[int, NDArray[np.uint8]]] = []
        self._every = 1

    def add(self, found: FramePrediction) -> None:
        """Takes up one frame; draws the recording before it, if it begins another."""
        if found.recording != self._recording:
            self.finish()
            self._begin(found.recording)
        (row,) = found.rows
        number = row.frame if row.frame is not None else len(self._frames)
        missing = float("nan")
        self._frames.append(number)
        self._va.append((missing, missing) if row.valence is None else (row.valence, row.arousal or 0.0))
        self._empty.append(not row.is_face)
        if found.faces and len(self._frames) % self._every == 1 % self._every:
            self._faces.append((number, found.faces[0]))
            if len(self._faces) == 2 * _FACES:
                self._faces, self._every = self._faces[::2], 2 * self._every

    def finish(self) -> None:
        """Draws the recording that is there, if any.

        Raises:
            DataError: its name leads out of the folder, or the disk cannot be written.
        """
        if self._frames:
            from pipelines.clip_charts import FilmStrip, film_strips  # half a second to load

            pred = np.array(self._va)
            step = max(1, -(-len(self._faces) // _FACES))
            shown = self._faces[::step]
            strip = FilmStrip(
                self._recording,
                None,
                np.array(self._frames),
                pred,
                np.full_like(pred, np.nan),
                [number for number, _ in shown],
                [face for _, face in shown],
                np.array(self._empty),
            )
            name = "recording" if self._recording == "." else self._recording
            path = self._folder / f"{name}.curves.png"
            if not path.resolve().is_relative_to(self._folder.resolve()):
                raise DataError(
                    f"recording {self._recording!r:.120}: its name leaves {self._folder}; rename it"
                )
            with clear_disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, film_strips([strip]))
        self._begin("")
