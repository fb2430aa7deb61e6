"""Every kind of damage: found, and its place named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.records import Encoded
from shards.shardset import open_shards
from tests.shards.doctor.sets import cut, edit_manifest, flip, found, look, made_set, put_shard, swap
from tests.shards.faces import smooth_jpeg


def repeat_key(train: Path) -> None:
    shards = open_shards(str(train), "train")
    first, end = shards.shard_sizes[0], shards.shard_sizes[:2].sum()
    encoded = [Encoded(s.key, s.members, shards.expr[i]) for i in range(first, end) for s in [shards.read(i)]]
    encoded[2] = Encoded("train-0007", encoded[2].members, encoded[2].expr)
    put_shard(train, 1, encoded)


def forget_classes(train: Path) -> None:
    """An index without the labels that weighted order goes by, listed as it is."""
    shards = open_shards(str(train), "train")
    samples = [shards.read(i) for i in range(shards.shard_sizes[0])]
    put_shard(train, 0, [Encoded(sample.key, sample.members) for sample in samples])


def foreign_index(train: Path) -> None:
    (train / "faces-000000.idx").write_bytes((train / "faces-000001.idx").read_bytes())


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "flipped byte in a member": (
        lambda t: flip(t / "faces-000001.tar", 700),
        "error",
        r"faces-000001\.tar: sample train-0016",
        "member jpg at byte 512 is damaged",
    ),
    "flipped byte in a tar header": (
        lambda t: flip(t / "faces-000001.tar", 3),
        "error",
        r"faces-000001\.tar",
        "damaged header|bad checksum",
    ),
    "truncated tar": (
        lambda t: cut(t / "faces-000001.tar"),
        "error",
        r"faces-000001\.tar$",
        "the manifest says",
    ),
    "truncated tar, sample": (
        lambda t: cut(t / "faces-000001.tar"),
        "error",
        r"faces-000001\.tar: sample train-",
        "beyond the end",
    ),
    "empty tar": (lambda t: (t / "faces-000001.tar").write_bytes(b""), "error", r"000001\.tar", "0 bytes"),
    "deleted tar": (lambda t: (t / "faces-000002.tar").unlink(), "error", r"faces-000002\.tar", "missing"),
    "deleted index": (lambda t: (t / "faces-000000.idx").unlink(), "error", r"000000\.idx", "missing"),
    "flipped index": (lambda t: flip(t / "faces-000000.idx", 300), "error", r"000000\.idx", "sha256 differs"),
    "index of another tar": (foreign_index, "error", r"000000\.idx", r"another tar, 'faces-000001\.tar'"),
    "swapped tars": (swap, "error", r"faces-000000\.tar", r"it is faces-000001\.tar under another's name"),
    "junk tar": (
        lambda t: (t / "faces-000002.tar").write_bytes(np.random.default_rng(0).bytes(5000)),
        "error",
        r"faces-000002\.tar",
        "5,000 bytes, the manifest says",
    ),
    "manifest not JSON": (
        lambda t: cut(t / "manifest.json"),
        "error",
        r"train.manifest\.json",
        "not JSON",
    ),
    "manifest lacks a field": (
        lambda t: (t / "manifest.json").write_text(
            (t / "manifest.json").read_text().replace('"kind"', '"king"')
        ),
        "error",
        r"train.manifest\.json",
        "damaged",
    ),
    "manifest of another split": (
        lambda t: shutil.copy(t.parent / "val" / "manifest.json", t / "manifest.json"),
        "error",
        r"train.manifest\.json",
        "says it is split 'val'",
    ),
    "no manifest": (
        lambda t: (t / "manifest.json").unlink(),
        "error",
        r"train.manifest\.json",
        "no manifest",
    ),
    "changed recipe": (
        lambda t: edit_manifest(t, alignment={"size": 47}),
        "error",
        r"train.manifest\.json",
        "recipe was changed",
    ),
    "samples unaccounted for": (
        lambda t: edit_manifest(t, num_items=50),
        "error",
        r"train.manifest\.json",
        "10 are unaccounted for",
    ),
    "no quarantine list": (lambda t: (t / "quarantine.csv").unlink(), "error", r"quarantine\.csv", "missing"),
    "quarantine list cut": (
        lambda t: (t / "quarantine.csv").write_text("key,reason\n"),
        "error",
        r"quarantine\.csv",
        "0 rows, the manifest says 1",
    ),
    "index without classes": (
        forget_classes,
        "error",
        r"faces-000000\.tar: sample train-0000",
        "its index says it has none",
    ),
    "index without classes, in all": (
        forget_classes,
        "error",
        r"faces-000000\.tar$",
        "12 more samples: label and index disagree",
    ),
    "key in two shards": (
        repeat_key,
        "error",
        r"faces-000001\.tar: sample train-0007",
        r"same key is in faces-000000\.tar",
    ),
    "unlisted tar": (
        lambda t: shutil.copy(t / "faces-000000.tar", t / "faces-000009.tar"),
        "warning",
        r"faces-000009\.tar",
        "not in the manifest",
    ),
    "leftover parts": (lambda t: (t / ".parts").mkdir(), "warning", r"\.parts", "left by a build"),
    "leftover temporary file": (
        lambda t: (t / ".faces-000001.tar.77.tmp").touch(),
        "warning",
        r"\.77\.tmp",
        "temporary file",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_where_it_is_and_the_rest_is_examined(name: str, broken: Path) -> None:
    damage, severity, where, what = DAMAGES[name]
    damage(broken / "train")
    examination = look(broken)
    hits = found(examination, severity, where, what)
    assert hits and all(finding.remedy for finding in hits), examination.findings
    assert examination.healthy == (severity != "error")
    assert examination.splits[1].num_samples == 20 and examination.splits[1].num_damaged == 0
    assert "val/faces" not in str(examination.findings)


def cut_jpeg() -> bytes:
    return smooth_jpeg(3, 48)[:-200]


BAD_SAMPLES = {
    "broken jpeg": ({"images": {"train-0020": cut_jpeg()}}, "cannot decode"),
    "not an image": ({"images": {"train-0020": b"GIF89a nothing"}}, "cannot read the image's header"),
    "class unknown": ({"labels": {"train-0020": {"expr": "bored"}}}, "'bored' is not in the label space"),
    "valence too large": ({"labels": {"train-0020": {"valence": 3}}}, "valence must be a number in"),
    "unit neither 0 nor 1": ({"labels": {"train-0020": {"au": {"AU1": 5}}}}, "AU1 must be 0 or 1"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_a_bad_sample_with_right_checksums_is_found(name: str, tmp_path: Path) -> None:
    settings, what = BAD_SAMPLES[name]
    examination = look(made_set(tmp_path / "set", **settings))
    assert found(examination, "error", r"train/faces-000001\.tar: sample train-0020", what)
    assert examination.count("error") == 1 and examination.splits[0].num_damaged == 1
