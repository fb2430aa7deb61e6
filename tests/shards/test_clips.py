"""Windows of clips as batches: only their frames are read, cut alike, in an order that no layout changes."""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from shards import clips, stream
from shards.clips import ClipBatch, clip_eval_batches, clip_train_batches, eval_windows
from shards.config import AugmentConfig, ClipConfig, CropConfig, JitterConfig
from shards.draws import Draw, Layout
from shards.frames import decode_plane, frame_extension, parse_frame
from shards.labels import DataError
from shards.order import EpochOrder
from shards.shardset import RawSample, ShardSet, open_shards
from tests.shards.faces import build_smooth
from tests.shards.made_clips import MadeClips, depth, made_clips, thermal, valence

WINDOW = ClipConfig(num_frames=4, stride=2)
WHOLE = AugmentConfig(crop=CropConfig(scale_min=1.0, ratio=1.0, flip=0.0))
AUGMENT = AugmentConfig(crop=CropConfig(scale_min=0.3), jitter=JitterConfig(probability=0.5))
SIDE = (24, 24)
Step = dict[tuple[str, int], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 clips for training in five tars, 7 to be evaluated."""
    return made_clips(tmp_path_factory.mktemp("clips") / "set")


def first(shards: ShardSet, config: ClipConfig, augmentation: AugmentConfig, count: int = 30) -> ClipBatch:
    """The first `count` windows of a training."""
    order = EpochOrder(shards.shard_sizes, 7, 2)
    return next(clip_train_batches(shards, order, Layout(0, 1, count, 1), 0, SIDE, config, augmentation))


def content(batch: ClipBatch, i: int) -> bytes:
    """All that a batch holds of one window."""
    parts = [
        *batch.images.values(),
        *batch.valid.values(),
        batch.va,
        batch.va_valid,
        batch.frames,
        batch.inside,
    ]
    return b"".join(part[i].numpy().tobytes() for part in parts)


def steps(made: Path, layout: tuple[int, int, int], workers: int, start: int, count: int) -> list[Step]:
    """`count` optimiser steps of all processes together: (key, random key) -> the window's bytes."""
    world, batch_size, accum = layout
    shards = open_shards(str(made), "train")
    order = EpochOrder(shards.shard_sizes, 7, 2)
    out: list[Step] = [{} for _ in range(count)]
    for rank in range(world):
        share = Layout(rank, world, batch_size, accum)
        batches = clip_train_batches(shards, order, share, start, SIDE, WINDOW, AUGMENT, workers)
        for number, batch in enumerate(itertools.islice(batches, count * accum)):
            assert batch.size == batch.num_valid == batch_size
            for i, name in enumerate(zip(batch.keys, batch.rng.tolist())):
                assert name not in out[number // accum]
                out[number // accum][name] = content(batch, i)
    return out


@pytest.mark.parametrize(("layout", "workers"), [((2, 6, 1), 0), ((1, 4, 3), 2), ((2, 3, 2), 1)])
def test_every_layout_sees_the_same_windows_and_cuts(
    made: Path, layout: tuple[int, int, int], workers: int
) -> None:
    """Steps across an epoch's edge."""
    assert steps(made, layout, workers, 24, 3) == steps(made, (1, 12, 1), 0, 24, 3)


def test_started_anywhere_it_goes_on_as_if_never_stopped(made: Path) -> None:
    whole = steps(made, (1, 12, 1), 0, 0, 6)
    for start in (1, 3, 5):
        assert steps(made, (1, 12, 1), 0, 12 * start, 6 - start) == whole[start:]


def test_an_epoch_is_a_window_of_every_clip_and_the_next_has_others(made: Path) -> None:
    epochs = [
        dict(itertools.chain(*(step.items() for step in steps(made, (1, 30, 1), 0, 30 * e, 1))))
        for e in (0, 1)
    ]
    keys = [{key for key, _ in epoch} for epoch in epochs]
    assert len(keys[0]) == 30 and keys[0] == keys[1]
    assert not {rng for _, rng in epochs[0]} & {rng for _, rng in epochs[1]}


def test_planes_are_stored_bit_for_bit(made: Path) -> None:
    shards = open_shards(str(made), "train")
    for sample in (0, 7, 29):
        raw = shards.read(sample)
        for name, data in raw.members.items():
            frame = parse_frame(name)
            if frame is not None and frame.modality != "color":
                made_plane = depth if frame.modality == "depth" else thermal
                np.testing.assert_array_equal(decode_plane(data, name), made_plane(sample, frame.frame))


def test_only_the_frames_of_the_window_are_read_and_decoded(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(str(made), "train")
    read: list[RawSample] = []
    ours = ShardSet.read

    def noted(self: ShardSet, *args: object) -> RawSample:
        read.append(ours(self, *args))  # type: ignore[arg-type]
        return read[-1]

    monkeypatch.setattr(ShardSet, "read", noted)
    reader = clips._Reader(shards, SIDE, ClipConfig(4, 4, 2, ("color", "thermal")), None)
    reader.eval_sample(Draw(0, 0, True), clips.Window(3, 5))
    names = [name for raw in read for name in raw.members]
    assert names == [
        "json",
        *(frame_extension(modality, frame) for frame in (5, 7, 9, 11) for modality in ("color", "thermal")),
    ]


def test_far_apart_members_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long clip its labels and one window are read, and not all that lies between them."""
    out = made_clips(tmp_path / "set", counts={"train": 1}, lengths=(400,))
    shards = open_shards(str(out), "train")
    num_read, pread = 0, os.pread

    def counted(handle: int, size: int, offset: int) -> bytes:
        nonlocal num_read
        data = pread(handle, size, offset)
        num_read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    batch = first(shards, WINDOW, WHOLE, 1)
    assert batch.valid["depth"].all()
    size = next((out / "train").glob("*.tar")).stat().st_size
    assert num_read < size / 20


def test_all_modalities_are_cut_and_mirrored_alike(made: Path) -> None:
    """All three brighten, recede and warm towards the right: so each says where its columns come from."""
    shards = open_shards(str(made), "train")
    crop = CropConfig(scale_min=0.3, scale_max=0.5, flip=0.5)
    plain = first(shards, WINDOW, WHOLE)
    batch = first(shards, WINDOW, AugmentConfig(crop=crop))
    mirrored = 0
    for i in range(batch.size):
        t = int(np.flatnonzero(batch.inside[i])[-1])
        places = []
        for modality in ("color", "depth", "thermal"):
            row, whole = (b.images[modality][i, t, 0, 12].float() for b in (batch, plain))
            low, high = np.interp([row[1], row[-2]], whole, np.arange(24))
            places.append((low, high))
        for low, high in places[1:]:
            assert abs(low - places[0][0]) < 2 and abs(high - places[0][1]) < 2
        mirrored += places[0][0] > places[0][1]
        frames = batch.images["depth"][i, batch.inside[i], 0, 12]
        slopes = frames[:, -1] - frames[:, 0]
        assert torch.allclose(slopes, slopes[:1], atol=0.03)
    assert 6 < mirrored < 24


def test_a_flip_is_the_mirrored_window(made: Path) -> None:
    shards = open_shards(str(made), "train")
    plain = first(shards, WINDOW, WHOLE)
    flipped = first(shards, WINDOW, AugmentConfig(crop=CropConfig(scale_min=1.0, ratio=1.0, flip=1.0)))
    for modality, images in plain.images.items():
        assert torch.equal(images.flip(-1), flipped.images[modality])
    assert torch.equal(plain.va, flipped.va)


def test_holes_do_not_bleed(made: Path) -> None:
    """Every value of a resized plane is one that was stored."""
    shards = open_shards(str(made), "val")
    for size in ((10, 10), (24, 24), (50, 37)):
        batch = next(clip_eval_batches(shards, 4, size, WINDOW))
        image = batch.images["depth"][0, 0, 0]
        stored = depth(0, 0).astype(np.float32)
        face = 0.5 * (stored[12, 11] + stored[12, 12]) + 1  # the clip has three frames: the middle one counts
        values = np.where(stored > 0, (stored - face) / 100, 0)
        assert np.abs(image.numpy().ravel()[:, None] - values.ravel()).min(1).max() < 0.006
        share = float((image == 0).float().mean())
        assert 0 < share < 0.02


def test_missing_frames_and_modalities_are_not_valid(tmp_path: Path) -> None:
    lost = {(0, frame_extension("color", 1)), (0, frame_extension("thermal", 2))}
    lost |= {(1, frame_extension("depth", frame)) for frame in range(9)}
    out = made_clips(tmp_path / "set", counts={"val": 2}, lengths=(6, 9), left_out=frozenset(lost))
    shards = open_shards(str(out), "val")
    (batch,) = clip_eval_batches(shards, 6, SIDE, WINDOW, samples=[0])
    assert batch.keys[:2] == ["val-000"] * 2 and batch.num_valid == 2
    assert batch.valid["color"][0].tolist() == [True, False, True, True]
    assert batch.valid["thermal"][0].tolist() == [True, True, False, True]
    assert batch.valid["depth"][0].all() and not batch.images["color"][0, 1].any()
    assert batch.va_valid[0, :, 0].all(), "a label stays where a picture is missing"
    (other,) = clip_eval_batches(shards, 4, SIDE, WINDOW, samples=[1])
    assert not other.valid["depth"].any() and not other.images["depth"].any() and other.valid["color"].all()
    chosen = next(clip_eval_batches(shards, 2, SIDE, ClipConfig(4, 2, modalities=("thermal",))))
    assert list(chosen.images) == list(chosen.valid) == ["thermal"]


def test_labels_and_frame_numbers_are_those_of_the_window(made: Path) -> None:
    batch = first(open_shards(str(made), "train"), WINDOW, WHOLE)
    assert set(batch.groups) == {f"recording-train-{n:03d}" for n in range(30)}
    for i, key in enumerate(batch.keys):
        number = int(key[-3:])
        length = MadeClips().lengths[number % 4]
        frames = batch.frames[i] - 100 * number
        assert frames.tolist() == list(range(int(frames[0]), int(frames[0]) + 4))
        assert batch.inside[i].tolist() == [f < length for f in frames.tolist()]
        assert torch.equal(batch.inside[i], batch.valid["color"][i])
        assert torch.equal(batch.va_valid[i, :, 0], batch.inside[i])
        assert torch.equal(batch.va_valid[i, :, 1], batch.inside[i] & (frames != 1))
        wanted = [valence(number, f) if f < length else 0.0 for f in frames.tolist()]
        assert batch.va[i, :, 0].tolist() == pytest.approx(wanted)
    assert (batch.va[~batch.va_valid] == 0).all()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_scores_every_frame_in_the_same_batches(made: Path, world: int) -> None:
    shards = open_shards(str(made), "val")
    batches: dict[int, ClipBatch] = {}
    for rank in range(world):
        for number, batch in enumerate(clip_eval_batches(shards, 4, SIDE, WINDOW, rank, world)):
            batches[rank + number * world] = batch
    assert len(batches) % world == 0
    seen = []
    for number in sorted(batches):
        batch = batches[number]
        assert batch.size == 4
        for i in range(batch.num_valid):
            seen += [(batch.keys[i], f) for f in batch.frames[i, batch.inside[i]].tolist()]
    lengths = [MadeClips().lengths[n % 4] for n in range(7)]
    wanted = {(f"val-{n:03d}", 100 * n + f) for n, length in enumerate(lengths) for f in range(length)}
    assert set(seen) == wanted
    windows = eval_windows(shards, WINDOW)
    assert len(seen) == sum(min(4, lengths[window.sample]) for window in windows)
    alone = list(clip_eval_batches(shards, 4, SIDE, WINDOW))
    for one, other in zip(alone, (batches[n] for n in sorted(batches))):
        assert one.keys == other.keys and one.num_valid == other.num_valid
        assert all(content(one, i) == content(other, i) for i in range(4))


def brightness(batch: ClipBatch, i: int) -> np.ndarray:
    """(T,) mean of each colour picture: it rises by 3 from frame to frame."""
    return batch.images["color"][i].float().mean((1, 2, 3)).numpy()


def test_a_lag_shifts_labels_in_training_and_is_undone_for_scoring(made: Path) -> None:
    """Labels keep their own frame numbers; the picture beside each is from three frames before."""
    config = ClipConfig(num_frames=4, stride=2, lag_seconds=0.3)
    shards = open_shards(str(made), "train")
    plain = {
        (key, int(frame)): bright
        for batch in clip_eval_batches(shards, 8, SIDE, WINDOW)
        for i, key in enumerate(batch.keys)
        for frame, bright, inside in zip(batch.frames[i], brightness(batch, i), batch.inside[i])
        if inside
    }

    def check(batch: ClipBatch, i: int, held: bool) -> None:
        number = int(batch.keys[i][-3:])
        for t in np.flatnonzero(batch.inside[i]).tolist():
            frame = int(batch.frames[i, t])
            picture = max(frame - 3, 100 * number)
            assert brightness(batch, i)[t] == pytest.approx(plain[batch.keys[i], picture], abs=0.4)
            labelled = held or frame - 3 >= 100 * number
            assert batch.va_valid[i, t, 0] == labelled
            if labelled:
                assert batch.va[i, t, 0] == pytest.approx(valence(number, frame - 100 * number))

    batch = first(shards, config, WHOLE)
    for i in range(batch.size):
        check(batch, i, held=False)
    seen = set()
    for batch in clip_eval_batches(shards, 8, SIDE, config):
        for i in range(batch.num_valid):
            check(batch, i, held=True)
            seen |= {(batch.keys[i], f) for f in batch.frames[i, batch.inside[i]].tolist()}
    assert seen == plain.keys()


def test_workers_can_be_started_anew(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(str(made), "val")
    here = list(clip_eval_batches(shards, 4, SIDE, WINDOW))
    monkeypatch.setattr(stream, "DataLoader", partial(DataLoader, multiprocessing_context="forkserver"))
    there = list(clip_eval_batches(shards, 4, SIDE, WINDOW, num_workers=1))
    assert [[content(b, i) for i in range(4)] for b in here] == [
        [content(b, i) for i in range(4)] for b in there
    ]


def test_a_damaged_frame_stops_the_reading_by_name(tmp_path: Path) -> None:
    out = made_clips(tmp_path / "set", counts={"val": 2})
    shards = open_shards(str(out), "val")
    tar = next((out / "val").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    index = shards._indexes[0]
    place = next(m for m in index.rows()[1].members if m[0] == "thermal.0008.png")
    data[place[1] + 20] ^= 1
    tar.write_bytes(data)
    config = ClipConfig(num_frames=4, stride=4)
    with pytest.raises(DataError, match=r"val-001: member thermal\.0008\.png .*checksum"):
        list(clip_eval_batches(shards, 4, SIDE, config))
    assert list(clip_eval_batches(shards, 4, SIDE, ClipConfig(4, 4, modalities=("color", "depth"))))


def test_faces_are_refused_at_the_door(tmp_path: Path) -> None:
    shards = open_shards(str(build_smooth(tmp_path / "set", counts={"train": 4})), "train")
    with pytest.raises(DataError, match=r"set/train: holds faces, and this task reads clips"):
        first(shards, WINDOW, WHOLE)
    with pytest.raises(DataError, match="holds faces"):
        clip_eval_batches(shards, 2, SIDE, WINDOW)


def test_a_batch_can_be_moved(made: Path) -> None:
    batch = first(open_shards(str(made), "train"), WINDOW, WHOLE, 3)
    moved = batch.to(torch.device("cpu"))
    assert moved.keys == batch.keys and all(content(moved, i) == content(batch, i) for i in range(3))


def test_stock_webdataset_reads_the_tars(made: Path) -> None:
    tars = [str(path) for path in sorted((made / "val").glob("*.tar"))]
    assert [Path(tar).name for tar in tars] == ["clips-000000.tar", "clips-000001.tar"]
    stock = list(wds.DataPipeline(wds.SimpleShardList(tars), wds.tarfile_to_samples()))
    shards = open_shards(str(made), "val")
    assert [sample["__key__"] for sample in stock] == [shards.key(i) for i in range(7)]
    for i, sample in enumerate(stock):
        assert shards.read(i).members == {k: v for k, v in sample.items() if not k.startswith("__")}
