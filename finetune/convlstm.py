"""Convolutional LSTM (Shi et al. 2015), into whose gates a second sequence may speak.

Part of MRAN, a reconstruction; see `finetune.mran`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvLSTM(nn.Module):
    """LSTM whose gates are convolutions: each is Wx*F_t + Wh*H_{t−1} + b, and what guidance adds.

    One convolution serves the four gates, in the order input, forget, output, candidate. What comes from the
    features is computed for all frames at once; the recurrent part alone goes frame by frame.

    Args:
        dim: channels of the features.
        hidden_dim: channels of the state.
        kernel_size: of all convolutions, odd.
        silent: the candidate has no bias, so that zeros in, from the start, are zeros out.
        generator: source of the initial weights (gate by gate Xavier, recurrent ones orthogonal; biases 0,
            1 for the forget gate); None draws from torch's own.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        kernel_size: int = 3,
        silent: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim

        def gates(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, 4 * hidden_dim, kernel_size, padding=kernel_size // 2, bias=False)

        self.inputs, self.recur = gates(dim), gates(hidden_dim)
        self.bias = nn.Parameter(torch.zeros((3 if silent else 4) * hidden_dim))
        for gate in self.inputs.weight.data.chunk(4):
            nn.init.xavier_uniform_(gate, generator=generator)
        for gate in self.recur.weight.data.chunk(4):
            nn.init.orthogonal_(gate, generator=generator)
        nn.init.ones_(self.bias.data[hidden_dim : 2 * hidden_dim])

    def forward(self, features: Tensor, added: Tensor | None = None) -> Tensor:
        """Hidden states of all frames, from a state of zeros.

        Args:
            features: (B, T, dim, h, w).
            added: (B, T, 4·hidden_dim, h, w) to the gates before sigmoid and tanh; in a GA-LSTM Wg*G_t.

        Returns:
            (B, T, hidden_dim, h, w) in [-1, 1], float32 or better.
        """
        shape = features.shape[:2]
        bias = F.pad(self.bias, (0, 4 * self.hidden_dim - len(self.bias)))[:, None, None]
        driven = self.inputs(features.flatten(0, 1)) + bias
        if added is not None:
            driven = driven + added.flatten(0, 1)
        half = features.dtype in (torch.float16, torch.bfloat16)
        cell = features.new_zeros(
            (shape[0], self.hidden_dim, *features.shape[-2:]), dtype=torch.float32 if half else None
        )
        hidden, states = cell, []
        for number, drive in enumerate(driven.unflatten(0, shape).unbind(1)):
            if number or shape[1] == 1:  # of the first state, zeros, come zeros; yet every weight takes part
                drive = drive + self.recur(hidden)
            gates = drive.to(cell.dtype)
            switches, candidate = gates.split([3 * self.hidden_dim, self.hidden_dim], dim=1)
            take, keep, give = torch.sigmoid(switches).chunk(3, dim=1)
            cell = keep * cell + take * torch.tanh(candidate)
            hidden = give * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, dim=1)
