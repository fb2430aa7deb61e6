"""MRAN as a run: from clip shards to scores of every frame, resumed, and evaluated again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines.data as data_module
from pipelines.__main__ import main
from pipelines.clip_scoring import join_windows
from pipelines.config import ConfigError, RunConfig, load_config
from pipelines.dryrun import random_clips
from pipelines.evaluation import predict_run
from pipelines.finetuning import build_trainable, run_finetuning
from pipelines.models import load_model
from pipelines.predictions_csv import read_csv
from pipelines.rundir import latest
from shards.labels import DataError
from tests.pipelines.tiny import TINY, losses, metrics, train, weights
from tests.shards.made_clips import MadeClips, made_clips, valence

NAN = float("nan")
MRAN = [
    *TINY,
    "task=mran",
    "mran.dim=4",
    "mran.hidden_dim=4",
    "mran.volume_dims=[4]",
    "clip.num_frames=4",
    "clip.stride=3",
    "train.global_batch_size=4",
    "train.epochs=1",
    "train.save_every=0",
]
LENGTHS = MadeClips().lengths


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_clips(tmp_path_factory.mktemp("clips") / "set", counts={"train": 20, "val": 7})


@pytest.fixture(scope="module")
def run(clips: Path, smooth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the encoder of a pretraining run."""
    folder = tmp_path_factory.mktemp("mran")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(smooth, folder / "prior", "train.epochs=1") == 0
        assert run_finetuning(settings(clips, "init=prior"), "tiny") == 0
        found = latest("mran")
    assert found is not None
    return folder / found


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `run`, which is made before, are enough."""
    monkeypatch.setattr("pipelines.clip_views.save_clip_views", lambda *_, **__: None)


def settings(clips: Path, *more: str) -> RunConfig:
    return load_config("", [*MRAN, f"data.shards={clips}", *more])


def test_every_frame_of_every_clip_is_predicted_and_scored_once(run: Path) -> None:
    found = read_csv(run / "predictions" / "val.csv")
    lengths = [LENGTHS[number % len(LENGTHS)] for number in range(7)]
    expected = [
        (f"recording-val-{number:03d}", 100 * number + frame, valence(number, frame))
        for number, length in enumerate(lengths)
        for frame in range(length)
    ]
    assert [(g, f) for g, f in zip(found.group, found.frame.tolist())] == [(g, f) for g, f, _ in expected]
    assert found.va[:, 0] == pytest.approx([v for _, _, v in expected], abs=1e-6)
    missing = found.frame % 100 == 1
    assert np.isnan(found.va[missing, 1]).all() and (found.va[~missing, 1] == -0.5).all()
    assert found.va_pred is not None and (np.abs(found.va_pred) <= 1).all()
    (row,) = [row for row in metrics(run) if row["kind"] == "eval"]
    error = (found.va_pred[:, 0] - found.va[:, 0]) ** 2
    assert row["val_rmse_valence"] == pytest.approx(error.mean() ** 0.5, abs=1e-6)


def test_its_report_shows_curves_attention_and_the_worst_clips(run: Path) -> None:
    names = {path.name for path in (run / "predictions").iterdir()}
    assert names == {"val.csv", "val.clips.json", "val.attention.png", "val.strips.png"}
    page = (run / "report.html").read_text()
    for text in (
        "20 clips from made",
        "per recording: each that has labels by itself",
        "all recordings, the worst first",
    ):
        assert text in page
    assert page.count("data:image/png") == 5 and "attention, over frames" in page


def test_the_encoder_is_that_of_the_pretraining_and_stays_with_tuned_blocks_0(
    run: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prior = run.parents[2] / "prior"
    assert run_finetuning(settings(clips, f"init={prior}", "mran.tuned_blocks=0"), "frozen") == 0
    files = [load_model(path).model.encoder.state_dict() for path in (Path("runs/mran/frozen"), run)]
    from pipelines.checkpoint import load_encoder

    before = load_encoder(prior).state_dict()
    assert all(torch.equal(files[0][name], before[name]) for name in before)
    assert not all(torch.equal(files[1][name], before[name]) for name in before)


def test_stopped_and_resumed_is_bit_identical(
    run: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[2])
    config = settings(clips, "init=prior", "run=stopped")
    part = replace(config, train=replace(config.train, stop_at_step=2))
    assert run_finetuning(part, "tiny") == 0 and run_finetuning(config, "tiny") == 0
    assert weights(Path("stopped")) == weights(run)
    assert losses(Path("stopped")) == losses(run) and len(losses(run)) == 5
    assert (Path("stopped") / "predictions" / "val.csv").read_bytes() == (
        run / "predictions" / "val.csv"
    ).read_bytes()


def test_accumulated_batches_follow_the_same_losses(
    run: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[2])
    config = settings(clips, "init=prior", "run=two", "train.batch_size=2")
    assert run_finetuning(config, "tiny") == 0
    assert losses(Path("two")) == pytest.approx(losses(run), rel=0, abs=1e-5)


def test_a_run_is_evaluated_again_and_a_camera_may_be_missing(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--tune"]) == 0
    said = capsys.readouterr().out
    assert "post-processing, fitted on val" in said and "pooled: all frames" in said
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert "not post-processed" in said and "per recording: each that has labels" in said
    again = read_csv(run / "predictions" / "val.csv")
    left_out = frozenset((n, f"thermal.{f:04d}.png") for n in range(7) for f in range(14))
    cold = made_clips(tmp_path / "cold", counts={"val": 7}, left_out=left_out)
    found = predict_run(run, "val", str(cold))
    assert found is not None and found.keys == again.keys and found.va_pred is not None
    assert np.isfinite(found.va_pred).all() and not np.array_equal(found.va_pred, again.va_pred)


def test_windows_of_one_frame_are_averaged() -> None:
    columns = {
        "frames": torch.tensor([[5.0, 6.0], [6.0, 7.0], [5.0, -1.0]]),
        "va": torch.tensor([[[0.1, 1], [0.2, 2]], [[0.4, 4], [0.5, 5]], [[0.9, 9], [7, 7]]]).double(),
        "va_target": torch.tensor([[[1, NAN], [2, 2]], [[2, 2], [3, 3]], [[4, 4], [NAN, NAN]]]).double(),
    }
    joined = join_windows(columns, [3, 3, 8])
    assert joined["sample"].tolist() == [3, 3, 3, 8] and joined["frame"].tolist() == [5, 6, 7, 5]
    assert joined["va"].flatten().tolist() == pytest.approx([0.1, 1, 0.3, 3, 0.5, 5, 0.9, 9])
    assert joined["va_target"].flatten().tolist() == pytest.approx([1, NAN, 2, 2, 3, 3, 4, 4], nan_ok=True)


def test_with_no_shards_named_clips_are_rendered_once(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = data_module.RenderedClips(2, 1, 0, num_identities=1, num_frames=4, size=32)
    monkeypatch.setitem(data_module._DEFAULTS, "clips", lambda: source)
    config = load_config("", [*MRAN, "train.global_batch_size=2", "mran.encoder=conv", "run=here"])
    assert run_finetuning(config, "tiny") == 0
    assert "rendering the default clips" in capsys.readouterr().out
    assert data_module.make_default("clips") == data_module.default_set("clips")
    assert "rendering" not in capsys.readouterr().out


def test_what_is_no_clip_is_refused(
    run: Path, clips: Path, smooth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="clips"):
        run_finetuning(settings(smooth, "init=random", f"run={tmp_path / 'a'}"), "tiny")
    with pytest.raises(DataError, match="faces"):
        train(clips, tmp_path / "b")
    with pytest.raises(ConfigError, match="does not read this setting"):
        run_finetuning(settings(clips, "head.readout=flat"), "tiny")
    assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path / "out.csv")]) != 0
    assert "no picture or video" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", ["gate", "none"])
def test_a_dry_run_takes_a_step(guidance: str) -> None:
    config = load_config("", [*MRAN, f"mran.guidance={guidance}"])
    model, task = build_trainable(config)
    (output,) = task.step(model, [random_clips(2, config)])
    assert torch.isfinite(output.loss) and output.loss.requires_grad
