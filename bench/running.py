"""What running costs besides learning: start-up, checkpoints, evaluation, prediction on video.

    python -m bench.running [--quick] [--device cpu|cuda]

1. `faceprior pretrain` of the demo's size on shards that are there, warm: from the command to its first step,
   and to its end (a checkpoint, a report), with what imports and the processor's waiting take of it.
2. `faceprior --help`, against an interpreter that does nothing.
3. A checkpoint of ViT-B's MAE with AdamW's state, as a training writes it: its share of the time between two
   at the default interval, which is the shorter of so many minutes and so many steps; a step takes at least
   its arithmetic at the rate of the best matrix product here.
4. An evaluation (reading, decoding, model, figures joined) against the bare model on the same batches, which
   lie in memory.
5. Prediction on ten seconds of 720p video with one rendered face that moves before a textured wall: decoded,
   detected, followed, aligned, predicted, written. The peer searches every frame by facenet-pytorch's MTCNN
   as its documentation shows, and uses the same alignment and model, in the same batches, for the rest.
"""

from __future__ import annotations

import contextlib
import cProfile
import csv
import io
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bench.film import FPS, moving_face, write_video
from bench.measure import Asked, Row, Spread, gemm_flops, rates, run_alone, take_turns, times_as_fast
from pipelines.checkpoint import Checkpoint, CheckpointStore, TensorFile, encoder_file
from pipelines.config import RunConfig, load_config
from pipelines.evaluation import open_predictor, predict_run
from pipelines.finetuning import run_finetuning
from pipelines.models import load_model
from pipelines.optim import build_optimizer, optimizer_tensors, param_groups
from pipelines.predict import write_predictions
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import FacePredictor, chunks
from pipelines.pretraining import build_trainable
from pretrain.mae import reference_state_dict
from shards.align import Aligner
from shards.build import BuildConfig, build
from shards.render import RenderedFaces
from shards.sources.media import Media, MediaFrame
from shards.stream import eval_batches

Picture = NDArray[np.uint8]

START_GOAL, HELP_GOAL, STALL_GOAL, EVALUATION_GOAL, FRAMES_GOAL = 15.0, 0.5, 0.01, 0.9, 25.0
BATCH = 64
SECONDS = 10
_SAVING = {
    "checking that all is finite": ("checkpoint.py", "is_finite"),
    "writing": ("torch.py", "save_file"),
    "syncing": ("~", "<built-in method posix.fsync>"),
    "hashing": ("files.py", "sha256_file"),
}
_PREDICTING = {
    "decoding": ("video.py", "read_frames"),
    "searching": ("detector.py", "detect"),
    "following": ("tracking.py", "_moved"),
    "cutting out": ("geometry.py", "warp"),
    "the model": ("outputs.py", "outputs_of"),
    "writing": ("facetable.py", "add"),
}


def rows(asked: Asked) -> list[Row]:
    """The five lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "shards"
        counts = (64, 64) if asked.quick else (256, 640)
        source = RenderedFaces(*counts, num_test=0, num_identities=8)
        build(source, shards, BuildConfig(shard_size=256), quiet=True)
        run = trained_run(folder, shards)
        return [
            start_row(folder, shards, asked),
            help_row(asked),
            checkpoint_row(folder / "checkpoints", asked),
            evaluation_row(run, asked),
            video_row(folder, run, asked),
        ]


def command(*words: str) -> float:
    """Seconds of `python -m pipelines …` in a process of its own; what it prints is dropped.

    Raises:
        CalledProcessError: it failed; its errors are printed.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pipelines", *words], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
    return seconds


def trained_run(folder: Path, shards: Path) -> Path:
    """An EMMA of the demo's size (ViT of 0.9 M parameters at 112 pixels, DAN at 64), after one step each."""
    common = (f"data.shards={shards}", "train.stop_at_step=1")
    dan, run = folder / "dan", folder / "mtl"
    with contextlib.redirect_stdout(io.StringIO()):
        run_finetuning(load_config("dan_demo", [*common, f"run={dan}"]), "dan_demo")
        settings = [*common, "init=random", f"cnn={dan}", f"run={run}"]
        run_finetuning(load_config("mtl_demo", settings), "mtl_demo")
    return run


def start_row(folder: Path, shards: Path, asked: Asked) -> Row:
    """From the command to the first optimiser step."""
    warmups, turns = (0, 1) if asked.quick else (1, 3)
    values: dict[str, list[float]] = {
        "to the first step": [],
        "to the end": [],
        "interpreter": [],
        "imports": [],
    }
    for turn in range(warmups + turns):
        first, whole = _first_step(folder / f"start-{turn}", shards)
        bare = _seconds_of("-c", "pass")
        # left at once: taking the libraries down again is no part of a start
        imports = _seconds_of("-c", "import pipelines.pretraining, os; os._exit(0)") - bare
        if turn >= warmups:
            for seconds, one in zip(values.values(), (first, whole, bare, imports), strict=True):
                seconds.append(one)
    median = {name: Spread.of(seconds).median for name, seconds in values.items()}
    return Row(
        work="`pretrain pretrain_demo` on shards that are there, warm: command to first optimiser step",
        goal=f"{START_GOAL:.0f} s",
        ours=f"{Spread.of(values['to the first step']).text('.1f')} s",
        reached=median["to the first step"] <= START_GOAL,
        note=f"of it imports {median['imports']:.1f} s; the whole command, which saves a checkpoint and "
        f"writes a report, {median['to the end']:.1f} s",
        settings={
            "ours": "python -m pipelines pretrain pretrain_demo train.stop_at_step=1 train.log_every=1"
        },
        values=values,
    )


def _first_step(run: Path, shards: Path) -> tuple[float, float]:
    """Seconds to the first line of a run's metrics, and to its end."""
    words = [f"data.shards={shards}", f"run={run}", "train.stop_at_step=1", "train.log_every=1"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "pretrain", "pretrain_demo", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log, first = run / "metrics.jsonl", 0.0
    while process.poll() is None:
        if not first and log.is_file() and log.stat().st_size:
            first = time.perf_counter() - start
        time.sleep(0.01)
    if process.returncode or not first:
        raise RuntimeError(f"{' '.join(words)}: ended with {process.returncode} before its first step")
    return first, time.perf_counter() - start


def _seconds_of(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def help_row(asked: Asked) -> Row:
    """`faceprior --help`."""
    values = take_turns(
        {"ours": lambda: command("--help"), "interpreter": lambda: _seconds_of("-c", "pass")},
        3 if asked.quick else 9,
    )
    spread = Spread.of(values["ours"])
    bare = Spread.of(values["interpreter"]).median
    return Row(
        work="`faceprior --help`",
        goal=f"{HELP_GOAL:g} s",
        ours=f"{spread.text('.2f')} s",
        reached=spread.median <= HELP_GOAL,
        note=f"an interpreter that does nothing takes {bare:.2f} s",
        settings={"ours": "python -m pipelines --help"},
        values=values,
    )


def checkpoint_row(folder: Path, asked: Asked) -> Row:
    """The share of training time that saving takes at the default interval."""
    config = load_config("pretrain_demo" if asked.quick else "", [])
    files, flops = _training_state(config, asked.device)
    store, step = CheckpointStore(folder, config.train.keep), 0

    def save() -> None:
        nonlocal step
        step += 1
        store.save(Checkpoint(step, step, files))

    seconds = take_turns({"ours": save}, 1 if asked.quick else 2, device=asked.device)["ours"]
    parts = ", ".join(f"{name} {one:.1f}" for name, one in time_of_parts(save, _SAVING).items())
    size = sum(path.stat().st_size for path in store.folders()[-1].iterdir())
    rate = gemm_flops(torch.bfloat16 if asked.device == "cuda" else torch.float32, asked.device)
    train = config.train
    by_steps = train.save_every * train.global_batch_size * flops / rate
    interval = min(by_steps, 60 * train.save_minutes)
    share = Spread.of([one / (one + interval) for one in seconds])
    limit = Spread.of(seconds).median * (1 / STALL_GOAL - 1) / train.save_every
    return Row(
        work=f"checkpoint of {config.encoder.name}'s MAE with AdamW's state, {size / 1e9:.2f} GB, every "
        f"{train.save_every:,} steps or {train.save_minutes:g} minutes (the default): share of the time",
        goal=f"below {STALL_GOAL:.0%}",
        ours=f"{Spread(*(100 * v for v in (share.low, share.median, share.high))).text('.2f')} %",
        reached=share.median < STALL_GOAL,
        note=f"{Spread.of(seconds).text('.1f')} s a save; of one under a profiler {parts}. "
        f"{train.save_every:,} steps of {train.global_batch_size:,} images take at least {by_steps:,.0f} s "
        f"of arithmetic here, so one every {interval:,.0f} s. By steps alone the share stays below "
        f"{STALL_GOAL:.0%} while a step takes more than {1000 * limit:,.0f} ms",
        settings={"ours": f"CheckpointStore.save, keep={train.keep}, tensors on {asked.device}"},
        values={"seconds": seconds, "bytes": [size], "seconds between two": [interval]},
    )


def _training_state(config: RunConfig, device: str) -> tuple[dict[str, TensorFile], float]:
    """The files of a pretraining's checkpoint after one update, and a training image's FLOPs."""
    model, task = build_trainable(config)
    model.to(device)
    with FlopCounterMode(display=False) as counter:
        images = torch.zeros(1, 3, *config.encoder.image_size, dtype=torch.uint8, device=device)
        model(images, torch.rand(1, model.num_patches, device=device))
    optimizer = build_optimizer(
        param_groups(model, task.param_rules(), config.optim.weight_decay), config.optim
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    files = {
        "encoder": encoder_file(model.encoder, config.encoder, [], True),
        "model": TensorFile(reference_state_dict(model), {"format": "faceprior-mae"}),
        "optimizer": TensorFile(optimizer_tensors(optimizer), {"format": "faceprior-optimizer"}),
    }
    return files, 3.0 * counter.get_total_flops()


def evaluation_row(run: Path, asked: Asked) -> Row:
    """Images a second of an evaluation, against the model alone."""
    loaded = load_model(run)
    predictor = open_predictor(run, loaded.spec, "val", batch_size=BATCH)
    model = loaded.model.to(asked.device).eval()
    count = len(predictor.shards)
    batches = [
        batch.images.to(asked.device)
        for batch in eval_batches(predictor.shards, BATCH, loaded.spec.image_size, num_workers=0)
    ]

    @torch.inference_mode()
    def bare() -> None:
        for images in batches:
            model(images)

    def whole() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            predict_run(run, "val", batch_size=BATCH)

    contestants = {"ours": lambda: predictor.columns(model), "peer": bare, "with opening": whole}
    seconds = take_turns(contestants, 1 if asked.quick else 3, device=asked.device)
    ratio = times_as_fast(seconds["ours"], seconds["peer"])
    opening = Spread.of([all_ - own for all_, own in zip(seconds["with opening"], seconds["ours"])])
    threads = f"{torch.get_num_threads()} threads, batches of {BATCH}, {asked.device}"
    return Row(
        work=f"evaluation of {count:,} faces by an EMMA of the demo's size (ViT at 112, DAN at 64)",
        goal=f"as fast as the model: at least {EVALUATION_GOAL} of it",
        ours=f"{Spread.of(rates(seconds['ours'], count)).text()} images/s",
        peer=f"{Spread.of(rates(seconds['peer'], count)).text()} images/s (the bare model)",
        ratio=ratio,
        reached=ratio.median >= EVALUATION_GOAL,
        note=f"the rest is reading and decoding, {predictor.num_workers} loader process(es) and their start "
        f"included; `predict_run` also opens run and shards and makes the record of each sample: "
        f"{opening.text('.1f')} s more",
        settings={
            "ours": f"SplitPredictor.columns, {threads}, {predictor.num_workers} loaders",
            "peer": f"model(images) in inference mode, {threads}",
        },
        values=seconds,
    )


def video_row(folder: Path, run: Path, asked: Asked) -> Row:
    """Frames a second of a prediction on video."""
    count = 25 if asked.quick else FPS * SECONDS
    few = 5 if asked.quick else 25
    video, short = (write_video(folder / f"{n}.mp4", moving_face(n)) for n in (count, few))
    config = PredictConfig(device=asked.device, quiet=True)
    loaded = load_model(run)
    ours = FacePredictor(loaded, config)
    searching = FacePredictor(loaded, PredictConfig(every=1, device=asked.device, quiet=True))
    out = folder / "faces.csv"
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: write_predictions(ours, video, out),
        "ours, every frame searched": lambda: write_predictions(searching, short, out),
        "peer": lambda: by_mtcnn(searching, short, out, asked.device),
    }
    seconds = take_turns(contestants, 1 if asked.quick else 3, device=asked.device)
    a_frame = {name: [s / (count if name == "ours" else few) for s in all_] for name, all_ in seconds.items()}
    pace = {name: Spread.of(rates(values, 1)) for name, values in a_frame.items()}
    shares = time_of_parts(lambda: write_predictions(ours, video, out), _PREDICTING)
    split = ", ".join(f"{name} {1000 * part / count:.1f}" for name, part in shares.items())
    return Row(
        work=f"predict on {count} frames of 720p video (H.264) with one face, EMMA of the demo's size",
        goal=f"{FRAMES_GOAL:.0f} frames/s",
        ours=f"{pace['ours'].text('.1f')} frames/s",
        peer=f"{pace['peer'].text('.1f')} frames/s (MTCNN on every frame)",
        ratio=times_as_fast(a_frame["ours"], a_frame["peer"]),
        reached=pace["ours"].median >= FRAMES_GOAL,
        note=f"every {config.every}th frame searched, the face followed between; with every frame searched "
        f"{pace['ours, every frame searched'].text('.1f')} frames/s. Milliseconds a frame, under a profiler: "
        f"{split}",
        settings={
            "ours": f"write_predictions, every={config.every}, batches of {config.batch_size}, pictures "
            f"shrunk to {ours.align.detect_side} pixels for the search, {torch.get_num_threads()} threads",
            "ours, every frame searched": f"the same with every=1, the first {few} frames",
            "peer": f"PyAV, MTCNN(keep_all=True).detect(picture, landmarks=True) on each whole frame, our "
            f"alignment and model, batches of {config.batch_size}, csv; the first {few} frames",
        },
        values=a_frame,
    )


def by_mtcnn(predictor: FacePredictor, video: Path, out: Path, device: str) -> None:
    """The peer: what `predict` does, with faces found by facenet-pytorch's own door."""
    detector = MTCNN(keep_all=True, device=device)
    aligner = Aligner(replace(predictor.align, mode="given"))
    media = Media(video)
    with out.open("w", newline="") as file:
        table = csv.writer(file)
        for chunk in chunks(media.frames_of(video.name), predictor.config.batch_size):
            faces = []
            for frame in chunk:
                faces += _faces_of(detector, aligner, frame)
            for scores in predictor._scores(faces, looks=1):
                table.writerow([*scores["expr_probs"].values(), *scores["au_probs"].values()])


def _faces_of(detector: MTCNN, aligner: Aligner, frame: MediaFrame) -> list[Picture]:
    picture = frame.picture
    assert picture is not None
    _, _, landmarks = detector.detect(Image.fromarray(picture), landmarks=True)
    found = aligner.align([picture] * len(landmarks), landmarks) if landmarks is not None else []
    return [face.image for alignment in found for face in alignment.faces]


def time_of_parts(work: Callable[[], object], parts: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Seconds in each of the parts, (name of the file, name of the function), and in all the rest.

    Raises:
        RuntimeError: a part was never called: its name is out of date.
    """
    profile = cProfile.Profile()
    profile.runcall(work)
    stats: Any = pstats.Stats(profile)
    found = {}
    for part, place in parts.items():
        calls = [
            figures[3] for (path, _, name), figures in stats.stats.items() if (Path(path).name, name) == place
        ]
        if not calls:
            raise RuntimeError(f"{part}: no call of {place[1]} in {place[0]}")
        found[part] = sum(calls)
    return {**found, "the rest": max(0.0, stats.total_tt - sum(found.values()))}


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
