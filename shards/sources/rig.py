"""A rig of one's own: folders of colour, depth and thermal pictures or videos, with tables (docs/rig.md)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.config import MODALITIES
from shards.files import sha256_file
from shards.labels import DataError
from shards.records import SPLITS, SourceInfo
from shards.sources.listing import Ledger, Listing, check_folder
from shards.sources.overlay import check_units, overlay_edges
from shards.sources.pictures import FolderPictures, is_picture
from shards.sources.recordings import (
    VA_ALONE,
    Account,
    Recording,
    RecordingSource,
    check_clip_options,
    check_length,
    list_clips,
)
from shards.sources.rigtables import (
    CAMERAS,
    RECORDINGS,
    Camera,
    Floats,
    Named,
    Taken,
    read_cameras,
    read_landmarks,
    read_recordings,
    read_table,
    read_taken,
)
from shards.sources.series import (
    Series,
    check_resampling,
    check_times,
    nearest,
    number_in,
    rating_in,
    step_of,
    to_frames,
)
from shards.sources.splits import check_fraction, keyed_split, split_named
from shards.sources.tracks import Track, TrackReader
from shards.sources.video import is_video, video_facts

_LOG = logging.getLogger(__name__)
_OWN_GAP = 0.6  # of a frame: a picture that was dropped is missing, one that came a little late is not
_PLANES = (".png", ".tif", ".tiff")
_LAYOUT = "SRC should hold recordings.csv and a folder for each recording (docs/rig.md)"


class Rig(RecordingSource):
    """Recordings of colour with any of depth and thermal, each camera at its own rate and size.

    A clip's frames lie on a regular clock, by default at the rate of the colour camera. Each takes the
    nearest picture of every camera: of the colour camera up to 0.6 frames away, of others up to `max_gap`.
    Labels are brought to the same clock. `identity` is the subject, `group` the recording.
    """

    def __init__(
        self,
        path: Path,
        fps: float = 0.0,
        max_gap: float = 0.06,
        resample: str = "nearest",
        lag_seconds: float = 0.0,
        val_fraction: float = 0.2,
        landmarks: bool = True,
        overlay: str = "",
        name: str = "rig",
        licence: str = "not stated",
        clip_frames: int = 600,
        max_missing: float = 0.5,
        max_unused: float = 0.01,
    ) -> None:
        """
        Args:
            path: the folder with recordings.csv.
            fps: frames a second of the clips; 0 = the usual rate of each recording's colour pictures.
            max_gap: s, how far a depth or thermal picture may be from its frame; the default is a little more
                than half of what passes between two pictures of a 9 Hz camera.
            resample: how labels come to frames: "nearest" or "linear" (see `series.resample`).
            lag_seconds: how much the annotation lags, as measured on this rig: only noted in the manifest,
                for clip.lag_seconds.
            val_fraction: without a column `split`: share of subjects that a hash puts into `val`, in [0, 1).
            landmarks: use landmarks.csv where all recordings have it; if not, faces are detected.
            overlay: folder that gets a picture of each recording with the edges of depth and thermal drawn
                over colour, to check the registration by eye.
            name, licence: of the data set, for the manifest.
            clip_frames: frames of a clip that a recording is cut into.
            max_missing: share of a clip's frames without a usable face above which it is left out, in [0, 1].
            max_unused: share of frames without a picture, or of labels that cannot be used, above which it is
                an error, in [0, 1].

        Raises:
            DataError: not this layout, or an option out of its range.
        """
        check_folder(path, _LAYOUT)
        check_clip_options(clip_frames, max_missing, max_unused)
        check_resampling(resample)
        check_fraction(val_fraction)
        if not 0 <= fps <= 1000:
            raise DataError(f"fps={fps:g}: must be from 0 to 1000")
        if not 0 <= max_gap <= 10:
            raise DataError(f"max_gap={max_gap:g}: must be from 0 to 10 seconds")
        if not 0 <= lag_seconds <= 60:
            raise DataError(f"lag_seconds={lag_seconds:g}: must be from 0 to 60")
        self.path, self.fps, self.max_gap, self.how, self.lag_seconds = (
            path,
            fps,
            max_gap,
            resample,
            lag_seconds,
        )
        self.val_fraction, self.overlay, self.name, self.licence = val_fraction, overlay, name, licence
        self.clip_frames, self.max_missing, self.max_unused = clip_frames, max_missing, max_unused
        self.rows = read_recordings(path / RECORDINGS)
        self.cameras = read_cameras(path / CAMERAS)
        self.has_landmarks = landmarks and self._all_have_landmarks()

    def _all_have_landmarks(self) -> bool:
        having = [row.recording for row in self.rows if self._landmarks(row).is_file()]
        if having and len(having) < len(self.rows):
            without = next(row.recording for row in self.rows if row.recording not in having)
            raise DataError(
                f"{self.path}: landmarks.csv in {having[0]} but not in {without}: add it, or have faces "
                "detected with landmarks=false"
            )
        return bool(having)

    def _landmarks(self, row: Named) -> Path:
        return self.path / row.recording / "landmarks.csv"

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            self.name, self.licence, kind="clips", label_space=VA_ALONE, settings=self._listing.settings
        )

    @cached_property
    def _listing(self) -> Listing:
        accounts = {split: Account(f"{self.name} ({split})") for split in SPLITS}
        found = list(self._recordings(accounts))
        self._look(found)
        settings = {
            "source": "rig",
            "max_gap": self.max_gap,
            "resample": self.how,
            "lag_seconds": self.lag_seconds,
            "landmarks": self.has_landmarks,
            "recordings": sha256_file(self.path / RECORDINGS),
        }
        return list_clips(found, accounts, self.clip_frames, self.max_unused, settings)

    def _recordings(self, accounts: Mapping[str, Account]) -> Iterator[tuple[str, Recording]]:
        for row in self.rows:
            split = split_named(row.split) if row.split else keyed_split(row.subject, self.val_fraction)
            if split is None:
                raise DataError(f"{row.where}: split {row.split!r:.40}: must be train, val or test")
            yield split, self._recording(row, accounts[split])

    def _recording(self, row: Named, account: Account) -> Recording:
        """
        Raises:
            DataError: no such folder, no colour pictures, or tables that cannot be used.
        """
        folder = self.path / row.recording
        if not folder.is_dir():
            raise DataError(f"{row.where}: no folder {row.recording!r:.80} beside it; {_LAYOUT}")
        taken = {}
        for modality in MODALITIES:
            found = self._taken(folder, modality, account)
            if found is not None:
                taken[modality] = found
        if "color" not in taken:
            raise DataError(f"{folder}: no folder color and no video color.*; {_LAYOUT}")
        color, fps = taken["color"][1], self.fps or _rate(taken["color"][1].seconds, folder)
        span = min((color.seconds[-1] - color.seconds[0]) * fps, 1e12)
        at = color.seconds[0] + np.arange(check_length(round(span) + 1, str(folder))) / fps
        tracks, places = {}, {}
        for modality, (path, times) in taken.items():
            gap = _OWN_GAP / fps if modality == "color" else self.max_gap
            places[modality] = nearest(times.seconds, at, gap).tolist()
            frames = tuple(times.frames[i] if i >= 0 else None for i in places[modality])
            tracks[modality] = Track(path, frames, self._camera(modality).calibration)
        numbers = [color.numbers[i] if i >= 0 else -1 for i in places["color"]]
        valence, arousal = self._labels(folder / "labels.csv", at, account.labels)
        return Recording(
            name=row.recording,
            fps=fps,
            tracks=tracks,
            valence=valence,
            arousal=arousal,
            identity=row.subject,
            landmarks=_placed(read_landmarks(self._landmarks(row)), numbers) if self.has_landmarks else None,
            extra=dict(row.extra),
        )

    def _camera(self, modality: str) -> Camera:
        return self.cameras.get(modality, Camera())

    def _taken(self, folder: Path, modality: str, account: Account) -> tuple[Path, Taken] | None:
        """Where a camera's pictures of a recording are, and when each was taken; None if it has none.

        Raises:
            DataError: both a folder and a video, depth or heat that is no PNG or TIFF, or nothing that says
                when the pictures were taken.
        """
        videos = sorted(file for file in folder.glob(f"{modality}.*") if is_video(file.name))
        places = [place for place in (folder / modality, *videos) if place.exists()]
        if not places:
            return None
        if len(places) > 1:
            raise DataError(f"{folder}: both {places[0].name} and {places[1].name}; remove one of them")
        place, camera = places[0], self._camera(modality)
        frames: list[str | int]
        fps = camera.fps
        if place.is_dir():
            names = [name for name in FolderPictures(place).names() if is_picture(name)]
            frames = [*sorted(names, key=_natural)]
            odd = (
                [name for name in names if not name.lower().endswith(_PLANES)] if modality != "color" else []
            )
            if odd:
                raise DataError(f"{place}/{odd[0]}: not a 16-bit grey PNG or TIFF, as {modality} must be")
        else:
            facts = video_facts(place)
            frames, fps = [*range(check_length(facts.num_frames, str(place)))], fps or facts.fps
        if not frames:
            raise DataError(f"{place}: no pictures in it; remove the folder if there are none")
        table = folder / f"{modality}.csv"
        if table.is_file():
            taken, num_gone = read_taken(table, frames)
            account.pictures[f"{modality}: named but not there"] += num_gone
            account.pictures[f"{modality}: not in its table"] += len(frames) - len(set(taken.numbers))
            if not len(taken.seconds):
                raise DataError(f"{table}: names no picture of {place}")
            return place, taken
        if fps is None:
            raise DataError(
                f"{place}: nothing says when its pictures were taken: add {table.name} (file,seconds), or "
                f"fps of {modality} to {CAMERAS}"
            )
        return place, Taken(camera.start + np.arange(len(frames)) / fps, frames, range(len(frames)))

    def _labels(self, path: Path, at: Floats, ledger: Ledger) -> tuple[Floats, Floats]:
        """Valence and arousal at the times `at`; a recording without labels.csv has none.

        Raises:
            DataError: columns missing, or times that do not increase; names the line.
        """
        if not path.is_file():
            return np.full(len(at), np.nan), np.full(len(at), np.nan)
        rows = list(read_table(path, ("seconds", "valence", "arousal")))
        cells = [{column.lower(): cell for column, cell in row.cells.items()} for row in rows]
        lines = [row.where for row in rows]
        seconds = [number_in(c.get("seconds", ""), f"{line}: seconds") for c, line in zip(cells, lines)]
        times = check_times(seconds, lines)
        out = []
        for name in ("valence", "arousal"):
            found = [rating_in(c.get(name, ""), f"{line}: {name}", ledger) for c, line in zip(cells, lines)]
            series = Series(times, np.array([value for value, _ in found]), sum(bad for _, bad in found))
            out.append(to_frames(series, at, self.how, name, ledger))
        return out[0], out[1]

    def _look(self, found: list[tuple[str, Recording]]) -> None:
        """Warns of units that cannot be, and draws the overlays that were asked for."""
        reader = TrackReader()
        for _, recording in found:
            check_units(recording, reader)
            if self.overlay:
                path = Path(self.overlay).expanduser() / f"{recording.name}.png"
                if overlay_edges(recording, reader, path):
                    _LOG.info("%s: the edges of depth and thermal over colour", path)
                else:
                    _LOG.warning("%s: no overlay: no frame that all cameras have can be read", recording.name)
            reader.keep(set())


def _rate(seconds: Floats, folder: Path) -> float:
    """Pictures a second.

    Raises:
        DataError: there is only one, or they cannot be in seconds.
    """
    if len(seconds) < 2:
        raise DataError(f"{folder}: one colour picture is no video: remove it from {RECORDINGS}, or give fps")
    rate = round(1 / step_of(seconds), 3)
    if not 1 <= rate <= 1000:
        raise DataError(
            f"{folder}: its colour pictures come {rate:g} a second: their times must be in seconds; if they "
            "are, give fps"
        )
    return rate


def _placed(points: Mapping[int, Floats], numbers: Sequence[int]) -> Floats:
    """(N, 5, 2) landmarks of frames, by the number of the colour picture that each has; NaN without."""
    none = np.full((5, 2), np.nan)
    return np.stack([points.get(number, none) for number in numbers])


def _natural(name: str) -> list[tuple[int, str]]:
    """So that 10.png comes after 9.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
