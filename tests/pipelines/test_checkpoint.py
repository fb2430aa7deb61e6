"""Checkpoints: what is read is what was written, or the one before it."""

from __future__ import annotations

import errno
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    DamagedError,
    TensorFile,
    describe,
    find_checkpoint,
    find_file,
    is_finite,
    load_encoder,
    read_checkpoint,
)
from shards.files import sha256_file
from shards.labels import DataError
from shards.records import fingerprint


def checkpoint(step: int, value: float = 0.0) -> Checkpoint:
    file = TensorFile({"w": torch.full((3, 2), value or float(step))}, {"format": "test", "z": 1, "a": 2})
    return Checkpoint(step, step * 16, {"model": file, "optimizer": file})


def rewrite(path: Path, **values: object) -> None:
    """Sets values of a JSON file, as a program of another version would have written it."""
    data = {
        name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"
    } | values
    path.write_text(json.dumps({**data, "checksum": fingerprint(data)}))


def test_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store = CheckpointStore(tmp_path / name)
        store.save(checkpoint(5))
        loaded = store.load()
        assert loaded is not None and (loaded.step, loaded.position) == (5, 80)
        assert torch.equal(loaded.files["model"].tensors["w"], torch.full((3, 2), 5.0))
        assert loaded.files["model"].facts == {"format": "test", "z": 1, "a": 2}
    files = [sorted((tmp_path / n / "step-00000005").iterdir()) for n in ("a", "b")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing").load() is None


def test_rotation_keeps_two_and_every_multiple(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, keep_every=10)
    for step in range(5, 40, 5):
        store.save(checkpoint(step))
    assert [int(f.name[5:]) for f in store.folders()] == [10, 20, 30, 35]
    assert (tmp_path / "latest").read_text() == "step-00000035\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_means_the_checkpoint_before(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))
    folder = store.save(checkpoint(10))
    data = (folder / name).read_bytes()
    if damage == "delete":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes(data[: len(data) // 2])
    else:
        (folder / name).write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    loaded = store.load()
    assert loaded is not None and loaded.step == 5
    assert "step-00000010" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("damaged-*")] == ["damaged-step-00000010-1"]


def test_all_damaged_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(checkpoint(5)) / "state.json").unlink()
    for _ in range(2):  # the same command again must not begin anew
        with pytest.raises(CheckpointError, match="run=OTHER"):
            store.load()


@pytest.mark.parametrize("reason", ["version", errno.ESTALE, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str | int
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))
    path = store.save(checkpoint(10)) / "manifest.json"
    if reason == "version":
        rewrite(path, version=2)
    else:
        assert isinstance(reason, int)

        def refuse(path: Path) -> str:
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr("pipelines.checkpoint.sha256_file", refuse)
    with pytest.raises(CheckpointError, match="version 2" if reason == "version" else "nothing was changed"):
        store.load()
    assert sorted(path.name for path in tmp_path.glob("*step-*")) == ["step-00000005", "step-00000010"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))
    with pytest.raises(CheckpointError, match="not finite"):
        store.save(checkpoint(10, float("nan")))
    assert [f.name for f in store.folders()] == ["step-00000005"]


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, 2.0], True),
        ([3e38, 3e38], True),
        ([float("inf"), -float("inf")], False),
        ([float("inf"), 1.0], False),
        ([float("nan"), 1.0], False),
    ],
)
def test_finite_is_each_value_not_their_sum(values: list[float], finite: bool) -> None:
    assert is_finite(torch.tensor(values)) is finite


def test_a_limit_met_while_tensors_are_written_is_one_message(tmp_path: Path) -> None:
    """The library writes, and says only in words what the system told it."""
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))
    large = replace(checkpoint(10), files={"model": TensorFile({"w": torch.zeros(1 << 16)}, {})})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(
            DataError, match=r"cannot write .*step-00000010.*larger than this file system or limit"
        ):
            store.save(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    loaded = store.load()
    assert loaded is not None and loaded.step == 5 and not list(tmp_path.glob(".*tmp*"))


def test_a_full_disk_is_one_message_and_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shards.files.os.fsync", full)
        with pytest.raises(DataError, match=r"step-00000010.*disk is full"):
            store.save(checkpoint(10))
    loaded = store.load()
    assert loaded is not None and loaded.step == 5
    assert not list(tmp_path.glob(".*tmp*"))
    store.save(checkpoint(10))


def test_what_a_killed_save_left_behind_does_not_disturb(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / ".step-00000010.tmp").mkdir(parents=True)
    (tmp_path / ".step-00000010.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".step-00000005.old").mkdir()
    (tmp_path / ".latest.123.tmp").write_bytes(b"half")
    assert store.load() is None
    assert read_checkpoint(store.save(checkpoint(15))).step == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000015"]


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path).save(checkpoint(5))
    rewrite(folder / "manifest.json", version=99)
    with pytest.raises(CheckpointError, match=r"version 99.*run\.json"):
        read_checkpoint(folder)


def test_a_manifest_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path).save(checkpoint(5))
    manifest = json.loads((folder / "manifest.json").read_text())
    rewrite(folder / "manifest.json", files={**manifest["files"], "../../etc/passwd": "0"})
    with pytest.raises(CheckpointError, match="not a file name"):
        read_checkpoint(folder)


def test_how_many_updates_were_skipped_is_kept_and_was_not_always(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path).save(replace(checkpoint(5), skipped=3))
    assert read_checkpoint(folder).skipped == 3
    state = json.loads((folder / "state.json").read_text())
    del state["skipped"]
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = sha256_file(folder / "state.json")
    rewrite(folder / "manifest.json", files={**manifest["files"], "state.json": digest})
    assert read_checkpoint(folder).skipped == 0


def test_the_best_outlives_rotation_until_a_better_one_comes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, score in ((5, 0.5), (10, 0.7), (15, 0.6), (20, float("nan")), (25, 0.7)):
        store.save(checkpoint(step))
        if store.is_best(score):
            store.mark_best(step, score)
    assert [int(folder.name[5:]) for folder in store.folders()] == [10, 20, 25]
    assert find_checkpoint(tmp_path, "best").name == "step-00000010"
    assert find_checkpoint(tmp_path).name == "step-00000025"
    model = find_file(tmp_path, "model.safetensors", "best")
    assert describe(model) == "step 10, its best by score" and describe(tmp_path / "model.safetensors") == ""
    store.mark_best(25, 0.8)
    store.save(checkpoint(30))
    assert [int(folder.name[5:]) for folder in store.folders()] == [25, 30]


def test_a_best_that_is_gone_or_damaged_is_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))
    store.mark_best(5, 0.5)
    store.save(checkpoint(10))
    flip(tmp_path / "step-00000005" / "model.safetensors")
    assert find_file(tmp_path, "model.safetensors", "best").parent.name == "step-00000010"
    (tmp_path / "best").write_text((tmp_path / "best").read_text().replace("step-00000005", "step-00000007"))
    assert store.best() is None and store.is_best(-1.0)
    (tmp_path / "best").write_text((tmp_path / "best").read_text().replace("step-00000007", "../elsewhere"))
    with pytest.raises(CheckpointError, match="best: names no checkpoint"):
        store.best()


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_byte_is_noticed_where_a_file_is_found_and_the_step_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    older, newer = store.save(checkpoint(5)), store.save(checkpoint(10))
    flip(newer / "model.safetensors")
    assert find_file(tmp_path, "model.safetensors") == older / "model.safetensors"
    assert "step-00000010/model.safetensors: changed" in capsys.readouterr().out
    assert find_file(tmp_path, "optimizer.safetensors") == newer / "optimizer.safetensors"
    for named in (newer, newer / "model.safetensors"):  # what was named is not exchanged
        with pytest.raises(DamagedError, match="changed since"):
            find_file(named, "model.safetensors")
    flip(older / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of its checkpoints"):
        find_file(tmp_path, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no such file.*model\.safetensors"):
        find_file(tmp_path, "encoder.safetensors")


def test_a_file_beside_another_kind_of_manifest_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "faceprior-shards"}')
    (tmp_path / "mae.safetensors").write_bytes(b"anything")
    assert find_file(tmp_path / "mae.safetensors", "encoder.safetensors") == tmp_path / "mae.safetensors"


def test_no_checkpoint_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        find_checkpoint(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7fjunk")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_encoder(tmp_path / "x.safetensors")
