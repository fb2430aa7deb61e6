"""The report: one HTML file that holds everything, made from run directories alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from pipelines.config import leaves, load_config
from pipelines.rundir import read_metrics
from pipelines.score_pages import ScorePage, comparison, score_pages
from shards.files import write_atomic
from shards.labels import DataError

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class RunView:
    """One run as the template sees it: plain values and data URLs."""

    path: str
    facts: dict[str, Any]
    config: str
    kind: str
    rendered: bool
    norm_pix: bool
    last: dict[str, Any]
    table: list[tuple[str, str]]
    probes: list[dict[str, Any]]
    curves: str
    pictures: list[tuple[str, str]]
    pages: list[tuple[ScorePage, list[tuple[str, str]]]]


def write_report(runs: Sequence[Path], out: Path | None = None, compared: bool = True) -> Path:
    """Writes a page of one or several runs.

    Args:
        runs: run directories; the first is the subject, others are shown beside it.
        out: file to write; None = report.html in the first run's directory.
        compared: settings in which they differ and differences of their scores come first; False for runs
            that have nothing in common but the page.

    Raises:
        DataError: a directory that holds no run.
    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
    html = environment.get_template("report.html").render(
        runs=[_view(run) for run in runs],
        differing=_differing(runs) if compared else [],
        comparison=comparison(runs) if compared else [],
    )
    path = out or runs[0] / "report.html"
    write_atomic(path, html.encode())
    return path


def _view(run: Path) -> RunView:
    try:
        facts = json.loads((run / "run.json").read_bytes())
        config = (run / "config.yaml").read_text()
    except (OSError, ValueError) as error:
        raise DataError(f"{run}: no run there ({error}); give one, as in RUN=runs/pretrain/…") from error
    rows, settings = read_metrics(run), load_config(str(run / "config.yaml"))
    train = [row for row in rows if row.get("kind") == "train"]
    evals = [row for row in rows if row.get("kind") == "eval"]
    return RunView(
        path=str(run),
        facts=facts,
        config=config,
        rendered=bool(facts.get("data", {}).get("rendered")),
        kind=settings.data_kind,
        norm_pix=settings.mae.norm_pix,
        last=train[-1] if train else {},
        table=_table(evals[-1]) if evals else [],
        probes=_probes(evals[-1]) if evals else [],
        curves=_curves(train, evals),
        pictures=[(path.stem, _png_url(path)) for path in sorted((run / "pictures").glob("*.png"))[-4:]],
        pages=[
            (page, [(title, _data_url(png)) for title, png in page.pictures]) for page in score_pages(run)
        ],
    )


def _differing(runs: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ: key and each run's value."""
    configs = [
        {key: str(value) for key, value, _ in leaves(load_config(str(run / "config.yaml")))} for run in runs
    ]
    return [
        (key, [config[key] for config in configs])
        for key in configs[0]
        if key != "run" and len({config[key] for config in configs}) > 1
    ]


_NAMES = {
    "val_loss": "held-out masked error (in the target's space)",
    "val_mean_face": "the same, predicting the mean face",
    "val_pixel_mse": "held-out masked error in pixels, squared, of [0, 1]",
    "faces_found": "pasted faces in which MTCNN finds a face",
    "faces_sought": "pasted faces looked at",
}


def _table(row: dict[str, Any]) -> list[tuple[str, str]]:
    present = {name: text for name, text in _NAMES.items() if isinstance(row.get(name), int | float)}
    return [(text, f"{row[name]:.4g}") for name, text in present.items()]


def _probes(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the probe table: one per kind of features that was probed."""
    kinds = {
        "position": "tokens, position kept",
        "mean": "tokens averaged",
        "cls": "cls token",
        "random.position": "random encoder, position kept",
        "pixels": "pixels (64 × 64)",
    }
    columns = ("ridge_expr", "knn_expr", "ridge_valence", "ridge_arousal")
    table = []
    for kind, text in kinds.items():
        values = [row.get(f"probe.{kind}.{column}") for column in columns]
        if any(value is not None for value in values):
            table.append({"name": text, "cells": [_figure(value) for value in values]})
    return table


def _figure(value: Any) -> str:
    """A number as text; what is not finite was logged as text."""
    return f"{value:.3f}" if isinstance(value, int | float) else str(value or "")


def _curves(train: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> str:
    """Loss, learning rate and speed against steps, as a data URL."""
    if not train:
        return ""
    matplotlib.use("Agg")
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name, title in zip(
        axes, ("loss", "lr", "images_per_s"), ("loss", "learning rate", "samples/s")
    ):
        points = [(row["step"], row[name]) for row in train if isinstance(row.get(name), int | float)]
        axis.plot([p[0] for p in points], [p[1] for p in points], linewidth=1.2, color="#1d4e89")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    for name, label, style in (("val_loss", "held out", "o-"), ("val_mean_face", "mean face", "s--")):
        points = [(row["step"], row[name]) for row in evals if isinstance(row.get(name), int | float)]
        if points:
            axes[0].plot([p[0] for p in points], [p[1] for p in points], style, markersize=3, label=label)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return _data_url(data.getvalue())


def _png_url(path: Path) -> str:
    return _data_url(path.read_bytes())


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
