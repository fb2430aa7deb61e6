"""Checkpoints: what is read is what was written, or the one before it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from pipelines.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    TensorFile,
    find_checkpoint,
    load_encoder,
    read_checkpoint,
)
from shards.labels import DataError


def checkpoint(step: int, value: float = 0.0) -> Checkpoint:
    file = TensorFile({"w": torch.full((3, 2), value or float(step))}, {"format": "test", "z": 1, "a": 2})
    return Checkpoint(step, step * 16, {"model": file, "optimizer": file})


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
    with pytest.raises(CheckpointError, match="run=OTHER"):
        store.load()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(5))
    with pytest.raises(CheckpointError, match="not finite"):
        store.save(checkpoint(10, float("nan")))
    assert [f.name for f in store.folders()] == ["step-00000005"]


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
    assert store.load() is None
    assert read_checkpoint(store.save(checkpoint(10))).step == 10


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path).save(checkpoint(5))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        read_checkpoint(folder)


def test_a_manifest_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path).save(checkpoint(5))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a file name"):
        read_checkpoint(folder)


def test_no_checkpoint_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        find_checkpoint(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7fjunk")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_encoder(tmp_path / "x.safetensors")
