"""What a pretraining run draws and measures of itself, through a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import observe
from pipelines.probe import ProbeSet, probe_scores
from tests.pipelines.tiny import metrics, train
from tests.shards.faces import build_smooth


def test_pictures_and_probes_of_each_evaluation(smooth: Path, tmp_path: Path) -> None:
    shards = build_smooth(tmp_path / "set", counts={"train": 120, "val": 40})
    settings = ["eval.every=4", "eval.pictures=3", "eval.probe_train=80", "eval.probe_val=30"]
    assert train(shards, tmp_path / "run", *settings, "train.epochs=0.8") == 0
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"reconstructions-{step:08d}.png" for step in (4, 6)]
    with Image.open(pictures[0]) as first, Image.open(pictures[1]) as second:
        assert first.size == second.size and first.width > first.height  # two faces to a row
        assert (np.asarray(first) != np.asarray(second)).any()
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [4, 6]
    for row in rows:
        assert row["faces_sought"] == 15 and 0 <= row["faces_found"] <= 15
        for kind in ("position", "mean", "cls", "random.position", "pixels"):
            assert 0 <= row[f"probe.{kind}.ridge_expr"] <= 1 and 0 <= row[f"probe.{kind}.knn_expr"] <= 1
    reference = "probe.random.position.ridge_expr"
    assert rows[0][reference] == rows[1][reference]


def test_few_held_out_faces_are_spread_over_the_split(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, predict = [], observe.predict_split

    def watched(*arguments: object, **more: object) -> dict[str, torch.Tensor]:
        seen.append(arguments[7])
        return predict(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(observe, "predict_split", watched)
    assert train(smooth, tmp_path / "run", "eval.max_samples=4", "train.epochs=0.6") == 0
    assert train(smooth, tmp_path / "all", "eval.max_samples=0", "train.epochs=0.6") == 0
    assert seen == [[0, 10, 19, 29], list(range(30))]


def test_features_that_are_all_the_same_have_chance_scores_and_end_no_run() -> None:
    labels = np.arange(60) % 4
    probe = ProbeSet(torch.zeros(60, 3, 8, 8), labels, np.full((60, 2), np.nan, np.float32))
    for value in (0.0, 0.1, 300.0):
        features = torch.full((60, 5), value)
        scores = probe_scores(features, probe, features, probe)
        assert scores["ridge_expr"] == scores["knn_expr"] == 0.25
