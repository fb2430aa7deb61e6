"""What the fast pretraining recipe (`pretrain_fast`) is worth: linear probes and finetuned scores.

    python -m bench.recipe_worth [--quick] [--device cpu|cuda]

A small ViT (112 px, patches of 8, as many as ViT-B has at 224) is pretrained on the default rendered faces by
each recipe, with the same seeds and the same number of samples; mask and predict ratios are the recipes' own,
and the decoders keep their size relative to the encoder. Each encoder is then read twice: ridge probes on the
frozen tokens, and the ViT of `mtl_demo` finetuned from it. A score is the mean, in points, of expression
accuracy and the CCCs of valence and arousal on all held-out people; the interval is Student's over the paired
differences. Trainings of the length that fits a benchmark are short: random encoders' probes stand beside.

Trainings are the command line's own, with one thread each and as many at once as there are cores, in
`runs/recipe_worth`: a benchmark that was interrupted goes on there. The better part of an hour on 2 cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.measure import Asked, Row, Spread, run_alone
from bench.recipe import RECIPES
from bench.seeds import held_out
from pipelines.checkpoint import load_encoder
from pipelines.config import load_config
from pipelines.data import make_default
from pipelines.probe import ProbeSet, load_probe_set, probe_scores, token_features
from pipelines.scores import figures_of
from pretrain.encoder import build_encoder
from shards.build import BuildConfig, build
from shards.render import RenderedFaces
from shards.shardset import open_shards

LOSS_GOAL = 1.0
PROBED = {"ridge_expr": "accuracy", "ridge_valence": "CCC valence", "ridge_arousal": "CCC arousal"}
FINETUNED = {"expr_accuracy": "accuracy", "ccc_valence": "CCC valence", "ccc_arousal": "CCC arousal"}
FOLDER = Path("runs/recipe_worth")
_HELD_OUT = ("val", "test")
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles for so many differences
_ONE_THREAD = ["train.threads=1", "data.num_workers=0"]
Points = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """How large the comparison is.

    Attributes:
        width, depth, heads: of the encoder.
        epochs: of each pretraining.
        seeds: how many. labels: faces the probes are fitted on.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    epochs: float = 8.0
    seeds: int = 5
    labels: int = 3000


QUICK = Trial(width=32, depth=2, heads=2, epochs=1.0, seeds=2, labels=100)


def rows(asked: Asked) -> list[Row]:
    """The probes and the finetuned scores."""
    if not asked.quick:
        return _compare(Trial(), asked, FOLDER, make_default())
    with tempfile.TemporaryDirectory() as folder:
        return _compare(QUICK, asked, Path(folder), _small_set(Path(folder)))


def recipe_words(recipe: str, trial: Trial) -> list[str]:
    """A recipe's settings for the small encoder: its ratios, and its decoder as large beside the encoder."""
    mae, base = load_config(RECIPES[recipe]).mae, 768
    width = max(16, round(mae.decoder_dim / base * trial.width / 16) * 16)
    return [
        f"encoder.embed_dim={trial.width}",
        f"encoder.depth={trial.depth}",
        f"encoder.num_heads={trial.heads}",
        f"mae.mask_ratio={mae.mask_ratio}",
        f"mae.predict_ratio={mae.predict_ratio}",
        f"mae.decoder_dim={width}",
        f"mae.decoder_depth={max(1, round(mae.decoder_depth / 12 * trial.depth))}",
        "mae.decoder_heads=4",
    ]


def train(recipe: str, seed: int, trial: Trial, asked: Asked, folder: Path, shards: Path) -> None:
    """Pretrains by a recipe and finetunes what came of it; what was finished before is not trained again."""
    runs = [run_of(folder, recipe, seed, stage) for stage in ("pretrain", "finetune")]
    threads = _ONE_THREAD if asked.device == "cpu" else []
    common = [f"data.shards={shards}", f"seed={seed}", *threads]
    pretrain = [*recipe_words(recipe, trial), f"train.epochs={trial.epochs}", "eval.every=0"]
    pretrain.append(f"optim.warmup_epochs={trial.epochs / 10}")
    finetune = ["model=vit", f"init={runs[0]}", "train.epochs=1"]
    stages = (["pretrain", "pretrain_small", *pretrain], ["finetune", "mtl_demo", *finetune])
    took = []
    for words, run in zip(stages, runs):
        start = time.monotonic()
        command = [sys.executable, "-m", "pipelines", *words, *common, f"run={run}"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        took.append(f"{time.monotonic() - start:.0f} s")
    print(f"{recipe}, seed {seed}: pretrained {took[0]}, finetuned {took[1]}", file=sys.stderr, flush=True)


def run_of(folder: Path, recipe: str, seed: int, stage: str) -> Path:
    """The run directory of one training."""
    return folder / f"{recipe}-{seed}" / stage


def speed_of(run: Path) -> float:
    """Samples a second that a run says it made, its median line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(statistics.median(line["images_per_s"] for line in lines if "images_per_s" in line))


def _compare(trial: Trial, asked: Asked, folder: Path, shards: Path) -> list[Row]:
    device = torch.device(asked.device)
    at_once = (os.cpu_count() or 1) if asked.device == "cpu" else 1
    seeds = range(trial.seeds)
    pairs = [(recipe, seed) for seed in seeds for recipe in RECIPES]
    with ThreadPoolExecutor(at_once) as pool:
        made = [pool.submit(train, recipe, seed, trial, asked, folder, shards) for recipe, seed in pairs]
        for one in made:
            one.result()
    size = load_config("pretrain_small", recipe_words("usual", trial)).encoder.image_size
    labelled = load_probe_set(open_shards(str(shards), "train"), trial.labels, size)
    others = joined([load_probe_set(open_shards(str(shards), split), 10**6, size) for split in _HELD_OUT])
    probed: dict[str, list[Points]] = {name: [] for name in (*RECIPES, "random")}
    finetuned: dict[str, list[Points]] = {name: [] for name in RECIPES}
    for recipe, seed in pairs:
        encoder = load_encoder(run_of(folder, recipe, seed, "pretrain")).to(device)
        probed[recipe].append(_probe(encoder, labelled, others, device))
        finetuned[recipe].append(_read(run_of(folder, recipe, seed, "finetune"), str(shards)))
    config = load_config("pretrain_small", recipe_words("usual", trial)).encoder
    for seed in seeds:
        encoder = build_encoder(config, torch.Generator().manual_seed(seed)).to(device)
        probed["random"].append(_probe(encoder, labelled, others, device))
    speeds = " and ".join(
        f"{statistics.median(speed_of(run_of(folder, name, seed, 'pretrain')) for seed in seeds):.0f} "
        f"samples/s by the {name} one"
        for name in RECIPES
    )
    samples = round(trial.epochs * len(open_shards(str(shards), "train")))
    what = f"after {samples:,} samples of either recipe: ViT of width {trial.width} and depth {trial.depth}"
    there = f"held-out rendered faces, {trial.seeds} seeds"
    gain = mean_score(probed["usual"]) - mean_score(probed["random"])
    notes = (
        f"The usual recipe gained {gain:+.1f} points over random weights. Pretraining made {speeds}, "
        f"{at_once} trainings at once.",
        "One epoch of `mtl_demo model=vit` from each encoder.",
    )
    return [
        _verdict(
            f"linear probe {what}, {trial.labels:,} labels, {len(others.expr):,} {there}",
            probed,
            PROBED,
            trial,
            notes[0],
        ),
        _verdict(f"finetuned score {what}, {there}", finetuned, FINETUNED, trial, notes[1]),
    ]


def _small_set(folder: Path) -> Path:
    source = RenderedFaces(num_train=128, num_val=48, num_test=48, num_identities=16)
    build(source, folder / "faces", BuildConfig(shard_size=64, workers=1), quiet=True)
    return folder / "faces"


def joined(sets: Sequence[ProbeSet]) -> ProbeSet:
    """Several sets of labelled faces as one."""
    return ProbeSet(
        torch.cat([part.images for part in sets]),
        np.concatenate([part.expr for part in sets]),
        np.concatenate([part.va for part in sets]),
    )


def _probe(encoder: nn.Module, labelled: ProbeSet, others: ProbeSet, device: torch.device) -> Points:
    """The ridge probes of one encoder, each times 100."""
    features = [token_features(encoder, faces, device)["position"] for faces in (labelled, others)]
    scores = probe_scores(features[0], labelled, features[1], others)
    return {name: 100 * scores[name] for name in PROBED}


def _read(run: Path, shards: str) -> Points:
    """A finetuned model's figures, each times 100."""
    predictions = held_out(run, shards)
    figures, every = figures_of(predictions), np.arange(len(predictions.expr))
    return {name: 100 * figures[name](every) for name in FINETUNED}


def mean_score(points: Sequence[Points]) -> float:
    """The mean over seeds of the mean figure."""
    return statistics.mean(statistics.mean(one.values()) for one in points)


def paired_interval(differences: Sequence[float]) -> Spread:
    """Student's 95 % interval of the mean of 2 to 5 paired differences."""
    mean, count = statistics.mean(differences), len(differences)
    half = _STUDENT[count] * statistics.stdev(differences) / count**0.5
    return Spread(mean - half, mean, mean + half)


def _verdict(
    work: str, found: Mapping[str, Sequence[Points]], names: Mapping[str, str], trial: Trial, note: str
) -> Row:
    points = {name: [statistics.mean(one.values()) for one in some] for name, some in found.items()}
    differences = [own - other for own, other in zip(points["fast"], points["usual"], strict=True)]
    interval = paired_interval(differences)
    parts = "; ".join(
        f"{name} "
        + ", ".join(f"{what} {statistics.mean(one[key] for one in some):.1f}" for key, what in names.items())
        for name, some in found.items()
    )
    return Row(
        work=work,
        goal=f"95 % interval of the difference above −{LOSS_GOAL:g} point",
        ours=f"{mean_score(found['fast']):.1f}; difference {interval.median:+.2f} "
        f"({interval.low:+.2f} to {interval.high:+.2f}) points",
        peer=f"usual recipe {mean_score(found['usual']):.1f}",
        reached=interval.low > -LOSS_GOAL,
        note=f"Means of {parts}. {note}",
        settings={name: " ".join(recipe_words(name, trial)) for name in RECIPES}
        | {"both": f"pretrain_small, train.epochs={trial.epochs:g}, fp32"},
        values={f"{name}, score": some for name, some in points.items()},
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
