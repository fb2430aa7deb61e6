"""Two training processes against one, through the real command line.

    python -m bench.processes [--quick] [--device cuda]

The same pretraining (`pretrain_small` on rendered faces, the same global batch) runs in one process, and in
two that torchrun joins; images a second are those of its metrics.jsonl, without the first lines. On a CPU
each process has one thread, and two cores may be less than twice one: what they give is measured first, by
two independent trainings of half the batch side by side. Efficiency is the two processes' speed-up over that
one; on GPUs, each of its own, over two. What a step loses beyond its arithmetic is measured apart: exchanging
gradients, waiting at each step for whichever process is later, and, by the clocks of thread and process, what
the training thread and the threads that exchange compute more, and how much longer the first does not run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from bench.measure import Asked, Row, Spread, run_alone
from finetune.across import gather_across
from pipelines.config import RunConfig, load_config
from pipelines.dryrun import random_batch
from pipelines.loop import Trainee, build_accelerator, train_step
from pipelines.optim import build_optimizer, param_groups
from pipelines.pretraining import build_trainable
from pipelines.processes import leave
from pipelines.stage import keep_constants_apart
from shards.build import BuildConfig, build
from shards.render import RenderedFaces

GOAL = 0.9
SCORES = 28  # of a face: what EMMA's valence and arousal read, gathered in every step
_SKIPPED = 2  # first lines of a run's metrics


def rows(asked: Asked) -> list[Row]:
    """On a CPU two threads; on GPUs two of them, where there are."""
    work = "pretraining in two processes against one, the same global batch"
    goal = f"{GOAL:.0%} of what {'two GPUs' if asked.device == 'cuda' else 'the cores'} can give"
    gpu = Row(f"{work}: two GPUs", f"{GOAL:.0%} of twice one", "not measured: needs two CUDA devices")
    if asked.device == "cuda" and torch.cuda.device_count() < 2:
        return [gpu]
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "faces"
        num_faces = 64 if asked.quick else 512
        source = RenderedFaces(num_train=num_faces, num_val=8, num_test=0, num_identities=num_faces // 8)
        build(source, shards, BuildConfig(shard_size=128, workers=1), quiet=True)
        if asked.device == "cuda":
            return [_gpu_row(Path(folder), shards, work, goal, asked.quick)]
        return [*_cpu_rows(Path(folder), shards, work, goal, asked.quick), gpu]


def _cpu_rows(folder: Path, shards: Path, work: str, goal: str, quick: bool) -> list[Row]:
    found: list[Row] = []
    for batch, steps in ((8, 6), (16, 6)) if quick else ((16, 60), (64, 20)):
        (folder / str(batch)).mkdir()
        found += _cpu_pair(folder / str(batch), shards, work, goal, (batch, steps, 1 if quick else 3))
    return found


def _cpu_pair(
    folder: Path, shards: Path, work: str, goal: str, sizes: tuple[int, int, int]
) -> tuple[Row, Row]:
    """Two trainings side by side, and two joined, for (global batch, steps, turns)."""
    batch, steps, turns = sizes
    common = [f"data.shards={shards}", "train.threads=1", f"train.log_every={max(1, steps // 10)}"]
    found: dict[str, list[float]] = {"one process": [], "two processes": [], "two apart": []}
    for turn in range(turns):
        whole = _settings(common, batch, steps, 0, folder / f"one-{turn}")
        found["one process"] += _train([whole], 1)
        joined = _settings(common, batch, steps, 0, folder / f"two-{turn}")
        found["two processes"] += _train([joined], 2)
        apart = [
            _settings(common, batch // 2, steps, number, folder / f"apart-{turn}-{number}")
            for number in range(2)
        ]
        found["two apart"].append(sum(_train(apart, 1)))
    speed_up = [two / one for one, two in zip(found["one process"], found["two processes"], strict=True)]
    possible = [apart / one for one, apart in zip(found["one process"], found["two apart"], strict=True)]
    efficiency = Spread.of([own / most for own, most in zip(speed_up, possible, strict=True)])
    lost = _time_losses(steps, batch // 2)
    step_ms = 1e3 * batch / statistics.median(found["two processes"])
    shares = {name: ms / step_ms for name, ms in lost.items()}
    more = {name: lost[f"joined, {name}"] - lost[f"apart, {name}"] for name in ("thread", "others", "idle")}
    texts = {name: Spread.of(values).text(".1f") for name, values in found.items()}
    settings = {name: f"pretrain_small {' '.join(common[1:])}, on temporary rendered faces" for name in found}
    return (
        Row(
            f"what two cores give: two trainings of {batch // 2} images a step side by side against one of "
            f"{batch}, a thread each",
            "stated",
            f"{texts['two apart']} images/s",
            f"one alone: {texts['one process']} images/s",
            Spread.of(possible),
            True,
            "No exchange of any kind.",
            settings,
            {name: found[name] for name in ("one process", "two apart")},
        ),
        Row(
            f"{work} of {batch}: gloo, one thread each",
            goal,
            f"{texts['two processes']} images/s, {efficiency.text('.0%')} of what the cores give",
            f"one process: {texts['one process']} images/s",
            Spread.of(speed_up),
            efficiency.median >= GOAL,
            f"Of a step of {step_ms:.0f} ms, exchanging the gradients takes {lost['gradients']:.1f} ms "
            f"({shares['gradients']:.1%}) where nothing hides it, and waiting for the later process "
            f"{lost['waiting']:.1f} ms ({shares['waiting']:.1%}) (measured on steps after each of "
            f"which two meet); gathering {SCORES} scores a face, as a step of EMMA does, would take "
            f"{lost['scores']:.2f} ms ({shares['scores']:.1%}). Steps without a loader, by the clocks: "
            f"{lost['apart, step']:.1f} ms side by side, {lost['joined, step']:.1f} joined; of that the "
            f"training thread computes {more['thread']:.1f} ms more, other threads {more['others']:.1f}, and "
            f"for {more['idle']:.1f} more the training thread does not run.",
            settings,
            {**found, **{f"{name}, ms": [ms] for name, ms in lost.items()}},
        ),
    )


def _gpu_row(folder: Path, shards: Path, work: str, goal: str, quick: bool) -> Row:
    batch, steps, turns = (64, 6, 1) if quick else (4096, 60, 3)
    common = [
        f"data.shards={shards}",
        "train.precision=bf16",
        f"train.log_every={max(1, steps // 10)}",
        *("encoder.name=vit_base_patch16_224", "encoder.image_size=224", "encoder.patch_size=16"),
        *("encoder.embed_dim=768", "encoder.depth=12", "encoder.num_heads=12", "train.batch_size=512"),
    ]
    found: dict[str, list[float]] = {"one process": [], "two processes": []}
    for turn in range(turns):
        for number, name in enumerate(found, 1):
            run = folder / f"{number}-{turn}"
            found[name] += _train([_settings(common, batch, steps, number, run)], number, cuda=True)
    speed_up = [two / one for one, two in zip(found["one process"], found["two processes"], strict=True)]
    efficiency = Spread.of([one / 2 for one in speed_up])
    texts = {name: Spread.of(values).text() for name, values in found.items()}
    return Row(
        f"{work}: two GPUs",
        goal,
        f"{texts['two processes']} images/s, {efficiency.text('.0%')} of twice one",
        f"one GPU: {texts['one process']} images/s",
        Spread.of(speed_up),
        efficiency.median >= GOAL,
        "",
        {name: f"pretrain_small {' '.join(common[1:])}, on temporary rendered faces" for name in found},
        found,
    )


def _settings(common: Sequence[str], batch: int, steps: int, seed: int, run: Path) -> list[str]:
    """Words of the command line for one run of so many steps."""
    shards = Path(common[0].partition("=")[2])
    num_faces = json.loads((shards / "train" / "manifest.json").read_bytes())["num_samples"]
    return [
        *common,
        f"train.global_batch_size={batch}",
        f"train.epochs={steps * batch / num_faces}",
        "optim.warmup_epochs=0",
        *("train.save_every=0", "eval.every=0", "eval.max_samples=8", "eval.pictures=0"),
        *("eval.probe_train=0", f"seed={seed}", f"run={run}"),
    ]


def _train(runs: Sequence[Sequence[str]], num_processes: int, cuda: bool = False) -> list[float]:
    """Images a second of each of these runs, begun together.

    Raises:
        RuntimeError: one failed.
    """
    launcher = [sys.executable, *(_torchrun(num_processes) if num_processes > 1 else []), "-m", "pipelines"]
    begun = [
        subprocess.Popen(
            [*launcher, "pretrain", "pretrain_small", *settings],
            env=_environment(cuda),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for settings in runs
    ]
    for process in begun:
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {said[-2000:]}")
    return [_images_per_second(settings[-1].partition("=")[2]) for settings in runs]


def _torchrun(num_processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]


def _environment(cuda: bool) -> Mapping[str, str]:
    return os.environ if cuda else {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def _images_per_second(run: str) -> float:
    lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    found = [line["images_per_s"] for line in lines if line["kind"] == "train"]
    return float(statistics.harmonic_mean(found[_SKIPPED:]))


def _time_losses(turns: int, batch_size: int) -> dict[str, float]:
    """Milliseconds that a step of two processes loses in each way, as `lose` measures them."""
    code = f"from bench.processes import lose\nlose({batch_size}, {turns})"
    command = [sys.executable, *_torchrun(2), "--no-python", sys.executable, "-c", code]
    done = subprocess.run(command, env=_environment(False), capture_output=True, text=True, check=True)
    last = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    return {name: float(ms) for name, ms in json.loads(last).items()}


def lose(batch_size: int, turns: int) -> None:
    """What each of two processes does: exchanges, and steps of its own after which they meet; prints ms.

    Exchanges are medians; waiting is the mean over steps and both processes, as any of them can be late. Then
    steps in a row, "apart" without exchanging gradients and "joined" with, read by `clock_steps`.

    Args:
        batch_size: faces of a process. turns: of everything.
    """
    torch.set_num_threads(1)
    config = load_config("pretrain_small")
    accelerator = build_accelerator(config.train)
    trainee, batch = _trainee(config), random_batch(batch_size, config)
    size = sum(one.numel() for one in trainee.model.parameters() if one.requires_grad)
    gradient, scores = torch.ones(size), torch.ones(batch_size, SCORES)
    works: dict[str, Callable[[], object]] = {
        "gradients": lambda: dist.all_reduce(gradient),
        "scores": lambda: gather_across(scores),
        "waiting": dist.barrier,
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns + 1):
        for name, work in works.items():
            dist.barrier()
            if name == "waiting":
                train_step(trainee, [batch], config.optim, accelerator)
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    waited = torch.tensor(statistics.mean(seconds["waiting"][1:]))
    dist.all_reduce(waited)
    joined = _trainee(config)
    keep_constants_apart(joined.model)
    trainees = {
        "apart": trainee,
        "joined": Trainee(joined.task, *accelerator.prepare(joined.model, joined.optimizer)),
    }
    clocks: dict[str, list[float]] = {}
    for _ in range(3):
        for name, one in trainees.items():
            step = partial(train_step, one, [batch], config.optim, accelerator)
            for what, ms in clock_steps(step, turns).items():
                clocks.setdefault(f"{name}, {what}", []).append(ms)
    means = torch.tensor([statistics.mean(values) for values in clocks.values()])
    dist.all_reduce(means)
    if dist.get_rank() == 0:
        medians = {name: 1e3 * statistics.median(values[1:]) for name, values in seconds.items()}
        halves = dict(zip(clocks, (means / 2).tolist(), strict=True))
        print(json.dumps(medians | {"waiting": 1e3 * float(waited) / 2} | halves))
    leave()


def _trainee(config: RunConfig) -> Trainee:
    model, task = build_trainable(config)
    groups = param_groups(model, task.param_rules(), config.optim.weight_decay)
    return Trainee(task, model.train(), build_optimizer(groups, config.optim))


def clock_steps(step: Callable[[], object], turns: int) -> dict[str, float]:
    """Milliseconds a step, of `turns` begun together: of time, this thread's and other threads' work; idle.

    "idle" is when this thread does not run: it waits, or others have the core.
    """
    for _ in range(3):
        step()
    dist.barrier()
    begun = time.perf_counter(), time.thread_time(), time.process_time()
    for _ in range(turns):
        step()
    ended = time.perf_counter(), time.thread_time(), time.process_time()
    wall, thread, process = (1e3 * (end - start) / turns for start, end in zip(begun, ended, strict=True))
    return {"step": wall, "thread": thread, "others": process - thread, "idle": wall - thread}


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
