"""Folds: everybody is held out once, nobody is on both sides, and the folds' runs are scored as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.__main__ import main
from pipelines.clip_scoring import clip_predictions
from pipelines.config import ConfigError, load_config
from pipelines.data import open_split
from pipelines.dataconfig import fold_of
from pipelines.finetuning import run_finetuning
from pipelines.folds import check_folds, cut_fold, person_of, pool
from pipelines.predictions import Predictions, build_predictions
from pipelines.predictions_csv import read_csv
from pipelines.scores import score
from shards.labels import DataError
from shards.order import EpochOrder
from shards.shardset import ShardSet, open_shards
from tests.pipelines.test_mran import MRAN
from tests.shards.made_clips import made_clips

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three clips each person: seven people in train, three in val."""
    return made_clips(tmp_path_factory.mktemp("clips") / "set", counts={"train": 20, "val": 7, "test": 2})


def keys(shards: ShardSet) -> list[str]:
    return [shards.key(sample) for sample in range(len(shards))]


@pytest.mark.parametrize("kind", ["clips", "faces"])
def test_everybody_is_held_out_once_and_nobody_is_on_both_sides(clips: Path, smooth: Path, kind: str) -> None:
    folder = str(clips if kind == "clips" else smooth)
    train, val = open_shards(folder, "train"), open_shards(folder, "val")
    held: list[str] = []
    for number in (1, 2, 3):
        fold = cut_fold(train, val, f"{number}/3")
        sides = [{person_of(part, sample) for sample in range(len(part))} for part in fold]
        assert not sides[0] & sides[1]
        assert sorted(keys(fold.train) + keys(fold.val)) == sorted(keys(train) + keys(val))
        held += keys(fold.val)
    assert sorted(held) == sorted(keys(train) + keys(val))


def test_a_choice_of_samples_is_a_shard_set_like_any_other(clips: Path) -> None:
    whole = open_shards(str(clips), "train")
    part = whole.only([19, 3, 4, 11])
    assert keys(part) == [keys(whole)[number] for number in (3, 4, 11, 19)] and len(whole) == 20
    assert part.read(3).members == whole.read(19).members
    assert part.shard_sizes.tolist() == [2, 1, 1]
    assert len({whole.hash, part.hash, whole.only([3, 4, 11]).hash, part.only([0]).hash}) == 4
    drawn = EpochOrder(part.shard_sizes, seed=0).draw(np.arange(8)).samples
    assert sorted(drawn[:4].tolist()) == sorted(drawn[4:].tolist()) == [0, 1, 2, 3]


def test_a_fold_without_people_is_refused(clips: Path) -> None:
    with pytest.raises(DataError, match="use fewer folds"):
        for number in range(1, 41):
            cut_fold(open_shards(str(clips), "train"), None, f"{number}/40")
    for wrong in ("0/5", "6/5", "1/1", "1", "a/b", "-1/5"):
        with pytest.raises(ConfigError, match="1/5 to 5/5"):
            load_config("", [f"data.fold={wrong}"])
    assert fold_of("5/5") == (5, 5)


def part(name: str, pred: list[float], target: list[float]) -> Predictions:
    return build_predictions(
        "val",
        [f"{name}{number}" for number in range(len(pred))],
        group=[name] * len(pred),
        frame=range(len(pred)),
        va=np.array([target, target]).T,
        va_pred=np.array([pred, pred]).T,
    )


def test_pooled_is_over_all_samples_together() -> None:
    """Each fold has a CCC of 1; together a shift between them counts: p = t for one, p = t + .5 is not."""
    first, second = part("a", [0.0, 0.2], [0.0, 0.2]), part("b", [0.5, 0.7], [0.0, 0.2])
    scores = score(pool([first, second]), num_resamples=0)
    # Means .35 and .1, variances .0725 and .01, covariance .01.
    assert scores.headline["ccc_valence"].value == pytest.approx(2 * 0.01 / (0.0725 + 0.01 + 0.25**2))
    assert scores.num_samples == 4 and scores.num_groups == 2
    with pytest.raises(DataError, match="in the predictions of 2 runs"):
        pool([first, first])
    with pytest.raises(DataError, match="different splits"):
        pool([first, replace(second, split="test")])


def test_recordings_of_joined_sets_stay_apart_though_they_are_called_the_same(
    clips: Path, tmp_path: Path
) -> None:
    other = made_clips(tmp_path / "other", counts={"val": 1})
    joined = open_shards([clips, other], "val")
    sample = torch.tensor([0.0, 7.0])
    columns = {"sample": sample, "frame": sample * 0, "va": torch.zeros(2, 2), "va_target": torch.zeros(2, 2)}
    found = clip_predictions("val", joined, columns)
    assert found.group == ("recording-val-000", "recording-val-000~1")
    assert (
        clip_predictions(
            "val", joined.only([7]), {**columns, "sample": torch.zeros(2), "frame": sample}
        ).group
        == ("recording-val-000~1",) * 2
    )


def test_only_folds_of_one_cross_validation_are_pooled() -> None:
    configs = [load_config("", [f"data.fold={fold}"]) for fold in ("1/3", "3/3", "3/4")]
    assert check_folds(configs[:2]) == "2 of 3 folds; missing: 2/3"
    for wrong in (configs, [configs[0], configs[0]], [load_config(""), configs[0]]):
        with pytest.raises(ConfigError, match="each once"):
            check_folds(wrong)


def test_runs_of_two_folds_are_scored_one_by_one_and_together(
    clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.clip_views.save_clip_views", lambda *_, **__: None)
    small = ["mran.encoder=conv", "init=", "train.epochs=0.2", "eval.every=99", f"data.shards={clips}"]
    for number in (1, 2):
        config = load_config("", [*MRAN, *small, f"data.fold={number}/2", f"run=fold{number}"])
        assert run_finetuning(config, "tiny") == 0
    trained = {name: read_csv(Path(name) / "predictions" / "val.csv") for name in ("fold1", "fold2")}
    whole = cut_fold(open_shards(str(clips), "train"), open_shards(str(clips), "val"), "1/2")
    assert set(trained["fold1"].group) == {f"recording-{key}" for key in keys(whole.val)}
    capsys.readouterr()
    assert main(["evaluate", "fold1", "fold2"]) == 0
    said = capsys.readouterr().out
    total = len(trained["fold1"]) + len(trained["fold2"])
    assert "scored best on its own held-out fold" in said
    assert "pooled over 2 of 2 folds" in said and f"split val: {total} samples" in said and "over 27" in said
    again = read_csv(Path("fold1") / "predictions" / "val.csv")
    assert again.data_hash == trained["fold1"].data_hash
    assert main(["evaluate", "fold1", "fold2", "--tune"]) == 2
    assert main(["evaluate", "fold1", "fold2", "--split", "test"]) == 2
    data = load_config("fold1/config.yaml").data
    assert keys(open_split(data, str(clips), "test", Path("fold1/damaged.json"))) == [
        "test-000",
        "test-001",
    ]
