"""Probes: what can be read off is read off, what cannot is chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.probe import ProbeSet, pixel_features, probe_scores, token_features
from pretrain.config import EncoderConfig
from pretrain.encoder import build_encoder


def probe_set(count: int, seed: int) -> ProbeSet:
    rng = np.random.default_rng(seed)
    expr = rng.integers(0, 4, count)
    va = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    va[::5, 0] = np.nan
    return ProbeSet(torch.zeros(count, 3, 16, 16, dtype=torch.uint8), expr, va)


def features(probe: ProbeSet, noise: float, seed: int) -> torch.Tensor:
    """Class and valence, each in one small direction among large ones that mean nothing."""
    rng = np.random.default_rng(seed)
    useful = np.concatenate([np.eye(4)[probe.expr], np.nan_to_num(probe.va)], 1)
    useful += noise * rng.standard_normal(useful.shape)
    return torch.from_numpy(np.concatenate([useful, 30 * rng.standard_normal((len(useful), 5))], 1)).float()


def test_informative_features_score_high_and_noise_is_chance() -> None:
    train, val = probe_set(400, 0), probe_set(300, 1)
    good = probe_scores(features(train, 0.1, 2), train, features(val, 0.1, 3), val)
    assert good["ridge_expr"] > 0.97 and good["ridge_valence"] > 0.9 and good["ridge_arousal"] > 0.9
    assert good["knn_expr"] > 0.5
    noise = [torch.randn(n, 20, generator=torch.Generator().manual_seed(n)) for n in (400, 300)]
    bad = probe_scores(noise[0], train, noise[1], val)
    assert abs(bad["ridge_expr"] - 0.25) < 0.1 and abs(bad["ridge_valence"]) < 0.2


def test_the_scale_of_a_feature_does_not_matter() -> None:
    train, val = probe_set(200, 0), probe_set(200, 1)
    a, b = features(train, 0.5, 2), features(val, 0.5, 3)
    scales = torch.logspace(-1, 1, a.shape[1])
    plain, scaled = probe_scores(a, train, b, val), probe_scores(a * scales, train, b * scales, val)
    assert scaled == pytest.approx(plain, abs=0.02)


def test_readouts_of_the_encoder_have_their_shapes() -> None:
    config = EncoderConfig("vit_tiny_patch16_224", (16, 24), (8, 8), embed_dim=32, depth=1, num_heads=2)
    probe = ProbeSet(
        torch.zeros(5, 3, 16, 24, dtype=torch.uint8), np.zeros(5, np.int64), np.zeros((5, 2), np.float32)
    )
    found = token_features(build_encoder(config), probe, torch.device("cpu"), batch_size=2)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "position": (5, 6 * 32),
        "mean": (5, 32),
        "cls": (5, 32),
    }
    assert pixel_features(probe).shape == (5, 3 * 64 * 64)
