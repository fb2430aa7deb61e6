"""RECOLA: raters become one gold standard; what is short, broken or absent is counted or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.labels import DataError
from shards.sources import build_source
from shards.sources.recola import LAG_SECONDS, PUBLIC_SPLITS
from shards.sources.series import gold_standard
from tests.shards.sources.clip_layouts import (
    Files,
    SeenFaces,
    avec_recola_files,
    frames_of,
    labels_of,
    made_clips,
    recola_files,
    recola_table,
    refs,
    stored,
    write_sides,
)
from tests.shards.sources.layouts import write_files

PART: dict[str, Any] = {"allow_partial": True}
BASE = "RECOLA-Annotation/emotional_behaviour"


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.align.aligner.FaceDetector", SeenFaces)


def public(folder: Path, files: Files | None = None, names: tuple[str, ...] = ("P17", "P16", "P42")) -> Path:
    write_files(folder, recola_files() | (files or {}))
    for name in names:
        write_sides(folder / "RECOLA-Video-recordings" / f"{name}.mp4", 12, black=(3,))
    return folder


def test_raters_become_a_gold_standard_at_every_frame(tmp_path: Path) -> None:
    src = public(tmp_path / "src")
    manifests = made_clips("recola", src, tmp_path / "out", clip_frames=6, **PART)
    assert sorted(manifests) == ["test", "train", "val"]
    clips = stored(tmp_path / "out", "train")
    assert list(clips) == ["P17-000000", "P17-000006"]
    raters = np.array([[0.1 + 0.02 * r + 0.01 * (k - 2.5) for k in range(6)] for r in range(13)])
    gold = gold_standard(raters)
    first, second = (labels_of(clip) for clip in clips.values())
    assert [*first.valence, *second.valence] == pytest.approx(gold[:12].tolist(), abs=1e-6)
    assert first.arousal[0] == pytest.approx(gold[0] - 0.3, abs=1e-6)
    assert (first.fps, first.group, first.identity, second.start_frame) == (25.0, "P17", "P17", 6)
    assert frames_of(clips["P17-000000"]) == [0, 1, 2, 4, 5] and first.extra["lost"] == {"no face": 1}
    settings = manifests["train"].build["settings"]
    assert settings["lag_seconds"] == LAG_SECONDS and settings["release"] == "public"
    counts = settings["counts"]["train"]
    assert counts["frames"]["used"] == 12 and counts["labels"]["used"] == 26
    absent = {"recordings without ratings": len(PUBLIC_SPLITS["train"]) - 1}
    assert counts["labels"]["dropped"] == {"recordings in no split (P99)": 1, **absent}
    assert manifests["val"].build["frames"] == {"no face": 1, "with color": 11}


def test_the_splits_in_use_have_no_participant_twice() -> None:
    numbers = [number for split in PUBLIC_SPLITS.values() for number in split]
    assert len(numbers) == len(set(numbers)) == 23


def test_short_annotations_and_missing_cells_leave_frames_without_labels(tmp_path: Path) -> None:
    table = recola_table(13).splitlines()
    table[3] = "0.08 ;NaN;;nan ; ; ;"
    table[4] = "0.12 ;0.1 ;0.1 ;x ;0.1 ;0.1 ;0.1"
    files: Files = {
        f"{BASE}/valence/P17.csv": "\n".join(table) + "\n",
        f"{BASE}/arousal/P17.csv": recola_table(8),
    }
    source = build_source("recola", public(tmp_path, files), None, **PART, max_unused=0.1)
    assert list(source.splits()) == ["train", "val", "test"]
    made = made_clips("recola", tmp_path, tmp_path / "out", max_unused=0.1, **PART)
    (clip,) = stored(tmp_path / "out", "train").values()
    found = labels_of(clip)
    assert [n for n, v in enumerate(found.valence) if v is None] == [2]
    assert [n for n, v in enumerate(found.arousal) if v is None] == [9, 10, 11]
    counts = made["train"].build["settings"]["counts"]["train"]
    assert counts["labels"]["unusable"] == {"invalid": 1}
    assert counts["labels"]["dropped"]["missing"] == 1
    assert counts["frames"]["labels"] == {"valence": 11, "arousal": 9}


def test_avecs_release_has_its_gold_standard_and_a_test_without_labels(tmp_path: Path) -> None:
    src = write_files(tmp_path / "src", avec_recola_files())
    for name in ("train_1", "train_2", "dev_1", "test_1"):
        write_sides(src / "recordings_video" / f"{name}.mp4", 12)
    manifests = made_clips("recola", src, tmp_path / "out")
    assert list(stored(tmp_path / "out", "train")) == ["train_1-000000", "train_2-000000"]
    (dev,) = stored(tmp_path / "out", "val").values()
    assert labels_of(dev).valence == pytest.approx([0.1 + 0.02 * n for n in range(12)], abs=1e-6)
    (test,) = stored(tmp_path / "out", "test").values()
    assert set(labels_of(test).valence) == {None} and frames_of(test) == list(range(12))
    assert manifests["test"].build["settings"]["gold_standard"] == "as released"


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({}, {}, r"valence/P43\.csv: no such file, though P43 is of the train split; fetch it, or use"),
        (
            {f"{BASE}/valence/P17.csv": "time,FM1\n0,0\n0,1\n"},
            PART,
            r"P17\.csv line 3: time 0 s does not come",
        ),
        ({f"{BASE}/valence/P17.csv": "time|FM1\n0|0\n"}, PART, r"P17\.csv line 1: no column 'time'"),
        ({f"{BASE}/valence/P17.csv": "time;\n0;\n"}, PART, r"P17\.csv line 1: no column of a rater"),
        (
            {f"{BASE}/valence/P17.csv": "time;FM1;FM2\n0;0,1;0\n0.04;0;0\n"},
            PART,
            r"1 of \d+ rows cannot be used.*P17\.csv line 2: FM1 must be a number.*decimal points",
        ),
        ({f"{BASE}/valence/P17.csv": "time;FM1;FM2\n0;0\n"}, PART, "line 2: 2 cells, but the header has 3"),
        ({"x/P17.mp4": b"no video"}, PART, "have one name; remove one of them"),
        ({"ratings_gold_standard/valence/dev_1.arff": "x"}, PART, "give one release"),
        ({}, {**PART, "resample": "spline"}, "resample=spline"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_remedy(
    tmp_path: Path, files: Files, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        refs("recola", public(tmp_path, files), **options)


def test_a_folder_or_video_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no ratings there; SRC should hold RECOLA-Annotation"):
        refs("recola", write_files(tmp_path / "a", {"x.txt": "x"}))
    src = write_files(tmp_path / "b", avec_recola_files())
    with pytest.raises(DataError, match=r"no video dev_1\.mp4 at any depth, though it is rated; fetch it"):
        refs("recola", src)
    with pytest.raises(DataError, match="no video of a rated recording"):
        refs("recola", src, **PART)
    for name in ("train_1", "train_2"):
        write_sides(src / f"{name}.mp4", 12)
    (src / "dev_1.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match=r"dev_1\.mp4: cannot read the video.*fetch it again, or remove it"):
        refs("recola", src)


def test_without_pyav_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = public(tmp_path, names=("P17",))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'faceprior\[video\]'"):
        refs("recola", src, **PART)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@attribute frameTime numeric\n@attribute gold numeric\n", "should be an arff with a time"),
        ("@attribute name string\n@attribute gold numeric\n@data\na,0\n", "its attributes: name, gold"),
        ("@attribute frameTime x\n@attribute gold x\n@data\n0\n", r"dev_1\.arff line 4: 1 cells for 2"),
        ("@attribute frameTime x\n@attribute gold x\n@data\n1,0\n0,0\n", r"dev_1\.arff line 5: time 0 s"),
    ],
)
def test_an_arff_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    files = avec_recola_files() | {"ratings_gold_standard/valence/dev_1.arff": text}
    src = write_files(tmp_path, files)
    write_sides(src / "dev_1.mp4", 12)
    with pytest.raises(DataError, match=said):
        refs("recola", src, **PART)
