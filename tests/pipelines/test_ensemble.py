"""Means of predictions equal those by hand; soups are means of weights; what differs is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.ensemble import greedy_soup, mean_predictions, uniform_soup
from pipelines.predictions import Predictions, build_predictions
from shards.labels import DataError


def run(seed: int, count: int = 20) -> Predictions:
    """One run's outputs; labels are the same for all seeds."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99)
    probs = rng.random((count, 8))
    va = labels.uniform(-1, 1, (count, 2))
    va[2] = np.nan
    return build_predictions(
        "val",
        [f"k{i:02d}" for i in range(count)],
        group=["v"] * count,
        frame=range(count),
        expr=labels.integers(-1, 8, count),
        va=va,
        au=labels.integers(-1, 2, (count, 12)),
        expr_probs=probs / probs.sum(1, keepdims=True),
        au_probs=rng.random((count, 12)),
        va_pred=rng.uniform(-1, 1, (count, 2)),
    )


def test_the_mean_of_two_is_the_mean_by_hand() -> None:
    one, two = run(1), run(2)
    shuffled = two.take(np.random.default_rng(0).permutation(len(two)))
    mean = mean_predictions([one, shuffled])
    assert mean.keys == one.keys and np.array_equal(mean.expr, one.expr)
    for head in ("expr_probs", "au_probs", "va_pred"):
        assert np.array_equal(getattr(mean, head), (getattr(one, head) + getattr(two, head)) / 2)


def test_weights_and_heads_that_only_some_runs_have() -> None:
    one, two, three = run(1), replace(run(2), va_pred=None), replace(run(3), au_probs=None, va_pred=None)
    mean = mean_predictions([one, two, three], [3, 1, 4])
    assert mean.va_pred is not None and np.array_equal(mean.va_pred, (one.va_pred * 3) / 3)
    assert mean.au_probs is not None
    assert np.allclose(mean.au_probs, (one.au_probs * 3 + two.au_probs) / 4, atol=1e-15)
    assert mean.expr_probs is not None
    expected = np.average([one.expr_probs, two.expr_probs, three.expr_probs], axis=0, weights=[3, 1, 4])
    assert np.allclose(mean.expr_probs, expected, atol=1e-15)
    assert "va_pred" not in mean_predictions([two, three]).heads


def test_a_run_alone_stays_as_it_is() -> None:
    for head in ("expr_probs", "au_probs", "va_pred"):
        assert np.array_equal(getattr(mean_predictions([run(1)]), head), getattr(run(1), head))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "test"}, "split is 'val' and 'test'"),
        ({"keys": ("x", *run(2).keys[1:])}, "3 lacks sample k00 (1 such)"),
        ({"au_names": tuple(f"u{i}" for i in range(12))}, "au_names is"),
        ({"expr": np.where(np.arange(20) == 4, 1 - run(2).expr % 2, run(2).expr)}, "sample k04: expr is"),
        ({"va": np.where(np.isnan(run(2).va), 0, run(2).va)}, "sample k02: va is"),
        ({"group": ("v",) * 19 + ("w",)}, "sample k19: group is 'v' and 'w'"),
    ],
)
def test_the_first_difference_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match="predictions 1 and 3 differ: ") as error:
        mean_predictions([run(1), run(3), replace(run(2), **changes)])
    assert said in str(error.value)


def test_samples_that_the_first_lacks_are_named() -> None:
    with pytest.raises(DataError, match=r"predictions 1 and 2 differ: 1 lacks sample k18 \(2 such\)"):
        mean_predictions([run(1).take(range(18)), run(2)])


@pytest.mark.parametrize("weights", [[1.0], [1, 0], [1, -1], [1, float("nan")]])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weight"):
        mean_predictions([run(1), run(2)], weights)
    with pytest.raises(DataError, match="no predictions"):
        mean_predictions([])


def model(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for _ in range(seed):
        net(torch.randn(5, 3))
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_a_uniform_soup_is_the_mean_and_loads() -> None:
    states = [model(seed) for seed in (1, 2, 3)]
    soup = uniform_soup(states)
    assert list(soup) == list(states[0])
    for name, tensor in soup.items():
        if name.endswith("num_batches_tracked"):
            assert tensor == 1
            continue
        expected = np.mean([state[name].double().numpy() for state in states], axis=0)
        assert tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), expected.astype(np.float32))
    nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).load_state_dict(soup, strict=True)
    soup["0.weight"].zero_()
    assert states[0]["0.weight"].any()


def test_a_soup_of_equal_models_is_that_model_in_any_precision() -> None:
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        state = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)).to(kind)}
        assert torch.equal(uniform_soup([state] * 7)["w"], state["w"])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"w": torch.zeros(2)}, "2 lacks n"),
        ({"w": torch.zeros(2), "n": torch.tensor(1), "z": torch.zeros(1)}, "1 lacks z"),
        ({"w": torch.zeros(3), "n": torch.tensor(1)}, r"w is \(2,\) torch.float32 and \(3,\)"),
        ({"w": torch.zeros(2).double(), "n": torch.tensor(1)}, "torch.float64"),
        ({"w": torch.zeros(2), "n": torch.tensor(2)}, "n .torch.int64. differs"),
        ({"w": torch.tensor([0, torch.nan]), "n": torch.tensor(1)}, "w is not finite"),
    ],
)
def test_models_that_are_not_alike_are_refused(other: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(DataError, match=said):
        uniform_soup([{"w": torch.zeros(2), "n": torch.tensor(1)}, other])
    with pytest.raises(DataError, match="no models"):
        uniform_soup([])


def near_one(state: Any) -> float:
    return -abs(float(state["w"]) - 1.0)


def test_a_greedy_soup_keeps_what_does_not_make_it_worse() -> None:
    candidates = {name: {"w": torch.tensor(w)} for name, w in {"far": 9.0, "over": 1.5, "under": 0.6}.items()}
    soup = greedy_soup(candidates, near_one, "val")
    assert soup.members == ("under", "over") and soup.split == "val"
    assert float(soup.state["w"]) == pytest.approx(1.05) and soup.score == pytest.approx(-0.05)
    assert [name for name, _ in soup.scores] == ["under", "over", "far"]


def test_a_greedy_soup_is_never_worse_than_the_best_and_takes_equals() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        candidates = {str(i): {"w": torch.tensor(w)} for i, w in enumerate(rng.normal(1, 1, 5))}
        soup = greedy_soup(candidates, near_one, "val")
        assert soup.score >= max(near_one(state) for state in candidates.values())
        assert soup.score == near_one(soup.state)
    same = {name: {"w": torch.tensor(2.0)} for name in "ab"}
    assert greedy_soup(same, near_one, "val").members == ("a", "b")


def test_a_greedy_soup_says_where_it_was_chosen_and_refuses_nan() -> None:
    with pytest.raises(DataError, match="which split"):
        greedy_soup({"a": {"w": torch.tensor(1.0)}}, near_one, "")
    with pytest.raises(DataError, match="a scores nan"):
        greedy_soup({"a": {"w": torch.tensor(torch.nan)}}, near_one, "val")
    with pytest.raises(DataError, match="no models"):
        greedy_soup({}, near_one, "val")
