"""Indexing where tars lie: labels found, a build's manifest never lost, lost indexes made anew."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from shards.clips import clip_eval_batches
from shards.config import ClipConfig
from shards.indexing import index_tars
from shards.labels import AU12, EXPR8, DataError
from shards.manifest import load_manifest
from shards.records import LabelSpace
from shards.shardset import open_shards
from shards.stream import eval_batches
from tests.shards.faces import build_smooth, smooth_jpeg
from tests.shards.made_clips import made_clips
from tests.shards.sources.layouts import write_tar


def index(folder: Path, split: str = "train") -> LabelSpace:
    return index_tars(sorted(folder.glob("*.tar")), folder, split, "web", "CC0").label_space


def web(folder: Path, *labels: object, tar: str = "0.tar") -> Path:
    """A tar with a sample for each JSON value."""
    files: dict[str, bytes | str] = {}
    for i, value in enumerate(labels):
        files[f"{tar[0]}-{i}.jpg"] = smooth_jpeg(i)
        files[f"{tar[0]}-{i}.json"] = value if isinstance(value, str) else json.dumps(value)
    write_tar(folder / tar, files)  # type: ignore[arg-type]
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_keeps_its_manifest_and_gets_its_indexes_back(tmp_path: Path) -> None:
    train = build_smooth(tmp_path / "set") / "train"
    before = contents(train)
    index(train, "val")
    assert contents(train) == before
    (train / "faces-000001.idx").write_bytes(b"damaged")
    (train / "faces-000002.idx").unlink()
    with pytest.raises(DataError, match=r"faceprior shards index .*train"):
        open_shards(str(train), "train")
    index(train)
    assert contents(train) == before


def test_an_index_that_was_wrong_from_the_start_is_mended_in_the_manifest_too(tmp_path: Path) -> None:
    train = build_smooth(tmp_path / "set") / "train"
    whole = load_manifest(train)
    data = json.loads((train / "manifest.json").read_bytes())
    data["shards"][0]["index_sha256"] = "0" * 64
    del data["checksum"]
    (train / "manifest.json").write_text(json.dumps(data))
    index(train)
    assert load_manifest(train) == whole and len(open_shards(str(train), "train")) == 90


def test_a_build_whose_tars_are_not_the_listed_ones_is_not_mended(tmp_path: Path) -> None:
    train = build_smooth(tmp_path / "set") / "train"
    (train / "faces-000000.tar").write_bytes((train / "faces-000001.tar").read_bytes())
    with pytest.raises(DataError, match=r"faces-000000\.tar: not the tar that the manifest lists"):
        index(train)
    (train / "faces-000000.tar").unlink()
    with pytest.raises(DataError, match=r"faces-000000\.tar: missing"):
        index(train)


def test_a_damaged_manifest_is_not_written_over(tmp_path: Path) -> None:
    train = build_smooth(tmp_path / "set") / "train"
    (train / "manifest.json").write_text("{")
    before = contents(train)
    with pytest.raises(DataError, match=r"manifest\.json: not JSON.*restore it from a copy"):
        index(train)
    assert contents(train) == before


def test_what_is_left_of_a_build_is_not_taken_for_tars_from_elsewhere(tmp_path: Path) -> None:
    train = build_smooth(tmp_path / "set", reject_every=30) / "train"
    (train / "manifest.json").unlink()
    before = contents(train)
    with pytest.raises(DataError, match=r"left of a build.*run the build again"):
        index(train)
    assert contents(train) == before
    (train / "quarantine.csv").unlink()
    index(train)
    (train / "manifest.json").unlink()  # as the message on a damaged one says, of tars from elsewhere
    index(train)
    (train / "manifest.json").unlink()
    (train / ".parts").mkdir()
    with pytest.raises(DataError, match="left of a build"):
        index(train)


def test_labels_in_the_json_are_found_and_read(tmp_path: Path) -> None:
    labels = [{"expr": "fear", "au": {"AU4": 1}}, {"caption": "x"}, {"expr": "anger", "valence": 0.5}]
    assert index(web(tmp_path, *labels)) == LabelSpace(EXPR8, AU12, True)
    shards = open_shards(str(tmp_path), "train")
    assert shards.expr.tolist() == [EXPR8.index("fear"), -1, EXPR8.index("anger")]
    (batch,) = eval_batches(shards, 3, (32, 32))
    assert batch.labels.expr_valid.tolist() == [True, False, True]
    assert batch.labels.au_valid.sum() == 1 and batch.labels.va_valid.sum() == 1


def test_classes_of_another_data_set_come_in_a_fixed_order(tmp_path: Path) -> None:
    web(tmp_path, {"expr": "zeal", "au": {"AU17": 1}}, {"expr": "fear", "au": {"AU14": 0, "AU4": 1}})
    web(tmp_path, {"expr": "contempt"}, {"expr": "neutral"}, tar="1.tar")
    space = index(tmp_path)
    assert space.expr == ("neutral", "fear", "contempt", "zeal") and not space.va
    assert space.au == ("AU4", "AU14", "AU17")
    shards = open_shards(str(tmp_path), "train")
    assert [space.expr[i] for i in shards.expr] == ["zeal", "fear", "contempt", "neutral"]
    before = contents(tmp_path)
    index(tmp_path)
    assert contents(tmp_path) == before


def test_more_tars_may_come_and_the_split_may_change(tmp_path: Path) -> None:
    index(web(tmp_path, {}, {}))
    web(tmp_path, {"expr": "fear"}, tar="1.tar")
    assert index(tmp_path, "val").expr == EXPR8
    assert len(open_shards(str(tmp_path), "val")) == 3


@pytest.mark.parametrize("bad", ["[1]", "{", {"valence": 7}, {"au": ["AU1"]}])
def test_json_that_is_no_labels_makes_a_set_unlabelled_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: object
) -> None:
    with caplog.at_level(logging.WARNING):
        assert index(web(tmp_path, {"expr": "fear"}, bad)) == LabelSpace((), (), False)
    assert "the JSON of 1 samples" in caplog.text and "sample 0-1" in caplog.text
    assert open_shards(str(tmp_path), "train").expr.tolist() == [-1, -1]


def test_free_text_is_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.indexing._MAX_NAMES", 5)
    assert index(web(tmp_path, *({"expr": f"a story {i}"} for i in range(9)))).expr == ()
    assert set(open_shards(str(tmp_path), "train").expr.tolist()) == {-1}


def test_rendered_faces_stay_rendered(tmp_path: Path) -> None:
    index(web(tmp_path, {"extra": {"rendered": True}}, {}))
    assert open_shards(str(tmp_path), "train").rendered


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": smooth_jpeg(1)})
    data = (tmp_path / "0.tar").read_bytes()
    header = bytearray(data[:512])
    header[0] = 0xE9
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    (tmp_path / "0.tar").write_bytes(bytes(header) + data[512:])
    with pytest.raises(DataError, match="is not UTF-8"):
        index(tmp_path)


def test_clips_are_known_by_their_members(tmp_path: Path) -> None:
    """Indexed where they lie, and with lost indexes of a build made anew."""
    train = made_clips(tmp_path / "set", counts={"train": 8}) / "train"
    before = contents(train)
    (train / "clips-000000.idx").unlink()
    index(train)
    assert contents(train) == before
    for path in train.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    assert index(train) == LabelSpace((), (), True)
    shards = open_shards(str(train), "train")
    assert load_manifest(train).kind == "clips" and shards.expr.tolist() == [-1] * 8
    (batch,) = clip_eval_batches(shards, 1, (24, 24), ClipConfig(num_frames=14, stride=14), samples=[3])
    assert batch.keys == ["train-003"] and all(valid.all() for valid in batch.valid.values())


def test_faces_and_clips_are_not_indexed_together(tmp_path: Path) -> None:
    web(tmp_path, {"expr": "fear"})
    write_tar(tmp_path / "1.tar", {"a.color.0000.jpg": smooth_jpeg(0), "a.json": "{}"})
    with pytest.raises(DataError, match=r"1\.tar: holds both faces and clips"):
        index(tmp_path)
