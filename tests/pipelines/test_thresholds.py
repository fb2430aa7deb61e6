"""Tuned thresholds are the best there are, remember where, and do not flatter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.predictions import Predictions, build_predictions
from pipelines.thresholds import (
    apply_thresholds,
    fixed_thresholds,
    load_thresholds,
    save_thresholds,
    tune_thresholds,
)
from shards.labels import AU12, DataError


def units(split: str = "val", seed: int = 0, count: int = 200) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 12)) < 0.2).astype(np.int8)
    probs = np.clip(0.25 * labels + rng.normal(0.15, 0.1, labels.shape), 0, 1)
    labels[rng.random(labels.shape) < 0.1] = -1
    return build_predictions(split, [f"{split}{i}" for i in range(count)], au=labels, au_probs=probs)


def f1(pred: np.ndarray, target: np.ndarray) -> float:
    pred, target = pred[target >= 0], target[target >= 0]
    hits = int(((pred == 1) & (target == 1)).sum())
    return 2 * hits / (int((pred == 1).sum()) + int((target == 1).sum())) if hits else 0.0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([0.0, 1.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0), 5e-324]),
                st.floats(0, 1),
            ),
            st.sampled_from([0, 1, 1, -1]),
        ),
        min_size=1,
        max_size=12,
    ).filter(lambda pairs: any(label >= 0 for _, label in pairs))
)
def test_no_threshold_does_better(pairs: list[tuple[float, int]]) -> None:
    probs, labels = np.array([p for p, _ in pairs]), np.array([y for _, y in pairs])
    found = build_predictions(
        "val",
        [str(i) for i in range(len(pairs))],
        au_names=["U"],
        au=labels[:, None],
        au_probs=probs[:, None],
    )
    thresholds = tune_thresholds(found)
    unit = thresholds.units[0]
    tries = [-1.0, *probs, *np.linspace(0, 1, 50)]
    best = max(f1(probs > limit, labels) for limit in tries)
    reached = f1(apply_thresholds(thresholds, found, allow_tuned_split=True).pred[:, 0], labels)
    assert unit.f1 == pytest.approx(reached) and reached == pytest.approx(best)
    assert -1 <= unit.threshold < 1


def test_tuning_wins_over_a_half_and_transfers() -> None:
    val, test = units("val"), units("test", seed=1)
    tuned = tune_thresholds(val)
    assert (tuned.split, tuned.data_hash) == ("val", val.data_hash)
    decided, plain = apply_thresholds(tuned, test), apply_thresholds(fixed_thresholds(AU12), test)
    assert decided.notice == plain.notice == ""
    scores = [np.mean([f1(found.pred[:, i], test.au[:, i]) for i in range(12)]) for found in (decided, plain)]
    assert scores[0] > scores[1] + 0.1
    assert tuned.units[0].num_valid == int((val.au[:, 0] >= 0).sum())


def test_a_unit_without_positives_stays_at_a_half() -> None:
    val = units()
    labels = val.au.copy()
    labels[:, 3] = np.minimum(labels[:, 3], 0)
    labels[:, 4] = -1
    tuned = tune_thresholds(replace(val, au=labels))
    assert [tuned.units[i].threshold for i in (3, 4)] == [0.5, 0.5]
    assert tuned.units[4].num_valid == 0 and tuned.units[3].num_positive == 0


def test_exactly_a_half_is_not_above_a_half() -> None:
    probs = np.full((1, 12), 0.5)
    found = build_predictions("val", ["a"], au_probs=probs)
    assert not apply_thresholds(fixed_thresholds(AU12), found).pred.any()


@pytest.mark.parametrize(
    "reported", [units(), replace(units(), split="test"), units("val", seed=5, count=20)]
)
def test_the_tuned_split_is_reported_only_if_said_aloud(reported: Predictions) -> None:
    tuned = tune_thresholds(units())
    with pytest.raises(DataError, match=r"tuned on this split \(val\)"):
        apply_thresholds(tuned, reported)
    decided = apply_thresholds(tuned, reported, allow_tuned_split=True)
    assert "tuned on this split" in decided.notice and decided.pred.shape == reported.au.shape


def test_units_are_matched_by_name() -> None:
    two = build_predictions("test", ["a"], au_names=["AU2", "AU1"], au_probs=[[0.4, 0.4]])
    limits = replace(
        fixed_thresholds(["AU1", "AU2"]),
        units=(*fixed_thresholds(["AU1"], 0.3).units, *fixed_thresholds(["AU2"], 0.6).units),
    )
    assert apply_thresholds(limits, two).pred.tolist() == [[0, 1]]
    with pytest.raises(DataError, match="no threshold for AU2"):
        apply_thresholds(fixed_thresholds(["AU1"]), two)


def test_what_cannot_be_tuned_is_said() -> None:
    with pytest.raises(DataError, match="without a name"):
        tune_thresholds(replace(units(), split=""))
    with pytest.raises(DataError, match="no action units"):
        tune_thresholds(replace(units(), au_probs=None))
    with pytest.raises(DataError, match="no labels"):
        tune_thresholds(replace(units(), au=np.full((200, 12), -1, np.int8)))
    for wrong in (1.0, -1.5, float("nan")):
        with pytest.raises(DataError, match="must be a number"):
            fixed_thresholds(AU12, wrong)


def test_saved_thresholds_come_back(tmp_path: Path) -> None:
    tuned = tune_thresholds(units())
    save_thresholds(tuned, tmp_path / "new" / "thresholds.json")
    assert load_thresholds(tmp_path / "new" / "thresholds.json") == tuned
    data = json.loads((tmp_path / "new" / "thresholds.json").read_text())
    assert data["split"] == "val" and data["data_hash"] == units().data_hash


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "not thresholds"),
        ({"version": 2}, "not thresholds"),
        ({"units": [{"au": "AU1", "threshold": float("nan")}]}, "must be a number"),
        ({"units": [{"au": "AU1", "threshold": "0.5"}]}, "must be a number"),
        ({"units": [{"threshold": 0.5}]}, "damaged"),
        ({"units": []}, "damaged"),
        ({"split": None}, "damaged"),
    ],
)
def test_damaged_thresholds_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "t.json"
    save_thresholds(tune_thresholds(units()), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=said):
        load_thresholds(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_thresholds(path)
    with pytest.raises(DataError, match="cannot read"):
        load_thresholds(tmp_path / "none.json")
