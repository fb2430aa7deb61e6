"""What comes of the fast pretraining recipe (`pretrain_fast`): linear probes after as many samples.

    python -m bench.recipe_worth [--quick] [--device cpu|cuda]

A small ViT (112 px, patches of 8, as many as ViT-B has at 224) is pretrained on the default rendered faces by
each recipe, with the same seeds and the same number of samples; mask and predict ratios are the recipes' own,
and the decoders keep their size relative to the encoder. Then ridge probes on the frozen tokens are fitted on
labelled training faces and scored on all held-out people. The score is the mean, in points, of expression
accuracy and the CCCs of valence and arousal; the interval is Student's over the paired differences. Trainings
of the length that fits a benchmark are short: a random encoder's score stands beside. About 20 minutes on 2
cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.measure import Asked, Row, Spread, run_alone
from bench.recipe import RECIPES
from pipelines.config import load_config
from pipelines.data import make_default
from pipelines.optim import build_optimizer, learning_rate, param_groups, set_learning_rate
from pipelines.pretraining import build_trainable
from pipelines.probe import ProbeSet, load_probe_set, probe_scores, token_features
from pretrain.encoder import build_encoder
from shards.build import BuildConfig, build
from shards.config import AugmentConfig
from shards.order import EpochOrder
from shards.render import RenderedFaces
from shards.shardset import ShardSet, open_shards
from shards.stream import plan_layout, train_batches

LOSS_GOAL = 1.0
SCORES = {"ridge_expr": "accuracy", "ridge_valence": "CCC valence", "ridge_arousal": "CCC arousal"}
_HELD_OUT = ("val", "test")
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles for so many differences


@dataclass(frozen=True)
class Trial:
    """How large the comparison of probes is.

    Attributes:
        width, depth, heads: of the encoder.
        epochs: of each training.
        seeds: how many. labels: faces the probes are fitted on.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    epochs: float = 1.5
    seeds: int = 5
    labels: int = 3000


QUICK = Trial(width=32, depth=2, heads=2, epochs=1.0, seeds=2, labels=100)


def rows(asked: Asked) -> list[Row]:
    """The probes."""
    return [_probe_row(QUICK if asked.quick else Trial(), asked)]


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


def _train(recipe: str, seed: int, trial: Trial, shards: ShardSet, device: torch.device) -> nn.Module:
    """An encoder pretrained by a recipe: model, order, crops, masks and rates of a run with that seed."""
    words = [*recipe_words(recipe, trial), f"train.epochs={trial.epochs}", f"seed={seed}"]
    config = load_config("pretrain_small", [*words, f"optim.warmup_epochs={trial.epochs / 10}"])
    model, task = build_trainable(config)
    model.to(device).train()
    optimizer = build_optimizer(
        param_groups(model, task.param_rules(), config.optim.weight_decay), config.optim
    )
    size = config.train.global_batch_size
    batches = train_batches(
        shards,
        EpochOrder(shards.shard_sizes, seed, config.data.window_shards),
        plan_layout(size, size, 0, 1),
        0,
        model.image_size,
        AugmentConfig(config.crop, config.jitter),
    )
    for step in range(num_steps(trial, len(shards), size)):
        rate = learning_rate(config.optim, size, step * size / len(shards), trial.epochs)
        set_learning_rate(optimizer, rate)
        for output in task.step(model, [next(batches).to(device)]):
            output.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.encoder


def num_steps(trial: Trial, num_faces: int, batch_size: int) -> int:
    """Steps of a training; the same for each recipe."""
    return max(1, round(trial.epochs * num_faces / batch_size))


def _probe_row(trial: Trial, asked: Asked) -> Row:
    device = torch.device(asked.device)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*RECIPES, "random")}
    seconds: dict[str, list[float]] = {name: [] for name in RECIPES}
    config = load_config("pretrain_small", recipe_words("usual", trial))
    size, batch_size = config.encoder.image_size, config.train.global_batch_size
    with tempfile.TemporaryDirectory() as folder:
        names = str(_small_set(Path(folder)) if asked.quick else make_default())
        shards = open_shards(names, "train")
        train = load_probe_set(shards, trial.labels, size)
        held_out = joined([load_probe_set(open_shards(names, split), 10**6, size) for split in _HELD_OUT])
        for seed in range(trial.seeds):
            for recipe in RECIPES:
                start = time.monotonic()
                encoder = _train(recipe, seed, trial, shards, device)
                seconds[recipe].append(time.monotonic() - start)
                found[recipe].append(_scores(encoder, train, held_out, device))
        random = build_encoder(config.encoder, torch.Generator().manual_seed(0)).to(device)
        found["random"].append(_scores(random, train, held_out, device))
    samples = num_steps(trial, len(shards), batch_size) * batch_size
    return _verdict(trial, samples, len(held_out.expr), found, seconds)


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


def _scores(
    encoder: nn.Module, train: ProbeSet, held_out: ProbeSet, device: torch.device
) -> dict[str, float]:
    """The probes of one encoder, each times 100, and their mean as "score"."""
    features = [token_features(encoder, faces, device)["position"] for faces in (train, held_out)]
    scores = probe_scores(features[0], train, features[1], held_out)
    points = {name: 100 * scores[name] for name in SCORES}
    return points | {"score": statistics.mean(points.values())}


def paired_interval(differences: Sequence[float]) -> Spread:
    """Student's 95 % interval of the mean of 2 to 5 paired differences."""
    mean, count = statistics.mean(differences), len(differences)
    half = _STUDENT[count] * statistics.stdev(differences) / count**0.5
    return Spread(mean - half, mean, mean + half)


def _verdict(
    trial: Trial,
    samples: int,
    num_faces: int,
    found: Mapping[str, Sequence[Mapping[str, float]]],
    seconds: Mapping[str, Sequence[float]],
) -> Row:
    points = {name: [scores["score"] for scores in some] for name, some in found.items()}
    differences = [own - other for own, other in zip(points["fast"], points["usual"], strict=True)]
    interval = paired_interval(differences)
    parts = "; ".join(
        f"{name} "
        + ", ".join(f"{what} {statistics.mean(one[key] for one in some):.1f}" for key, what in SCORES.items())
        for name, some in found.items()
    )
    times = " and ".join(f"{statistics.median(some):.0f} s {name}" for name, some in seconds.items())
    gain = statistics.mean(points["usual"]) - points["random"][0]
    return Row(
        work=f"linear probe after {samples:,} samples of either recipe: ViT of width {trial.width} and depth "
        f"{trial.depth}, {trial.labels:,} labels, {num_faces:,} held-out rendered faces, {trial.seeds} seeds",
        goal=f"95 % interval of the difference above −{LOSS_GOAL:g} point",
        ours=f"{statistics.mean(points['fast']):.1f}; difference {interval.median:+.2f} "
        f"({interval.low:+.2f} to {interval.high:+.2f}) points",
        peer=f"usual recipe {statistics.mean(points['usual']):.1f}",
        reached=interval.low > -LOSS_GOAL,
        note=f"Means of {parts}. The usual recipe gained {gain:+.1f} points over random weights. A training "
        f"took {times}.",
        settings={name: " ".join(recipe_words(name, trial)) for name in RECIPES}
        | {"both": f"pretrain_small, train.epochs={trial.epochs:g}, fp32"},
        values={**{f"{name}, score": some for name, some in points.items()}, **seconds},
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
