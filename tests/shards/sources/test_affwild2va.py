"""Aff-Wild2's videos: frames as they are handed out, to the pixel, or cut anew from the videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.align import load_image
from shards.labels import DataError
from shards.sources import build_source
from tests.shards.sources.clip_layouts import (
    Files,
    SeenFaces,
    affwild2va_files,
    frames_of,
    labels_of,
    made_clips,
    refs,
    stored,
    write_sides,
)
from tests.shards.sources.layouts import write_files, write_zip

TRAIN = "VA_Estimation_Challenge/Train_Set"


def videos(folder: Path) -> Path:
    """Annotations, and videos of two people each but for video9."""
    files = {name: data for name, data in affwild2va_files().items() if name.startswith("VA_")}
    write_files(folder, files)
    for name in ("video5", "6-30-1920x1080"):
        write_sides(folder / "batch1" / f"{name}.mp4", 5, 30, two=True)
    write_sides(folder / "batch2" / "video9.avi", 3, 24)
    return folder


def test_frames_are_used_as_they_are_and_missing_ones_stay_missing(tmp_path: Path) -> None:
    files = affwild2va_files()
    del files["cropped_aligned/video5_left/00003.jpg"]
    src = write_files(tmp_path / "src", files)
    manifests = made_clips("affwild2va", src, tmp_path / "out", max_unused=0.1)
    clips = stored(tmp_path / "out", "train")
    keys = [
        "6-30-1920x1080-000000",
        "6-30-1920x1080_right-000000",
        "video5_left-000000",
        "video5_right-000000",
    ]
    assert list(clips) == keys
    clip = clips["video5_left-000000"]
    found = labels_of(clip)
    assert found.valence == (0.1, None, 0.3, -1.0) and found.arousal == (-0.2, None, 0.25, 1.0)
    assert (found.fps, found.identity, found.group) == (30.0, "video5_left", "video5_left")
    assert found.extra == {"video": "video5", "lost": {"no picture": 1}}
    assert frames_of(clip) == [0, 1, 3]
    whole = load_image((src / "cropped_aligned/video5_left/00002.jpg").read_bytes())
    assert np.array_equal(load_image(clip.members["color.0001.jpg"]), whole)
    assert manifests["train"].alignment["geometry"]["made_by"] == "Aff-Wild2: cropped_aligned"
    counts = manifests["train"].build["settings"]["counts"]["train"]
    assert counts["frames"]["unusable"] == {"no picture": 1} and counts["frames"]["used"] == 15
    assert counts["labels"]["used"] == 24 and counts["labels"]["dropped"] == {"missing": 8}
    assert list(stored(tmp_path / "out", "val")) == ["video9-000000"]


def test_a_zip_of_frames_is_read_in_place(tmp_path: Path) -> None:
    files = affwild2va_files()
    texts = {name: data for name, data in files.items() if name.startswith("VA_")}
    src = write_files(tmp_path / "src", texts)
    frames = {name: data for name, data in files.items() if name not in texts}
    write_zip(src / "cropped_aligned.zip", frames)
    whole = write_files(tmp_path / "whole", files)
    for split in ("train", "val"):
        one, two = (refs("affwild2va", path, split) for path in (src, whole))
        assert [item.key for item in one] == [item.key for item in two]
        assert [item.ref.labels for item in one] == [item.ref.labels for item in two]
    assert made_clips("affwild2va", src, tmp_path / "out")["train"].num_samples == 4


def test_in_a_video_the_person_is_the_one_on_the_named_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.align.aligner.FaceDetector", SeenFaces)
    src = videos(tmp_path / "src")
    manifests = made_clips("affwild2va", src, tmp_path / "out", videos=True)
    clips = stored(tmp_path / "out", "train")
    faces = {key: load_image(clip.members["color.0000.jpg"]).astype(int) for key, clip in clips.items()}
    # The side of a name without an ending is the one that the other's leaves.
    assert np.abs(faces["video5_left-000000"] - faces["6-30-1920x1080-000000"]).mean() < 3
    assert np.abs(faces["video5_right-000000"] - faces["6-30-1920x1080_right-000000"]).mean() < 3
    assert np.abs(faces["video5_left-000000"] - faces["video5_right-000000"]).mean() > 3
    found = labels_of(clips["video5_left-000000"])
    assert found.num_frames == 5 and found.valence == (0.1, None, 0.3, -1.0, None)
    (val,) = stored(tmp_path / "out", "val").values()
    assert labels_of(val).fps == 24.0 and labels_of(val).num_frames == 3
    counts = manifests["val"].build["settings"]["counts"]["val"]
    assert counts["labels"]["dropped"] == {"after the last frame": 2, "missing": 2}
    assert counts["labels"]["labels"] == counts["frames"]["labels"] == {"valence": 2, "arousal": 2}


def test_with_one_face_nobody_knows_which_of_two_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.align.aligner.FaceDetector", SeenFaces)
    src = videos(tmp_path / "src")
    write_sides(src / "batch1" / "video5.mp4", 5, 30)
    manifests = made_clips("affwild2va", src, tmp_path / "out", videos=True)
    assert sorted(stored(tmp_path / "out", "train")) == [
        "6-30-1920x1080-000000",
        "6-30-1920x1080_right-000000",
    ]
    listed = (tmp_path / "out" / "train" / "quarantine.csv").read_text()
    assert "video5_left-000000,5 of 5 frames without a face (5 one face where two people are)" in listed
    assert manifests["train"].num_quarantined == 2


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        (
            {f"{TRAIN}/video5_left.txt": "arousal;valence\n0,0\n"},
            {},
            "line 1: expected the header valence,arou",
        ),
        ({f"{TRAIN}/video5_left.txt": "valence,arousal\n0;0\n"}, {}, "line 2: should be valence,arousal"),
        (
            {f"{TRAIN}/video5_left.txt": "valence,arousal\n0,2\n"},
            {},
            r"video5_left\.txt line 2: arousal must",
        ),
        ({f"{TRAIN}/other.txt": "valence,arousal\n0,0\n"}, {}, "no folder other of frames, though other.txt"),
        ({f"{TRAIN}/video5_left.txt": "valence,arousal\n" + "0,0\n" * 9}, {}, "video5_left, frame 4"),
        ({"b/VA_Set/Train_Set/x.txt": "x"}, {}, "give the one to be read with annotations="),
        ({}, {"annotations": "nowhere"}, "annotations=nowhere: no such folder"),
        ({}, {"annotations": "cropped_aligned", "images": "x"}, "no text files in Train_Set"),
        ({"cropped_aligned/b/video9/1.jpg": b""}, {}, "are both frame 1 of one video; remove one"),
        ({"cropped_aligned/video9/99999999.jpg": b""}, {}, "more than the 10,000,000 frames"),
        ({}, {"images": "nowhere"}, "images=nowhere: no such folder or zip"),
        ({}, {"fps": 0.0}, "fps=0"),
        ({}, {"videos": True}, "no video video5|no video 6-30"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_remedy(
    tmp_path: Path, files: Files, options: dict[str, Any], said: str
) -> None:
    src = write_files(tmp_path, affwild2va_files() | files)
    with pytest.raises(DataError, match=said):
        refs("affwild2va", src, **{"max_unused": 0.02, **options})


def test_parts_are_allowed_if_asked_for(tmp_path: Path) -> None:
    files = {name: data for name, data in affwild2va_files().items() if "video5" not in name}
    del files["VA_Estimation_Challenge/Validation_Set/video9.txt"]
    files[f"{TRAIN}/gone.txt"] = "valence,arousal\n0,0\n"
    src = write_files(tmp_path, files)
    with pytest.raises(DataError, match="no text files in Validation_Set"):
        refs("affwild2va", src)
    source = build_source("affwild2va", src, allow_partial=True)
    assert list(source.splits()) == ["train"] and len(source.items("train")) == 2
    counts = source.info.settings["counts"]["train"]["labels"]
    assert counts["dropped"]["of a video that is not there"] == 1
