"""The loop: when it saves, evaluates, stops and counts, and what accelerate may not do to it."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType

from pipelines import loop, stage
from pipelines.checkpoint import Checkpoint, CheckpointStore, read_checkpoint
from pipelines.config import ConfigError, OptimConfig, TrainConfig
from pipelines.loop import NonFiniteError, build_accelerator
from pipelines.observe import MAEObserver
from pipelines.optim import build_optimizer, param_groups, set_learning_rate
from pipelines.processes import Processes
from pipelines.rundir import latest
from pretrain.task import StepOutput
from tests.pipelines.test_run import poison
from tests.pipelines.tiny import last_checkpoint, losses, metrics, train, weights


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a run does besides steps, in order."""
    seen: list[str] = []
    save, evaluate = CheckpointStore.save, MAEObserver.evaluate

    def watched_save(self: CheckpointStore, checkpoint: Checkpoint) -> Path:
        seen.append(f"save {checkpoint.step}")
        return save(self, checkpoint)

    def watched_evaluate(self: MAEObserver, step: int) -> Mapping[str, float]:
        seen.append(f"evaluate {step}")
        return evaluate(self, step)

    monkeypatch.setattr(CheckpointStore, "save", watched_save)
    monkeypatch.setattr(MAEObserver, "evaluate", watched_evaluate)
    return seen


def at_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Calls `act` with the number of each step of this process, when it has been made."""
    made, step = 0, loop.train_step

    def watched(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        logs = step(*arguments)
        act(made)
        return logs

    monkeypatch.setattr(loop, "train_step", watched)


class Slope:
    """A task whose loss is the sum of the model's output."""

    def step(self, model: torch.nn.Module, batches: list[torch.Tensor]) -> Iterator[StepOutput]:
        for images in batches:
            yield StepOutput(model(images).sum(), {})


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_a_step_clips_as_torch_does_and_makes_no_update_of_what_is_not_finite(limit: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    plain = copy.deepcopy(model)
    config = OptimConfig(clip_grad=limit)
    accelerator = build_accelerator(TrainConfig())
    model, optimizer = accelerator.prepare(model, build_optimizer(param_groups(model, [], 0.05), config))
    groups = param_groups(plain, [], 0.05)
    usual = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps)
    for one in (optimizer, usual):
        set_learning_rate(one, 0.1)
    trainee: Any = loop.Trainee(Slope(), model, optimizer)
    for step in range(6):
        images = torch.randn(4, 5) * 10**step / 100  # from below the limit to above it
        logs = loop.train_step(trainee, [images[:2], images[2:]], config, accelerator)
        plain(images).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), limit or float("inf"))
        usual.step()
        usual.zero_grad()
        torch.testing.assert_close(logs["grad_norm"], norm)
        assert logs["nonfinite"] == 0
        torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-5, atol=1e-6)
    logs = loop.train_step(trainee, [torch.full((4, 5), torch.inf)], config, accelerator)
    assert logs["nonfinite"] == 1
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-5, atol=1e-6)
    images = torch.randn(4, 5)
    loop.train_step(trainee, [images], config, accelerator)  # nor has it left anything in the moments
    plain(images).sum().backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), limit or float("inf"))
    usual.step()
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-5, atol=1e-6)


def test_a_step_is_saved_before_it_is_evaluated_and_evaluating_changes_nothing(
    smooth: Path, finished: Path, tmp_path: Path, events: list[str]
) -> None:
    def restless(self: MAEObserver, step: int) -> Mapping[str, float]:
        torch.rand(3)  # torch's own generator, as a loader or a head's dropout would
        return {}

    torch.manual_seed(0)
    assert train(smooth, tmp_path / "run", "eval.every=10", "train.save_every=10") == 0
    assert events == ["save 10", "evaluate 10", "save 20", "evaluate 20", "save 23", "evaluate 23"]
    assert weights(tmp_path / "run") == weights(finished)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAEObserver, "evaluate", restless)
        torch.manual_seed(0)
        assert train(smooth, tmp_path / "restless", "eval.every=10", "train.save_every=10") == 0
    rng = [last_checkpoint(tmp_path / name) / "rng.safetensors" for name in ("run", "restless")]
    assert rng[0].read_bytes() == rng[1].read_bytes()


def test_a_run_that_is_stopped_saves_and_makes_up_for_the_evaluation_when_it_goes_on(
    smooth: Path, tmp_path: Path, events: list[str]
) -> None:
    settings = ["eval.every=4", "train.save_every=0", "train.epochs=2"]
    assert train(smooth, tmp_path / "whole", *settings) == 0
    events.clear()
    assert train(smooth, tmp_path / "run", *settings, "train.stop_at_step=8") == 0
    assert events == ["evaluate 4", "save 8"]
    assert train(smooth, tmp_path / "run", *settings) == 0
    assert events[2:] == ["evaluate 8", "save 12", "evaluate 12"]
    held_out = [
        [row for row in metrics(tmp_path / name) if row["kind"] == "eval"] for name in ("whole", "run")
    ]
    assert held_out[0] == held_out[1] and [row["step"] for row in held_out[0]] == [4, 8, 12]


class OneStepBehind(Processes):
    """One process whose agreement comes a step later, as that of several does."""

    _before: list[int] | None = None

    def post(self, flags: Any) -> list[int]:
        before, self._before = self._before, list(flags)
        return before or [0] * len(flags)


@pytest.mark.parametrize("kind", [Processes, OneStepBehind])
def test_save_minutes_saves_once_each_time(
    smooth: Path, tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch, kind: type[Processes]
) -> None:
    minute = 0.0

    def pass_minute(_: int) -> None:
        nonlocal minute
        minute += 1

    monkeypatch.setattr(stage, "Processes", kind)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 60 * minute))
    at_step(monkeypatch, pass_minute)
    settings = ["train.save_minutes=3", "train.save_every=0", "train.epochs=2"]
    assert train(smooth, tmp_path / "run", *settings) == 0
    late = kind is OneStepBehind
    saved = [int(event.split()[1]) for event in events if event.startswith("save")]
    assert saved == ([4, 8, 12] if late else [3, 6, 9, 12])


def test_a_signal_in_the_last_step_leaves_a_finished_run(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, lambda step: signal.raise_signal(signal.SIGTERM) if step == 6 else None)
    assert train(smooth, tmp_path / "run", "train.epochs=1") == 0
    assert latest("pretrain") == (tmp_path / "run").resolve()
    assert [row["kind"] for row in metrics(tmp_path / "run")][-1] == "eval"
    assert (tmp_path / "run" / "finished").is_file()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    at_step(monkeypatch, lambda step: signal.raise_signal(signal.SIGTERM) if step == 5 else None)
    assert train(smooth, tmp_path / "other", "train.epochs=1") == 128 + signal.SIGTERM
    assert (tmp_path / "other" / "stopped").read_text() == "5\n"


def test_speed_is_that_of_the_steps_whatever_lies_between_them(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, save = 0.0, CheckpointStore.save

    def slow_save(self: CheckpointStore, checkpoint: Checkpoint) -> Path:
        nonlocal now
        now += 1000
        return save(self, checkpoint)

    def pass_second(_: int) -> None:
        nonlocal now
        now += 1

    monkeypatch.setattr(CheckpointStore, "save", slow_save)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    at_step(monkeypatch, pass_second)
    settings = ["train.log_every=4", "train.save_every=3", "eval.every=5", "train.epochs=2"]
    assert train(smooth, tmp_path / "run", *settings) == 0
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert [row["images_per_s"] for row in rows] == [16, 16, 16]


def test_what_is_not_finite_is_noticed_before_it_is_saved(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command would go on behind the step that it was stopped for."""
    poison(monkeypatch, at_call=6)
    with pytest.raises(NonFiniteError, match="step 6"):
        train(smooth, tmp_path / "run", "train.save_every=1", "train.log_every=20")
    assert last_checkpoint(tmp_path / "run").name == "step-00000005"


def test_skipped_updates_are_counted_over_the_whole_run(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["train.nonfinite=skip", "train.max_skipped=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        poison(patch, at_call=2)
        assert train(smooth, tmp_path / "run", *settings, "train.stop_at_step=4") == 0
    assert read_checkpoint(last_checkpoint(tmp_path / "run")).skipped == 1
    # those that were allowed before do not stop it under the other policy
    assert train(smooth, tmp_path / "run", "train.nonfinite=stop", "train.stop_at_step=6") == 0
    poison(monkeypatch, at_call=2)
    with pytest.raises(NonFiniteError, match=r"2 update\(s\) up to step 8"):
        train(smooth, tmp_path / "run", *settings)


def test_the_best_step_by_score_is_kept_and_saved_once(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, saves, save = {4: 0.1, 8: 0.7, 12: 0.3, 16: 0.5, 20: 0.6, 23: 0.2}, [], CheckpointStore.save

    def watched(self: CheckpointStore, checkpoint: Checkpoint) -> Path:
        saves.append(checkpoint.step)
        return save(self, checkpoint)

    monkeypatch.setattr(MAEObserver, "evaluate", lambda self, step: {"val_score": scores[step]})
    monkeypatch.setattr(CheckpointStore, "save", watched)
    assert train(smooth, tmp_path / "run", "eval.every=4", "train.save_every=8") == 0
    assert saves == [4, 8, 16, 23]
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    best = store.best()
    assert best is not None and best.folder.name == "step-00000008" and best.score == 0.7
    assert [int(folder.name[5:]) for folder in store.folders()] == [8, 16, 23]
    monkeypatch.setattr(MAEObserver, "evaluate", lambda self, step: {"val_score": 0.65})
    assert train(smooth, tmp_path / "run", "eval.every=4", "train.save_every=8", "train.epochs=6") == 0
    assert store.best() == best
    assert losses(tmp_path / "run").keys() == set(range(1, 35))


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED=true", "told to use DEEPSPEED.*launch with torchrun"),
        ("ACCELERATE_USE_FSDP=true", "told to use FSDP"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS=2", r"gradient_accumulation_steps=2: set it to 1"),
    ],
)
def test_what_accelerate_would_do_besides_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(*variable.split("="))
    with pytest.raises(ConfigError, match=message):
        loop.build_accelerator(TrainConfig())


def test_on_a_mac_the_cpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    made = loop.Accelerator

    def watched(**settings: Any) -> Any:
        asked.update(settings)
        return made(**settings)

    monkeypatch.setattr(loop, "Accelerator", watched)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loop.build_accelerator(TrainConfig()).device.type == "cpu"
    assert asked["cpu"] is True


def test_other_kinds_of_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(num_processes=1, distributed_type=DistributedType.XLA)
    monkeypatch.setattr(loop, "Accelerator", lambda **_: other)
    with pytest.raises(ConfigError, match="told to use XLA"):
        loop.build_accelerator(TrainConfig())


def test_more_processes_than_gpus_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"4 processes .* 2 GPU\(s\).*launch 2 .*ACCELERATE_USE_CPU=true"):
        loop.build_accelerator(TrainConfig())
