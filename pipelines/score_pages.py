"""What the report shows of a finetuning run: its scores, drawn from predictions/<split>.csv alone."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pipelines.clip_charts import recording_curves
from pipelines.postprocess import apply_chain, is_fitted_on, load_chain
from pipelines.predictions import Predictions
from pipelines.predictions_csv import read_csv
from pipelines.scores import Estimate, Scores, compare, is_labelled, is_video, score
from pipelines.tuning import POSTPROCESS
from shards.labels import DataError

_DRAWN = {
    ".mistakes.png": "most confident mistakes: what was said, and the label",
    ".attention.png": "attention, over frames of a well predicted clip, of a badly predicted one and between",
    ".strips.png": "the worst clips (by RMSE): labelled dashed, predicted in full",
}
_BLUE = "#1d4e89"
_MAX_POINTS = 4000
NAMES = {
    "score": "score: mean CCC + macro F1 + mean AU F1, of those there are (P_MTL with all three)",
    "ccc_valence": "valence, CCC",
    "cc_valence": "valence, correlation",
    "rmse_valence": "valence, RMSE",
    "ccc_arousal": "arousal, CCC",
    "cc_arousal": "arousal, correlation",
    "rmse_arousal": "arousal, RMSE",
    "expr_macro_f1": "expressions, macro F1",
    "expr_accuracy": "expressions, accuracy",
    "expr_balanced_accuracy": "expressions, balanced accuracy",
    "au_f1": "action units, mean F1",
}


class Table(NamedTuple):
    """A table of texts, the first column's aligned to the left, with a line that says what it is."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ScorePage:
    """Scores of one split as the template sees them: plain values, and pictures as PNG bytes.

    Attributes:
        scores: figures with intervals.
        headline: (name, value, interval) of each figure, as text.
        pictures: (title, PNG).
        recordings: as `headline`, means over recordings.
        tables: others, of clips.
    """

    scores: Scores
    headline: Sequence[tuple[str, str, str]]
    pictures: Sequence[tuple[str, bytes]]
    recordings: Sequence[tuple[str, str, str]] = ()
    tables: Sequence[Table] = ()


def score_pages(run: Path) -> list[ScorePage]:
    """A page for every labelled split that the run has predictions of.

    Raises:
        DataError: a csv that cannot be read.
    """
    pages = []
    for path in sorted((run / "predictions").glob("*.csv")):
        predictions = read_csv(path)
        if is_labelled(predictions):
            page = _page(predictions, path)
            pages.append(replace(page, tables=[*_chain_tables(run / POSTPROCESS, predictions), *page.tables]))
    return pages


def comparison(runs: Sequence[Path], split: str = "val") -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The first run against each other one that predicted the same samples: (other, rows of differences)."""
    rows: list[tuple[str, list[tuple[str, str, str]]]] = []
    first = runs[0] / "predictions" / f"{split}.csv"
    for other in runs[1:]:
        path = other / "predictions" / f"{split}.csv"
        if not (first.is_file() and path.is_file()):
            continue
        try:
            rows.append((str(other), _rows(compare(read_csv(first), read_csv(path)), signed=True)))
        except DataError as error:
            rows.append((str(other), [(str(error), "", "")]))
    return rows


def _page(predictions: Predictions, path: Path) -> ScorePage:
    """`path`: of the csv; what an evaluation drew lies beside it."""
    scores = score(predictions)
    pictures = []
    if scores.confusion:
        pictures.append(("expressions: rows are labels, columns predictions", _confusion(scores)))
    if scores.units:
        pictures.append(("action units: F1, beside that of always claiming the unit", _units(scores)))
    if predictions.va_pred is not None and np.isfinite(predictions.va).any():
        pictures.append(("valence and arousal: predicted against labelled", _scatter(predictions)))
    if scores.recordings:
        pictures.append(recording_curves(predictions))
    for suffix, title in _DRAWN.items():
        drawn = path.with_suffix(suffix)
        if drawn.is_file():
            pictures.append((title, drawn.read_bytes()))
    clips = path.with_suffix(".clips.json")
    tables = _clip_tables(clips) if clips.is_file() else []
    return ScorePage(scores, _rows(scores.headline), pictures, _rows(scores.recordings), tables)


def _chain_tables(path: Path, predictions: Predictions) -> list[Table]:
    """Post-processing, where the run has it: its steps, and what it makes of a split it was not fitted on."""
    if not path.is_file() or predictions.heads != ("va_pred",) or not is_video(predictions):
        return []
    chain = load_chain(path)
    steps = [
        (row.output, row.step, f"{row.before:.3f}", f"{row.after:.3f}", "kept" if row.kept else "left out")
        for row in chain.tried
    ]
    title = f"post-processing, fitted on {chain.split}: {chain}"
    tables = [Table(title, ("output", "step", "CCC before", "CCC after", ""), steps)]
    if not is_fitted_on(chain, predictions):
        after = _rows(score(apply_chain(chain, predictions)).headline)
        tables.insert(0, Table("pooled, with post-processing", ("", "", ""), after))
    return tables


def _clip_tables(path: Path) -> list[Table]:
    """What `pipelines.clip_views` measured.

    Raises:
        DataError: the file is damaged.
    """
    try:
        data = json.loads(path.read_bytes())
        tables, count = [], int(data["num_clips"])
        if len(data["left_out"]) > 1:
            rows = [_left_out(row) for row in data["left_out"]]
            title = f"what each modality is worth: left out at the test alone, {count} clips"
            tables.append(Table(title, ("without", "CCC valence", "CCC arousal", "mean CCC, change"), rows))
        if data["attention"]:
            tables.append(_attention_table(data["attention"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error!r}); evaluate the run again") from error
    return tables


def _left_out(row: Mapping[str, Any]) -> tuple[str, ...]:
    change = row["change"]
    moved = f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"
    names = " and ".join(row["without"])
    return (
        names or "nothing",
        f"{row['ccc_valence']:.3f}",
        f"{row['ccc_arousal']:.3f}",
        moved if names else "",
    )


def _attention_table(regions: Sequence[Mapping[str, Any]]) -> Table:
    title = (
        "where attention lies: its share on a region divided by the region's share of the area (1 = as if "
        f"spread evenly), mean over {regions[0]['num_frames']} frames of windows, intervals over clips"
    )
    rows = []
    for region in regions:
        ratio = region["ratio"]
        rows.append(
            (
                f"{region['region']} (by {region['by']})",
                f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                f"{region['attention']:.1%}",
                f"{region['area']:.1%}",
            )
        )
    return Table(title, ("region", "attention / area", "attention on it", "area of it"), rows)


def _rows(figures: Mapping[str, Estimate], signed: bool = False) -> list[tuple[str, str, str]]:
    form = "+.3f" if signed else ".3f"
    return [
        (NAMES.get(name, name), f"{f.value:{form}}", f"{f.low:{form}} to {f.high:{form}}")
        for name, f in figures.items()
    ]


def _confusion(scores: Scores) -> bytes:
    """Shares of each label's samples, with counts."""
    counts = np.array(scores.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [row.name for row in scores.classes]
    figure = Figure(figsize=(1.6 + 0.62 * len(names), 1.2 + 0.5 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("labelled", fontsize=9)
    return _png(figure)


def _units(scores: Scores) -> bytes:
    names = [row.name for row in scores.units]
    places = np.arange(len(names))
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.bar(places - 0.2, [row.f1 for row in scores.units], 0.4, color=_BLUE, label="this run")
    baselines = [row.baseline or 0.0 for row in scores.units]
    axis.bar(places + 0.2, baselines, 0.4, color="#c9c9c9", label="always claimed")
    axis.set_xticks(places, names, fontsize=9)
    axis.set_ylim(0, 1)
    axis.set_ylabel("F1", fontsize=9)
    axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.25)
    return _png(figure)


def _scatter(predictions: Predictions) -> bytes:
    assert predictions.va_pred is not None
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    for column, (axis, name) in enumerate(zip(figure.subplots(1, 2), ("valence", "arousal"), strict=True)):
        known = np.flatnonzero(np.isfinite(predictions.va[:, column]))
        shown = known[:: max(1, len(known) // _MAX_POINTS)]
        axis.plot([-1, 1], [-1, 1], color="#999999", linewidth=0.8)
        axis.scatter(
            predictions.va[shown, column], predictions.va_pred[shown, column], s=5, alpha=0.35, color=_BLUE
        )
        axis.set_xlim(-1, 1)
        axis.set_ylim(-1, 1)
        axis.set_aspect("equal")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("labelled", fontsize=9)
        axis.set_ylabel("predicted", fontsize=9)
        axis.grid(alpha=0.25)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()
