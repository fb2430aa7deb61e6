"""AFEW-VA: clips of films, each frame with valence, arousal and 68 landmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.labels import DataError, ReadError
from shards.records import SourceInfo
from shards.sources.affectnet import five_points
from shards.sources.listing import Ledger, Listing, check_total
from shards.sources.pictures import is_picture, open_pictures
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
from shards.sources.series import rating_in
from shards.sources.splits import check_fold, fold_split
from shards.sources.tables import text_of

KNOWN = 600
SCALE = 10.0
"""Valence and arousal are from −10 to 10."""

LAG_SECONDS = 0.0
"""Frames were annotated one by one, not while the film ran: nothing lags."""

_LAYOUT = "SRC should hold NNN/NNN.json with NNN/00000.png …, or PP/NNN/…, as the twelve zips unpack"


class AfewVA(RecordingSource):
    """600 short clips of films (Kossaifi et al. 2017), each frame labelled and landmarked.

    Labels become value / 10. `identity` is the actor, `group` the clip. The authors give no split: the actors
    are dealt to `num_folds` parts by a hash of their name, and part `fold` is `val`.
    """

    def __init__(
        self,
        path: Path,
        fps: float = 25.0,
        num_folds: int = 5,
        fold: int = 1,
        landmarks: bool = True,
        clip_frames: int = 600,
        max_missing: float = 0.5,
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: a folder or zip that holds NNN/NNN.json and NNN/00000.png …, at any depth.
            fps: frames a second: the data set does not say.
            num_folds: parts that the actors are dealt to.
            fold: the part that is `val`, from 1.
            landmarks: align by the data set's landmarks; if not, faces are detected.
            clip_frames: longer clips are cut into pieces of this many frames (none is longer).
            max_missing: share of a clip's frames without a usable face above which it is left out, in [0, 1].
            max_unused: share of frames without a picture, or of labels that cannot be used, above which it is
                an error, in [0, 1].
            allow_partial: accept another number of clips than there should be.

        Raises:
            DataError: nothing there, or an option out of its range.
        """
        check_clip_options(clip_frames, max_missing, max_unused)
        check_fold(num_folds, fold)
        if not 1 <= fps <= 1000:
            raise DataError(f"fps={fps:g}: must be from 1 to 1000")
        self.pictures = open_pictures(path)
        self.fps, self.num_folds, self.fold, self.has_landmarks = fps, num_folds, fold, landmarks
        self.clip_frames, self.max_missing, self.max_unused = clip_frames, max_missing, max_unused
        self.allow_partial = allow_partial

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "AFEW-VA",
            "AFEW-VA: academic, non-commercial research only, no redistribution",
            kind="clips",
            label_space=VA_ALONE,
            settings=self._listing.settings,
        )

    @cached_property
    def _listing(self) -> Listing:
        accounts = {split: Account(f"AFEW-VA ({split})") for split in ("train", "val")}
        recordings = [
            (split, recording)
            for name, files in self._folders().items()
            for split, recording in [self._recording(name, files, accounts)]
        ]
        if not recordings:
            raise DataError(f"{self.pictures.path}: no clip there; {_LAYOUT}")
        check_total(str(self.pictures.path), len(recordings), KNOWN, 0, self.allow_partial, "clips")
        settings = {
            "source": "afewva",
            "fps": self.fps,
            "num_folds": self.num_folds,
            "fold": self.fold,
            "landmarks": self.has_landmarks,
            "lag_seconds": LAG_SECONDS,
        }
        return list_clips(recordings, accounts, self.clip_frames, self.max_unused, settings)

    def _folders(self) -> dict[str, dict[int, str]]:
        """JSON file -> number -> picture beside it, sorted by the name of the clip.

        Raises:
            DataError: two clips of one name, or two pictures of one number.
        """
        beside: dict[str, dict[int, str]] = {}
        jsons: dict[str, str] = {}
        for file in self.pictures.names():
            folder, _, last = file.rpartition("/")
            stem = last.rpartition(".")[0]
            if last.lower().endswith(".json") and stem == folder.rpartition("/")[2]:
                if stem in jsons:
                    raise DataError(
                        f"{self.pictures.path}: {jsons[stem]} and {file} are both clip {stem}; remove one"
                    )
                jsons[stem] = file
            elif is_picture(last) and stem.isascii() and stem.isdecimal():
                other = beside.setdefault(folder, {}).setdefault(int(stem), file)
                if other != file:
                    raise DataError(
                        f"{self.pictures.path}: {other} and {file} are both frame {int(stem)}; remove one"
                    )
        return {file: beside.get(file.rpartition("/")[0], {}) for _, file in sorted(jsons.items())}

    def _recording(
        self, file: str, files: Mapping[int, str], accounts: Mapping[str, Account]
    ) -> tuple[str, Recording]:
        """One clip and its split.

        Raises:
            DataError: its JSON cannot be read, or is not of this data set.
        """
        where = f"{self.pictures.path}/{file}"
        try:
            content = json.loads(text_of(self.pictures.read(file), where))
            actor, frames = str(content["actor"]), dict(content["frames"])
            numbers = [int(number) for number in frames]
            split = fold_split(actor, self.num_folds, self.fold)
        except ReadError as error:
            raise DataError(f"{where}: {error}; mend it and run this again") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"{where}: not a clip's JSON with actor and frames ({type(error).__name__}: {error!s:.80}); "
                "fetch it again"
            ) from None
        if not numbers or min(numbers) < 0:
            raise DataError(f"{where}: frames must be numbered from 0, and there must be one; fetch it again")
        if len(set(numbers)) < len(numbers):
            raise DataError(f"{where}: has a frame twice; fetch it again")
        count = check_length(max([*numbers, *files]) + 1, where)
        va, points = np.full((2, count), np.nan), np.full((count, 5, 2), np.nan)
        ledger = accounts[split].labels
        for number, frame in zip(numbers, frames.values()):
            at = f"{file} frame {number:05d}"
            if not isinstance(frame, dict):
                ledger.refuse("invalid", f"{at}: {frame!r:.40} is not an object")
                continue
            va[:, number] = [_rating(frame, name, at, ledger) for name in ("valence", "arousal")]
            if self.has_landmarks:
                points[number] = _points(frame, at, ledger)
        name = file.rpartition("/")[2].removesuffix(".json")
        return split, Recording(
            name=name,
            fps=self.fps,
            tracks=plain_track(self.pictures.path, [files.get(number) for number in range(count)]),
            valence=va[0],
            arousal=va[1],
            identity=actor,
            landmarks=points if self.has_landmarks else None,
        )


def _rating(frame: Mapping[str, Any], name: str, where: str, ledger: Ledger) -> float:
    """Valence or arousal of a frame in [−1, 1], or NaN; the ledger has it."""
    value = frame.get(name)
    found, invalid = rating_in("" if value is None else str(value), f"{where}: {name}", ledger, SCALE)
    if np.isfinite(found):
        ledger.use_many(1, {name: 1})
    elif not invalid:
        ledger.drop("missing")
    return found


def _points(frame: Mapping[str, Any], where: str, ledger: Ledger) -> NDArray[np.float64]:
    """(5, 2), NaN where the frame has no landmarks or none that can be used."""
    landmarks = frame.get("landmarks")
    if landmarks:
        try:
            return five_points(np.array(landmarks, dtype=object), f"{where}: landmarks")
        except (DataError, ValueError, OverflowError) as error:
            ledger.refuse("bad landmarks", str(error))
    return np.full((5, 2), np.nan)
