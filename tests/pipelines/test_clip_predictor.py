"""A video model over videos, folders of frames and clips: the windows of an evaluation, in bounded memory."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipelines.clip_predictor as module
from pipelines.__main__ import main
from pipelines.clip_predictor import ClipPredictor, recordings_of
from pipelines.clip_views import _predict_without
from pipelines.config import ConfigError
from pipelines.curve_folder import CurveFolder
from pipelines.facetable import FacePrediction
from pipelines.models import ModelSpec, load_model
from pipelines.predict import predict
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import FacePredictor, FramePrediction
from shards import transforms
from shards.config import ClipConfig
from shards.frames import frame_extension
from shards.labels import DataError
from shards.shardset import open_shards
from shards.sources.media import Media, MediaFrame
from tests.pipelines.tiny_mran import CLIP, build, predictor_of, save, spec_of
from tests.shards.made_clips import MadeClips, made_clips
from tests.shards.sources.test_video import write_video

LENGTHS = MadeClips().lengths
QUIET = PredictConfig(batch_size=8, align="none", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_clips(tmp_path_factory.mktemp("clips") / "set", counts={"val": 5})


@pytest.fixture(scope="module")
def frames(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour pictures of the same clips, a folder for each, numbered without zeros in front."""
    folder, shards = tmp_path_factory.mktemp("frames"), open_shards(str(clips), "val")
    for sample in range(len(shards)):
        (folder / f"r{sample}").mkdir()
        for frame in range(LENGTHS[sample % len(LENGTHS)]):
            [data] = shards.read(sample, [frame_extension("color", frame)]).members.values()
            picture = transforms.decode(data, "").permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(folder / f"r{sample}" / f"{frame}.png")
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def evaluated(clips: Path, spec: ModelSpec, color_only: bool = False) -> np.ndarray:
    """(F, 2) what an evaluation says of each frame."""
    predictor = predictor_of(open_shards(str(clips), "val"), spec)
    model = build(spec)
    if color_only:
        rest = partial(_predict_without, predictor_of(predictor.shards, spec), model, ("depth", "thermal"))
        predictor.task.predict = lambda _, batch: rest(batch)  # type: ignore[method-assign]
    return predictor.columns(model)["va"].numpy()


def test_clips_are_read_as_an_evaluation_reads_them(clips: Path, tmp_path: Path) -> None:
    rows = predict(save(tmp_path / "model.safetensors", spec_of()), clips, config=QUIET)
    found = np.array([(row.valence, row.arousal) for row in rows], float)
    expected = evaluated(clips, spec_of())
    assert found.shape == expected.shape and np.ptp(expected[:, 0]) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert rows[0].file == "val/val-000" and rows[3].file == "val/val-001"
    assert [row.frame for row in rows[3:6]] == [100, 101, 102] and rows[4].seconds == pytest.approx(10.1)
    assert all(row.face == 1 and row.status == "ok" for row in rows)


@pytest.mark.parametrize("clip", [CLIP, ClipConfig(5, 5), ClipConfig(4, 1, 3, lag_seconds=2.0)])
@pytest.mark.parametrize("at_once", [1, 16])
def test_frames_one_by_one_are_the_same_clips_without_depth_and_heat(
    clips: Path, frames: Path, tmp_path: Path, clip: ClipConfig, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what an evaluation says of the stored clips with both left out (and without a lag)."""
    monkeypatch.setattr(module, "_FIND_AT_ONCE", at_once)
    rows = predict(save(tmp_path / "model.safetensors", spec_of(clip)), frames, config=QUIET)
    without_lag = ClipConfig(clip.num_frames, clip.stride, clip.frame_step)
    expected = evaluated(clips, spec_of(without_lag), color_only=True)
    found = np.array([(row.valence, row.arousal) for row in rows], float)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [row.file for row in rows[3:12]] == [f"r1/{frame}.png" for frame in range(9)]
    assert [row.frame for row in rows[3:12]] == list(range(9))


def test_of_frames_that_show_no_face_nothing_is_said(frames: Path, tmp_path: Path) -> None:
    shutil.copytree(frames / "r3", tmp_path / "r3")
    for number in (4, 5):
        (tmp_path / "r3" / f"{number}.png").write_bytes(b"no picture")
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"no picture")
    model = save(tmp_path / "model.safetensors", spec_of())
    rows = predict(model, tmp_path / "r3", config=QUIET)
    assert [row.frame for row in rows if not row.is_face] == [4, 5] and len(rows) == 14
    assert all((row.valence is not None) == row.is_face for row in rows)
    assert rows[4].status.startswith("unreadable")
    assert all(row.valence is None for row in predict(model, tmp_path / "in", config=QUIET))


def test_memory_is_that_of_two_windows_however_long_the_video(tmp_path: Path) -> None:
    predictor = ClipPredictor(load_model(save(tmp_path / "model.safetensors", spec_of())), QUIET)
    read = 0

    def endless() -> Iterator[MediaFrame]:
        nonlocal read
        while True:
            yield MediaFrame("v", read, read / 25, np.full((24, 24, 3), read % 200, np.uint8))
            read += 1

    for number, found in zip(range(200), predictor.of_frames(endless(), "v")):
        assert found.rows[0].frame == number and found.frame.picture is None
        assert read - number <= CLIP.num_frames * CLIP.frame_step + module._FIND_AT_ONCE


def test_recordings_are_videos_and_folders_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("a/10.png", "a/9.png", "b1.jpg", "b.mp4", "c/x/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert sorted(recordings_of(Media(tmp_path))) == [
        (".", ["b1.jpg"]),
        ("a", ["a/9.png", "a/10.png"]),
        ("b.mp4", ["b.mp4"]),
        ("c/x", ["c/x/1.jpg"]),
    ]


def test_the_command_says_what_was_missing_and_draws_the_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model.safetensors", spec_of())
    pictures = [np.full((48, 64, 3), 12 * number, np.uint8) for number in range(11)]
    (tmp_path / "in").mkdir()
    video = write_video(tmp_path / "in" / "clip$x_$.mp4", pictures)
    words = ["predict", str(model), str(video), "--out", "o.csv", "--pictures", "drawn", "--quiet"]
    assert main([*words, "--align", "none", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "of 11 frames: faces in 11, depth in 0, thermal in 0; depth and thermal absent" in said
    rows = read_rows(Path("o.csv"))
    assert [row["frame"] for row in rows] == [str(number) for number in range(11)]
    assert float(rows[10]["time_s"]) == pytest.approx(10 / 8)
    assert all(row["face"] == "1" and abs(float(row["arousal"])) <= 1 for row in rows)
    with Image.open("drawn/clip$x_$.mp4.curves.png") as picture:
        assert picture.width > 800
    assert main([*words[:-1], "--align", "auto", "--device", "cpu"]) == 0  # grey shows no face
    assert "faces in 0" in capsys.readouterr().out
    assert {row["status"] for row in read_rows(Path("o.csv"))} == {"no face"}


def test_a_recording_whose_name_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = CurveFolder(tmp_path / "drawn")
    row = FacePrediction("k", 0, 0.0)
    folder.add(FramePrediction(MediaFrame("k", 0, 0.0), (row,), (), "../k"))
    with pytest.raises(DataError, match="leaves"):
        folder.finish()
    assert not list(tmp_path.rglob("*.png"))


def test_models_go_to_their_own_predictors(tmp_path: Path) -> None:
    loaded = load_model(save(tmp_path / "model.safetensors", spec_of()))
    with pytest.raises(ConfigError, match="ClipPredictor"):
        FacePredictor(loaded, QUIET)
