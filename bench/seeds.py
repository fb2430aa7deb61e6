"""Does each part help? Finetunings in pairs that differ in one thing, over several seeds, on held-out people.

    python -m bench.seeds INIT CNN [key=value …] [--seeds 0 1 2] [--cells NAME …] [--shards FOLDERS]
    python -m bench.seeds INIT CNN --cost

INIT is a pretraining run, CNN a DAN run. Each cell is a configuration that comes with faceprior and at most
two settings, trained once for each seed (`runs/seeds/…`; what was finished before is not trained again), and
scored on the splits val and test together, people that no run learned from. A figure is the mean over the
seeds; a difference has a 95 % interval by a bootstrap over people, the same resamples on both sides.
`--cost` trains nothing and measures, on a machine that does nothing else, one training step of CoTEX with
and without masks: seconds, and bytes kept for the backward pass.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.metrics import bootstrap_difference
from pipelines.checkpoint import find_encoder, read_tensors
from pipelines.config import load_config
from pipelines.data import make_default
from pipelines.dryrun import random_batch
from pipelines.evaluation import predict_run
from pipelines.finetuning import build_trainable
from pipelines.predictions import Predictions
from pipelines.scores import RESAMPLES, figures_of, groups_of
from pretrain.config import EncoderConfig

_TIMED_STEPS = 8
FOLDER = Path("runs/seeds")
CELLS: dict[str, tuple[str, list[str]]] = {
    "EMMA, MAE": ("mtl_demo", []),
    "EMMA, random": ("mtl_demo", ["init=random"]),
    "EMMA, VA gradient": ("mtl_demo", ["affect.va_gradient=true"]),
    "ViT alone, MAE": ("mtl_demo", ["model=vit"]),
    "CoTEX 75 %, MAE": ("lsd_demo", ["cotex.mask_ratio=0.75"]),
    "CoTEX 75 %, random": ("lsd_demo", ["cotex.mask_ratio=0.75", "init=random"]),
}
PAIRS = (
    ("EMMA, MAE", "EMMA, random", "P_MTL"),
    ("EMMA, MAE", "ViT alone, MAE", "CCC"),
    ("EMMA, VA gradient", "ViT alone, MAE", "CCC"),
    ("CoTEX 75 %, MAE", "CoTEX 75 %, random", "macro F1"),
)
Rows = NDArray[np.int64]


def run_of(cell: str, seed: int) -> Path:
    """The run directory of one cell and seed."""
    return FOLDER / f"{re.sub('[^a-z0-9]+', '-', cell.lower())}-{seed}"


def finetune(cell: str, seed: int, config: str, settings: Sequence[str]) -> None:
    """Trains one cell with one seed, unless that was done."""
    run, start = run_of(cell, seed), time.monotonic()
    words = [sys.executable, "-m", "pipelines", "finetune", config, *settings, f"seed={seed}", f"run={run}"]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    print(f"{cell}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)


def train(cell: str, seed: int, asked: argparse.Namespace) -> None:
    """Trains one cell of the table with one seed."""
    config, own = CELLS[cell]
    settings = [f"init={asked.init}", f"data.shards={asked.shards}", *own, *asked.settings]
    if config == "mtl_demo" and "model=vit" not in own:
        settings.append(f"cnn={asked.cnn}")
    finetune(cell, seed, config, settings)


def held_out(run: Path, shards: str) -> Predictions:
    """A run's predictions of val and test together."""
    parts = [predict_run(run, split, shards) for split in ("val", "test")]
    joined: dict[str, Any] = {"split": "val and test"}
    for field in fields(Predictions)[1:]:
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            joined[field.name] = np.concatenate(values)
        elif field.name.endswith("_names") or values[0] is None:
            joined[field.name] = values[0]
        else:
            joined[field.name] = sum(values, ())
    return Predictions(**joined)


def figure(predictions: Sequence[Predictions], name: str) -> Callable[[Rows], float]:
    """The mean over runs of "P_MTL", "CCC" (of valence and arousal) or "macro F1", as a function of rows."""
    keys = {
        "P_MTL": ["score"],
        "CCC": ["ccc_valence", "ccc_arousal"],
        "macro F1": ["expr_macro_f1"],
    }[name]
    parts = [figures_of(one)[key] for one in predictions for key in keys]
    return lambda rows: float(np.mean([part(rows) for part in parts]))


def step_cost(mask_ratio: float, init: str, batch_size: int) -> tuple[float, float]:
    """(seconds, megabytes kept for the backward pass) of a training step of lsd_demo's model."""
    encoder = EncoderConfig(**read_tensors(find_encoder(Path(init))).facts["config"])
    config = load_config("lsd_demo", [f"cotex.mask_ratio={mask_ratio}"])
    config = replace(config, encoder=encoder)
    model, task = build_trainable(config)
    model.train()
    batch = random_batch(batch_size, config)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(output.loss for output in task.step(model, [batch]))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    megabytes = sum(size for place, size in kept.items() if place not in parameters) / 1e6
    del loss
    seconds = []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        torch.autograd.backward([output.loss for output in task.step(model, [batch])])
        seconds.append(time.perf_counter() - start)
    return min(seconds), megabytes


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("init", metavar="INIT")
    parser.add_argument("cnn", metavar="CNN")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = ", ".join(CELLS).replace("%", "%%")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME", help=names)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--shards", default="")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    if asked.cost:
        for ratio in (0.0, 0.75):
            seconds, megabytes = step_cost(ratio, asked.init, 64)
            print(f"CoTEX, {ratio:.0%} masked, 64 faces: {seconds:.2f} s a step, {megabytes:.0f} MB kept")
        return
    asked.shards = asked.shards or str(make_default())
    for seed in asked.seeds:
        for cell in asked.cells:
            train(cell, seed, asked)
    found = {
        cell: [held_out(run_of(cell, seed), asked.shards) for seed in asked.seeds] for cell in asked.cells
    }
    groups, _ = groups_of(found[asked.cells[0]][0])
    every = np.arange(len(groups))
    print(f"{len(groups)} held-out faces, seeds {', '.join(map(str, asked.seeds))}")
    for better, other, name in PAIRS:
        if not found.keys() >= {better, other}:
            continue
        ours, theirs = figure(found[better], name), figure(found[other], name)
        low, high = bootstrap_difference(ours, theirs, groups, RESAMPLES, seed=0)
        difference = ours(every) - theirs(every)
        single = [
            figure([one], name)(every) - figure([two], name)(every)
            for one, two in pairs(found, better, other)
        ]
        print(
            f"{name:9s} {better:18s} {ours(every):.3f}   {other:20s} {theirs(every):.3f}   difference "
            f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], by seed {', '.join(f'{x:+.3f}' for x in single)}"
        )


def pairs(
    found: dict[str, list[Predictions]], one: str, other: str
) -> Iterator[tuple[Predictions, Predictions]]:
    """Runs of two cells with the same seed."""
    return zip(found[one], found[other], strict=True)


if __name__ == "__main__":
    main()
