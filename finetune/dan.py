"""DAN, "Distract Your Attention" (Wen et al. 2021): a ResNet-18 read by several attention heads.

EMMA uses it frozen, for the logits of the eight expressions of AffectNet. Names in the state dict are those
of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from pretrain.foreign import other_shapes
from pretrain.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNorm

AFFECTNET8 = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")

_DIM = 512  # channels of ResNet-18's last stage
_SPATIAL_DIM = 256
_CHANNEL_DIM = 32
_SYNONYMS = {"happy": "happiness", "sad": "sadness", "angry": "anger", "surprised": "surprise"}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class DANConfig:
    """Size of a DAN.

    Attributes:
        num_classes: C.
        num_heads: K cross-attention heads.
    """

    num_classes: int
    num_heads: int = 4


class DANOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: (B, C).
        features: (B, 512, h, w) of the trunk; 7x7 for images of 224, 4x4 for 112.
        heads: (B, K, 512), log-softmax over the K heads (a single head is left as it is).
    """

    logits: Tensor
    features: Tensor
    heads: Tensor


class CenteredDANOutput(NamedTuple):
    """A DAN's output and the class centres that its affinity loss is to read.

    Attributes:
        dan: of the images.
        centers: (C, 512).
    """

    dan: DANOutput
    centers: Tensor


class SpatialAttention(nn.Module):
    """Weighs places by the sum of all channels of convolutions wide, high and square."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1x1 = _conv_norm(_DIM, _SPATIAL_DIM, (1, 1))
        self.conv_3x3 = _conv_norm(_SPATIAL_DIM, _DIM, (3, 3))
        self.conv_1x3 = _conv_norm(_SPATIAL_DIM, _DIM, (1, 3))
        self.conv_3x1 = _conv_norm(_SPATIAL_DIM, _DIM, (3, 1))
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, 512, h, w) -> same."""
        reduced = self.conv1x1(features)
        seen = self.relu(self.conv_3x3(reduced) + self.conv_1x3(reduced) + self.conv_3x1(reduced))
        weighed: Tensor = features * seen.sum(dim=1, keepdim=True)
        return weighed


class ChannelAttention(nn.Module):
    """Averages over places and gates the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.attention = nn.Sequential(
            nn.Linear(_DIM, _CHANNEL_DIM),
            nn.BatchNorm1d(_CHANNEL_DIM),
            nn.ReLU(),
            nn.Linear(_CHANNEL_DIM, _DIM),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, 512, h, w) -> (B, 512)."""
        averaged: Tensor = self.gap(features).flatten(1)
        gated: Tensor = averaged * self.attention(averaged)
        return gated


def _conv_norm(dim_in: int, dim_out: int, kernel: tuple[int, int]) -> nn.Sequential:
    """A convolution that keeps the size, and BatchNorm."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(nn.Conv2d(dim_in, dim_out, kernel, padding=padding), nn.BatchNorm2d(dim_out))


class CrossAttentionHead(nn.Module):
    """Spatial, then channel attention."""

    def __init__(self) -> None:
        super().__init__()
        self.sa = SpatialAttention()
        self.ca = ChannelAttention()

    def forward(self, features: Tensor) -> Tensor:
        """(B, 512, h, w) -> (B, 512)."""
        pooled: Tensor = self.ca(self.sa(features))
        return pooled


class DAN(nn.Module):
    """Trunk, heads, and one linear layer with BatchNorm on the sum of the heads.

    Args:
        config: classes and heads.
        mean, std: normalisation of uint8 images, per channel of [0, 1].
        generator: source of the random weights; None draws from torch's own.

    Raises:
        ValueError: fewer than 1 class or head.
    """

    def __init__(
        self,
        config: DANConfig,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if config.num_classes < 1 or config.num_heads < 1:
            raise ValueError(f"a DAN needs at least 1 class and 1 head, got {config}")
        self.config = config
        self.pixels = PixelNorm(mean, std)
        self.features = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        for name in self._head_names():
            self.add_module(name, CrossAttentionHead())
        self.fc = nn.Linear(_DIM, config.num_classes)
        self.bn = nn.BatchNorm1d(config.num_classes)
        self._init_weights(generator)

    def forward(self, images: Tensor) -> DANOutput:
        """Reads (B, 3, H, W) images, uint8, or float already normalised; B at least 2 in training."""
        pixels = self.pixels(images)
        if not self.training:  # a fifth faster; with the gradient's convolutions it is slower
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.features(pixels)
        heads = torch.stack([self.get_submodule(name)(features) for name in self._head_names()], dim=1)
        if self.config.num_heads > 1:
            heads = F.log_softmax(heads, dim=1)
        return DANOutput(self.bn(self.fc(heads.sum(dim=1))), features, heads)

    def _head_names(self) -> list[str]:
        return [f"cat_head{i}" for i in range(self.config.num_heads)]

    def _init_weights(self, generator: torch.Generator | None) -> None:
        """ResNet's for convolutions, N(0, .001) for the heads' linear layers, torch's own for the last."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.001, generator=generator)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        bound = 1 / math.sqrt(_DIM)
        nn.init.uniform_(self.fc.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.fc.bias, -bound, bound, generator=generator)


class CenteredDAN(nn.Module):
    """A DAN in training: with the class centres of the affinity loss, which are learned and then dropped.

    The centres come out of `forward`, so that the loss reads them from the prepared model.

    Args:
        dan: the model.
        generator: source of the centres, N(0, 1); None draws from torch's own.
    """

    def __init__(self, dan: DAN, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dan = dan
        self.centers = nn.Parameter(torch.empty(dan.config.num_classes, _DIM))
        nn.init.normal_(self.centers, generator=generator)

    def forward(self, images: Tensor) -> CenteredDANOutput:
        """As `DAN.forward`."""
        return CenteredDANOutput(self.dan(images), self.centers)


def load_released(dan: DAN, state: Mapping[str, Tensor]) -> None:
    """Loads the weights of a released checkpoint in place, strictly.

    Args:
        dan: of as many classes and heads.
        state: name -> tensor, what the file holds under "model_state_dict"; a prefix `module.` is dropped.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; each is named. The model is unchanged.
    """
    own = dan.state_dict()
    given = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"not this DAN: missing {', '.join(missing) or 'nothing'}, unknown "
            f"{', '.join(unknown) or 'nothing'}; give what the file holds under model_state_dict, and build "
            "the DAN with the file's num_heads"
        )
    wrong = other_shapes(own, given)
    if wrong:
        raise ValueError(f"shapes differ: {', '.join(wrong)}; build the DAN with the file's num_classes")
    dan.load_state_dict(given)


def freeze(module: ModuleT, statistics: bool = True) -> ModuleT:
    """Stops a module's gradients and, with `statistics`, puts it in eval mode for good; returns it.

    Args:
        module: changed in place.
        statistics: BatchNorm statistics stay where they are, whatever `.train()` the module or its owner is
            given. False leaves them to move in training, as the released EMMA does.
    """
    module.requires_grad_(False)
    if statistics:
        module.eval()
        for part in module.modules():
            part.train = MethodType(_stay_in_eval, part)  # type: ignore[method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def class_order(names_from: Sequence[str], names_to: Sequence[str]) -> list[int | None]:
    """Where each class of one list stands in another, by name.

    Case is ignored, and happy = happiness, sad = sadness, angry = anger, surprised = surprise.

    Args:
        names_from: C names, AFFECTNET8 say.
        names_to: `shards.labels.EXPR8`, say.

    Returns:
        (C,) place in `names_to`, or None where it has no such class.

    Raises:
        ValueError: a class occurs twice in a list.
    """
    places: list[dict[str, int]] = []
    for names in (names_from, names_to):
        same = [_SYNONYMS.get(name.lower(), name.lower()) for name in names]
        if len(set(same)) < len(same):
            raise ValueError(f"a class occurs twice in {list(names)}: name each once")
        places.append({name: place for place, name in enumerate(same)})
    return [places[1].get(name) for name in places[0]]
