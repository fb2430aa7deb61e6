"""What surrounds the loop: what a run goes on from, what it is compared with, and when it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines import pretraining, stage
from pipelines.checkpoint import CheckpointError, CheckpointStore, load_encoder
from pipelines.config import ConfigError
from pipelines.finetuning import run_finetuning
from pipelines.loop import NonFiniteError
from pipelines.models import load_model
from pipelines.observe import MAEObserver
from pipelines.processes import Processes
from pipelines.rundir import latest
from pretrain.pixels import PixelNorm
from shards.labels import DataError
from tests.pipelines.test_checkpoint import flip
from tests.pipelines.test_finetuning import settings_of
from tests.pipelines.test_run import poison
from tests.pipelines.tiny import last_checkpoint, losses, metrics, train, weights
from tests.shards.faces import build_smooth


class KilledError(Exception):
    """Stands for a kill: nothing after it is done."""


def killed(*_: Any, **__: Any) -> None:
    raise KilledError


@pytest.mark.reports
@pytest.mark.parametrize("where", ["evaluation", "publishing", "nothing left"])
def test_a_run_that_ended_before_its_end_is_finished_without_reading_data(
    smooth: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if where == "evaluation":
            patch.setattr(MAEObserver, "evaluate", killed)
        elif where == "publishing":
            patch.setattr(stage, "publish", killed)
        if where == "nothing left":
            assert train(smooth, run) == 0
        else:
            with pytest.raises(KilledError):
                train(smooth, run)
            assert last_checkpoint(run).name == "step-00000023" and latest("pretrain") is None
    monkeypatch.setattr(pretraining, "train_batches", lambda *_, **__: iter(()))
    assert train(smooth, run) == 0
    assert [row["step"] for row in metrics(run) if row["kind"] == "eval"] == [23]
    assert losses(run) == losses(finished) and weights(run) == weights(finished)
    assert latest("pretrain") == run.resolve() and "<html" in (run / "report.html").read_text()
    assert (run / "finished").read_text() == "23\n"


def test_a_finished_run_goes_on_when_it_is_to_be_longer(smooth: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(smooth, run, "train.epochs=1") == 0
    assert train(smooth, run, "train.epochs=2", "train.stop_at_step=9") == 0
    assert not (run / "finished").exists() and (run / "stopped").read_text() == "9\n"
    assert train(smooth, run, "train.epochs=2") == 0
    assert (run / "finished").read_text() == "12\n" and not (run / "stopped").exists()
    facts = json.loads((run / "run.json").read_text())
    assert facts["total_steps"] == 12 and [start["step"] for start in facts["starts"]] == [0, 6, 9]


def test_a_report_that_fails_does_not_kill_a_finished_run(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.report.write_report", killed)
    assert train(smooth, tmp_path / "run", "train.epochs=1") == 0
    assert latest("pretrain") == (tmp_path / "run").resolve()
    assert "no report (KilledError())" in capsys.readouterr().err


def test_checkpoints_that_are_gone_are_not_replaced_by_a_new_beginning(smooth: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(smooth, run, "train.stop_at_step=7")
    for folder in (run / "checkpoints").glob("step-*"):
        flip(folder / "model.safetensors")
    before = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="run=OTHER"):
            train(smooth, run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_mistake_in_the_first_command_does_not_stay_with_the_run(
    smooth: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError):
        train(smooth, run, "init=nowhere", "optim.base_lr=0.1", "seed=9")
    assert train(smooth, run) == 0
    assert weights(run) == weights(finished)


def test_a_run_that_never_saved_begins_anew_under_any_settings(
    smooth: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        poison(patch, at_call=3)
        with pytest.raises(NonFiniteError):
            train(smooth, tmp_path / "run", "seed=9")
    assert train(smooth, tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(finished)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 1


def test_other_data_in_the_same_place_is_refused_and_the_same_data_elsewhere_is_not(
    smooth: Path, finished: Path, tmp_path: Path
) -> None:
    place = tmp_path / "set"
    shutil.copytree(smooth, place)
    train(place, tmp_path / "run", "train.stop_at_step=7")
    shutil.rmtree(place)
    build_smooth(place, counts={"train": 96, "val": 30})
    with pytest.raises(ConfigError, match=r"data\.shards.*90 faces, hash .*96 faces, hash"):
        train(place, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(smooth, moved)
    assert train(moved, tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(finished)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["data"]["folders"] == [str(place / "train")]
    assert [start["data"]["folders"] for start in facts["starts"]] == [
        [str(place / "train")],
        [str(moved / "train")],
    ]
    assert all({"revision", "versions", "time", "world_size"} <= start.keys() for start in facts["starts"])


def test_what_a_run_began_with_need_not_be_there_when_it_goes_on(
    smooth: Path, finished: Path, tmp_path: Path
) -> None:
    first, settings = tmp_path / "first", ["train.epochs=2", f"init={tmp_path / 'first'}"]
    shutil.copytree(finished, first)
    assert train(smooth, tmp_path / "whole", *settings) == 0
    assert train(smooth, tmp_path / "run", *settings, "train.stop_at_step=7") == 0
    shutil.rmtree(first)
    assert train(smooth, tmp_path / "run", *settings) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert losses(tmp_path / "run")[1] < losses(finished)[1]  # it did begin with the first run's weights


def test_nor_what_a_finetuning_began_with_and_its_best_is_what_its_model_is(
    smooth: Path, finished: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    shutil.copytree(finished, first)
    settings = [f"init={first}", "train.epochs=1", "eval.every=1"]

    def finetune(run: str, *more: str) -> None:
        assert run_finetuning(settings_of("expr", smooth, *settings, f"run={run}", *more), "tiny") == 0

    finetune("whole")
    finetune("run", "train.stop_at_step=3")
    shutil.rmtree(first)
    finetune("run")
    assert weights(Path("run")) == weights(Path("whole"))
    scores = {row["step"]: row["val_score"] for row in metrics(Path("run")) if row["kind"] == "eval"}
    best = max(scores, key=lambda step: scores[step])  # the first of equal ones
    loaded = load_model(Path("run"))
    assert loaded.checkpoint == f"step {best}, its best by score" and loaded.facts["init"] == str(first)


def test_a_damaged_encoder_to_start_from_is_noticed(smooth: Path, finished: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(finished, first)
    flip(last_checkpoint(first) / "encoder.safetensors")
    before = sorted((first / "checkpoints").glob("step-*"))[-2]
    assert torch.equal(
        load_encoder(first).state_dict()["cls_token"], load_encoder(before).state_dict()["cls_token"]
    )
    with pytest.raises(CheckpointError, match="changed since it was written"):
        train(smooth, tmp_path / "run", f"init={last_checkpoint(first)}")


def test_nothing_held_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = build_smooth(tmp_path / "set", counts={"train": 32})
    assert train(shards, tmp_path / "run", "train.epochs=1") == 0
    assert f"no val split beside {shards / 'train'}: nothing is held out" in capsys.readouterr().out
    assert train(shards, tmp_path / "run", "train.epochs=1") == 0
    assert "finished before" in capsys.readouterr().out


def test_a_run_on_the_cpu_leaves_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", killed)
    monkeypatch.setattr(torch.cuda, "set_rng_state", killed)
    states = stage._gather_rng(Processes(), torch.device("cpu"))
    assert list(states) == ["cpu.0"]
    stage._set_rng({**states, "cuda.0": states["cpu.0"]}, 0, torch.device("cpu"))


class Two(Processes):
    """The second of two processes; the main one's text and the failures of both are given."""

    def __init__(self, said: str, failures: list[str]) -> None:
        super().__init__()
        self.rank, self.world_size = 1, 2
        self._said, self._failures = said, failures
        self._group = self

    def agree(self, message: str) -> str:
        return self._said

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor(list(text.encode().ljust(64, b"\0"))) for text in self._failures]


def test_every_process_reads_the_checkpoint_that_the_main_one_chose(finished: Path) -> None:
    store = CheckpointStore(finished / "checkpoints")
    older = stage.load_agreed(store, Two("step-00000020", ["", ""]))
    assert older is not None and older.step == 20
    assert stage.load_agreed(store, Two("", ["", ""])) is None
    with pytest.raises(DataError, match="process 0 of 2: no room"):
        stage.load_agreed(store, Two("step-00000020", ["no room", ""]))
    with pytest.raises(CheckpointError, match="step-00000021"):
        stage.load_agreed(store, Two("step-00000021", ["", ""]))


@pytest.fixture(autouse=True)
def same_generator() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def test_constants_are_not_sent_at_every_step_and_statistics_are() -> None:
    model = nn.Sequential(PixelNorm(), nn.BatchNorm2d(3))
    stage.keep_constants_apart(model)
    left_out = getattr(model, "_ddp_params_and_buffers_to_ignore")  # noqa: B009  of torch
    assert sorted(left_out) == ["0.scale", "0.shift"]
