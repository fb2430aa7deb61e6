"""The tables of a rig's folder (docs/rig.md): its recordings, its cameras, when pictures were taken."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.config import MODALITIES
from shards.labels import DataError
from shards.sources.series import check_times, columns_of, number_in
from shards.sources.tables import Row, read_csv
from shards.sources.tracks import Calibration

Floats = NDArray[np.float64]

CAMERAS = "cameras.csv"
RECORDINGS = "recordings.csv"

_AFFINE = ("a", "b", "c", "d", "e", "f")
_CAMERA_COLUMNS = ("modality", "fps", "start", "scale", "offset", *_AFFINE)


@dataclass(frozen=True)
class Camera:
    """One row of cameras.csv.

    Attributes:
        fps: pictures a second, for recordings without a table of times; None: as a video's file says.
        start: s, time of the first picture of such a recording, on the clock of all cameras.
        calibration: of its values and places.
    """

    fps: float | None = None
    start: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)


class Named(NamedTuple):
    """One row of recordings.csv: name of the recording's folder, its person and split, and other cells."""

    where: str
    recording: str
    subject: str
    split: str
    extra: Mapping[str, str]


class Taken(NamedTuple):
    """When the pictures of one camera were taken.

    Attributes:
        seconds: (N,) increasing.
        frames: (N,) name, or number in the video, of each.
        numbers: (N,) the number of each among all the camera's pictures, which the table may leave out.
    """

    seconds: Floats
    frames: Sequence[str | int]
    numbers: Sequence[int]


def read_recordings(path: Path) -> list[Named]:
    """The rows of recordings.csv: `recording`, `subject`, perhaps `split`; other columns are kept as text.

    Raises:
        DataError: no such file, a column or a cell missing, a recording twice, or a path for a name;
            names the line.
    """
    rows = list(read_table(path, ("recording", "subject")))
    named: dict[str, Named] = {}
    for row in rows:
        cells = {column.lower(): cell for column, cell in row.cells.items()}
        for column in ("recording", "subject"):
            if column not in cells:
                raise DataError(f"{row.where}: no {column}; every recording needs the person it shows")
        name = cells["recording"]
        if name in (".", "..") or Path(name).name != name or len(name.encode()) > 200:
            raise DataError(f"{row.where}: recording {name!r:.80}: must be the name of a folder beside it")
        if name in named:
            raise DataError(f"{row.where}: {name!r:.80} was in {named[name].where}; remove one")
        extra = {k: v for k, v in cells.items() if k not in ("recording", "subject", "split")}
        named[name] = Named(row.where, name, cells["subject"], cells.get("split", "").lower(), extra)
    if not named:
        raise DataError(f"{path}: lists no recording")
    return list(named.values())


def read_cameras(path: Path) -> dict[str, Camera]:
    """The rows of cameras.csv by modality; an empty cell or column is its default.

    Raises:
        DataError: an unknown modality or column, a value out of range, or half an affine map; names the line.
    """
    cameras: dict[str, Camera] = {}
    for row in read_table(path, ("modality",)) if path.is_file() else ():
        cells = {column.lower(): cell for column, cell in row.cells.items()}
        for column in cells.keys() - set(_CAMERA_COLUMNS):
            close = difflib.get_close_matches(column, _CAMERA_COLUMNS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(_CAMERA_COLUMNS)}"
            raise DataError(f"{row.where}: unknown column {column!r:.40}{hint}")
        name = cells.pop("modality", "")
        if name not in MODALITIES or name in cameras:
            raise DataError(f"{row.where}: modality {name!r:.40}: one of {', '.join(MODALITIES)}, each once")
        values = {key: number_in(cell, f"{row.where}: {key}") for key, cell in cells.items()}
        cameras[name] = _camera(name, values, row.where)
    return cameras


def _camera(modality: str, values: Mapping[str, float], where: str) -> Camera:
    for key, value in values.items():
        if not math.isfinite(value):
            raise DataError(f"{where}: {key} must be a number, got {value:g}")
    for key in ("fps", "scale"):
        if key in values and not 0 < values[key] < 1e6:
            raise DataError(f"{where}: {key} must be above 0, got {values[key]:g}")
    given = [key for key in _AFFINE if key in values]
    if given and len(given) < len(_AFFINE):
        raise DataError(f"{where}: {', '.join(given)} alone: an affine map needs all of a to f, or none")
    raw_only = [key for key in ("scale", "offset", *given) if key in values]
    if modality == "color" and raw_only:
        raise DataError(f"{where}: {raw_only[0]} has no meaning for color: it is what others are mapped to")
    affine = tuple(values[key] for key in _AFFINE) if given else None
    if affine is not None and abs(affine[0] * affine[4] - affine[1] * affine[3]) < 1e-9:
        raise DataError(f"{where}: a to f map the picture to a line: a·e − b·d must not be 0")
    calibration = Calibration(values.get("scale", 1.0), values.get("offset", 0.0), affine)
    return Camera(values.get("fps"), values.get("start", 0.0), calibration)


def read_taken(path: Path, frames: Sequence[str | int]) -> tuple[Taken, int]:
    """When pictures were taken: rows of `file` (or `frame`, of a video from 0) and `seconds`.

    Args:
        path: of the table.
        frames: name, or number in the video, of all pictures there are, in their order.

    Returns:
        The rows whose picture is there; and of how many it is not.

    Raises:
        DataError: columns or cells missing, or times that do not increase; names the line.
    """
    rows = list(read_table(path, ("seconds",)))
    if not rows:
        raise DataError(f"{path}: has no row")
    columns = {column.lower(): column for row in rows for column in row.cells}
    name = next((columns[key] for key in ("file", "frame") if key in columns), None)
    if name is None:
        raise DataError(f"{rows[0].where}: no column 'file' or 'frame' beside the seconds")
    seconds = [number_in(row.cells.get(columns["seconds"], ""), f"{row.where}: seconds") for row in rows]
    times = check_times(seconds, [row.where for row in rows])
    cells = [row.cells.get(name, "") for row in rows]
    known = {str(frame): number for number, frame in enumerate(frames)}
    there = [i for i, cell in enumerate(cells) if cell in known]
    numbers = [known[cells[i]] for i in there]
    return Taken(times[there], [frames[number] for number in numbers], numbers), len(rows) - len(there)


def read_landmarks(path: Path) -> dict[int, Floats]:
    """Number of the colour picture, from 0 in their order -> (5, 2) landmarks: `frame`, `x0`, `y0` … `y4`.

    Rows with an empty cell are frames without a face.

    Raises:
        DataError: columns missing or no numbers; names the line.
    """
    names = [f"{axis}{point}" for point in range(5) for axis in "xy"]
    found = {}
    for row in read_table(path, ("frame", *names)):
        cells = {column.lower(): cell for column, cell in row.cells.items()}
        frame = number_in(cells.get("frame", ""), f"{row.where}: frame")
        if not frame >= 0 or frame % 1:
            raise DataError(f"{row.where}: frame must be a whole number from 0, got {cells.get('frame')!r}")
        values = [number_in(cells.get(name, ""), f"{row.where}: {name}") for name in names]
        found[int(frame)] = np.array(values).reshape(5, 2)
    return found


def read_table(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Rows of a csv in which the columns `wanted` must be.

    Raises:
        DataError: no such file, a column missing, or malformed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; docs/rig.md says what it holds")
    data = path.read_bytes()
    name = f"{path.parent.name}/{path.name}"
    header = next(iter(data.decode("utf-8-sig", "replace").lstrip("\r\n").splitlines()), "")
    delimiter = max(",;\t", key=header.count)
    columns_of([cell.strip() for cell in header.split(delimiter)], wanted, f"{name} line 1")
    yield from read_csv(data, name)
