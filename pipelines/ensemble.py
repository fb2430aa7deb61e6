"""Several models as one: means of their predictions, or of their weights (soups, Wortsman et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipelines.predictions import HEADS, Predictions
from shards.labels import DataError

State = Mapping[str, torch.Tensor]
ScoreFn = Callable[[State], float]

_COUNTER = "num_batches_tracked"  # of BatchNorm: how long it was trained, which changes no output


@dataclass(frozen=True)
class Soup:
    """Weights that are the mean of some candidates'.

    Attributes:
        state: the weights.
        members: names of the candidates in it, in the order they were added.
        split: where they were scored.
        score: of the soup.
        scores: of each candidate by itself, highest first.
    """

    state: dict[str, torch.Tensor]
    members: tuple[str, ...]
    split: str
    score: float
    scores: tuple[tuple[str, float], ...]


def mean_predictions(members: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """The weighted mean of probabilities and values, sample by sample.

    Args:
        members: of the same samples, in any order of rows; each contributes the heads that it has.
        weights: one above 0 for each member; None = equal.

    Returns:
        Rows in the first member's order; a head that no member has is not there.

    Raises:
        DataError: no members, unusable weights, or samples, class names or labels that differ: names the
            first difference.
    """
    if not members:
        raise DataError("an ensemble of no predictions")
    weights = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(members):
        raise DataError(f"{len(weights)} weights for {len(members)} predictions")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(f"weight {weight} of an ensemble must be a number above 0")
    first = members[0]
    aligned = [first, *(_aligned(member, first, i) for i, member in enumerate(members[1:], start=2))]
    changed: dict[str, Any] = {}
    for head in HEADS:
        pairs = [
            (getattr(member, head), weight)
            for member, weight in zip(aligned, weights)
            if getattr(member, head) is not None
        ]
        if pairs:
            total = sum(values * weight for values, weight in pairs)
            mean = total / sum(weight for _, weight in pairs)
            changed[head] = np.clip(mean, -1.0 if head == "va_pred" else 0.0, 1.0)
    return replace(first, **changed)


def uniform_soup(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """The plain mean of the weights of models that are built alike.

    Floating-point tensors are summed in float64 and returned in their own type. All others must be equal, but
    for BatchNorm's `num_batches_tracked`, of which the first model's is taken. BatchNorm's running statistics
    are averaged like weights, which is only near to those of the averaged model.

    Args:
        states: state dicts of the same names, shapes and types.

    Raises:
        DataError: no states, names, shapes or types that differ, values that are not finite, or other tensors
            that differ; names the tensor.
    """
    if not states:
        raise DataError("a soup of no models")
    for number, state in enumerate(states[1:], start=2):
        _check_alike(states[0], state, number)
    return {name: _mean_tensor(name, [state[name] for state in states]) for name in states[0]}


def greedy_soup(candidates: Mapping[str, State], score_fn: ScoreFn, split: str) -> Soup:
    """Adds candidates from the best to the worst, each kept if the mean does not get worse by it.

    On the split it is chosen on, the soup is never worse than the best candidate.

    Args:
        candidates: name (a run or checkpoint) -> state dict.
        score_fn: held-out score of a state dict; higher is better. Called 2n − 1 times for n candidates.
        split: what `score_fn` scores on: the soup's own score there is too high to report.

    Raises:
        DataError: no candidates, a split without a name, a score that is not finite, or see `uniform_soup`.
    """
    if not candidates:
        raise DataError("a soup of no models")
    if not split:
        raise DataError("a soup must say on which split it was chosen")
    scores = {name: _finite(score_fn(state), name) for name, state in candidates.items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    members, score = ranked[:1], scores[ranked[0]]
    state = uniform_soup([candidates[ranked[0]]])
    for name in ranked[1:]:
        larger = uniform_soup([candidates[member] for member in (*members, name)])
        found = _finite(score_fn(larger), " + ".join((*members, name)))
        if found >= score:
            members, score, state = [*members, name], found, larger
    return Soup(state, tuple(members), split, score, tuple((name, scores[name]) for name in ranked))


def _aligned(member: Predictions, first: Predictions, number: int) -> Predictions:
    """`member` with its rows in the order of `first`."""
    where = f"predictions 1 and {number} differ"
    for field in ("split", "expr_names", "au_names"):
        one, other = getattr(first, field), getattr(member, field)
        if one != other:
            raise DataError(f"{where}: {field} is {one!r} and {other!r}")
    rows = {key: row for row, key in enumerate(member.keys)}
    for keys, others, which in ((first.keys, rows, number), (member.keys, set(first.keys), 1)):
        lacking = [key for key in keys if key not in others]
        if lacking:
            raise DataError(f"{where}: {which} lacks sample {min(lacking)} ({len(lacking)} such)")
    member = member.take([rows[key] for key in first.keys])
    for field in ("group", "name", "frame", "expr", "va", "au"):
        one, other = np.asarray(getattr(first, field)), np.asarray(getattr(member, field))
        same = (one == other) | ((one != one) & (other != other))
        if not same.all():
            row = int(np.argwhere(~same)[0][0])
            found = f"{one[row].tolist()!r:.80} and {other[row].tolist()!r:.80}"
            raise DataError(f"{where}: sample {first.keys[row]}: {field} is {found}")
    return member


def _check_alike(first: State, other: State, number: int) -> None:
    where = f"models 1 and {number} differ"
    for one, two, which in ((first, other, number), (other, first, 1)):
        lacking = [name for name in one if name not in two]
        if lacking:
            raise DataError(f"{where}: {which} lacks {lacking[0]} ({len(lacking)} such)")
    for name, tensor in first.items():
        here, there = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, other[name]))
        if here != there:
            raise DataError(f"{where}: {name} is {here} and {there}")


def _mean_tensor(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        if name.rpartition(".")[2] != _COUNTER and not all(torch.equal(first, t) for t in tensors[1:]):
            raise DataError(f"{name} ({first.dtype}) differs between models and has no mean")
        return first.detach().clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor in tensors:
        total += tensor.detach()
    if not bool(torch.isfinite(total).all()):
        raise DataError(f"{name} is not finite in one of the models: leave that model out")
    return (total / len(tensors)).to(first.dtype)


def _finite(score: float, name: str) -> float:
    if not math.isfinite(score):
        raise DataError(f"{name} scores {score}: leave it out")
    return float(score)
