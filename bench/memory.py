"""Peak memory of a MAE training step against batch size and image size.

    python -m bench.memory [--quick] [--device cpu|cuda]

ViT-S/16 and ViT-B/16 with the decoder of He et al. 2022, 75 % masked, fp32 on a CPU, bf16 autocast on a GPU.
Each point is a process of its own: it makes one step with a single image, so that gradients and the
optimiser's state are there, then one step with the batch, and hands back the most memory it ever held: on a
CPU its resident set, libraries included, on a GPU what torch allocated. A line is fitted over the batch
sizes, and one over the numbers of patches; linear means that the line explains 99 % of the variance or more.
Beside them stands the floor: what a step takes with one image of the smallest size, whose activations are
next to nothing, so that gradients and optimiser's state are all.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from bench.mae_contestants import BASE, TINY, Setting, build_step
from bench.measure import Asked, Row, run_alone
from pipelines.config import load_config

SMALL = ["encoder.patch_size=16", "encoder.embed_dim=384", "encoder.depth=12", "encoder.num_heads=6"]
MODELS = {"ViT-S/16": SMALL, "ViT-B/16": BASE}
BATCHES, BATCHES_AT = (4, 8, 16, 32), 224
SIZES, FIXED_BATCH = (112, 160, 224, 320, 448), 8
LINEAR = 0.99
_MB = 1e6


class Line(NamedTuple):
    """A least-squares line: value at 0, rise for one more, share of the variance that it explains."""

    offset: float
    slope: float
    r2: float


def rows(asked: Asked) -> list[Row]:
    """For each model a line over batch sizes and one over image sizes."""
    models = {"a tiny ViT": TINY} if asked.quick else MODELS
    batches = (2, 8, 32) if asked.quick else BATCHES
    sizes, at = ((64, 128, 192), 192) if asked.quick else (SIZES, BATCHES_AT)
    fixed = batches[-1] if asked.quick else FIXED_BATCH
    found = []
    for name, words in models.items():
        by_batch = {batch: peak_memory(words, batch, at, asked.device) for batch in batches}
        found.append(_row(f"{name} at {at}, batch {_listed(batches)}", "image", by_batch, asked.device))
        by_patches = {
            (size // 16) ** 2: by_batch[fixed]
            if size == at
            else peak_memory(words, fixed, size, asked.device)
            for size in sizes
        }
        floor = peak_memory(words, 1, sizes[0], asked.device)
        work = f"{name}, batch {fixed}, images of {_listed(sizes)} px ({_listed(list(by_patches))} patches)"
        found.append(_row(work, "patch", by_patches, asked.device, floor))
    return found


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line through points, of which there are at least two."""
    points = torch.tensor([x, y], dtype=torch.float64)
    across, up = points - points.mean(dim=1, keepdim=True)
    slope = float((across * up).sum() / across.square().sum())
    spread = float(up.square().sum())
    r2 = 1 - float((up - slope * across).square().sum()) / spread if spread else 0.0
    return Line(float(points[1].mean() - slope * points[0].mean()), slope, r2)


def peak_memory(words: Sequence[str], batch_size: int, image_size: int, device: str) -> float:
    """Bytes that a fresh process held at most.

    Args:
        words: settings of the model.
        batch_size: images. image_size: pixels. device: "cpu" or "cuda".

    Raises:
        RuntimeError: the process ended without an answer, short of memory for instance.
    """
    settings = [*words, f"encoder.image_size={image_size}"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.mae_contestants"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, settings, batch_size, device))
    child.start()
    sender.close()
    try:
        peak: float = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(
            f"batch {batch_size} at {image_size}: the process ended with {child.exitcode}"
        ) from None
    child.join()
    return peak


def _measure(sender: Connection, settings: list[str], batch_size: int, device: str) -> None:
    """What the process does."""
    config = load_config("pretrain_celeba", settings)
    precision = "bf16" if device == "cuda" else "fp32"
    step = build_step("ours", config, Setting(batch_size, precision, device))
    step(1)
    step()
    if device == "cuda":
        sender.send(float(torch.cuda.max_memory_allocated()))
        return
    unit = 1 if sys.platform == "darwin" else 1024
    sender.send(float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def _row(work: str, what: str, peaks: dict[int, float], device: str, floor: float = 0.0) -> Row:
    line = fit_line(list(peaks), list(peaks.values()))
    points = ", ".join(f"{count}: {peak / _MB:,.0f}" for count, peak in peaks.items())
    beside = f" With one image of the smallest size: {floor / _MB:,.0f}." if floor else ""
    each = "each image" if what == "image" else "each patch of the image"
    return Row(
        work=f"peak memory of a training step, {work}",
        goal=f"linear: R² of {LINEAR} or more",
        ours=f"{line.offset / _MB:,.0f} MB and {line.slope / _MB:,.2f} MB for {each}, R² {line.r2:.4f}",
        reached=line.r2 >= LINEAR,
        note=f"MB at {points}.{beside}",
        settings={
            "measured": "torch.cuda.max_memory_allocated"
            if device == "cuda"
            else "largest resident set of a process of its own, with everything loaded in it",
            "ours": f"pipelines.pretraining.build_trainable, {'bf16' if device == 'cuda' else 'fp32'}, AdamW",
        },
        values={str(count): [peak] for count, peak in peaks.items()} | ({"floor": [floor]} if floor else {}),
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
