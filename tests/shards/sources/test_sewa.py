"""SEWA: both releases, rows at 0.1 s brought to the frames of the video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.labels import DataError
from shards.sources import build_source
from shards.sources.splits import keyed_split
from tests.shards.sources.clip_layouts import (
    Files,
    SeenFaces,
    labels_of,
    made_clips,
    refs,
    sewa_table,
    stored,
    write_sides,
)
from tests.shards.sources.layouts import write_files

AVEC = {"labels/Train_DE_01.csv": "Train_DE_01", "labels/Devel_HU_02.csv": "Devel_HU_02"}


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.align.aligner.FaceDetector", SeenFaces)


def avec(folder: Path, files: Files | None = None, header: bool = False) -> Path:
    write_files(folder, {path: sewa_table(name, 5, header) for path, name in AVEC.items()} | (files or {}))
    for name in (*AVEC.values(), "Test_CN_01"):
        write_sides(folder / "video" / f"{name}.avi", 20, 50)
    return folder


def full(folder: Path, valence: str, arousal: str) -> Path:
    """Clips of subjects A01 and B02, in folders of their own; frames at 10 a second."""
    for clip in ("A01_C1", "B02_C1"):
        names = {"valence": (valence, "Valence"), "arousal": (arousal, "Arousal")}
        files: Files = {f"{clip}/{d}/{clip}_{t}_A_Aligned.csv": text for d, (text, t) in names.items()}
        write_files(folder, files)
        write_sides(folder / clip / f"{clip}.avi", 6, 10)
    return folder


def whole(folder: Path, **options: Any) -> list[Any]:
    return [item.ref for split in ("train", "val") for item in refs("sewa", folder, split, **options)]


@pytest.mark.parametrize("header", [False, True])
def test_rows_each_tenth_of_a_second_are_joined_by_lines(tmp_path: Path, header: bool) -> None:
    """Valence is 0.1 a row: at frame n of 50 a second it is n / 50; rows end at 0.4 s, as the video does."""
    manifests = made_clips("sewa", avec(tmp_path / "src", header=header), tmp_path / "out")
    (train,) = stored(tmp_path / "out", "train").values()
    found = labels_of(train)
    assert found.valence == pytest.approx([n / 50 for n in range(20)], abs=1e-6)
    assert found.arousal == pytest.approx([0.3 - n / 50 for n in range(20)], abs=1e-6)
    assert (found.fps, found.group, found.extra["culture"]) == (50.0, "Train_DE_01", "DE")
    (test,) = stored(tmp_path / "out", "test").values()
    assert set(labels_of(test).valence) == {None}
    assert manifests["train"].build["settings"]["lag_seconds"] == 2.0
    counts = manifests["val"].build["settings"]["counts"]["val"]
    assert counts["labels"]["used"] == 10 and counts["frames"]["labels"] == {"valence": 20, "arousal": 20}


def test_the_full_release_with_times_and_raters_or_a_value_for_each_frame(tmp_path: Path) -> None:
    timed = full(tmp_path / "timed", "time,r1,r2\n0.0,0.1,0.3\n0.2,0.3,\n0.4,nan,nan\n", "0;100\n0.5;200\n")
    with pytest.raises(DataError, match=r"_C1_Arousal_A_Aligned\.csv line 1 must be from -1 to 1, got '100'"):
        whole(timed)
    found = [labels_json(ref) for ref in whole(timed, scale=1000.0)]
    assert found[0]["valence"] == [0.0002, 0.00025, 0.0003, None, None, None]
    assert found[0]["arousal"] == pytest.approx([0.1, 0.12, 0.14, 0.16, 0.18, 0.2])
    frames = full(tmp_path / "frames", "0.1\n0.2\n0.3\n0.4\n", "Arousal\n0\n0\n0\n0\n0\n0\n0.5\n0.6\n")
    found = [labels_json(ref) for ref in whole(frames)]
    assert found[0]["valence"] == [0.1, 0.2, 0.3, 0.4, 0.4, None] and found[0]["arousal"] == [0.0] * 6
    splits = {keyed_split(subject, 0.5) for subject in ("A01", "B02")}
    assert {s for s in ("train", "val") if refs("sewa", frames, s, val_fraction=0.5)} == splits


def labels_json(ref: Any) -> dict[str, Any]:
    return dict(json.loads(ref.labels))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"labels/Train_DE_01.csv": "'Train_DE_01',0.0,0.1,0.2\n"},
            r"Train_DE_01\.csv line 1: no column 'time'",
        ),
        ({"labels/Train_DE_01.csv": "'a';0.0;0.1;0.2\n'a';0.1;0.2\n"}, "line 2: 3 cells instead of 4"),
        (
            {"labels/Train_DE_01.csv": "'a';0.1;0;0\n'a';0.1;0;0\n"},
            r"line 2: time 0\.1 s does not come after",
        ),
        ({"labels/Train_DE_01.csv": "'a';0.0;2;0\n'a';0.1;0;0\n"}, "Train_DE_01.csv line 1: arousal must be"),
        ({"labels/Train_DE_01.csv": "\n"}, "empty; fetch it again"),
        ({"labels/Train_DE_07.csv": "'a';0.0;0;0\n"}, r"no video Train_DE_07\.avi .*allow_partial=true"),
        ({"x/S1_Valence_A_Aligned.csv": "0\n"}, "give one release"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_remedy(
    tmp_path: Path, files: Files, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        refs("sewa", avec(tmp_path, files))


def _dropped(source: Any) -> dict[str, int]:
    found: dict[str, int] = source.info.settings["counts"]["train"]["labels"]["dropped"]
    return found


def test_an_empty_row_of_a_column_is_a_frame_without_a_rating(tmp_path: Path) -> None:
    """Were it left away, all later ratings would come a frame too early."""
    column = "Valence\n0.1\n\n0.3\n0.4\n0.5\n0.6\n\n"
    src = full(tmp_path, column, "time,r\n\n0,0.2\n\n0.5,0.2\n")
    found = labels_json(whole(src, resample="nearest")[0])
    assert found["valence"] == [0.1, None, 0.3, 0.4, 0.5, 0.6] and found["arousal"] == [0.2] * 6


def test_a_dimension_or_ratings_that_are_not_there(tmp_path: Path) -> None:
    src = full(tmp_path / "src", "0.1\n", "0.1\n")
    (src / "A01_C1" / "arousal" / "A01_C1_Arousal_A_Aligned.csv").unlink()
    with pytest.raises(DataError, match=r"no A01_C1_Arousal_A_Aligned\.csv at any depth, though A01_C1"):
        whole(src)
    assert len(whole(src, allow_partial=True)) == 1
    write_files(src, {"00_C1_Arousal_A_Aligned.csv": "0.1\n"})
    with pytest.raises(DataError, match=r"no 00_C1_Valence_A_Aligned\.csv at any depth"):
        whole(src)
    part = build_source("sewa", src, allow_partial=True, val_fraction=0.0)
    assert _dropped(part) == {"recordings without valence": 1, "recordings without arousal": 1}
    tables = {"labels/Train_DE_07.csv": sewa_table("Train_DE_07", 5)}
    part = build_source("sewa", avec(tmp_path / "avec", tables), allow_partial=True)
    assert _dropped(part) == {"recordings without a video": 1}
    with pytest.raises(DataError, match="no ratings there; SRC should hold labels/Train_DE_01"):
        refs("sewa", write_files(tmp_path / "empty", {"x": "x"}))
    with pytest.raises(DataError, match="scale=0: must be above 0"):
        refs("sewa", src, scale=0.0)
