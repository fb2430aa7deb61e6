"""Pictures of the most confident mistakes: which, and for whom they may be drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.mistakes import confident_mistakes, may_be_shown, mistakes_picture
from pipelines.predictions import Predictions, build_predictions
from shards.shardset import ShardSet, open_shards


@pytest.fixture
def val(smooth: Path) -> ShardSet:
    return open_shards(str(smooth), "val")


def predictions(val: ShardSet, expr: list[int], probs: list[list[float]]) -> Predictions:
    keys = [val.key(sample) for sample in range(len(expr))]
    return build_predictions("val", keys, expr_names=("neutral", "happiness"), expr=expr, expr_probs=probs)


def test_the_surest_mistakes_come_first_and_only_labelled_faces_can_be_mistaken(val: ShardSet) -> None:
    said = [[0.4, 0.6], [0.1, 0.9], [0.8, 0.2], [0.05, 0.95]]
    found = predictions(val, [0, 0, 0, -1], said)
    assert confident_mistakes(found) == [1, 0]
    assert confident_mistakes(found, 1) == [1]
    assert confident_mistakes(replace(found, expr_probs=None)) == []


def test_the_picture_shows_each_mistake_once_and_there_is_none_without(val: ShardSet) -> None:
    wrong, right = [[0.4, 0.6], [0.1, 0.9]], [[0.6, 0.4], [0.9, 0.1]]
    both = mistakes_picture(val, predictions(val, [0, 0], wrong), [0, 1])
    one = mistakes_picture(val, predictions(val, [0, 0], [wrong[0], right[1]]), [0, 1])
    assert both is not None and one is not None
    assert both.width - one.width == both.width // 2 - 4  # one face and one gap less
    assert np.asarray(one).min() < 128
    assert mistakes_picture(val, predictions(val, [0, 0], right), [0, 1]) is None


@pytest.mark.parametrize(
    "licence, allowed",
    [("CC0", True), ("CC BY 4.0, Face Research Lab", True), ("Aff-Wild2 EULA", False), ("not stated", False)],
)
def test_faces_are_drawn_only_under_open_licences(val: ShardSet, licence: str, allowed: bool) -> None:
    val.manifests = [replace(manifest, licence=licence) for manifest in val.manifests]
    assert may_be_shown(val) is allowed
