"""Prediction files of the ABAW challenges, written in the order of the official list.

`pipelines.submission_check` has their forms, and what is written appears only when it finds no fault.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.predictions import Predictions
from pipelines.submission_check import (
    LSD6,
    LSD_HEADER,
    MTL_HEADER,
    Problem,
    check_lsd,
    check_mtl,
    check_names,
)
from pipelines.thresholds import Thresholds, apply_thresholds, fixed_thresholds
from shards.files import atomic_write, clear_disk_errors
from shards.labels import AU12, EXPR8, DataError
from shards.sources.tables import text_of

_SHOWN = 5


@dataclass(frozen=True)
class SubmissionReport:
    """What a written file is made of.

    Attributes:
        path: the file.
        num_rows: names on the official list.
        num_predicted: rows with a prediction of their own.
        num_nearest: rows that got those of the nearest predicted frame of their video.
        max_distance: largest distance among these, in frames.
        num_default: rows of videos without any prediction, which got `Defaults`.
        num_unused: predictions that are not on the list.
        notice: what else must be said; "" if nothing.
    """

    path: Path
    num_rows: int
    num_predicted: int
    num_nearest: int
    max_distance: int
    num_default: int
    num_unused: int
    notice: str = ""

    def __str__(self) -> str:
        parts = [f"{self.path}: {self.num_rows} rows, {self.num_predicted} predicted"]
        if self.num_nearest:
            parts.append(f"{self.num_nearest} from the nearest frame (at most {self.max_distance} away)")
        if self.num_default:
            parts.append(f"{self.num_default} of videos without predictions: mean and most frequent values")
        if self.num_unused:
            parts.append(f"{self.num_unused} predictions are not on the list")
        return "; ".join([*parts, *([self.notice] if self.notice else [])])


class _Sources(NamedTuple):
    """Where each row of the list is filled from: a row of the predictions, or −1 for none."""

    rows: NDArray[np.int64]
    num_predicted: int
    num_nearest: int
    max_distance: int


def read_names(path: Path) -> list[str]:
    """Names of an official list, in its order.

    One name a line, or the first of several fields (so that an annotation file serves too). The first line is
    a header, and left out, if its name has no extension (`.jpg`) and the second line's has one.

    Raises:
        DataError: not to be read, no names, or a name twice.
    """
    try:
        text = text_of(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot read the list ({error.strerror})") from error
    names = [line.split(",", 1)[0].strip() for line in text.split("\n") if line.strip()]
    if len(names) > 1 and not PurePosixPath(names[0]).suffix and PurePosixPath(names[1]).suffix:
        del names[0]
    check_names(names, str(path))
    return names


def write_mtl(
    path: Path,
    predictions: Predictions,
    names: Sequence[str],
    thresholds: Thresholds | None = None,
    header: str | None = MTL_HEADER,
) -> SubmissionReport:
    """Writes a file of the multi-task challenge and checks it before it appears at `path`.

    A name without a prediction of its own gets, where its video (all before the last `/`) has predictions,
    those of the nearest frame number (of two, the earlier); else the mean valence and arousal of all
    predictions, their most frequent class, and the units present in more than half of them.

    Args:
        path: file to write.
        predictions: with names as on the list and all three heads; classes and units may be in any order.
        names: the official list, see `read_names`.
        thresholds: of action units; None = .5.
        header: first line; None = none.

    Raises:
        DataError: a head, class or unit that is missing or foreign, no name in common with the list, a name
            predicted twice, a disk that cannot be written, or a file that fails `check_mtl`.
    """
    expr = _classes(predictions, EXPR8)
    if predictions.va_pred is None:
        raise DataError(
            "the predictions have no valence and arousal, which the multi-task challenge asks for"
        )
    lacking = [unit for unit in AU12 if unit not in predictions.au_names]
    if lacking:
        raise DataError(f"the predictions lack {', '.join(lacking)}, which the multi-task challenge asks for")
    decided = apply_thresholds(
        thresholds or fixed_thresholds(predictions.au_names), predictions, allow_tuned_split=True
    )
    au = decided.pred[:, [predictions.au_names.index(unit) for unit in AU12]]
    va = predictions.va_pred
    expr = np.append(expr, _most_frequent(expr))
    au = np.vstack([au, au.mean(0) > 0.5])
    va = np.vstack([va, va.mean(0)])
    sources = _sources(predictions, names)
    lines = [
        f"{name},{_decimal(va[row, 0])},{_decimal(va[row, 1])},{expr[row]},{','.join(map(str, au[row]))}"
        for name, row in zip(names, sources.rows.tolist())
    ]
    _write(path, lines, header, partial(check_mtl, names=names, header=header))
    return _report(path, predictions, names, sources, decided.notice)


def write_lsd(
    path: Path, predictions: Predictions, names: Sequence[str], header: str | None = LSD_HEADER
) -> SubmissionReport:
    """Writes a file of the synthetic-data challenge and checks it before it appears at `path`.

    Labels are places in `LSD6`. Names without a prediction are filled as by `write_mtl`.

    Args:
        As for `write_mtl`; the classes are those of `LSD6`.

    Raises:
        DataError: see `write_mtl`.
    """
    expr = _classes(predictions, LSD6)
    expr = np.append(expr, _most_frequent(expr))
    sources = _sources(predictions, names)
    lines = [f"{name},{expr[row]}" for name, row in zip(names, sources.rows.tolist())]
    _write(path, lines, header, partial(check_lsd, names=names, header=header))
    return _report(path, predictions, names, sources)


def _classes(predictions: Predictions, names: Sequence[str]) -> NDArray[np.int64]:
    """(N,) most probable class of each sample, as places in `names`."""
    if predictions.expr_probs is None:
        raise DataError("the predictions have no expressions (the run has no such head)")
    foreign = [name for name in predictions.expr_names if name not in names]
    if foreign:
        raise DataError(f"class {foreign[0]!r} is none of the challenge's: {', '.join(names)}")
    places = np.array([names.index(name) for name in predictions.expr_names], np.int64)
    best: NDArray[np.int64] = places[predictions.expr_probs.argmax(1)]
    return best


def _most_frequent(values: NDArray[np.int64]) -> int:
    return int(np.bincount(values).argmax())


def _decimal(value: float) -> str:
    """Six decimals, and no negative zero."""
    return f"{round(float(value), 6) + 0.0:.6f}"


def _video_and_frame(name: str) -> tuple[str, int | None]:
    """`video/00001.jpg` -> ("video", 1); None where the file's name is no number."""
    video, number = name.rpartition("/")[0], PurePosixPath(name).stem
    return video, int(number) if re.fullmatch(r"[0-9]{1,15}", number) else None


def _sources(predictions: Predictions, names: Sequence[str]) -> _Sources:
    """Finds for each name the prediction that fills its row, by the rule of `write_mtl`."""
    check_names(names, "the official list")
    row_of: dict[str, int] = {}
    for row, name in enumerate(predictions.name):
        if name and name in row_of:
            raise DataError(
                f"{name} is predicted twice: {predictions.keys[row_of[name]]}, {predictions.keys[row]}"
            )
        row_of[name] = row
    row_of.pop("", None)
    if not any(name in row_of for name in names):
        ours = next(iter(row_of), "(they carry no names)")
        raise DataError(
            f"no name of the official list is predicted: it has {names[0]!r}, the predictions {ours!r}"
        )
    frames = _frames_by_video(row_of)
    rows = np.full(len(names), -1, np.int64)
    num_predicted = num_nearest = max_distance = 0
    for i, name in enumerate(names):
        if name in row_of:
            rows[i] = row_of[name]
            num_predicted += 1
            continue
        video, frame = _video_and_frame(name)
        if frame is not None and frames.get(video):
            distance, _, rows[i] = min(_neighbours(frames[video], frame))
            max_distance = max(max_distance, distance)
            num_nearest += 1
    return _Sources(rows, num_predicted, num_nearest, max_distance)


def _frames_by_video(row_of: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """Video -> its predicted (frame, row), rising; names outside of a folder belong to no video."""
    frames: dict[str, list[tuple[int, int]]] = {}
    for name, row in row_of.items():
        video, frame = _video_and_frame(name)
        if video and frame is not None:
            frames.setdefault(video, []).append((frame, row))
    for found in frames.values():
        found.sort()
    return frames


def _neighbours(frames: list[tuple[int, int]], frame: int) -> Iterator[tuple[int, int, int]]:
    """(distance, frame, row) of the predicted frames before and after `frame`."""
    place = bisect_left(frames, (frame, -1))
    for number, row in frames[max(place - 1, 0) : place + 1]:
        yield abs(number - frame), number, row


def _report(
    path: Path, predictions: Predictions, names: Sequence[str], sources: _Sources, notice: str = ""
) -> SubmissionReport:
    return SubmissionReport(
        path=path,
        num_rows=len(names),
        num_predicted=sources.num_predicted,
        num_nearest=sources.num_nearest,
        max_distance=sources.max_distance,
        num_default=int((sources.rows < 0).sum()),
        num_unused=len(predictions) - sources.num_predicted,
        notice=notice,
    )


def _write(
    path: Path, lines: Iterable[str], header: str | None, check: Callable[[Path], list[Problem]]
) -> None:
    """Writes, checks what was written, and only then lets it appear."""
    text = "".join(line + "\n" for line in ([] if header is None else [header]) + list(lines))
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())
        file.flush()
        problems = check(Path(file.name))
        if problems:
            shown = "; ".join(map(str, problems[:_SHOWN]))
            raise DataError(f"{path}: not written, {len(problems)} problems: {shown}")
