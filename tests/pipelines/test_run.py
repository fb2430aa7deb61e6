"""A whole run in this process: resume, layouts, refusals, what it leaves behind."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.__main__ import main
from pipelines.checkpoint import CheckpointError, load_encoder
from pipelines.config import ConfigError
from pipelines.rundir import latest
from pretrain.encoder import encode
from pretrain.hog import HOGEmbedding
from shards.labels import DataError
from tests.pipelines.launched import PYTHON, environment
from tests.pipelines.tiny import TINY_MAE, last_checkpoint, losses, metrics, train, weights


def test_a_run_learns_and_leaves_everything_behind(finished: Path) -> None:
    seen = losses(finished)
    assert list(seen) == list(range(1, 24)) and seen[23] < seen[1] - 0.1
    held_out = [row for row in metrics(finished) if row["kind"] == "eval"]
    assert len(held_out) == 1 and held_out[0]["val_loss"] > 0 and held_out[0]["val_mean_face"] > 0
    names = {path.name for path in last_checkpoint(finished).iterdir()}
    assert names == {
        "encoder.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "manifest.json",
    }
    facts = json.loads((finished / "run.json").read_text())
    assert (
        facts["data"]["sources"] == ["smooth"]
        and facts["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert "<html" in (finished / "report.html").read_text()


def test_timm_and_safetensors_alone_load_the_encoder(finished: Path) -> None:
    path = last_checkpoint(finished) / "encoder.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["faceprior"])
    vit = timm.create_model(facts["timm"]["name"], **facts["timm"]["arguments"])
    vit.load_state_dict(load_file(path), strict=True)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = load_encoder(finished)
    with torch.inference_mode():
        assert torch.equal(vit.eval().forward_features(images), encode(ours.eval(), images))
    assert facts["mean"] == [0.485, 0.456, 0.406] and facts["image_size"] == [32, 32]


@pytest.mark.parametrize("seed", range(3))
def test_stopped_anywhere_and_resumed_is_bit_identical(
    smooth: Path, finished: Path, tmp_path: Path, seed: int
) -> None:
    stops = sorted(random.Random(seed).sample(range(1, 23), 2))
    for step in stops:
        assert train(smooth, tmp_path / "run", f"train.stop_at_step={step}") == 0
    assert train(smooth, tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(finished)
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.parametrize(
    "settings", [["train.batch_size=4"], ["data.num_workers=2"], ["train.batch_size=8", "data.num_workers=1"]]
)
def test_layouts_of_one_process_agree(
    smooth: Path, finished: Path, tmp_path: Path, settings: list[str]
) -> None:
    assert train(smooth, tmp_path / "run", *settings) == 0
    ours, theirs = losses(tmp_path / "run"), losses(finished)
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5


def whole_stopped_and_split(smooth: Path, folder: Path, setting: str) -> Path:
    """A run with `setting`, after making sure that stopped and resumed, and split, it is the same."""
    runs = [folder / name for name in ("whole", "stopped", "split")]
    assert train(smooth, runs[0], setting) == 0
    assert train(smooth, runs[1], setting, "train.stop_at_step=9") == train(smooth, runs[1], setting) == 0
    assert weights(runs[0]) == weights(runs[1])
    assert train(smooth, runs[2], setting, "train.batch_size=4") == 0
    assert losses(runs[2]) == pytest.approx(losses(runs[0]), abs=1e-5)
    return runs[0]


def test_histograms_of_gradients_are_learned_too_and_resume_and_split_alike(
    smooth: Path, finished: Path, tmp_path: Path
) -> None:
    run = whole_stopped_and_split(smooth, tmp_path, "mae.hog_weight=0.5")
    assert weights(run) != weights(finished)
    said = [row for row in metrics(run) if row["kind"] == "train"]
    assert said[-1]["loss_hog"] < said[0]["loss_hog"] - 0.01


def test_a_vit_that_sees_histograms_of_gradients_resumes_alike_and_says_what_it_is(
    smooth: Path, tmp_path: Path
) -> None:
    run = whole_stopped_and_split(smooth, tmp_path, "encoder.patch_embedding=hog")
    assert isinstance(load_encoder(run).patch_embed.proj, HOGEmbedding)
    with safe_open(last_checkpoint(run) / "encoder.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["faceprior"])
    assert facts["timm"] is None and facts["config"]["patch_embedding"] == "hog"


def test_another_order_is_another_training(smooth: Path, finished: Path, tmp_path: Path) -> None:
    """Or the comparison of layouts would compare nothing."""
    assert train(smooth, tmp_path / "run", "data.window_shards=1", "train.stop_at_step=7") == 0
    ours, theirs = losses(tmp_path / "run"), losses(finished)
    assert max(abs(ours[step] - theirs[step]) for step in ours) > 1e-3


def test_resumed_in_another_layout_goes_on_alike(smooth: Path, finished: Path, tmp_path: Path) -> None:
    train(smooth, tmp_path / "run", "train.stop_at_step=7")
    train(smooth, tmp_path / "run", "train.batch_size=8", "data.num_workers=1")
    ours, theirs = losses(tmp_path / "run"), losses(finished)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-5


def test_a_finished_run_is_left_alone_and_is_found(smooth: Path, tmp_path: Path) -> None:
    train(smooth, tmp_path / "run", "train.epochs=1")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert train(smooth, tmp_path / "run", "train.epochs=1") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert latest("pretrain") == (tmp_path / "run").resolve()


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    smooth: Path, finished: Path, tmp_path: Path
) -> None:
    train(smooth, tmp_path / "run", "train.stop_at_step=12")
    (last_checkpoint(tmp_path / "run") / "model.safetensors").write_bytes(b"damaged")
    assert train(smooth, tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(finished)


def test_other_settings_on_the_same_run_are_refused_by_name(smooth: Path, tmp_path: Path) -> None:
    train(smooth, tmp_path / "run", "train.stop_at_step=2")
    with pytest.raises(ConfigError, match=r"optim\.base_lr was 0\.01, now 0\.02"):
        train(smooth, tmp_path / "run", "optim.base_lr=0.02")
    with pytest.raises(ConfigError, match="seed"):
        train(smooth, tmp_path / "run", "seed=4")


def test_a_run_that_another_process_has_is_refused(smooth: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            train(smooth, tmp_path / "run")


def test_activations_computed_again_change_nothing(smooth: Path, finished: Path, tmp_path: Path) -> None:
    assert train(smooth, tmp_path / "run", "train.grad_checkpointing=true") == 0
    ours, theirs = losses(tmp_path / "run"), losses(finished)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-5


def test_tensorboard_files_hold_the_metrics(smooth: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(smooth, tmp_path / "run", "train.epochs=1", "train.tensorboard=true") == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    seen = [event.value for event in board.Scalars("train/loss")]
    assert seen == pytest.approx(list(losses(tmp_path / "run").values()), rel=1e-6)


def test_two_shard_sets_are_joined(smooth: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(smooth, second)
    both = Path(f"{smooth},{second}")
    assert train(both, tmp_path / "run", "train.stop_at_step=2") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["num_samples"] == 180


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["train.batch_size=5"], "batch_size=4"),
        (["train.precision=fp16"], "fp32 or bf16"),
        (["train.nonfinite=ignore"], "stop or skip"),
        (["encoder.name=resnet50"], "plain"),
        (["encoder.patch_size=7"], "32"),
        (["mae.mask_ratio=1.5"], "mask_ratio"),
        (["train.epochs=0"], "above 0"),
        (["init=nowhere"], "no checkpoint"),
    ],
)
def test_what_cannot_work_is_one_clear_error(
    smooth: Path, tmp_path: Path, settings: list[str], named: str
) -> None:
    with pytest.raises((ConfigError, DataError, CheckpointError), match=named):
        train(smooth, tmp_path / "run", *settings)


def test_missing_shards_are_one_message_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        ["pretrain", *["pretrain_demo"], *TINY_MAE, f"data.shards={tmp_path}", f"run={tmp_path / 'run'}"]
    )
    message = capsys.readouterr().err
    assert status == 1 and "make shards" in message and "Traceback" not in message
    assert main(["pretrain", "pretrain_demo", "train.epochz=1"]) == 2
    assert "train.epochs" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["payload", "cut", "tar", "index", "manifest"])
def test_damaged_shards_are_one_message_and_a_status(
    smooth: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str, workers: int
) -> None:
    shutil.copytree(smooth, tmp_path / "set")
    folder = tmp_path / "set" / "train"
    tar, index = sorted(folder.glob("*.tar"))[1], sorted(folder.glob("*.idx"))[1]
    data = bytearray(tar.read_bytes())
    if damage == "payload":
        data[700] ^= 1
        tar.write_bytes(bytes(data))
    elif damage == "cut":
        tar.write_bytes(bytes(data[:5000]))
    elif damage == "tar":
        tar.unlink()
    elif damage == "index":
        index.write_bytes(index.read_bytes()[:-9] + b"something")
    else:
        (folder / "manifest.json").write_text("{")
    named = {"index": index.name, "manifest": "manifest.json"}.get(damage, tar.name)
    words = [
        "pretrain",
        "pretrain_demo",
        *TINY_MAE,
        f"data.shards={tmp_path / 'set'}",
        f"data.num_workers={workers}",
    ]
    assert main([*words, f"run={tmp_path / 'run'}"]) == 1
    message = [line for line in capfd.readouterr().err.splitlines() if line.startswith("faceprior:")]
    assert len(message) == 1 and named in message[0]
    assert any(remedy in message[0] for remedy in ("restore", "build the shards again"))


def test_no_room_for_a_checkpoint_is_one_message_and_loses_nothing(smooth: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the kernel refuses the write in the same place."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    words = [
        *PYTHON,
        "-m",
        "pipelines",
        "pretrain",
        "pretrain_demo",
        *TINY_MAE,
        f"data.shards={smooth}",
        "run=r",
    ]
    assert main([*words[len(PYTHON) + 2 :], "train.stop_at_step=2"]) == 0
    refused = subprocess.run(
        words, cwd=tmp_path, env=environment(), capture_output=True, text=True, preexec_fn=limit
    )
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "cannot write" in refused.stderr and "step-00000005" in refused.stderr
    assert last_checkpoint(tmp_path / "r").name == "step-00000002"
    assert main(words[len(PYTHON) + 2 :]) == 0


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_batch(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.loop import NonFiniteError

    poison(monkeypatch, at_call=6)
    with pytest.raises(NonFiniteError, match="nonfinite"):
        train(smooth, tmp_path / "run")
    keys = json.loads((tmp_path / "run" / "nonfinite-step-00000006-rank-0.json").read_text())
    assert keys["step"] == 6 and len(keys["keys"]) == 16


def test_or_is_skipped_up_to_a_limit(smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, at_call=6)
    assert train(smooth, tmp_path / "run", "train.nonfinite=skip") == 0
    masked = [row["step"] for row in metrics(tmp_path / "run") if row.get("nonfinite")]
    assert masked == [6] and all(
        torch.isfinite(t).all() for t in load_encoder(tmp_path / "run").state_dict().values()
    )


def poison(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """Makes the loss of one step not a number."""
    from pretrain.mae import MAE

    calls, forward = iter(range(1, 1000)), MAE.forward

    def poisoned(self: MAE, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)  # type: ignore[arg-type]
        return output._replace(loss=output.loss * float("nan")) if next(calls) == at_call else output

    monkeypatch.setattr(MAE, "forward", poisoned)
