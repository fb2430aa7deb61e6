"""SEWA: people before their own web cameras, rated for valence and arousal; AVEC's part and the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.labels import DataError
from shards.records import SPLITS, SourceInfo
from shards.sources.listing import Ledger, Listing, check_folder
from shards.sources.ratedvideos import DIMENSIONS, find_videos, rated_video
from shards.sources.recordings import (
    VA_ALONE,
    Account,
    Recording,
    RecordingSource,
    check_clip_options,
    list_clips,
)
from shards.sources.series import Series, check_resampling, check_times, columns_of, number_in, rating_in
from shards.sources.splits import check_fraction, keyed_split
from shards.sources.tables import text_of
from shards.sources.video import video_facts

LAG_SECONDS = 2.0
"""The best delay reported for video."""

_AVEC_SPLITS = {"Train": "train", "Devel": "val", "Dev": "val", "Test": "test"}
_AVEC_COLUMNS = ("name", "time", "arousal", "valence", "liking")
_FULL = {"valence": "_Valence_A_Aligned.csv", "arousal": "_Arousal_A_Aligned.csv"}
_LAYOUT = (
    "SRC should hold labels/Train_DE_01.csv … or CLIP/valence/CLIP_Valence_A_Aligned.csv and "
    "CLIP/arousal/CLIP_Arousal_A_Aligned.csv, and the videos of the same names"
)


class Sewa(RecordingSource):
    """Web-camera recordings of six cultures (Kossaifi et al. 2019), rated continuously.

    AVEC's part has a table for each recording, every 0.1 s, and splits in its names (Train, Devel, Test; the
    test ratings were never released). The full release has a file for each recording and dimension: a
    column of times and one or more of ratings (their mean is taken), or a single column, a row for each frame
    of the video. It has no split: a hash of the subject chooses. `group` is the recording.
    """

    def __init__(
        self,
        path: Path,
        resample: str = "linear",
        scale: float = 1.0,
        val_fraction: float = 0.2,
        clip_frames: int = 1500,
        max_missing: float = 0.5,
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder of the release; ratings and videos may be at any depth.
            resample: how ratings come to frames: "linear" or "nearest".
            scale: what stands for 1 in the full release's ratings.
            val_fraction: of the full release: share of subjects that a hash puts into `val`, in [0, 1). The
                subject is the recording's name up to the first `_`.
            clip_frames: frames of a clip that a recording is cut into. A lag takes that much of a clip's
                beginning from training, so short clips are a waste.
            max_missing: share of a clip's frames without a face above which it is left out, in [0, 1].
            max_unused: share of ratings that cannot be used above which it is an error, in [0, 1].
            allow_partial: leave out rated recordings whose video, or other dimension, is not there.

        Raises:
            DataError: neither layout, or an option out of its range.
        """
        check_folder(path, _LAYOUT)
        check_clip_options(clip_frames, max_missing, max_unused)
        check_resampling(resample)
        check_fraction(val_fraction)
        if not 0 < scale < 1e6:
            raise DataError(f"scale={scale:g}: must be above 0")
        self.path, self.how, self.scale, self.val_fraction = path, resample, scale, val_fraction
        self.clip_frames, self.max_missing, self.max_unused = clip_frames, max_missing, max_unused
        self.allow_partial = allow_partial
        files = sorted(path.rglob("*.csv"))
        self.full = {
            name: _by_name((file for file in files if file.name.endswith(ending)), ending)
            for name, ending in _FULL.items()
        }
        self.avec = _by_name(
            (f for f in files if f.parent.name == "labels" and f.name.partition("_")[0] in _AVEC_SPLITS),
            ".csv",
        )
        of_full = [file for named in self.full.values() for file in named.values()]
        if not of_full and not self.avec:
            raise DataError(f"{path}: no ratings there; {_LAYOUT}")
        if of_full and self.avec:
            first = next(iter(self.avec.values()))
            raise DataError(f"{path}: holds {first.name} and {of_full[0].name}: give one release")

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "SEWA",
            "SEWA end-user licence: academic, non-commercial research only, no redistribution",
            kind="clips",
            label_space=VA_ALONE,
            settings=self._listing.settings,
        )

    @cached_property
    def _listing(self) -> Listing:
        accounts = {split: Account(f"SEWA ({split})") for split in SPLITS}
        videos = find_videos(self.path)
        found = self._of_avec(videos, accounts) if self.avec else self._of_full(videos, accounts)
        recordings = list(found)
        if not recordings:
            raise DataError(f"{self.path}: no video of a rated recording; {_LAYOUT}")
        settings = {
            "source": "sewa",
            "release": "AVEC" if self.avec else "full",
            "resample": self.how,
            "scale": self.scale,
            "lag_seconds": LAG_SECONDS,
        }
        return list_clips(recordings, accounts, self.clip_frames, self.max_unused, settings)

    def _of_avec(
        self, videos: Mapping[str, Path], accounts: Mapping[str, Account]
    ) -> Iterator[tuple[str, Recording]]:
        unrated = [name for name in videos if name.partition("_")[0] == "Test" and name not in self.avec]
        for name in sorted([*self.avec, *unrated]):
            split = _AVEC_SPLITS[name.partition("_")[0]]
            ledger = accounts[split].labels
            if self._has_video(name, videos, ledger):
                series = read_avec(self.avec[name], ledger) if name in self.avec else {}
                culture = name.split("_")[1] if name.count("_") > 1 else ""
                extra = {"culture": culture} if culture else {}
                yield split, rated_video(name, videos[name], series, self.how, ledger, name, extra)

    def _of_full(
        self, videos: Mapping[str, Path], accounts: Mapping[str, Account]
    ) -> Iterator[tuple[str, Recording]]:
        for name in sorted({name for named in self.full.values() for name in named}):
            subject = name.partition("_")[0]
            split = keyed_split(subject, self.val_fraction)
            ledger = accounts[split].labels
            files = {d: named[name] for d, named in self.full.items() if name in named}
            absent = [d for d in DIMENSIONS if d not in files]
            if absent and not self.allow_partial:
                raise DataError(
                    f"{self.path}: no {name}{_FULL[absent[0]]} at any depth, though {name} has the other; "
                    "fetch it, or use what is there with allow_partial=true"
                )
            if absent:
                ledger.drop(f"recordings without {absent[0]}")
                continue
            if not self._has_video(name, videos, ledger):
                continue
            fps = video_facts(videos[name]).fps
            series = {d: read_aligned(file, fps, self.scale, ledger) for d, file in files.items()}
            yield split, rated_video(name, videos[name], series, self.how, ledger, subject)

    def _has_video(self, name: str, videos: Mapping[str, Path], ledger: Ledger) -> bool:
        """
        Raises:
            DataError: it has none, and everything should be there.
        """
        if name not in videos and not self.allow_partial:
            raise DataError(
                f"{self.path}: no video {name}.avi (or .mp4 …) at any depth, though it is rated; fetch it, "
                "or use what is there with allow_partial=true"
            )
        if name not in videos:
            ledger.drop("recordings without a video")
        return name in videos


def _by_name(files: Iterable[Path], ending: str) -> dict[str, Path]:
    """Name of the recording -> file.

    Raises:
        DataError: two of one name.
    """
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(file.name.removesuffix(ending), file)
        if other != file:
            raise DataError(f"{other} and {file} have one name; remove one of them")
    return found


def read_avec(path: Path, ledger: Ledger) -> dict[str, Series]:
    """Valence and arousal of a table `name;time;arousal;valence[;liking]`, with or without this header.

    Raises:
        DataError: other separators or columns, or times that do not increase; names the line.
    """
    lines = [(at, cells) for at, cells in _cells(path, ";") if any(cells)]
    where, first = lines[0]
    names = [cell.strip("'\" ").lower() for cell in first]
    if "arousal" in names:
        lines = lines[1:]
        names = ["time" if name in ("timestamp", "frametime") else name for name in names]
    else:
        names = list(_AVEC_COLUMNS[: len(first)])
    columns_of(names, ("time", *DIMENSIONS), where)
    for at, cells in lines:
        if len(cells) != len(names):
            raise DataError(f"{at}: {len(cells)} cells instead of {len(names)}: should be {';'.join(names)}")
    time = names.index("time")
    times = check_times([number_in(c[time], f"{at}: time") for at, c in lines], [at for at, _ in lines])
    out = {}
    for name in DIMENSIONS:
        found = [rating_in(c[names.index(name)], f"{at}: {name}", ledger) for at, c in lines]
        out[name] = Series(times, np.array([v for v, _ in found]), sum(bad for _, bad in found))
    return out


def read_aligned(path: Path, fps: float, scale: float, ledger: Ledger) -> Series:
    """A file of the full release: time and ratings, or a single column with a row for each frame.

    In a single column an empty row is a frame without a rating; beside times it is passed over.

    Args:
        path: of the file; comma, semicolon or tab between columns, a header or none.
        fps: of the video, for a single column.
        scale: what stands for 1.
        ledger: of labels.

    Raises:
        DataError: rows of different lengths, or times that do not increase; names the line.
    """
    head = next((line for line in text_of(path.read_bytes(), path.name).splitlines() if line.strip()), "")
    lines = _cells(path, max(",;\t", key=head.count))
    try:
        number_in(lines[0][1][0], "")
    except DataError:
        lines = lines[1:]  # a header
    if not lines:
        raise DataError(f"{path}: has no row; fetch it again")
    width = max(len(cells) for _, cells in lines)
    if width > 1:
        lines = [(at, cells) for at, cells in lines if any(cells)]
    for at, cells in lines:
        if len(cells) != width:
            raise DataError(f"{at}: {len(cells)} cells instead of {width}; fetch it again")
    rated = [
        [rating_in(cell, at, ledger, scale) for cell in (cells if width == 1 else cells[1:])]
        for at, cells in lines
    ]
    values = np.array([[value for value, _ in row] for row in rated])
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1)
    if width == 1:
        times = np.arange(len(lines)) / fps
    else:
        times = check_times([number_in(c[0], f"{at}: time") for at, c in lines], [at for at, _ in lines])
    spoilt = sum(any(bad for _, bad in row) for row, some in zip(rated, known.any(1)) if not some)
    return Series(times, np.where(known.any(1), mean, np.nan), spoilt)


def _cells(path: Path, delimiter: str) -> list[tuple[str, list[str]]]:
    """(file and line, cells) of each line from the first to the last that is not empty.

    Empty cells beyond those of the first line are left away.

    Raises:
        DataError: nothing in it, or not UTF-8.
    """
    out: list[tuple[str, list[str]]] = []
    for number, line in enumerate(text_of(path.read_bytes(), path.name).splitlines(), start=1):
        cells = [cell.strip() for cell in line.split(delimiter)]
        while len(cells) > (len(out[0][1]) if out else 1) and not cells[-1]:
            cells.pop()
        if out or any(cells):
            out.append((f"{path.name} line {number}", cells))
    while out and not any(out[-1][1]):
        out.pop()
    if not out:
        raise DataError(f"{path}: empty; fetch it again")
    return out
