"""The chain on curves of which is known what was done to them; by frame number, within a recording."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.metrics import ccc
from pipelines.postprocess import Chain, Steps, apply_chain, fit_chain, load_chain, save_chain
from pipelines.predictions import Predictions, build_predictions
from pipelines.predictions_csv import write_csv
from pipelines.score_pages import score_pages
from pipelines.tuning import POSTPROCESS, score_run, tune
from shards.labels import DataError

pytestmark = pytest.mark.usefixtures("few_resamples")
ZERO = np.zeros(0)


def video(pred: np.ndarray, target: np.ndarray = ZERO, split: str = "val", **more: object) -> Predictions:
    """One recording of curves (N,) or (N, 2)."""
    pairs = [np.stack([c, c], 1) if c.ndim == 1 else c for c in (pred, target if len(target) else pred)]
    known: dict[str, object] = {"group": ["v"] * len(pred), "frame": np.arange(len(pred))}
    keys = [f"{number:04d}" for number in range(len(pred))]
    return build_predictions(split, keys, va_pred=pairs[0], va=pairs[1], **(known | more))  # type: ignore[arg-type]


def hill(count: int = 120, at: int = 40) -> np.ndarray:
    """Rises from 0 and falls back to it."""
    distance = np.abs(np.arange(count) - at)
    return np.where(distance < 25, 0.4 * (1 + np.cos(np.pi * distance / 25)), 0.0)


def chain(**steps: object) -> Chain:
    return Chain(Steps(**steps), Steps(**steps), "train", "")  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [7, -4])
def test_a_delayed_scaled_and_shifted_copy_is_restored_exactly(delay: int) -> None:
    truth = hill(at=40 + delay)
    before = video(0.25 * hill(), truth - 0.1)
    found = fit_chain(before)
    assert found.valence == found.arousal
    assert found.valence.median == 0 and found.valence.delay == delay
    # Means of 120 frames: the hill's sum is .4 * 50 = 20.
    assert found.valence.bias == pytest.approx(20 / 120 - 0.1 - 0.25 * 20 / 120)
    assert found.valence.scale == pytest.approx(4) and found.split == "val"
    after = apply_chain(found, before, allow_tuned_split=True)
    assert after.va_pred is not None
    np.testing.assert_allclose(after.va_pred[:, 0], truth - 0.1, atol=1e-12)
    assert [(step.step, step.kept) for step in found.tried if step.output == "arousal"] == [
        ("median", False),
        ("bias", True),
        ("scale", True),
        ("delay", True),
    ]
    scores = [step.after for step in found.tried if step.output == "valence" and step.kept]
    assert scores == sorted(scores) and scores[-1] == pytest.approx(1)


def test_what_is_right_is_left_alone() -> None:
    found = fit_chain(video(hill()))
    assert found.valence == Steps() and not any(step.kept for step in found.tried)
    assert str(found) == "valence: nothing; arousal: nothing"


def test_spikes_are_filtered_and_outputs_are_fitted_by_themselves() -> None:
    spiked = hill()
    spiked[::11] = 1.0
    found = fit_chain(video(np.stack([spiked, hill()], 1), hill()))
    assert 0 < found.valence.median <= 9 and found.tried[0].after > 0.99 and found.arousal == Steps()


def test_gaps_take_time_and_recordings_stay_apart() -> None:
    before = build_predictions(
        "test",
        list("abcdefg"),
        group=["u"] * 4 + ["v"] * 3,
        frame=[0, 1, 2, 50, 2, 0, 1],
        va_pred=np.array([0.1, 0.2, 0.3, 0.9, -0.3, -0.1, -0.2])[:, None].repeat(2, 1),
    )
    late = apply_chain(chain(delay=2), before).va_pred
    assert late is not None  # frame 50 wants 48: 50 itself is nearer than 2; frames before the first hold it
    assert late[:, 0].tolist() == [0.1, 0.1, 0.1, 0.9, -0.1, -0.1, -0.1]
    early = apply_chain(chain(delay=-1), before).va_pred
    assert early is not None and early[:, 1].tolist() == [0.2, 0.3, 0.3, 0.9, -0.3, -0.2, -0.3]
    middle = apply_chain(chain(median=3), before).va_pred
    assert middle is not None
    np.testing.assert_allclose(middle[:, 0], [0.15, 0.2, 0.25, 0.9, -0.25, -0.15, -0.2])


def test_what_leaves_the_range_is_clipped_and_rows_keep_their_order() -> None:
    before = video(np.array([-0.5, 0.0, 0.5]), split="test").take([2, 0, 1])
    after = apply_chain(chain(bias=0.5, scale=2.0, centre=0.5), before)
    assert after.va_pred is not None and after.keys == before.keys
    assert after.va_pred[:, 0].tolist() == [1.0, -0.5, 0.5]


def test_only_labelled_frames_judge_a_step() -> None:
    target = hill() + 0.2
    target[60:] = np.nan
    pred = hill()
    pred[60:] = -1
    found = fit_chain(video(pred, target))
    assert found.valence == Steps(bias=found.valence.bias) and found.valence.bias == pytest.approx(0.2)
    assert found.tried[1].after == pytest.approx(1)
    nothing = fit_chain(video(pred, np.stack([target, np.full(120, np.nan)], 1)))
    assert nothing.arousal == Steps() and {step.output for step in nothing.tried} == {"valence"}


def test_the_split_it_was_fitted_on_is_reported_only_if_said_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val, test = video(0.5 * hill(), hill()), video(0.5 * hill(at=60), hill(at=60), "test")
    lines = "\n".join(tune(tmp_path, val))
    assert "fitted on val" in lines and "scale" in lines and "kept" in lines
    kept = load_chain(tmp_path / POSTPROCESS)
    for same in (val, replace(val, split="other")):
        with pytest.raises(DataError, match=r"fitted on this split \(val\)"):
            apply_chain(kept, same)
    plain = ccc(0.5 * hill(), hill())
    scores = score_run(tmp_path, val)
    assert scores.headline["score"].value == pytest.approx(plain) and scores.processing == ""
    assert "not post-processed" in capsys.readouterr().out
    assert score_run(tmp_path, val, tuned_here=True).headline["score"].value == pytest.approx(1)
    assert "too high" in capsys.readouterr().out
    scores = score_run(tmp_path, test)
    assert scores.headline["score"].value == pytest.approx(1) and "fitted on val" in scores.processing
    assert f"without it, score {plain:.4f}" in capsys.readouterr().out


def test_the_report_shows_its_steps_and_what_it_makes_of_other_splits(tmp_path: Path) -> None:
    val, test = video(0.5 * hill(), hill()), video(0.5 * hill(at=60), hill(at=60), "test")
    save_chain(fit_chain(val), tmp_path / POSTPROCESS)
    for part in (val, test):
        write_csv(part, tmp_path / "predictions" / f"{part.split}.csv")
    on_test, on_val = score_pages(tmp_path)
    assert [table.header[0] for table in on_val.tables] == ["output"]
    assert [row[4] for row in on_val.tables[0].rows[:4]] == ["left out", "kept", "kept", "left out"]
    after = {name: value for name, value, _ in on_test.tables[0].rows}
    assert after["valence, CCC"] == "1.000" and len(on_test.tables) == 2


def test_what_cannot_be_fitted_is_said() -> None:
    before = video(hill())
    for wrong, said in (
        (replace(before, split=""), "without a name"),
        (replace(before, va=np.full((120, 2), np.nan)), "no labels"),
        (replace(before, va_pred=None), "no such head"),
        (replace(before, frame=np.full(120, -1)), "frame number"),
    ):
        with pytest.raises(DataError, match=said):
            fit_chain(wrong)


def test_it_is_kept_on_disk_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new" / "postprocess.json"
    found = fit_chain(video(0.5 * hill(), hill(at=43)))
    save_chain(found, path)
    assert load_chain(path) == found
    data = json.loads(path.read_text())
    for wrong in (
        {"valence": {"median": 4}},
        {"valence": {"delay": 1.5}},
        {"valence": {"scale": "2"}},
        {"arousal": {"size": 1}},
        {"split": ""},
        {"version": 2},
    ):
        path.write_text(json.dumps(data | wrong))
        with pytest.raises(DataError, match="postprocess"):
            load_chain(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_chain(path)
