"""The doctor among clips: a healthy set is called so, and what is wrong with one is named."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.config import MODALITIES
from shards.doctor import Examination
from shards.frames import encode_plane, frame_extension
from shards.records import Encoded, canonical_json
from shards.shardset import open_shards
from tests.shards.doctor.sets import flip, found, look, put_shard
from tests.shards.made_clips import depth, made_clips

FRAMES = [frame_extension(modality, frame) for modality in MODALITIES for frame in range(3)]
"""Of the first training clip."""


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return made_clips(tmp_path / "set", counts={"train": 6, "val": 4}, stripes=80.0)


def with_members(folder: Path, members: Mapping[str, bytes | None]) -> Examination:
    """The set at `folder` with members of its first training clip set, or left out where None."""
    raw = [open_shards(str(folder), "train").read(sample) for sample in range(6)]
    first = {name: data for name, data in (raw[0].members | members).items() if data is not None}
    put_shard(
        folder / "train",
        0,
        [Encoded(raw[0].key, first), *(Encoded(one.key, one.members) for one in raw[1:])],
    )
    return look(folder)


def test_a_healthy_set_of_clips_is_healthy(clips: Path) -> None:
    examination = look(clips)
    assert [f for f in examination.findings if f.severity != "note"] == []
    train, val = examination.splits
    assert (train.num_samples, val.num_samples, train.num_damaged) == (6, 4, 0)
    assert train.sizes.keys() == {(24, 24)} and train.sizes.total() == 3 + 9 + 10 + 14 + 3 + 9
    assert train.labels.num_va == 6 and train.labels.num_identity == 6 and train.labels.num_bare == 0
    assert train.labels.va_map.sum() == sum(length - 1 for length in (3, 9, 10, 14, 3, 9))
    with Image.open(io.BytesIO(examination.faces[0].read())) as image:
        assert image.format == "JPEG"


def test_a_flipped_byte_of_any_frame_is_found(clips: Path) -> None:
    index = open_shards(str(clips), "train")._indexes[0]
    place = next(m for m in index.rows()[2].members if m[0] == "depth.0007.png")
    flip(clips / "train" / "clips-000000.tar", place[1] + 9)
    assert found(look(clips), "error", "sample train-002", r"depth\.0007\.png .*is damaged")


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"json": None}, "no json member"),
        ({"json": b"{}"}, "num_frames must be"),
        ({"json": canonical_json({"num_frames": 2, "fps": 10})}, "has a frame 2, though .*ends with frame 1"),
        ({"json": canonical_json({"num_frames": 3, "fps": 10, "valence": [0]})}, "list of 3.*got 1 values"),
        ({"depth.0001.png": b"no picture"}, "cannot decode the 16-bit PNG"),
        ({"thermal.0001.png": "eight bits"}, "mode L, not a 16-bit grey PNG"),
        ({"color.0002.jpg": b"no picture"}, "cannot read the image's header"),
        (dict.fromkeys(FRAMES), "no image member"),
    ],
)
def test_what_is_wrong_with_a_clip_is_named(clips: Path, members: dict[str, Any], what: str) -> None:
    data = io.BytesIO()
    Image.new("L", (4, 4), 7).save(data, "PNG")
    members = {name: data.getvalue() if value == "eight bits" else value for name, value in members.items()}
    examination = with_members(clips, members)
    assert len(found(examination, "error", r"clips-000000\.tar: sample train-000", what)) == 1
    assert examination.count("error") == 1 and examination.splits[0].num_damaged == 1


def test_clips_without_colour_are_no_damage(clips: Path) -> None:
    members = {f"color.{i:04d}.jpg": None for i in range(3)}
    members |= {"depth.0001.png": encode_plane(depth(9, 9)), "thermal.0002.png": None}
    examination = with_members(clips, members)
    assert examination.healthy and examination.splits[0].num_damaged == 0
