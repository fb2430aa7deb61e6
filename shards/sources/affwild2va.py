"""Aff-Wild2's videos, valence and arousal of every frame: as cut-out frames, or as videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.labels import DataError
from shards.records import SourceInfo
from shards.sources.listing import Ledger, Listing, check_folder, find_pictures
from shards.sources.pictures import is_picture
from shards.sources.ratedvideos import DIMENSIONS, find_videos
from shards.sources.recordings import (
    VA_ALONE,
    Account,
    Recording,
    RecordingSource,
    check_clip_options,
    check_length,
    list_clips,
    plain_track,
)
from shards.sources.series import Floats, rating_in
from shards.sources.splits import split_named
from shards.sources.tables import text_of
from shards.sources.tracks import Track
from shards.sources.video import video_facts
from shards.template import TEMPLATE, TEMPLATE_NAME

HEADER = "valence,arousal"

LAG_SECONDS = 0.0
"""The annotators could go back and correct; no lag is known."""

_MISSING = (-5.0,)
_SIDES = {"_left": "left", "_right": "right"}
_OTHER = {"_left": "right", "_right": "left"}
_LAYOUT = (
    "SRC should hold VA_Estimation_Challenge/Train_Set/*.txt and …/Validation_Set/*.txt, and "
    "cropped_aligned/VIDEO/00001.jpg or the videos"
)


class AffWild2VA(RecordingSource):
    """In-the-wild videos (Kollias and Zafeiriou 2019), a text file of `valence,arousal` for each person.

    Line n + 1 of a file is frame n, 00001.jpg being frame 1. −5 means missing. A name with `_left` or
    `_right` is about that one of two people; it is `identity` and `group`, `extra.video` is it without.
    """

    def __init__(
        self,
        path: Path,
        annotations: str = "",
        images: str = "",
        videos: bool = False,
        fps: float = 30.0,
        clip_frames: int = 600,
        max_missing: float = 0.5,
        max_unused: float = 0.05,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder with annotations and pictures or videos.
            annotations: the folder that holds Train_Set and Validation_Set; by default the only
                VA_Estimation_Challenge (or VA_Set) at any depth, or `path`.
            images: folder or zip of the cut-out frames; by default cropped_aligned or cropped_aligned.zip.
            videos: read the videos, at any depth below `path`, and cut the faces out anew.
            fps: of the cut-out frames, which do not say; videos say it.
            clip_frames: frames of a clip that a recording is cut into.
            max_missing: share of a clip's frames without a picture above which it is left out, in [0, 1].
            max_unused: share of a split's frames without a picture (no face was found in them), or of labels
                that cannot be used, above which it is an error, in [0, 1].
            allow_partial: leave out annotated videos that are not there, or a whole split.

        Raises:
            DataError: annotations or pictures are not where they should be, or an option out of its range.
        """
        check_folder(path, _LAYOUT)
        check_clip_options(clip_frames, max_missing, max_unused)
        if not 1 <= fps <= 1000:
            raise DataError(f"fps={fps:g}: must be from 1 to 1000")
        self.path, self.fps, self.allow_partial = path, fps, allow_partial
        self.clip_frames, self.max_missing, self.max_unused = clip_frames, max_missing, max_unused
        self.tables = self._find_tables(annotations)
        self.pictures = None if videos else find_pictures(path, ("cropped_aligned",), "images", images)
        if self.pictures is None and not videos:
            raise DataError(
                f"{path}: no cropped_aligned or cropped_aligned.zip; {_LAYOUT} (with videos=true)"
            )

    def _find_tables(self, annotations: str) -> dict[str, list[Path]]:
        """Split -> its text files, sorted."""
        if annotations:
            places = [p for p in (Path(annotations).expanduser(), self.path / annotations) if p.is_dir()]
            if not places:
                raise DataError(
                    f"annotations={annotations}: no such folder, neither by itself nor in {self.path}"
                )
        else:
            names = ("VA_Estimation_Challenge", "VA_Set")
            found = [place for name in names for place in sorted(self.path.rglob(name)) if place.is_dir()]
            if len(found) > 1:
                raise DataError(f"{found[0]} and {found[1]}: give the one to be read with annotations=…")
            places = [*found, self.path]
        place = places[0]
        tables = {
            split: sorted(folder.glob("*.txt"))
            for folder in sorted(place.iterdir())
            if folder.is_dir() and (split := split_named(folder.name.removesuffix("_Set"))) is not None
        }
        absent = [split for split in ("train", "val") if not tables.get(split)]
        if len(absent) == 2 or (absent and not self.allow_partial):
            folder = "Train_Set" if absent[0] == "train" else "Validation_Set"
            raise DataError(f"{place}: no text files in {folder}/; {_LAYOUT}")
        return {split: files for split, files in tables.items() if files}

    @property
    def info(self) -> SourceInfo:
        made = {
            "made_by": "Aff-Wild2: cropped_aligned",
            "margin": 0.0,
            "template": TEMPLATE_NAME,
            "points": TEMPLATE.tolist(),
            "transform": "similarity",
        }
        return SourceInfo(
            "Aff-Wild2 VA",
            "Aff-Wild2 end-user licence: academic, non-commercial research only, no redistribution",
            kind="clips",
            label_space=VA_ALONE,
            alignment={} if self.pictures is None else made,
            settings=self._listing.settings,
        )

    @cached_property
    def _listing(self) -> Listing:
        accounts = {split: Account(f"Aff-Wild2 VA ({split})") for split in self.tables}
        recordings = list(self._recordings(accounts))
        if not recordings:
            raise DataError(f"{self.path}: no picture or video of an annotated name; {_LAYOUT}")
        settings = {
            "source": "affwild2va",
            "from": "videos" if self.pictures is None else "cropped_aligned",
            "fps": self.fps,
            "lag_seconds": LAG_SECONDS,
        }
        return list_clips(recordings, accounts, self.clip_frames, self.max_unused, settings)

    def _recordings(self, accounts: Mapping[str, Account]) -> Iterator[tuple[str, Recording]]:
        names = {file.stem for files in self.tables.values() for file in files}
        folders = self._frames()
        videos = find_videos(self.path) if self.pictures is None else {}
        for split, files in self.tables.items():
            for file in files:
                name = file.stem
                side, video = _whom(name, names)
                if name not in folders and name not in videos and video not in videos:
                    if self.allow_partial:
                        accounts[split].labels.drop("of a video that is not there")
                        continue
                    what = f"folder {name} of frames" if self.pictures is not None else f"video {video}"
                    raise DataError(
                        f"{self.path}: no {what}, though {file.name} annotates it; fetch it, or use what is "
                        "there with allow_partial=true"
                    )
                va = read_va(file, accounts[split].labels)
                if self.pictures is not None:
                    tracks = self._cut_out(folders[name], len(va))
                    fps = self.fps
                else:
                    path = videos.get(name, videos.get(video))
                    assert path is not None
                    facts = video_facts(path)
                    tracks = plain_track(path, range(check_length(facts.num_frames, str(path))))
                    fps = facts.fps
                count = len(tracks["color"].frames)
                held = np.full((count, 2), np.nan)
                held[: len(va)] = va[:count]
                _account(held, va[count:], accounts[split].labels)
                yield (
                    split,
                    Recording(
                        name=name,
                        fps=fps,
                        tracks=tracks,
                        valence=held[:, 0],
                        arousal=held[:, 1],
                        identity=name,
                        side=side if self.pictures is None else "",
                        extra={"video": video},
                    ),
                )

    def _frames(self) -> dict[str, dict[int, str]]:
        """Folder -> number of the frame -> picture.

        Raises:
            DataError: two pictures of one number in folders of one name.
        """
        folders: dict[str, dict[int, str]] = {}
        for name in self.pictures.names() if self.pictures is not None else ():
            folder, _, file = name.rpartition("/")
            stem = file.rpartition(".")[0]
            if is_picture(file) and stem.isascii() and stem.isdecimal():
                other = folders.setdefault(folder.rpartition("/")[2], {}).setdefault(int(stem), name)
                if other != name:
                    raise DataError(f"{other} and {name} are both frame {int(stem)} of one video; remove one")
        return folders

    def _cut_out(self, files: Mapping[int, str], num_labels: int) -> dict[str, Track]:
        """Frames from 1 to the last that has a label or a picture."""
        assert self.pictures is not None
        count = check_length(max([num_labels, *files]), str(self.pictures.path))
        return plain_track(self.pictures.path, [files.get(number) for number in range(1, count + 1)])


def _account(held: Floats, beyond: Floats, ledger: Ledger) -> None:
    """Counts labels: `held` (N, 2) by frames, `beyond` (M, 2) after the last of them."""
    counts = np.isfinite(held).sum(0).tolist()
    ledger.use_many(sum(counts), dict(zip(DIMENSIONS, counts)))
    ledger.drop("after the last frame", int(np.isfinite(beyond).sum()))


def _whom(name: str, names: set[str]) -> tuple[str, str]:
    """Which of two people a name is about ("" if there is one), and the video's name."""
    for ending, side in _SIDES.items():
        if name.endswith(ending):
            return side, name.removesuffix(ending)
    # A name without an ending is the other one, where only one of two people has one.
    endings = [ending for ending in _SIDES if name + ending in names]
    return (_OTHER[endings[0]] if len(endings) == 1 else ""), name


def read_va(path: Path, ledger: Ledger) -> Floats:
    """(N, 2) valence and arousal of each frame in [−1, 1], NaN where missing (−5) or unusable.

    The ledger gets these two; what is used is known where the frames are.

    Raises:
        DataError: another header, or a line with another number of values; names the line.
    """
    lines = text_of(path.read_bytes(), path.name).rstrip().splitlines()
    head = lines[0].replace(" ", "").lower() if lines else ""
    if head != HEADER:
        raise DataError(f"{path.name} line 1: expected the header {HEADER}, got {head!r:.60}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells, at = line.split(","), f"{path.name} line {number}"
        if len(cells) != 2:
            raise DataError(f"{at}: should be valence,arousal, got {line!r:.60}; fetch the file again")
        found = [
            rating_in(cell, f"{at}: {name}", ledger, 1.0, _MISSING) for cell, name in zip(cells, DIMENSIONS)
        ]
        ledger.drop("missing", sum(np.isnan(value) and not bad for value, bad in found))
        rows.append([value for value, _ in found])
    return np.array(rows, np.float64).reshape(-1, 2)
