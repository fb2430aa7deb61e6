"""The doctor: silent about a healthy set; what it counts, compares and says."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.doctor.examination import _run
from shards.doctor.shard import ShardJob
from shards.indexing import index_tars
from shards.labels import AU12, EXPR8, DataError
from shards.manifest import load_manifest
from shards.records import Encoded, LabelSpace, SourceInfo
from shards.shardset import open_shards
from shards.template import template_geometry
from tests.shards.doctor.sets import COUNTS, flip, found, look, made_set, picture, put_shard, swap
from tests.shards.doctor.test_damage import forget_classes
from tests.shards.faces import smooth_jpeg
from tests.shards.unsteady import failing


def test_a_healthy_set_has_no_findings_and_is_counted(healthy: Path) -> None:
    examination = look(healthy)
    assert examination.findings == () and examination.healthy and not examination.overlaps
    train, val = examination.splits
    assert (train.split, train.num_samples, train.num_tars) == ("train", COUNTS["train"] - 1, 3)
    assert (val.num_samples, val.num_lost, val.num_damaged, dict(val.sizes)) == (20, 0, 0, {(48, 48): 20})
    assert train.num_bytes == sum(p.stat().st_size for p in (healthy / "train").glob("*.tar"))
    assert train.quarantine == {"no face": 1}
    assert len(examination.faces) == 20 and {face.split for face in examination.faces} == {
        str(healthy / "train"),
        str(healthy / "val"),
    }


def test_label_counts_are_those_of_the_samples(tmp_path: Path) -> None:
    bare = {f"val-{i:04d}": {"au": {}, "valence": None, "arousal": None} for i in range(5)}
    bare["val-0001"] |= {"valence": 0.5}
    labels = look(made_set(tmp_path / "set", labels=bare)).splits[1].labels
    assert labels.num_samples == 20 and labels.num_va == 15 and labels.num_half_va == 1
    assert labels.au_valid["AU1"] == 15 and labels.num_au == 15 and labels.num_identity == 20
    assert labels.expr == {name: 3 if i < 4 else 2 for i, name in enumerate(labels_in_order())}
    assert labels.va_map.sum() == 15 and set(np.flatnonzero(labels.va_map.sum(1))) == {11}  # arousal 0.1


def labels_in_order() -> tuple[str, ...]:
    return LabelSpace().expr


def test_several_processes_find_what_one_finds(broken: Path) -> None:
    flip(broken / "val" / "faces-000001.tar", 700)
    one, two = look(broken), look(broken, workers=2)
    assert one.findings == two.findings and one.twins == two.twins and one.faces == two.faces
    for a, b in zip(one.splits, two.splits):
        assert (a.num_samples, a.num_damaged, a.labels.expr) == (b.num_samples, b.num_damaged, b.labels.expr)
        assert np.array_equal(a.labels.va_map, b.labels.va_map)


def test_what_is_lost_is_counted(broken: Path) -> None:
    manifest = load_manifest(broken / "train")
    (broken / "train" / "faces-000000.tar").unlink()
    flip(broken / "train" / "faces-000001.tar", 700)
    train = look(broken).splits[0]
    assert train.num_lost == manifest.shards[0].num_samples == 15
    assert (train.num_samples, train.num_damaged, train.num_tars) == (24, 1, 2)


def test_without_its_index_a_tar_is_examined_all_the_same(broken: Path) -> None:
    for path in (broken / "train").glob("*.idx"):
        path.unlink()
    train = look(broken).splits[0]
    assert (train.num_samples, train.num_damaged, train.num_lost) == (39, 0, 0)


def test_of_many_alike_findings_a_few_are_kept_and_all_are_counted(broken: Path) -> None:
    swap(broken / "train")
    examination = look(broken)
    assert examination.splits[0].num_damaged == 31
    assert found(examination, "error", r"faces-000001\.tar$", "more samples: ")
    assert len(examination.findings) < 15


def test_a_label_that_differs_from_the_index_is_found(broken: Path) -> None:
    shards = open_shards(str(broken / "val"), "val")
    samples = [shards.read(i) for i in range(16)]
    put_shard(
        broken / "val", 0, [Encoded(s.key, s.members, 7 if i == 4 else i % 8) for i, s in enumerate(samples)]
    )
    examination = look(broken)
    assert found(examination, "error", r"val/faces-000000\.tar: sample val-0004", "its index says class 7")
    assert examination.count("error") == 1


def test_members_that_are_no_image_at_all_are_found(broken: Path) -> None:
    put_shard(broken / "val", 0, [Encoded("val-0000", {"txt": b"x", "json": b"[1]"})])
    examination = look(broken)
    assert found(examination, "error", "sample val-0000", "no image member")
    assert found(examination, "error", "sample val-0000", "labels must be a JSON object")
    assert examination.splits[1].num_damaged == 1


def test_one_person_in_two_splits_is_an_error_that_names_both_places(tmp_path: Path) -> None:
    out = made_set(tmp_path / "set", labels={"val-0018": {"identity": "p2"}, "val-0002": {"group": "g"}})
    examination = look(out)
    (finding,) = found(examination, "error", "train and .*val", "1 identities in both splits: 'p2'")
    assert "faces-000000.tar: sample train-0010" in finding.what
    assert "faces-000001.tar: sample val-0018" in finding.what


def test_pictures_shared_between_splits_are_a_leak(tmp_path: Path) -> None:
    images = {
        "val-0005": picture(7, quality=60),
        "val-0006": smooth_jpeg(8, 48),
        "train-0030": picture(31, 60),
    }
    examination = look(made_set(tmp_path / "set", images=images))
    (leak,) = found(examination, "warning", "train and .*val", "leak")
    assert "1 the same file, 1 look alike" in leak.what and "val-0006" in leak.what
    assert found(examination, "note", "train$", "0 the same file, 2 look alike")
    pairs = [(twin.first.key, twin.second.key, twin.same_bytes) for twin in examination.twins]
    assert pairs == [
        ("train-0008", "val-0006", True),
        ("train-0007", "val-0005", False),
        ("train-0030", "train-0031", False),
    ]
    assert examination.twins[0].second.read() == smooth_jpeg(8, 48)


def test_flat_pictures_are_said_not_paired(tmp_path: Path) -> None:
    images = {}
    for i in range(12):
        data = io.BytesIO()
        Image.new("RGB", (48, 48), (i * 20, 9, 9)).save(data, "JPEG")
        images[f"train-{i:04d}"] = data.getvalue()
    examination = look(made_set(tmp_path / "set", images=images))
    assert found(examination, "warning", "train$", "12 images of nearly one colour")
    assert not examination.overlaps


def test_joined_sets_are_compared_with_each_other(tmp_path: Path) -> None:
    recipe = SourceInfo(
        "other",
        "unknown",
        label_space=LabelSpace(("sad", "glad"), ()),
        alignment={"geometry": template_geometry(48, 0.25)},
    )
    here = SourceInfo(
        "made", "CC0", label_space=LabelSpace(EXPR8, AU12), alignment={"geometry": template_geometry(48, 0)}
    )
    a = made_set(tmp_path / "a", info=here)
    b = made_set(tmp_path / "b", seed=1, info=recipe, labels={}, images={"train-0001": smooth_jpeg(5, 48)})
    examination = look(a, b)
    assert found(
        examination, "warning", r"b/train/faces-000000\.tar: sample train-0000", "same key is in .*a/train"
    )
    assert found(examination, "error", "b/train$", "expression classes: not the same")
    assert found(examination, "warning", "b/train$", "alignment recipe: not the same")
    assert found(examination, "error", "b/train$", r"faces lie elsewhere.*margin 0\.25; .*margin 0\)")
    assert found(examination, "warning", "a/train and .*b/train", "joined sets share pictures")
    assert found(examination, "note", r"b/val/manifest\.json", "no licence")
    assert not found(examination, "error", "", "identities")  # p1 of another source is another person


def test_another_recipe_within_a_set_is_an_error(broken: Path) -> None:
    other = made_set(broken.parent / "b", seed=1, info=SourceInfo("made", "CC0", alignment={"size": 64}))
    shutil.rmtree(broken / "val")
    shutil.copytree(other / "val", broken / "val")
    assert found(look(broken), "error", "set/val$", "alignment recipe: not the same as in .*set/train")


def test_a_split_folder_alone_and_an_unfinished_set_can_be_examined(broken: Path, tmp_path: Path) -> None:
    assert [split.split for split in look(broken / "val").splits] == ["val"]
    (broken / "val" / "manifest.json").unlink()
    (broken / "val" / ".parts").mkdir()
    examination = look(broken / "val")
    assert found(examination, "error", r"manifest\.json", "no manifest")
    assert found(examination, "warning", r"\.parts", "unfinished build")
    assert found(examination, "note", r"faces-000001\.tar", "readable, 4 samples")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("")])
def test_where_there_are_no_shards_it_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(DataError, match="nothing"):
        look(tmp_path / "nothing")
    with pytest.raises(DataError, match="SHARDS="):
        look()


class DeadlyJob:
    """Stands in for a shard whose image brings the decoder, and its process, down."""

    def __init__(self, job: ShardJob) -> None:
        self.folder, self.entry = job.folder, job.entry

    @property
    def kind(self) -> str:
        import os

        os._exit(11)


def test_a_shard_that_brings_its_process_down_is_named(healthy: Path) -> None:
    entries = load_manifest(healthy / "val").shards[:2]
    deadly, other = (ShardJob(healthy / "val", entry, "faces", LabelSpace()) for entry in entries)
    records = dict(_run([DeadlyJob(deadly), other], 2))  # type: ignore[list-item]
    assert records[1].findings == [] and len(records[1].keys) == entries[1].num_samples
    (finding,) = records[0].findings
    assert "brought the process" in finding.what and finding.where.endswith("val/faces-000000.tar")
    assert records[0].num_lost == 16


def test_damaged_json_of_a_manifest_of_any_shape_never_stops_it(broken: Path) -> None:
    path = broken / "train" / "manifest.json"
    whole = json.loads(path.read_bytes())
    for bad in ([], 3, None, {"shards": 3}, "x", {"label_space": None}, {"shards": [None]}, {"alignment": 7}):
        path.write_text(json.dumps(whole | bad if isinstance(bad, dict) else bad))
        assert found(look(broken), "error", r"train.manifest\.json", "manifest|damaged")


def test_every_remedy_for_an_index_mends_it_and_takes_nothing_else(broken: Path) -> None:
    """What the doctor says to do with a damaged index is done, and the set is as it was."""
    train = broken / "train"
    before = {path.name: path.read_bytes() for path in train.iterdir()}
    flip(train / "faces-000000.idx", 300)
    (train / "faces-000001.idx").unlink()
    (finding, *_) = found(look(broken), "error", r"000000\.idx", "sha256 differs")
    assert "faceprior shards index" in finding.remedy
    index_tars(sorted(train.glob("*.tar")), train, "train", "another name", "another licence")
    assert {path.name: path.read_bytes() for path in train.iterdir()} == before
    assert look(broken).findings == ()


def test_an_index_that_lost_its_classes_gets_them_back(broken: Path) -> None:
    forget_classes(broken / "train")
    assert not look(broken).healthy
    index_tars(sorted((broken / "train").glob("*.tar")), broken / "train", "train", "", "")
    assert look(broken).healthy


def test_a_read_that_fails_once_is_no_damage(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, after=30)
    assert look(healthy).findings == ()
