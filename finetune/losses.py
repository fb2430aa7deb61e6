"""Losses of the affect tasks as pure functions; what is not labelled adds neither value nor gradient.

Losses over labels that may be missing are *sums* over the valid ones: an optimiser step divides them by the
valid labels of all its micro-batches and processes (`step_mean`). What stands in an invalid entry, NaN
included, is never seen, and nothing waits for the device. All compute in float32 or better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Released EMMA: weight of each positive label of AU1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26.
RELEASED_AU_POS_WEIGHT = (7.10, 15.64, 5.47, 2.80, 1.52, 1.89, 3.05, 34.05, 32.48, 36.77, 0.58, 11.16)
RELEASED_CCC_EPS = 1e-4


def step_mean(total: Tensor, count: Tensor, world_size: int = 1) -> Tensor:
    """This process's share of a step's mean: the shares *averaged* over processes are the mean.

    Args:
        total: scalar, a sum over this micro-batch's valid labels.
        count: scalar, valid labels of the whole step: all micro-batches, all processes
            (`finetune.across.sum_across`).
        world_size: processes whose gradients the loop averages.

    Returns:
        Scalar; exactly zero, with zero gradient, where the step has no valid label.
    """
    return total * world_size / count.clamp(min=1)


def cross_entropy_sum(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy in nats (EMMA, eq. 3; CoTEX, eq. 7), summed over the valid labels.

    Args:
        logits: (B, C).
        target: (B,) int64 in [0, C) where valid.
        valid: (B,) bool.

    Returns:
        Scalar.
    """
    safe = _precise(logits).where(valid[:, None], 0)
    losses = F.cross_entropy(safe, target.where(valid, 0), reduction="none")
    return losses.where(valid, 0).sum()


def binary_cross_entropy_sum(
    logits: Tensor, target: Tensor, valid: Tensor, pos_weight: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy in nats (EMMA, eq. 2), summed over the valid labels.

    Over the number of valid labels it is the paper's loss. The released code's has `RELEASED_AU_POS_WEIGHT`
    and divides by the number of faces, those without an AU label included.

    Args:
        logits: (B, A).
        target: (B, A) 0 or 1 where valid.
        valid: (B, A) bool.
        pos_weight: (A,) weight of the positive labels; None weighs them as the others.

    Returns:
        Scalar.
    """
    safe = _precise(logits).where(valid, 0)
    weight = None if pos_weight is None else pos_weight.to(safe.dtype)
    known = target.to(safe.dtype).where(valid, 0)
    losses = F.binary_cross_entropy_with_logits(safe, known, pos_weight=weight, reduction="none")
    return losses.where(valid, 0).sum()


def js_divergence(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions (CoTEX, eq. 6), per sample, in nats.

    The released code takes the mean over classes too, so its value is this over C: 1/6 for six classes.

    Args:
        logits_a, logits_b: (B, C).

    Returns:
        (B,) in [0, log 2].
    """
    log_a, log_b = F.log_softmax(_precise(logits_a), dim=-1), F.log_softmax(_precise(logits_b), dim=-1)
    # log(a/m) = log 2 - log(1 + b/a): no logarithm of a mixture, which could underflow
    kl_a = log_a.exp() * (math.log(2) - F.softplus(log_b - log_a))
    kl_b = log_b.exp() * (math.log(2) - F.softplus(log_a - log_b))
    return (kl_a + kl_b).sum(dim=-1) / 2


def js_divergence_sum(logits_a: Tensor, logits_b: Tensor, valid: Tensor) -> Tensor:
    """`js_divergence` summed over the valid samples.

    Args:
        logits_a, logits_b: (B, C).
        valid: (B,) bool.

    Returns:
        Scalar.
    """
    seen = valid[:, None]
    return js_divergence(logits_a.where(seen, 0), logits_b.where(seen, 0)).where(valid, 0).sum()


def ccc_loss(pred: Tensor, target: Tensor, valid: Tensor, released: bool = False) -> Tensor:
    """1 - (CCC of valence + CCC of arousal) (EMMA, eqs. 4 and 9), over all rows given: a batch statistic.

    A step's rows must be together (`finetune.across.gather_across`, after joining its micro-batches). Each
    of the K columns adds 1/K - CCC; where fewer than 2 rows are valid, or both prediction and target are
    constant, CCC is not defined and the column adds 0, with zero gradient: without any label the loss is 0.

    Args:
        pred, target: (N, K); K = 2, valence and arousal, in the paper.
        valid: (N, K) bool.
        released: as the released code has it: each column adds 1 - CCC (the paper's loss plus K - 1), the
            variances are unbiased, and 1e-4 is added to the denominator of the CCC and to that of the
            correlation within. A constant prediction then has zero gradient (theirs: NaN).

    Returns:
        Scalar.
    """
    pred = _precise(pred).where(valid, 0)
    target = target.to(pred.dtype).where(valid, 0)
    weight = valid.to(pred.dtype)
    count = weight.sum(dim=0)
    defined = _varies(pred, valid) | _varies(target, valid)

    rows = count.clamp(min=1)
    mean_pred, mean_target = pred.sum(dim=0) / rows, target.sum(dim=0) / rows
    off_pred, off_target = (pred - mean_pred) * weight, (target - mean_target) * weight
    covariance = (off_pred * off_target).sum(dim=0)
    variance_pred, variance_target = off_pred.square().sum(dim=0), off_target.square().sum(dim=0)
    if released:
        spread = _sqrt(variance_pred * variance_target)
        covariance = covariance * spread / (spread + RELEASED_CCC_EPS)
        rows = (count - 1).clamp(min=1)
    apart = (mean_pred - mean_target).square()
    denominator = (variance_pred + variance_target) / rows + apart + (RELEASED_CCC_EPS if released else 0)
    defined = defined & (denominator > 0)  # differences too small to square
    ccc = 2 * covariance / rows / denominator.where(defined, 1)
    perfect = 1.0 if released else 1 / pred.shape[1]
    return (perfect - ccc).where(defined, 0).sum()


def squared_error_sum(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Squared error, summed over the valid labels.

    Args:
        pred, target: of one shape.
        valid: of the same shape, bool.

    Returns:
        Scalar.
    """
    seen = _precise(pred).where(valid, 0)
    return (seen - target.to(seen.dtype).where(valid, 0)).square().sum()


def affinity_sum(features: Tensor, target: Tensor, valid: Tensor, centers: Tensor) -> Tensor:
    """DAN's affinity loss (Wen et al. 2021), summed over the valid labels.

    Squared distance of the averaged features to the centre of their class, over the sum, dimension by
    dimension, of the unbiased variance of the centres.

    Args:
        features: (B, D, h, w) of the trunk.
        target: (B,) int64 in [0, C) where valid.
        valid: (B,) bool.
        centers: (C, D) learned, C at least 2.

    Returns:
        Scalar.
    """
    averaged = _precise(features).mean(dim=(2, 3)).where(valid[:, None], 0)
    centers = _precise(centers)
    distances = (averaged - F.embedding(target.where(valid, 0), centers)).square().sum(dim=1)
    return distances.where(valid, 0).sum() / centers.var(dim=0).sum()


def partition_loss(heads: Tensor) -> Tensor:
    """DAN's partition loss (Wen et al. 2021): log(1 + K / mean unbiased variance over the K heads).

    Needs no labels. A statistic of the rows given: over micro-batches and processes, the mean of theirs.

    Args:
        heads: (B, K, D) as in `finetune.dan.DANOutput`.

    Returns:
        Scalar; 0 for a single head, infinite for heads that are all equal.
    """
    num_heads = heads.shape[1]
    if num_heads == 1:
        return _precise(heads).sum() * 0
    return torch.log(1 + num_heads / _precise(heads).var(dim=1).mean())


def _precise(tensor: Tensor) -> Tensor:
    """Half precision as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _varies(values: Tensor, valid: Tensor) -> Tensor:
    """(K,) whether a column of (N, K) holds two different valid values; exact, unlike a variance."""
    lowest = values.detach().where(valid, math.inf).amin(dim=0)
    return values.detach().where(valid, -math.inf).amax(dim=0) > lowest


def _sqrt(values: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0."""
    positive = values > 0
    return values.where(positive, 1).sqrt().where(positive, 0)
