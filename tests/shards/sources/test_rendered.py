"""Rendered faces and clips in other numbers than the default's, built like any data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from shards.align import AlignConfig
from shards.labels import DataError
from shards.render import RenderedFaces
from shards.shardset import open_shards
from shards.sources import NO_SRC, build_source


def identities(folder: Path, split: str) -> list[str]:
    shards = open_shards(str(folder), split)
    return [json.loads(shards.read(k).members["json"])["identity"] for k in range(len(shards))]


def test_as_many_faces_and_people_as_asked_for(tmp_path: Path) -> None:
    options = ["num_train=12", "num_val=2", "num_test=0", "num_identities=6", "size=64", "build.workers=1"]
    main(["shards", "build", "rendered", NO_SRC, str(tmp_path / "many"), *options])
    people = identities(tmp_path / "many", "train")
    assert len(people) == 12
    assert len(set(people)) == 6
    assert len(identities(tmp_path / "many", "val")) == 2
    assert not (tmp_path / "many" / "test").exists()
    assert open_shards(str(tmp_path / "many"), "train").rendered


def test_more_people_leave_the_first_ones_as_they_are() -> None:
    few, many = (build_source("rendered", NO_SRC, num_train=n, num_identities=n) for n in (20, 40))
    assert isinstance(few, RenderedFaces) and isinstance(many, RenderedFaces)
    first = [next(iter(source.open_maker()(source.items("train")[:1]))) for source in (few, many)]
    assert first[0] == first[1]


def test_clips_too() -> None:
    source = build_source("rendered-clips", "", num_train=3, num_val=0, num_test=0, num_identities=3)
    assert source.info.kind == "clips"
    assert len(source.items("train")) == 3


def test_what_does_not_go_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reads nothing"):
        build_source("rendered", tmp_path)
    with pytest.raises(DataError, match="size and margin"):
        build_source("rendered", NO_SRC, AlignConfig(size=96))
    with pytest.raises(DataError, match=r"num_trian.*num_train"):
        build_source("rendered", NO_SRC, num_trian=5)
    with pytest.raises(DataError, match="source rendered: numbers of samples"):
        build_source("rendered", NO_SRC, num_train=-1)
    with pytest.raises(DataError, match="SRC is empty"):
        build_source("folder", NO_SRC)
