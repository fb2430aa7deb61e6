"""What frozen features know: ridge regression and nearest neighbours on labels, beside the same on pixels.

Faces are aligned, so *where* a token sits carries the expression: tokens are read with their positions
kept, and, for comparison, averaged and by the cls token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from finetune.metrics import accuracy, ccc
from pretrain.encoder import encode
from pretrain.pixels import PixelNorm
from shards.shardset import ShardSet
from shards.stream import eval_batches

_PIXELS = 64
_ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_NEIGHBOURS = 15
_FEWEST = 10  # labels of valence or arousal, at least, for a figure
_TINY = 1e-12


@dataclass(frozen=True)
class ProbeSet:
    """Labelled faces for probing, all in memory.

    Attributes:
        images: (N, 3, H, W) uint8.
        expr: (N,) int64, −1 where missing.
        va: (N, 2) float32, NaN where missing.
    """

    images: torch.Tensor
    expr: NDArray[np.int64]
    va: NDArray[np.float32]


class RidgeOutputs(NamedTuple):
    """Of M faces: (M, C) scores of the expressions; (M, 2) valence and arousal, NaN where never labelled."""

    expr: NDArray[np.float64]
    va: NDArray[np.float64]


def load_probe_set(shards: ShardSet, count: int, size: tuple[int, int], num_workers: int = 0) -> ProbeSet:
    """`count` samples with an expression label, spread evenly over the set (fewer if there are fewer)."""
    labelled = np.flatnonzero(shards.expr >= 0)
    chosen = labelled[np.linspace(0, len(labelled) - 1, min(count, len(labelled))).round().astype(int)]
    images, expr, va = [], [], []
    if len(chosen):
        for batch in eval_batches(shards, 64, size, num_workers=num_workers, samples=chosen.tolist()):
            n, labels = batch.num_valid, batch.labels
            images.append(batch.images[:n])
            expr.append(torch.where(labels.expr_valid, labels.expr, -1)[:n].numpy())
            va.append(torch.where(labels.va_valid, labels.va, torch.nan)[:n].numpy())
    if not images:
        nothing = torch.zeros(0, 3, *size, dtype=torch.uint8)
        return ProbeSet(nothing, np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    return ProbeSet(torch.cat(images), np.concatenate(expr), np.concatenate(va))


def pixel_features(probe: ProbeSet) -> torch.Tensor:
    """(N, 3·64²) float32: the faces at 64 pixels."""
    size = (_PIXELS, _PIXELS)
    return functional.interpolate(probe.images.float() / 255, size, mode="bilinear", antialias=True).flatten(
        1
    )


@torch.inference_mode()
def token_features(
    encoder: Any, probe: ProbeSet, device: torch.device, batch_size: int = 64
) -> dict[str, torch.Tensor]:
    """Readouts of the encoder's final tokens, on the CPU.

    Args:
        encoder: from `pretrain.encoder.build_encoder`.
        probe: faces.
        device: where the encoder is.
        batch_size: images at once.

    Returns:
        "position" (N, L·D): patch tokens in their places; "mean" (N, D): averaged; "cls" (N, D), if there
        is one.
    """
    encoder.eval()
    normalise = PixelNorm().to(device)
    prefix = int(getattr(encoder, "num_prefix_tokens", 1))
    parts: dict[str, list[torch.Tensor]] = {"position": [], "mean": [], "cls": []}
    for images in torch.split(probe.images, batch_size):
        tokens = encode(encoder, normalise(images.to(device))).float()
        patches = tokens[:, prefix:]
        parts["position"].append(patches.flatten(1).cpu())
        parts["mean"].append(patches.mean(1).cpu())
        if prefix:
            parts["cls"].append(tokens[:, 0].cpu())
    return {name: torch.cat(values) for name, values in parts.items() if values}


def probe_scores(
    train_features: torch.Tensor, train: ProbeSet, val_features: torch.Tensor, val: ProbeSet
) -> dict[str, float]:
    """Ridge and kNN scores of one kind of features.

    Features are standardised one by one, as He et al. 2022 do (BatchNorm without affine) before a probe.
    The ridge strength is chosen on the last fifth of the training samples (other identities, as shards keep
    people together), then all are used.

    Returns:
        "ridge_expr" and "knn_expr" accuracies; "ridge_valence" and "ridge_arousal" CCC, where labelled.
    """
    x, y = _standardised(train_features, val_features)
    kernel, cross = (x @ x.T).double(), (y @ x.T).double()
    fitted = _ridge_outputs(kernel, cross, train)
    neighbours = _knn(kernel, cross, y, train)
    scores = {
        "ridge_expr": accuracy(fitted.expr.argmax(1), val.expr),
        "knn_expr": accuracy(neighbours, val.expr),
    }
    for column, name in enumerate(("ridge_valence", "ridge_arousal")):
        there = np.isfinite(val.va[:, column])
        if there.sum() > _FEWEST and np.isfinite(fitted.va[:, column]).all():
            scores[name] = ccc(fitted.va[there, column], val.va[there, column])
    return scores


def ridge_outputs(train_features: torch.Tensor, train: ProbeSet, features: torch.Tensor) -> RidgeOutputs:
    """What ridges on (N, D) features of labelled faces say of (M, D) others; see `probe_scores`."""
    x, y = _standardised(train_features, features)
    return _ridge_outputs((x @ x.T).double(), (y @ x.T).double(), train)


def _ridge_outputs(kernel: torch.Tensor, cross: torch.Tensor, train: ProbeSet) -> RidgeOutputs:
    classes = functional.one_hot(torch.from_numpy(train.expr), int(train.expr.max()) + 1).double()
    alpha = _choose_alpha(kernel, classes, train.expr)
    va = np.full((len(cross), 2), np.nan)
    for column in (0, 1):
        here = np.isfinite(train.va[:, column])
        if here.sum() > _FEWEST:
            target = torch.from_numpy(train.va[here, column]).double()[:, None]
            picked = torch.from_numpy(here)
            va[:, column] = _ridge(kernel[picked][:, picked], target, cross[:, picked], alpha)[:, 0].numpy()
    return RidgeOutputs(_ridge(kernel, classes, cross, alpha).numpy(), va)


def _standardised(train: torch.Tensor, val: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (·, D) by the training set's mean and deviation of each feature; rows have a norm near 1."""
    mean, deviation = train.mean(0), train.std(0)
    scale = (deviation + 1e-5 * deviation.mean() + 1e-12) * train.shape[1] ** 0.5
    return (train - mean) / scale, (val - mean) / scale


def _ridge(kernel: torch.Tensor, target: torch.Tensor, cross: torch.Tensor, alpha: float) -> torch.Tensor:
    """Kernel ridge regression with an unpenalised mean: predictions (M, C) for the rows of `cross` (M, N)."""
    offset = target.mean(0)
    scale = kernel.diagonal().mean().clamp(min=_TINY)  # 0 where every sample has the same features
    damped = kernel + alpha * scale * torch.eye(len(kernel), dtype=kernel.dtype)
    factor = torch.linalg.cholesky(damped)
    return cross @ torch.cholesky_solve(target - offset, factor) + offset


def _choose_alpha(kernel: torch.Tensor, classes: torch.Tensor, expr: NDArray[np.int64]) -> float:
    fit = int(len(kernel) * 0.8)
    if fit < 2 or fit == len(kernel):
        return 0.1
    scores = {
        alpha: accuracy(
            _ridge(kernel[:fit, :fit], classes[:fit], kernel[fit:, :fit], alpha).argmax(1).numpy(), expr[fit:]
        )
        for alpha in _ALPHAS
    }
    return max(scores, key=lambda alpha: scores[alpha])


def _knn(kernel: torch.Tensor, cross: torch.Tensor, y: torch.Tensor, train: ProbeSet) -> NDArray[np.int64]:
    """Majority of the nearest training samples by Euclidean distance."""
    distance = y.square().sum(1).double()[:, None] - 2 * cross + kernel.diagonal()[None]
    nearest = distance.topk(min(_NEIGHBOURS, len(kernel)), largest=False).indices.numpy()
    votes = train.expr[nearest]
    return np.array([np.bincount(row).argmax() for row in votes])
