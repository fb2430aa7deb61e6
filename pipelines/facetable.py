"""What a model says of each face in pictures and videos, and the csv or json that holds it.

Rows are written as they come, whole ones only, under a temporary name; the file gets its own name at the end.
If the work is interrupted, the rows made so far are kept as NAME.partial.csv: a whole file too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import ConfigError
from pipelines.predictions_csv import guarded
from shards.files import clear_disk_errors, fsync_folder

OK, NO_FACE, UNREADABLE = "ok", "no face", "unreadable"
SUFFIXES = (".csv", ".json")

_PLACE = ("file", "frame", "time_s", "face", "track", "x0", "y0", "x1", "y1")
_FOUND = ("detection", "status", "expression")
_DECIMALS = 6


@dataclass(frozen=True)
class FacePrediction:
    """One face, or one picture or frame in which there is none or that cannot be read.

    Attributes:
        file: name, in a folder relative to it.
        frame: of a video, from 0. seconds: since the video's start.
        face: number in its picture, from 1, left to right; it does not follow a person through a video.
        track: that does: number of a face in its video, from 1, as long as it can be followed; None for a
            picture.
        box: left, top, right, bottom in pixels of the upright picture.
        landmarks: five points (x, y) there: left eye and right eye as seen, nose, corners of the mouth.
        detection: probability of being a face; None where none was searched for (an aligned face).
        status: "ok", "no face", "unreadable: REASON", or why a face that was found cannot be used.
        expr_probs: class name -> probability; empty without that head or without a face.
        expression: the most probable class.
        au_probs: action unit -> probability.
        valence, arousal: in [−1, 1].
    """

    file: str
    frame: int | None = None
    seconds: float | None = None
    face: int | None = None
    box: tuple[float, float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    detection: float | None = None
    status: str = OK
    expr_probs: Mapping[str, float] = field(default_factory=dict)
    expression: str | None = None
    au_probs: Mapping[str, float] = field(default_factory=dict)
    valence: float | None = None
    arousal: float | None = None
    track: int | None = None

    @property
    def is_face(self) -> bool:
        """False for a row that only says why there is no face."""
        return self.face is not None


@dataclass(frozen=True)
class FaceColumns:
    """The columns of a model's table.

    Attributes:
        expr: class names. au: names of action units.
    """

    expr: tuple[str, ...]
    au: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """file, frame, time_s, face, track, x0, y0, x1, y1, detection, status, expression, expr.CLASS…,
        au.UNIT…, valence, arousal."""
        classes, units = (f"expr.{name}" for name in self.expr), (f"au.{name}" for name in self.au)
        return (*_PLACE, *_FOUND, *classes, *units, "valence", "arousal")

    def cells(self, row: FacePrediction) -> tuple[Any, ...]:
        """Values in the order of `names`; None where there is nothing to say."""
        box = [round(side, 1) for side in row.box] if row.box else [None] * 4
        scores = [row.expr_probs.get(name) for name in self.expr]
        scores += [row.au_probs.get(name) for name in self.au]
        scores += [row.valence, row.arousal]
        place = (row.file, row.frame, _rounded(row.seconds), row.face, row.track, *box)
        return (*place, _rounded(row.detection), row.status, row.expression, *map(_rounded, scores))


class FaceTable:
    """A csv or json that grows row by row; see `face_table`."""

    def __init__(self, file: Any, columns: FaceColumns, is_json: bool) -> None:
        self.num_rows = 0
        self._file, self._columns, self._json = file, columns, is_json
        self._good = 0
        self._put("[" if is_json else ",".join(map(guarded, columns.names)) + "\n")

    def add(self, rows: Sequence[FacePrediction]) -> None:
        """Appends rows; on the disk when this returns, or not at all."""
        write = self._object if self._json else self._line
        self._put("".join(write(row, self.num_rows + offset) for offset, row in enumerate(rows)))
        self.num_rows += len(rows)

    def finish(self) -> None:
        """Takes off what an interruption left of a row, and closes the list."""
        self._file.truncate(self._good)
        self._file.seek(self._good)
        if self._json:
            self._put("\n]\n")
        os.fsync(self._file.fileno())

    def _put(self, text: str) -> None:
        data = memoryview(text.encode(errors="backslashreplace"))
        left = data
        while left:
            left = left[self._file.write(left) :]
        self._good += len(data)

    def _line(self, row: FacePrediction, number: int) -> str:
        return ",".join(map(_text, self._columns.cells(row))) + "\n"

    def _object(self, row: FacePrediction, number: int) -> str:
        cells = dict(zip(self._columns.names, self._columns.cells(row)))
        return ("," if number else "") + "\n" + json.dumps(cells, ensure_ascii=False, allow_nan=False)


@contextlib.contextmanager
def face_table(path: Path, columns: FaceColumns) -> Iterator[FaceTable]:
    """A table that appears at `path` when the block ends.

    If it ends early, by Ctrl-C or an error, the rows so far appear as NAME.partial.csv (or .json) instead,
    and a line on stderr says so.

    Raises:
        ConfigError: neither csv nor json.
        DataError: the disk is full or cannot be written.
    """
    check_table_name(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb", buffering=0) as file:
                table = FaceTable(file, columns, path.suffix.lower() == ".json")
                try:
                    yield table
                except BaseException:
                    _keep(table, temporary, path.with_suffix(f".partial{path.suffix}"))
                    raise
                table.finish()
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def check_table_name(path: Path) -> None:
    """
    Raises:
        ConfigError: neither csv nor json.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"out={path}: its name must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise ConfigError(f"out={path}: is a folder; name a file")


def _keep(table: FaceTable, temporary: Path, partial: Path) -> None:
    """The rows that there are, under a name that says it is not all; nothing if there are none."""
    if table.num_rows:
        table.finish()
        temporary.replace(partial)
        print(f"\nstopped early: {partial} has the {table.num_rows} rows made so far", file=sys.stderr)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)


def _text(value: Any) -> str:
    return "" if value is None else guarded(value) if isinstance(value, str) else repr(value)
