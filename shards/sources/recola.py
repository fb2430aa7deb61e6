"""RECOLA: five minutes of each speaker, rated while watching; the public release and that of AVEC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
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
from shards.sources.series import (
    Series,
    check_resampling,
    check_times,
    columns_of,
    gold_standard,
    number_in,
    rating_in,
)
from shards.sources.tables import read_csv, text_of

PUBLIC_SPLITS: Mapping[str, tuple[int, ...]] = {
    "train": (17, 43, 30, 28, 46, 19, 41, 26, 62, 39, 25, 56),
    "val": (64, 48, 16, 58, 34, 45, 23),
    "test": (42, 65, 21, 37),
}
"""Participants of the public release: it has no official split, this one is in use."""

LAG_SECONDS = 2.6
"""Midway between the best delays reported for video, 2.8 s for arousal and 2.4 s for valence."""

_PUBLIC = "RECOLA-Annotation/emotional_behaviour"
_AVEC = "ratings_gold_standard"
_AVEC_SPLITS = {"train": "train", "dev": "val", "test": "test"}
_LAYOUT = (
    "SRC should hold RECOLA-Annotation/emotional_behaviour/{arousal,valence}/P16.csv … or "
    "ratings_gold_standard/{arousal,valence}/train_1.arff …, and the videos of the same names"
)


class Recola(RecordingSource):
    """Speakers in a video call (Ringeval et al. 2013), rated for valence and arousal every 40 ms.

    The public release has a table of several raters for each speaker: they become one gold standard, by
    AVEC's recipe (see `series.gold_standard`), recording by recording. That of AVEC has the gold standard;
    its test ratings were never released, so that `test` has no labels. `identity` and `group` are the
    recording's name: P16, train_1.
    """

    def __init__(
        self,
        path: Path,
        resample: str = "nearest",
        clip_frames: int = 1500,
        max_missing: float = 0.5,
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder of the release; videos may be at any depth.
            resample: how ratings come to frames: "nearest" (they have the video's own rate) or "linear".
            clip_frames: frames of a clip that a recording is cut into: 1500 are a minute. A lag takes that
                much of a clip's beginning from training, so short clips are a waste.
            max_missing: share of a clip's frames without a face above which it is left out, in [0, 1].
            max_unused: share of ratings that cannot be used above which it is an error, in [0, 1].
            allow_partial: accept that ratings of a split are absent, or videos of rated recordings.

        Raises:
            DataError: neither layout, or an option out of its range.
        """
        check_folder(path, _LAYOUT)
        check_clip_options(clip_frames, max_missing, max_unused)
        check_resampling(resample)
        self.path, self.how, self.allow_partial = path, resample, allow_partial
        self.clip_frames, self.max_missing, self.max_unused = clip_frames, max_missing, max_unused
        places = [p for name in (_PUBLIC, _AVEC) for p in (path / name, *sorted(path.glob(f"*/{name}")))]
        folders = [place for place in places if place.is_dir()]
        if not folders:
            raise DataError(f"{path}: no ratings there; {_LAYOUT}")
        if len(folders) > 1:
            raise DataError(f"{path}: holds {folders[0]} and {folders[1]}: give one release")
        self.ratings = folders[0]
        self.is_public = self.ratings.name != _AVEC

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "RECOLA",
            "RECOLA end-user licence: academic, non-commercial research only, no redistribution",
            kind="clips",
            label_space=VA_ALONE,
            settings=self._listing.settings,
        )

    @cached_property
    def _listing(self) -> Listing:
        accounts = {split: Account(f"RECOLA ({split})") for split in SPLITS}
        videos = find_videos(self.path)
        recordings = list(self._recordings(videos, accounts))
        if not recordings:
            raise DataError(f"{self.path}: no video of a rated recording; {_LAYOUT}")
        settings = {
            "source": "recola",
            "release": "public" if self.is_public else "AVEC",
            "gold_standard": "AVEC 2016, by recording" if self.is_public else "as released",
            "resample": self.how,
            "lag_seconds": LAG_SECONDS,
        }
        return list_clips(recordings, accounts, self.clip_frames, self.max_unused, settings)

    def _recordings(
        self, videos: Mapping[str, Path], accounts: Mapping[str, Account]
    ) -> Iterator[tuple[str, Recording]]:
        for split, name in self._names(videos, accounts):
            files = {
                dimension: self.ratings / dimension / f"{name}.{'csv' if self.is_public else 'arff'}"
                for dimension in DIMENSIONS
            }
            absent = [path for path in files.values() if not path.is_file()]
            if split == "test" and not self.is_public and len(absent) == len(files):
                files = {}  # never released
            elif absent:
                if self.allow_partial:
                    accounts[split].labels.drop("recordings without ratings")
                    continue
                raise DataError(
                    f"{absent[0]}: no such file, though {name} is of the {split} split; fetch it, or use "
                    "what is there with allow_partial=true"
                )
            if name not in videos:
                if self.allow_partial:
                    accounts[split].labels.drop("recordings without a video")
                    continue
                raise DataError(
                    f"{self.path}: no video {name}.mp4 at any depth, though it is rated; fetch it, or use "
                    "what is there with allow_partial=true"
                )
            read = read_raters if self.is_public else read_arff
            ledger = accounts[split].labels
            series = {dimension: read(path, ledger) for dimension, path in files.items()}
            yield split, rated_video(name, videos[name], series, self.how, ledger, name)

    def _names(self, videos: Mapping[str, Path], accounts: Mapping[str, Account]) -> list[tuple[str, str]]:
        """(split, name) of every recording there should be."""
        if self.is_public:
            known = [(split, f"P{n}") for split, numbers in PUBLIC_SPLITS.items() for n in numbers]
            rated = {file.stem for name in DIMENSIONS for file in (self.ratings / name).glob("*.csv")}
            self._drop_others(rated - {name for _, name in known}, accounts)
            return known
        names = {file.stem for name in DIMENSIONS for file in (self.ratings / name).glob("*.arff")}
        names |= {name for name in videos if name.startswith("test_")}
        found = [(_AVEC_SPLITS.get(name.partition("_")[0]), name) for name in sorted(names, key=by_number)]
        self._drop_others({name for split, name in found if split is None}, accounts)
        return [(split, name) for split, name in found if split is not None]

    def _drop_others(self, names: Set[str], accounts: Mapping[str, Account]) -> None:
        if names:
            accounts["train"].labels.drop(f"recordings in no split ({', '.join(sorted(names))})", len(names))


def by_number(name: str) -> tuple[str, int, str]:
    """So that train_10 comes after train_9."""
    head, _, tail = name.rpartition("_")
    return (head, int(tail), "") if tail.isdecimal() else (name, 0, "")


def read_raters(path: Path, ledger: Ledger) -> Series:
    """The gold standard of a table `time;FM1 ;FM2 ;…`, a column for each rater, blanks allowed.

    Raises:
        DataError: no column `time`, no rater, or times that do not increase; names the line.
    """
    where = f"{path.parent.name}/{path.name}"
    rows = list(read_csv(path.read_bytes(), where))
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    (time,) = columns_of(columns, ("time",), f"{where} line 1")
    raters = [column for column in columns if column != time]
    if not raters:
        raise DataError(f"{where} line 1: no column of a rater beside {time!r}; it should be time;FM1;FM2;…")
    seconds = [number_in(row.cells.get(time, ""), f"{row.where}: {time}") for row in rows]
    times = check_times(seconds, [row.where for row in rows])
    ratings = [
        [rating_in(row.cells.get(rater, ""), f"{row.where}: {rater}", ledger)[0] for rater in raters]
        for row in rows
    ]
    return Series(times, gold_standard(np.array(ratings, np.float64)))


def read_arff(path: Path, ledger: Ledger) -> Series:
    """The last attribute of an arff, over the one whose name has "time" in it.

    Raises:
        DataError: no @data, no such attributes, a row with another number of cells, or times that do not
            increase; names the line.
    """
    where = f"{path.parent.name}/{path.name}"
    attributes: list[str] = []
    rows: list[tuple[str, Sequence[str]]] = []
    in_data = False
    for number, line in enumerate(text_of(path.read_bytes(), where).splitlines(), start=1):
        text, at = line.strip(), f"{where} line {number}"
        if not text or text.startswith("%"):
            continue
        if in_data:
            cells = [cell.strip() for cell in text.split(",")]
            if len(cells) != len(attributes):
                raise DataError(f"{at}: {len(cells)} cells for {len(attributes)} attributes; fetch it again")
            rows.append((at, cells))
        elif text.lower().startswith("@attribute"):
            attributes.append([*text.split(None, 2), "", ""][1].strip("'\""))
        in_data = in_data or text.lower().startswith("@data")
    times = [i for i, name in enumerate(attributes) if "time" in name.lower()]
    if not in_data or not times or times[0] == len(attributes) - 1:
        shown = ", ".join(attributes) or "none"
        raise DataError(
            f"{where}: should be an arff with a time, a rating as the last attribute, and @data; its "
            f"attributes: {shown}"
        )
    seconds = [number_in(cells[times[0]], f"{at}: {attributes[times[0]]}") for at, cells in rows]
    found = [rating_in(cells[-1].replace("?", ""), f"{at}: {attributes[-1]}", ledger) for at, cells in rows]
    return Series(
        check_times(seconds, [at for at, _ in rows]),
        np.array([value for value, _ in found]),
        sum(bad for _, bad in found),
    )
