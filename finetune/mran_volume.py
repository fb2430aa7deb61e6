"""What MRAN makes of boosted features: 3-D convolutions, a row of features a frame, a look over the window.

Part of MRAN, a reconstruction; see `finetune.mran`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.config import MRANConfig

_DILATIONS = (1, 2, 4, 8)


class VolumeBlocks(nn.Module):
    """3-D convolutions over boosted features, each added to what it reads.

    What is added to is the features as they are, or where a block has another number of channels, each
    place's projected: without that way past the convolutions the colour path learns many times more
    slowly. The time step stays 1; between blocks the maps are halved. GroupNorm goes frame by frame, so
    that how long a window is does not change what is made of a frame.

    Args:
        dim: channels of the features.
        dims: channels of each block.
        generator: source of the initial weights (Xavier); None draws from torch's own.
    """

    def __init__(self, dim: int, dims: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.convs, self.norms, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for dim_in, dim_out in zip((dim, *dims[:-1]), dims, strict=True):
            convolution = nn.Conv3d(dim_in, dim_out, 3, padding=1, bias=False)
            nn.init.xavier_uniform_(convolution.weight, nn.init.calculate_gain("relu"), generator)
            self.convs.append(convolution)
            self.norms.append(nn.GroupNorm(2 if dim_out % 2 == 0 else 1, dim_out))
            same = dim_in == dim_out
            self.skips.append(nn.Identity() if same else without_bias(dim_in, dim_out, 1, generator))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, dim, h, w) -> (B, T, dims[-1], …) on `grid_of` (h, w)."""
        blocks = zip(self.convs, self.norms, self.skips, strict=True)
        for number, (convolution, norm, skip) in enumerate(blocks):
            if number:
                features = by_frame(_halve, features)
            volume = convolution(features.transpose(1, 2)).transpose(1, 2)
            features = by_frame(skip, features) + F.relu(by_frame(norm, volume))
        return features

    def grid_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what `forward` gives for features of height and width `grid`."""
        height, width = grid
        for _ in range(len(self.convs) - 1):
            height, width = -(-height // 2), -(-width // 2)
        return height, width


class MapReadout(nn.Module):
    """Maps -> one row of features a frame: the mean over places, or every place's own few numbers.

    Args:
        config: readout and readout_dim.
        dim: C, channels of the maps.
        grid: (h, w) of the maps.
        generator: source of the initial weights (Xavier); None draws from torch's own.
        silent: without bias, so that of zeros it makes zeros.

    Attributes:
        num_features: D.
    """

    def __init__(
        self,
        config: MRANConfig,
        dim: int,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
        silent: bool = False,
    ) -> None:
        super().__init__()
        self.num_features, self.flat = dim, config.readout == "flat"
        if self.flat:
            build = partial(without_bias, size=1) if silent else place_by_place
            self.project = build(dim, config.readout_dim, generator=generator)
            self.num_features = config.readout_dim * grid[0] * grid[1]

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, C, h, w) -> (B, T, D)."""
        return by_frame(self.project, maps).flatten(2) if self.flat else maps.mean(dim=(3, 4))


class GRUHead(nn.Module):
    """Adds to every frame's features what a GRU makes of the window, half of it forwards, half backwards.

    Args:
        dim: D, even.
        generator: source of the initial weights (Xavier, recurrent ones orthogonal); None draws from torch's.

    Raises:
        ValueError: D is odd.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(
                f"mran.temporal=gru goes both ways: {dim}, the last of volume_dims, must be even"
            )
        self.gru = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True)
        for name, param in self.gru.named_parameters():
            if param.ndim == 1:
                nn.init.zeros_(param)
            elif "_hh_" in name:
                nn.init.orthogonal_(param, generator=generator)
            else:
                nn.init.xavier_uniform_(param, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) -> same."""
        seen: Tensor = self.gru(features)[0]
        return features + seen


class TCNHead(nn.Module):
    """Convolutions over time, 3 wide at distances of 1, 2, 4 and 8 frames, each added to what it reads.

    Args:
        dim: D.
        generator: source of the initial weights (Xavier, biases 0); None draws from torch's own.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for dilation in _DILATIONS:
            convolution = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
            nn.init.xavier_uniform_(convolution.weight, generator=generator)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
            self.convs.append(convolution)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) -> same."""
        sequence = features.transpose(1, 2)
        for convolution in self.convs:
            sequence = sequence + F.relu(convolution(sequence))
        return sequence.transpose(1, 2)


def build_temporal(name: str, dim: int, generator: torch.Generator | None = None) -> nn.Module:
    """What looks over the window: (B, T, D) -> (B, T, D); `name` as `MRANConfig.temporal`."""
    if name == "gru":
        return GRUHead(dim, generator)
    return TCNHead(dim, generator) if name == "tcn" else nn.Identity()


def by_frame(layer: Callable[[Tensor], Tensor], sequence: Tensor) -> Tensor:
    """A layer of (N, …) on every frame of (B, T, …)."""
    frames = layer(sequence.flatten(0, 1))
    return frames.reshape(*sequence.shape[:2], *frames.shape[1:])


def place_by_place(dim_in: int, dim: int, generator: torch.Generator | None) -> nn.Conv2d:
    """To the common width, place by place."""
    convolution = nn.Conv2d(dim_in, dim, 1)
    nn.init.xavier_uniform_(convolution.weight, generator=generator)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def without_bias(dim_in: int, dim: int, size: int, generator: torch.Generator | None) -> nn.Conv2d:
    """A convolution of size x size that makes nothing of nothing."""
    convolution = nn.Conv2d(dim_in, dim, size, padding=size // 2, bias=False)
    nn.init.xavier_uniform_(convolution.weight, generator=generator)
    return convolution


def _halve(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> half as high and wide, rounded up, so that left and right are treated alike."""
    height, width = maps.shape[-2:]
    return F.adaptive_avg_pool2d(maps, (-(-height // 2), -(-width // 2)))
