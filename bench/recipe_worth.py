"""What the fast pretraining recipe (`pretrain_fast`) is worth: linear probes and finetuned scores.

    python -m bench.recipe_worth [--quick] [--device cpu|cuda]

A small ViT (112 px, patches of 8, as many as ViT-B has at 224) is pretrained on the default rendered faces by
each recipe, with the same seeds and the same number of samples. Mask and predict ratios are the recipes' own;
the decoders are as wide and deep beside the encoder as theirs, rounded to what so small ones can be. Each
encoder is then read twice: ridge probes on the frozen tokens, and the ViT of `mtl_demo` finetuned from it. A
score is the mean, in points, of expression accuracy and the CCCs of valence and arousal on all held-out
people; the interval is Student's over the paired differences. Trainings of the length that fits a benchmark
are short: what random weights give stands beside, and where the usual recipe is worth less than those, there
is no verdict.

Trainings are the command line's own, with one thread each and as many at once as there are cores, in
`runs/recipe_worth`, which goes when all is measured: a benchmark that was interrupted goes on there. The
better part of an hour on 2 cores.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
from shards.workers import num_cores

LOSS_GOAL = 1.0
PROBED = {"ridge_expr": "accuracy", "ridge_valence": "CCC valence", "ridge_arousal": "CCC arousal"}
FINETUNED = {"expr_accuracy": "accuracy", "ccc_valence": "CCC valence", "ccc_arousal": "CCC arousal"}
FOLDER = Path("runs/recipe_worth")
STARTS = (*RECIPES, "random")
_HELD_OUT = ("val", "test")
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles for so many differences
_ONE_THREAD = ["train.threads=1", "data.num_workers=0"]
_UNREAD = ["eval.every=0", "eval.probe_train=0", "eval.probe_val=0", "eval.pictures=0"]
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

    @property
    def size(self) -> str:
        """Of the encoder, in words."""
        return f"ViT of width {self.width} and depth {self.depth}"


@dataclass(frozen=True)
class Scores:
    """What was found.

    Attributes:
        probed, finetuned: start -> its points, a seed at a time.
        samples: of each pretraining. held_out: faces that the probes were scored on.
    """

    probed: dict[str, list[Points]]
    finetuned: dict[str, list[Points]]
    samples: int
    held_out: int


QUICK = Trial(width=32, depth=2, heads=2, epochs=1.0, seeds=2, labels=100)


def rows(asked: Asked) -> list[Row]:
    """The probes and the finetuned scores."""
    if not asked.quick:
        found = _compare(measure(STARTS, Trial(), asked, FOLDER, make_default()), Trial())
        shutil.rmtree(FOLDER)
        return found
    with tempfile.TemporaryDirectory() as folder:
        return _compare(measure(STARTS, QUICK, asked, Path(folder), small_set(Path(folder))), QUICK)


def recipe_words(recipe: str, trial: Trial) -> list[str]:
    """A recipe's settings for the small encoder: its ratios, and its decoder beside the encoder, rounded."""
    mae, base = load_config(RECIPES[recipe]).mae, 768
    width = max(16, round(mae.decoder_dim / base * trial.width / 16) * 16)
    return [
        *encoder_words(trial),
        f"mae.mask_ratio={mae.mask_ratio}",
        f"mae.predict_ratio={mae.predict_ratio}",
        f"mae.decoder_dim={width}",
        f"mae.decoder_depth={max(1, round(mae.decoder_depth / 12 * trial.depth))}",
        "mae.decoder_heads=4",
    ]


def encoder_words(trial: Trial) -> list[str]:
    """The small encoder's sizes."""
    return [
        f"encoder.embed_dim={trial.width}",
        f"encoder.depth={trial.depth}",
        f"encoder.num_heads={trial.heads}",
    ]


def stages_of(start: str, trial: Trial, pretrained: Path) -> dict[str, list[str]]:
    """What the command line is told for each training of one start: a recipe, or "random" weights."""
    finetune = ["finetune", "mtl_demo", "model=vit", "train.epochs=1"]
    if start == "random":
        return {"finetune": [*finetune, "init=random", *encoder_words(trial)]}
    pretrain = [*recipe_words(start, trial), f"train.epochs={trial.epochs}"]
    pretrain += [f"optim.warmup_epochs={trial.epochs / 10}", *_UNREAD]
    return {
        "pretrain": ["pretrain", "pretrain_small", *pretrain],
        "finetune": [*finetune, f"init={pretrained}"],
    }


def train(start: str, seed: int, trial: Trial, asked: Asked, folder: Path, shards: Path) -> None:
    """Trains what one start and seed need; what was finished before is not trained again.

    Raises:
        RuntimeError: a training failed.
    """
    cpu = asked.device == "cpu"
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if cpu else {})}
    took = []
    for stage, words in stages_of(start, trial, run_of(folder, start, seed, "pretrain")).items():
        begun, run = time.monotonic(), run_of(folder, start, seed, stage)
        common = [f"data.shards={shards}", f"seed={seed}", f"run={run}", *(_ONE_THREAD if cpu else [])]
        command = [sys.executable, "-m", "pipelines", *words, *common]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        took.append(f"{stage} {time.monotonic() - begun:.0f} s")
    print(f"{start}, seed {seed}: {', '.join(took)}", file=sys.stderr, flush=True)


def run_of(folder: Path, start: str, seed: int, stage: str) -> Path:
    """The run directory of one training."""
    return folder / f"{start}-{seed}" / stage


def _train_all(starts: Sequence[str], trial: Trial, asked: Asked, folder: Path, shards: Path) -> None:
    at_once = num_cores() if asked.device == "cpu" else 1
    with ThreadPoolExecutor(at_once) as pool:
        begun = [
            pool.submit(train, start, seed, trial, asked, folder, shards)
            for seed in range(trial.seeds)
            for start in starts
        ]
        for one in as_completed(begun):
            if one.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            one.result()


def measure(starts: Sequence[str], trial: Trial, asked: Asked, folder: Path, shards: Path) -> Scores:
    """Trains all seeds of some starts in `folder`, then probes and reads what was learned."""
    _train_all(starts, trial, asked, folder, shards)
    device, config = torch.device(asked.device), load_config("pretrain_small", encoder_words(trial)).encoder
    opened = {split: open_shards(str(shards), split) for split in ("train", *_HELD_OUT)}
    labelled = load_probe_set(opened["train"], trial.labels, config.image_size)
    others = joined([load_probe_set(opened[split], 10**6, config.image_size) for split in _HELD_OUT])
    samples = round(trial.epochs * len(opened["train"]))
    found = Scores({}, {}, samples, len(others.expr))
    for start in starts:
        found.probed[start], found.finetuned[start] = [], []
        for seed in range(trial.seeds):
            if start == "random":
                encoder: nn.Module = build_encoder(config, torch.Generator().manual_seed(seed))
            else:
                encoder = load_encoder(run_of(folder, start, seed, "pretrain"))
            found.probed[start].append(_probe(encoder.to(device), labelled, others, device))
            found.finetuned[start].append(_read(run_of(folder, start, seed, "finetune"), str(shards)))
    return found


def _compare(found: Scores, trial: Trial) -> list[Row]:
    what = f"after {found.samples:,} samples of either recipe: {trial.size}"
    probe, finetune = works(what, found, trial)
    return [
        _verdict(probe, found.probed, PROBED, trial),
        _verdict(finetune, found.finetuned, FINETUNED, trial),
    ]


def works(what: str, found: Scores, trial: Trial) -> tuple[str, str]:
    """`Row.work` of the probes and of the finetuned scores."""
    there = f"held-out rendered faces, {trial.seeds} seeds"
    return (
        f"linear probe {what}, {trial.labels:,} labels, {found.held_out:,} {there}",
        f"finetuned score {what}, one epoch of `mtl_demo model=vit`, {there}",
    )


def small_set(folder: Path) -> Path:
    """A few rendered faces, for the quick run."""
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


def paired_interval(differences: Sequence[float]) -> Spread:
    """Student's 95 % interval of the mean of 2 to 5 paired differences."""
    mean, count = statistics.mean(differences), len(differences)
    half = _STUDENT[count] * statistics.stdev(differences) / count**0.5
    return Spread(mean - half, mean, mean + half)


def _verdict(work: str, found: Mapping[str, Sequence[Points]], names: Mapping[str, str], trial: Trial) -> Row:
    points = {start: scores_of(some) for start, some in found.items()}
    interval, gain = (
        paired_interval([own - other for own, other in zip(points[one], points[two], strict=True)])
        for one, two in (("fast", "usual"), ("usual", "random"))
    )
    parts = "; ".join(f"{start} {means(some, names)}" for start, some in found.items())
    learned = gain.low > 0
    return Row(
        work=work,
        goal=f"95 % interval of the difference above −{LOSS_GOAL:g} point",
        ours=f"{statistics.mean(points['fast']):.1f}; difference {signed(interval)} points",
        peer=f"usual recipe {statistics.mean(points['usual']):.1f}",
        reached=interval.low > -LOSS_GOAL if learned else None,
        note=f"Means of {parts}. The usual recipe's gain over random weights is {signed(gain)} points"
        + ("." if learned else ": no verdict, as that may be nothing."),
        settings={start: told(start, trial) for start in STARTS}
        | {"all": f"{' '.join(_ONE_THREAD)} on a CPU, fp32"},
        values={f"{start}, score": some for start, some in points.items()},
    )


def scores_of(some: Sequence[Points]) -> list[float]:
    """The mean of the points, a seed at a time."""
    return [statistics.mean(one.values()) for one in some]


def means(some: Sequence[Points], names: Mapping[str, str]) -> str:
    """The mean of each of the points over the seeds, in words."""
    return ", ".join(f"{what} {statistics.mean(one[key] for one in some):.1f}" for key, what in names.items())


def told(start: str, trial: Trial) -> str:
    """The commands of one start, for `Row.settings`."""
    return "; ".join(" ".join(words) for words in stages_of(start, trial, Path("PRETRAINED")).values())


def signed(interval: Spread) -> str:
    """Such as "+1.20 (+0.80 to +1.60)"."""
    return f"{interval.median:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
