"""Pictures of video: curves over time, attention over faces, film strips. Plain values in, PNG bytes out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from finetune.metrics import ccc
from pipelines.predictions import Predictions
from pipelines.smoothing import videos_of

FEW = 12
"""Up to so many recordings are all drawn; of more, the worst, the median and the best."""

_COLORS = ("#1d4e89", "#c8553d")  # valence, arousal
_NAMES = ("valence", "arousal")
_MAX_POINTS = 1500
_DPI = 110

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AttentionStrip:
    """Frames of one window with the attention paid to them.

    Attributes:
        title: the clip's key.
        frames: S numbers in the recording.
        pictures: (S, H, W, 3) uint8.
        attention: (S, h, w); 1 = as much as if it were spread evenly.
    """

    title: str
    frames: Sequence[int]
    pictures: NDArray[np.uint8]
    attention: NDArray[Any]


@dataclass(frozen=True)
class FilmStrip:
    """One clip: some of its frames, and what was said of all.

    Attributes:
        title: its key. error: its RMSE; None without labels.
        frames: (F,) numbers. pred, target: (F, 2) valence and arousal; target NaN where missing.
        shown: numbers of the frames that are drawn, rising. pictures: (H, W, 3) uint8 of each; None = none.
        empty: (F,) bool, True where the frame shows no face; None = not known.
    """

    title: str
    error: float | None
    frames: NDArray[np.int64]
    pred: Array
    target: Array
    shown: Sequence[int]
    pictures: Sequence[NDArray[np.uint8] | None]
    empty: NDArray[np.bool_] | None = None


def recording_curves(predictions: Predictions) -> tuple[str, bytes]:
    """Predicted and labelled curves of recordings, ranked by RMSE over valence and arousal together.

    Args:
        predictions: frames of recordings, with valence and arousal.

    Returns:
        A line that says which recordings these are, and the picture; "" and nothing without labels.
    """
    assert predictions.va_pred is not None
    ranked: list[tuple[float, NDArray[np.int64]]] = []
    for rows in videos_of(predictions):
        wrong = (predictions.va_pred[rows] - predictions.va[rows]) ** 2
        if np.isfinite(wrong).any():
            ranked.append((float(np.sqrt(np.nanmean(wrong))), rows))
    if not ranked:
        return "", b""
    ranked.sort(key=lambda pair: -pair[0])
    if len(ranked) <= FEW:
        title, marks = "all recordings, the worst first", [""] * len(ranked)
        chosen = ranked
    else:
        middle = len(ranked) // 2
        places = [0, 1, middle - 1, middle, len(ranked) - 2, len(ranked) - 1]
        chosen = [ranked[place] for place in places]
        marks = ["worst", "2nd worst", "median", "median", "2nd best", "best"]
        title = f"of {len(ranked)} recordings the two worst, two in the middle and the two best"
    return f"{title} (by RMSE): labelled dashed, predicted in full", _curves(predictions, chosen, marks)


def _curves(
    predictions: Predictions, chosen: Sequence[tuple[float, NDArray[np.int64]]], marks: Sequence[str]
) -> bytes:
    assert predictions.va_pred is not None
    columns = min(3, len(chosen)) if len(chosen) > FEW // 2 or len(chosen) == 3 else min(2, len(chosen))
    height = -(-len(chosen) // columns)
    figure = Figure(figsize=(11, 2.15 * height + 0.3), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).flatten()
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    for axis, (error, rows), mark in zip(axes, chosen, marks, strict=False):
        pred, target = predictions.va_pred[rows], predictions.va[rows]
        said = "/".join(_ccc_text(pred[:, k], target[:, k]) for k in (0, 1))
        name = predictions.group[rows[0]]
        axis.set_title(
            f"{mark + ': ' if mark else ''}{_short(name)}\nRMSE {error:.2f}, CCC {said}",
            fontsize=8,
            parse_math=False,
        )
        _draw_curves(axis, predictions.frame[rows], pred, target)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return _png(figure)


def _draw_curves(axis: Any, frames: NDArray[np.int64], pred: Array, target: Array) -> None:
    """Valence and arousal over frame numbers; a line does not cross missing frames."""
    every = max(1, len(frames) // _MAX_POINTS)
    step = int(np.median(np.diff(frames))) if len(frames) > 1 else 1
    breaks = np.flatnonzero(np.diff(frames[::every]) > 2 * step * every) + 1
    axis.axhline(0, color="#999999", linewidth=0.6)
    labelled: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.85, "linestyle": "--"}
    for k, (name, color) in enumerate(zip(_NAMES, _COLORS, strict=True)):
        for values, said, style in ((target, "labelled", labelled), (pred, "predicted", {"linewidth": 1.7})):
            if np.isnan(values[:, k]).all():
                continue
            x, y = (np.insert(a.astype(float), breaks, np.nan) for a in (frames[::every], values[::every, k]))
            axis.plot(x, y, color=color, label=f"{name}, {said}", **style)
    axis.set_ylim(-1.05, 1.05)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=7)


def attention_sheet(strips: Sequence[AttentionStrip]) -> bytes:
    """Of each window, its frames above and the same with the attention laid over them below."""
    steps = max(len(strip.frames) for strip in strips)
    top = max(2.0, float(np.quantile(np.concatenate([s.attention.ravel() for s in strips]), 0.995)))
    colors = ScalarMappable(Normalize(0, top), "inferno")
    figure = Figure(figsize=(min(11, 1.5 * steps + 1.2), 3.1 * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False).flatten()
    for axis, strip in zip(axes, strips, strict=True):
        pairs = list(zip(strip.pictures, strip.attention, strict=True))
        rows = [_row_of(list(strip.pictures)), _row_of([_overlaid(p, a, colors) for p, a in pairs])]
        height, width = strip.pictures[0].shape[:2]
        gap = np.full((max(1, height // 24), rows[0].shape[1], 3), 255, np.uint8)
        axis.imshow(np.concatenate([rows[0], gap, rows[1]]))
        places = [(rows[0].shape[1] + _gap(width)) / len(pairs) * k + width / 2 for k in range(len(pairs))]
        axis.set_xticks(places, [f"frame {frame}" for frame in strip.frames], fontsize=7)
        axis.tick_params(length=0, pad=1)
        axis.set_yticks([])
        axis.set_title(_short(strip.title, 40), fontsize=8, loc="left", pad=3, parse_math=False)
        axis.spines[:].set_visible(False)
        axis.set_anchor("W")
    bar = figure.colorbar(colors, ax=axes.tolist(), shrink=0.5, pad=0.02)
    bar.set_label("attention; 1 = spread evenly", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return _png(figure)


def _overlaid(
    picture: NDArray[np.uint8], attention: NDArray[Any], colors: ScalarMappable
) -> NDArray[np.uint8]:
    """The picture in grey with the attention's colours over it, (H, W, 3)."""
    size = (picture.shape[1], picture.shape[0])
    smooth = Image.fromarray(attention.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    tint = colors.to_rgba(np.asarray(smooth))[..., :3] * 255
    mixed = 0.4 * picture.mean(-1, keepdims=True) + 0.6 * np.asarray(tint)
    return np.asarray(mixed.round(), np.uint8)


def film_strips(strips: Sequence[FilmStrip]) -> bytes:
    """Frames of each clip in a row, and its curves below them on the same axis of time."""
    figure = Figure(figsize=(11, 3.1 * len(strips)), layout="constrained")
    grid = figure.add_gridspec(2 * len(strips), 1, height_ratios=[1.0, 1.35] * len(strips))
    for number, strip in enumerate(strips):
        film = figure.add_subplot(grid[2 * number])
        film.set_axis_off()
        error = "" if strip.error is None else f": RMSE {strip.error:.2f}"
        film.set_title(f"{_short(strip.title, 60)}{error}", fontsize=9, loc="left", parse_math=False)
        if strip.pictures:
            film.imshow(_row_of(strip.pictures), aspect="equal")
        axis = figure.add_subplot(grid[2 * number + 1])
        _draw_curves(axis, strip.frames, strip.pred, strip.target)
        if strip.empty is not None and strip.empty.any():
            where, label = strip.empty, "no face"
            axis.fill_between(
                strip.frames, -1.05, 1.05, where=where, step="mid", color="#e2e2e2", label=label
            )
        for frame in strip.shown:
            axis.axvline(frame, color="#bbbbbb", linewidth=0.6, zorder=0)
        axis.set_xlabel("frame (lines: where the pictures are from)", fontsize=7)
        if number == 0:
            axis.legend(fontsize=7, ncols=4, loc="lower left")
    return _png(figure)


def _row_of(pictures: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.uint8]:
    """Pictures of one size side by side; one that is missing is grey."""
    known = next((p for p in pictures if p is not None), np.zeros((64, 64, 3), np.uint8))
    gap = np.full((known.shape[0], _gap(known.shape[1]), 3), 255, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for picture in pictures:
        fits = picture is not None and picture.shape == known.shape
        parts += [picture if picture is not None and fits else np.full_like(known, 200), gap]
    return np.concatenate(parts[:-1], axis=1)


def _gap(width: int) -> int:
    """Pixels between pictures of that width."""
    return max(1, width // 16)


def _ccc_text(pred: Array, target: Array) -> str:
    known = np.isfinite(target)
    return f"{round(ccc(pred[known], target[known]), 2) + 0.0:.2f}" if known.any() else "–"


def _short(text: str, room: int = 28) -> str:
    return text if len(text) <= room else f"{text[: room // 2 - 1]}…{text[-(room // 2) :]}"


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()
