"""The convolutional LSTM: against a loop written down once more, and silence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.convlstm import ConvLSTM
from tests.finetune.tiny import random


def explicit_states(lstm: ConvLSTM, features: Tensor, guidance: Tensor, guide: Tensor) -> Tensor:
    """Gate by gate, frame by frame: a_z = Wx*F_t + Wh*H_{t−1} + Wg*G_t + b."""
    dim = lstm.hidden_dim
    bias = torch.cat([lstm.bias, torch.zeros(4 * dim - len(lstm.bias))])
    weights = zip(
        *(part.split(dim) for part in (lstm.inputs.weight, lstm.recur.weight, guide, bias)), strict=True
    )
    gates = dict(zip(("input", "forget", "output", "candidate"), weights, strict=True))
    hidden = cell = torch.zeros(len(features), dim, *features.shape[-2:])
    states = []
    for t in range(features.shape[1]):
        a = {
            name: F.conv2d(features[:, t], w_x, padding=1)
            + F.conv2d(hidden, w_h, padding=1)
            + F.conv2d(guidance[:, t], w_g, padding=1)
            + b[:, None, None]
            for name, (w_x, w_h, w_g, b) in gates.items()
        }
        cell = a["forget"].sigmoid() * cell + a["input"].sigmoid() * a["candidate"].tanh()
        hidden = a["output"].sigmoid() * cell.tanh()
        states.append(hidden)
    return torch.stack(states, 1)


@pytest.mark.parametrize("silent", [False, True])
@torch.no_grad()
def test_guided_states_are_those_of_an_explicit_loop(silent: bool) -> None:
    lstm = ConvLSTM(3, 5, silent=silent, generator=random(0))
    lstm.bias.add_(torch.randn(len(lstm.bias), generator=random(1)))
    features, guidance = torch.randn(2, 2, 4, 3, 6, 5, generator=random(2)).unbind(0)
    guide = torch.randn(20, 3, 3, 3, generator=random(3))
    added = F.conv2d(guidance.flatten(0, 1), guide, padding=1).view(2, 4, 20, 6, 5)
    expected = explicit_states(lstm, features, guidance, guide)
    torch.testing.assert_close(lstm(features, added), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(lstm(features), expected, atol=1e-2)


def test_recurrent_weights_start_orthogonal_and_states_are_kept() -> None:
    lstm = ConvLSTM(3, 5, generator=random(0))
    for gate in lstm.recur.weight.flatten(1).split(5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5), atol=1e-5, rtol=0)
    assert lstm.bias.view(4, 5).mean(1).tolist() == [0, 1, 0, 0]
    again = ConvLSTM(3, 5, generator=random(0))
    assert all(torch.equal(a, b) for a, b in zip(lstm.parameters(), again.parameters(), strict=True))


@torch.no_grad()
def test_a_silent_one_says_nothing_until_it_has_seen_something() -> None:
    lstm = ConvLSTM(3, 5, silent=True, generator=random(0))
    lstm.bias.copy_(torch.randn(15, generator=random(1)))
    features = torch.randn(2, 5, 3, 4, 4, generator=random(2))
    features[:, [0, 1, 4]] = 0
    states = lstm(features)
    assert not states[:, :2].any() and states[:, 2:].abs().amin(dim=(0, 2, 3, 4)).gt(0).all()


@torch.no_grad()
def test_half_precision_features_have_states_of_single_precision() -> None:
    lstm = ConvLSTM(3, 5, generator=random(0))
    features = torch.randn(2, 3, 3, 4, 4, generator=random(2))
    with torch.autocast("cpu", torch.bfloat16):
        states = lstm(features.bfloat16())
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, lstm(features), atol=2e-2, rtol=0)
