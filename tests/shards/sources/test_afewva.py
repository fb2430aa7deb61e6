"""AFEW-VA: both nestings, its scale, its landmarks; what is missing or broken is counted and named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.__main__ import main
from shards.align.geometry import warp
from shards.labels import DataError
from tests.shards.sources.clip_layouts import (
    Files,
    afewva_files,
    afewva_frame,
    afewva_json,
    frames_of,
    labels_of,
    made_clips,
    refs,
    stored,
)
from tests.shards.sources.layouts import drawn, write_files, write_zip

SMALL: dict[str, Any] = {"allow_partial": True, "num_folds": 2}  # actor C is held out


def changed(**frames: Any) -> Files:
    """The fixture with other frames in clip 001: f00002={...} in place of its frame 00002, None drops it."""
    files = afewva_files()
    content = json.loads(files["001/001.json"])
    for name, frame in frames.items():
        content["frames"].pop(name[1:], None)
        if frame is not None:
            content["frames"][name[1:]] = frame
    return files | {"001/001.json": json.dumps(content)}


def test_both_nestings_and_a_zip_are_the_same_clips(tmp_path: Path) -> None:
    flat = write_files(tmp_path / "flat", afewva_files())
    nested = write_files(tmp_path / "nested", afewva_files(nested=True))
    packed = write_zip(tmp_path / "set.zip", afewva_files())
    listed = [[(i.key, i.ref.labels) for i in refs("afewva", src, **SMALL)] for src in (flat, nested, packed)]
    assert listed[0] == listed[1] == listed[2]
    assert [key for key, _ in listed[0]] == ["001-000000", "002-000000"]


def test_labels_are_tenths_and_actors_are_apart(tmp_path: Path) -> None:
    src = write_files(tmp_path / "src", afewva_files())
    manifests = made_clips("afewva", src, tmp_path / "out", **SMALL)
    train, val = stored(tmp_path / "out", "train"), stored(tmp_path / "out", "val")
    assert (list(train), list(val)) == (["001-000000", "002-000000"], ["003-000000"])
    found = labels_of(train["001-000000"])
    assert found.valence == (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2)
    assert found.arousal == (1.0, 0.6, 0.2, -0.2, -0.6, -1.0)
    assert (found.num_frames, found.fps, found.identity, found.group) == (6, 25.0, "A", "001")
    assert labels_of(val["003-000000"]).identity == "C"
    settings = manifests["train"].build["settings"]
    assert settings["lag_seconds"] == 0.0 and settings["counts"]["train"]["recordings"] == 2
    assert settings["counts"]["train"]["frames"]["used"] == 9
    assert settings["counts"]["train"]["labels"]["labels"] == {"valence": 9, "arousal": 9}
    assert manifests["train"].build["frames"] == {"with color": 9}
    other = refs("afewva", src, "val", **SMALL, fold=2)
    assert [item.key for item in other] == ["001-000000", "002-000000"]


def test_each_frame_is_cut_by_its_own_landmarks(tmp_path: Path) -> None:
    files = changed(f00001=afewva_frame(0, 0, shift=(9, 2)))
    src = write_files(tmp_path / "src", files)
    manifests = made_clips("afewva", src, tmp_path / "out", **SMALL)
    assert manifests["train"].alignment["mode"] == "given"
    sample = stored(tmp_path / "out", "train")["001-000000"]
    for frame, shift in ((0, (4, 4)), (1, (9, 2))):
        stored_face = np.asarray(Image.open(io.BytesIO(sample.members[f"color.{frame:04d}.jpg"])))
        whole = np.asarray(Image.open(io.BytesIO(drawn(100 + frame, (128, 128), "PNG"))))
        wanted = warp(whole, np.array([[1.0, 0, -shift[0]], [0, 1.0, -shift[1]]]), 112)
        assert np.abs(stored_face.astype(int) - wanted).mean() < 1.5


def test_what_is_missing_or_broken_is_counted_and_its_frame_kept(tmp_path: Path) -> None:
    files = changed(
        f00000={"valence": 11, "arousal": 2, "landmarks": afewva_frame(0, 0)["landmarks"]},
        f00001={"valence": None, "arousal": "high", "landmarks": afewva_frame(0, 0)["landmarks"]},
        f00002={"valence": 1, "arousal": 1, "landmarks": []},
        f00003={"valence": 1, "arousal": 1, "landmarks": [[1, 2], [3, 4]]},
        f00004=None,
        f00007=afewva_frame(1, 1),
    )
    src = write_files(tmp_path / "src", files)
    manifests = made_clips("afewva", src, tmp_path / "out", **SMALL, max_unused=0.5, max_missing=0.7)
    counts = manifests["train"].build["settings"]["counts"]["train"]
    assert counts["frames"]["unusable"] == {"no picture": 2} and counts["frames"]["used"] == 9
    assert counts["labels"]["unusable"] == {"invalid": 2, "bad landmarks": 1}
    assert counts["labels"]["dropped"] == {"missing": 1}
    sample = stored(tmp_path / "out", "train")["001-000000"]
    found = labels_of(sample)
    assert found.num_frames == 8 and found.valence[:4] == (None, None, 0.1, 0.1)
    assert found.arousal[:5] == (0.2, None, 0.1, 0.1, None)
    assert frames_of(sample) == [0, 1, 5] and found.extra["lost"] == {"no landmarks": 3, "no picture": 2}
    assert manifests["train"].build["frames"] == {"no landmarks": 3, "no picture": 2, "with color": 6}


def test_a_clip_without_a_face_is_left_out_with_its_reason(tmp_path: Path) -> None:
    none = {"valence": 1, "arousal": 1, "landmarks": []}
    src = write_files(tmp_path / "src", afewva_files() | {"002/002.json": afewva_json("A", {"00000": none})})
    manifests = made_clips("afewva", src, tmp_path / "out", **SMALL)
    assert (manifests["train"].num_samples, manifests["train"].num_quarantined) == (1, 1)
    listed = (tmp_path / "out" / "train" / "quarantine.csv").read_text()
    assert "002-000000,3 of 3 frames without a face (3 no landmarks)" in listed
    assert manifests["train"].build["frames"] == {"in clips left out": 3, "with color": 6}


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        (
            changed(f00007=afewva_frame(1, 1)),
            SMALL,
            r"2 of 11 rows cannot be used.*001, frame 6.*max_unused=0",
        ),
        ({"001/001.json": "{"}, SMALL, r"001/001\.json: not a clip's JSON.*fetch it again"),
        ({"001/001.json": '{"actor": "A", "frames": {}}'}, SMALL, "there must be one"),
        ({"001/001.json": '{"frames": {"0": {}}}'}, SMALL, "KeyError"),
        ({"001/001.json": afewva_json("A", {"9" * 30: {}})}, SMALL, "more than the 10,000,000 frames"),
        ({"001/001.json": afewva_json("A", {"0": {}, "00": {}})}, SMALL, "has a frame twice"),
        ({"001/001.json": afewva_json("\ud800", {"0": {}})}, SMALL, "UnicodeEncodeError"),
        (afewva_files() | {"001/00001.jpg": b""}, SMALL, "are both frame 1; remove one"),
        (afewva_files() | {"01/001/001.json": "{}"}, SMALL, "are both clip 001; remove one"),
        ({"readme.txt": "x"}, SMALL, r"no clip there; SRC should hold NNN/NNN\.json"),
        (afewva_files(), {}, "3 clips instead of 600"),
        (afewva_files(), {**SMALL, "fold": 3}, "fold=3: must be from 1 to num_folds=2"),
        (afewva_files(), {**SMALL, "clip_frames": 0}, "clip_frames=0: must be from 1"),
        (afewva_files(), {**SMALL, "fps": 0}, "fps=0"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_remedy(
    tmp_path: Path, files: Files, options: dict[str, Any], said: str
) -> None:
    src = write_files(tmp_path / "src", files)
    with pytest.raises(DataError, match=said):
        refs("afewva", src, **options)


def test_the_command_builds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = write_files(tmp_path / "src", afewva_files()), tmp_path / "out"
    words = ["shards", "build", "afewva", str(src), str(out), "allow_partial=true", "num_folds=2"]
    assert main([*words, "build.workers=1"]) == 0
    assert "train: 2 clips of 2 pieces of video in 1 shards" in capsys.readouterr().out
    assert main([*words, "build.workers=1", "align.faces=all"]) != 0
    assert "align.faces=all: a clip is of one person" in capsys.readouterr().err
