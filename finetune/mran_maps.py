"""From single frames to maps of features, for MRAN, a reconstruction; see `finetune.mran`.

Colour: a ViT's patch tokens, a convolutional net's last map. Depth and thermal: small stems of their own.
Every map of a model has the grid of its colour map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from finetune.dan import freeze
from finetune.emma import unfreeze_positions
from pretrain.droppath import set_drop_paths
from pretrain.encoder import VisionTransformer, encode
from pretrain.pixels import PixelNorm

FACENET_MEAN, FACENET_STD = (0.5, 0.5, 0.5), (128 / 255, 128 / 255, 128 / 255)  # (value − 127.5) / 128

_CONV_DIMS = (32, 64, 128, 256, 256)
_CONV_STRIDES = (2, 2, 2, 1, 1)
_INCEPTION_DIM = 1792
_INCEPTION_STAGES = (
    *("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a", "conv2d_4b"),
    *("repeat_1", "mixed_6a", "repeat_2", "mixed_7a", "repeat_3", "block8"),
)
_INCEPTION_KERNELS = ((3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (3, 2), (3, 2))  # that take from the border
_INCEPTION_UNUSED = ("dropout", "last_linear", "last_bn", "logits")


class ColorMap(nn.Module):
    """Colour frames -> maps of features.

    Attributes:
        encoder: what a checkpoint's weights are for.
        unused: how the names begin that a file of them may hold beyond the encoder.
        num_features: D.
        grid: (h, w).
    """

    encoder: nn.Module
    unused: Sequence[str] = ()
    num_features: int
    grid: tuple[int, int]

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps of frames, each by itself.

        Args:
            images: (N, 3, H, W), uint8, or float already normalised.
            keys: (N,) int64 random keys, needed in training where there is drop path.

        Returns:
            (N, D, h, w).
        """
        raise NotImplementedError


class ViTMap(ColorMap):
    """The patch tokens of a ViT, laid out as they lie in the image.

    Args:
        encoder: the ViT; its position embedding learns with it.
        tuned_blocks: the last so many blocks and the final norm learn; None = all of it, 0 = nothing. What
            does not learn stays in eval mode and builds no graph.

    Raises:
        ValueError: the ViT has fewer blocks.
    """

    def __init__(self, encoder: VisionTransformer, tuned_blocks: int | None = None) -> None:
        super().__init__()
        depth = len(encoder.blocks)
        if tuned_blocks is not None and tuned_blocks > depth:
            raise ValueError(
                f"mran.tuned_blocks={tuned_blocks}: the encoder has {depth} blocks; null means all"
            )
        self.encoder = encoder
        self.num_features, self.grid = encoder.embed_dim, encoder.patch_embed.grid_size
        self.num_frozen = None if tuned_blocks is None else depth - tuned_blocks
        if tuned_blocks == 0:
            freeze(encoder)
        elif tuned_blocks is None:
            unfreeze_positions(encoder)
        else:
            for part in (encoder.patch_embed, encoder.norm_pre, *encoder.blocks[: self.num_frozen]):
                freeze(part)
            for token in (encoder.cls_token, encoder.reg_token, encoder.pos_embed):
                if token is not None:
                    token.requires_grad_(False)
        self.pixels = PixelNorm()

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `ColorMap.forward`."""
        encoder: VisionTransformer = self.encoder  # type: ignore[assignment]
        images = self.pixels(images)
        set_drop_paths(encoder, keys)
        if self.num_frozen is None:
            tokens = encode(encoder, images)
        else:
            tokens = self._encode_partly(encoder, images, self.num_frozen)
        patches = tokens[:, encoder.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.grid)

    def _encode_partly(self, encoder: VisionTransformer, images: Tensor, num_frozen: int) -> Tensor:
        """`encode` without a graph up to the first block that learns."""
        with torch.no_grad():
            tokens = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(images)))
            for block in encoder.blocks[:num_frozen]:
                tokens = block(tokens)
            if num_frozen == len(encoder.blocks):
                return torch.as_tensor(encoder.norm(tokens))
        for block in encoder.blocks[num_frozen:]:
            if encoder.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return torch.as_tensor(encoder.norm(tokens))


class ConvMap(ColorMap):
    """Five convolutions of 32, 64, 128, 256 and 256 channels, the first three halving; from scratch.

    GroupNorm stands for the original's BatchNorm, so that a frame's features do not depend on its batch. The
    convolutions that halve are 4 wide and so treat left and right alike where the size is even.

    Args:
        image_size: height and width in pixels, at least 8.
        tuned: False freezes it.
        generator: source of the initial weights (He); None draws from torch's own.

    Raises:
        ValueError: images too small.
    """

    def __init__(
        self, image_size: tuple[int, int], tuned: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if min(image_size) < 8:
            raise ValueError(f"images of {image_size} are too small for the conv encoder: 8 pixels at least")
        layers: list[nn.Module] = []
        dim_in = 3
        for dim, stride in zip(_CONV_DIMS, _CONV_STRIDES, strict=True):
            convolution = _convolution(dim_in, dim, stride, generator)
            layers += [convolution, nn.GroupNorm(8, dim), nn.ReLU()]
            dim_in = dim
        self.encoder = nn.Sequential(*layers)
        if not tuned:
            freeze(self.encoder)
        self.num_features = dim_in
        self.grid = (image_size[0] // 8, image_size[1] // 8)
        self.tuned, self.pixels = tuned, PixelNorm()

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `ColorMap.forward`; nothing in it is random."""
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            features: Tensor = self.encoder(self.pixels(images))
        return features


class InceptionMap(ColorMap):
    """The last map of facenet-pytorch's InceptionResnetV1: 3x3 places for images of 160, 2x2 for 112.

    Learning, its BatchNorm statistics are those of a process's micro-batch: no other encoder here depends on
    how a step is shared out. Frozen, they stay.

    Args:
        net: an InceptionResnetV1; what follows its last map is taken off.
        image_size: height and width in pixels.
        tuned: False freezes it.

    Raises:
        ValueError: images too small.
    """

    unused = tuple(f"{name}." for name in _INCEPTION_UNUSED)

    def __init__(self, net: nn.Module, image_size: tuple[int, int], tuned: bool = True) -> None:
        super().__init__()
        height, width = image_size
        for kernel, stride in _INCEPTION_KERNELS:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        if min(height, width) < 1:
            raise ValueError(
                f"images of {image_size} are too small for InceptionResnetV1: use 75 pixels or more"
            )
        for name in _INCEPTION_UNUSED:
            if hasattr(net, name):
                delattr(net, name)
        self.encoder = net if tuned else freeze(net)
        self.num_features, self.grid = _INCEPTION_DIM, (height, width)
        self.tuned, self.pixels = tuned, PixelNorm(FACENET_MEAN, FACENET_STD)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """See `ColorMap.forward`; nothing in it is random."""
        features: Tensor = self.pixels(images)
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            for name in _INCEPTION_STAGES:
                features = self.encoder.get_submodule(name)(features)
        return features


class ConvStem(nn.Module):
    """Depth or thermal frames -> maps: convolutions that halve until the grid is reached.

    Without any normalisation, which would divide out how far or how warm a face is.

    Args:
        image_size: height and width in pixels.
        grid: (h, w) of the maps; what halving does not meet is averaged.
        num_features: channels of the maps.
        generator: source of the initial weights (He); None draws from torch's own.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        grid: tuple[int, int],
        num_features: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        halvings = max(1, int(math.log2(max(1, min(image_size[0] // grid[0], image_size[1] // grid[1])))))
        layers: list[nn.Module] = []
        dim_in = 1
        for left in reversed(range(halvings)):
            dim = max(8, num_features >> left)
            layers += [_convolution(dim_in, dim, 2, generator), nn.ReLU()]
            dim_in = dim
        self.layers = nn.Sequential(*layers)
        self.num_features, self.grid = dim_in, grid

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) of the order of 1 -> (N, num_features, h, w)."""
        features: Tensor = self.layers(images)
        if features.shape[-2:] != self.grid:
            features = F.adaptive_avg_pool2d(features, self.grid)
        return features


class PatchStem(nn.Module):
    """Depth or thermal frames -> maps: a ViT's patch embedding, summed over colour, and ReLU.

    At the start a frame gives what a grey one of the same values gives the ViT before its positions.

    Args:
        encoder: the ViT; its weights are copied.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        proj = encoder.patch_embed.proj
        self.num_features = encoder.embed_dim
        self.patches = nn.Conv2d(1, self.num_features, proj.kernel_size, stride=proj.kernel_size)
        self.patches.weight.data.copy_(proj.weight.detach().sum(dim=1, keepdim=True))
        assert self.patches.bias is not None
        if proj.bias is None:
            nn.init.zeros_(self.patches.bias)
        else:
            self.patches.bias.data.copy_(proj.bias.detach())

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) of the order of 1 -> (N, D, h, w)."""
        return F.relu(self.patches(images))


def _convolution(dim_in: int, dim: int, stride: int, generator: torch.Generator | None = None) -> nn.Conv2d:
    """3 wide, or 4 where it halves; He initial weights, as Xavier would shrink the scale; biases 0."""
    convolution = nn.Conv2d(dim_in, dim, 2 + stride, stride, padding=1)
    nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu", generator=generator)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
