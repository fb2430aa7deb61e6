"""Models of others, for the papers' comparison tables: any of timm's, VGG-Face. A door to timm.

images -> encoder (timm's, without its classifier) -> linear -> valence, arousal, expressions, action units
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import vgg16

from finetune.dan import freeze
from finetune.emma import AffectOutput, split_outputs
from finetune.readout import build_head
from pretrain.droppath import set_drop_paths
from pretrain.encoder import key_drop_paths
from pretrain.foreign import other_shapes
from pretrain.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNorm
from shards.labels import AU12, EXPR8

_VGG_DIM = 4096
_VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG_CONVS = [f"conv{stage}_{i + 1}" for stage, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(count)]
_VGG_NAMES = {
    **{name: f"features.{layer}" for name, layer in zip(_VGG_CONVS, _VGG_LAYERS, strict=True)},
    **{"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"},
}
_VGG_NAME = re.compile("|".join(f"^{name}(?=[.])" for name in _VGG_NAMES))


class PixelStats(NamedTuple):
    """Per channel, of pixels in [0, 1]: what a model's images are normalised by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = PixelStats(IMAGENET_MEAN, IMAGENET_STD)
VGGFACE_STATS = PixelStats(  # the mean face of Parkhi et al. 2015 in RGB; pixels keep their scale of 0 to 255
    (129.1863 / 255, 104.7624 / 255, 93.5940 / 255), (1 / 255, 1 / 255, 1 / 255)
)


class Baseline(Protocol):
    """What a model has whose encoder takes others' weights.

    Attributes:
        encoder: that they are for.
        unused: how the names begin that a file of them may hold beyond the encoder.
    """

    @property
    def encoder(self) -> nn.Module: ...
    @property
    def unused(self) -> Sequence[str]: ...


class TimmFace(nn.Module):
    """A timm model and one linear layer for any of expressions, action units, valence and arousal.

    Args:
        encoder: from `build_timm`.
        image_size: height and width in pixels of the images to come.
        num_expr, num_au: logits wanted; 0 for none.
        va: whether valence and arousal are wanted.
        linear: freeze the encoder.
        stats: normalisation of uint8 images; `pixel_stats` knows the model's own.
        generator: source of the initial weights of the last layer; None draws from torch's own.

    Raises:
        ValueError: the encoder does not take images of this size, or gives no vector for an image.
    """

    def __init__(
        self,
        encoder: nn.Module,
        image_size: tuple[int, int],
        num_expr: int = len(EXPR8),
        num_au: int = len(AU12),
        va: bool = True,
        linear: bool = False,
        stats: PixelStats = IMAGENET,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        num_features = _num_features(encoder, image_size)
        self.encoder = freeze(encoder) if linear else encoder
        self.unused = classifier_names(encoder)
        self.sizes = (2 * va, num_expr, num_au)
        self.head = build_head(num_features, sum(self.sizes), 0, generator)
        self.pixels = PixelNorm(*stats)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> AffectOutput:
        """As `EMMA.forward`; what was not asked for is None.

        Args:
            images: (B, 3, H, W), uint8, or float already normalised.
            keys: (B,) int64 random keys, needed in training where there is drop path.
        """
        set_drop_paths(self.encoder, keys)
        return split_outputs(self.head(self.encoder(self.pixels(images))), self.sizes)


class VGGFace(nn.Module):
    """VGG-16 on faces (Parkhi et al. 2015), its convolutions frozen: the ABAW4 challenge's baseline.

    Its weights come in by `load_weights`, under torchvision's names or VGG-Face's own. There is no dropout.

    Args:
        num_expr, num_au, va: as of `TimmFace`.
        linear: the two fully connected layers before the last are frozen too ("linear evaluation").
        generator: source of the initial weights; None draws from torch's own.
    """

    def __init__(
        self,
        num_expr: int = len(EXPR8),
        num_au: int = len(AU12),
        va: bool = True,
        linear: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        with seeded(generator):
            self.encoder = vgg16(weights=None, dropout=0.0)
        self.encoder.classifier[6] = nn.Identity()
        self.unused = ("classifier.6.",)
        freeze(self.encoder if linear else self.encoder.features)
        self.sizes = (2 * va, num_expr, num_au)
        self.head = build_head(_VGG_DIM, sum(self.sizes), 0, generator)
        self.pixels = PixelNorm(*VGGFACE_STATS)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> AffectOutput:
        """As `TimmFace.forward`; nothing in it is random."""
        return split_outputs(self.head(self.encoder(self.pixels(images))), self.sizes)


def is_timm_model(name: str) -> bool:
    """Whether timm can build a model of this name, "resnet50" or with a tag "resnet50.tv_in1k"."""
    return bool(timm.is_model(name)) and (
        "." not in name or name in timm.list_pretrained(name.partition(".")[0])
    )


def pixel_stats(name: str) -> PixelStats:
    """What the images of a timm model's published weights were normalised by."""
    config = get_pretrained_cfg(name)
    return PixelStats(tuple(config.mean), tuple(config.std)) if config else IMAGENET


def timm_depth(name: str) -> int:
    """Blocks of a timm model, for layer decay; 0 where it is not a plain ViT."""
    model = _on_meta(name)
    return len(model.blocks) if isinstance(model, VisionTransformer) else 0


def build_timm(
    name: str,
    image_size: tuple[int, int],
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A timm model without its classifier: (B, 3, H, W) normalised images -> (B, D).

    Args:
        name: of the model; a tag after a dot says which of its published weights.
        image_size: height and width in pixels, for models that must know.
        drop_path_rate: see `EncoderConfig`; for plain ViTs.
        pretrained: load the weights that timm publishes: from its cache, or over the network.
        generator: source of the initial weights; None draws from torch's own.

    Raises:
        ValueError: no such model, not for this size, no drop path in it, or weights that cannot be had.
    """
    arguments = _timm_arguments(name, image_size, drop_path_rate)
    try:
        with seeded(generator):
            encoder: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # what a download may raise has no common type
        if not pretrained:
            raise
        raise ValueError(
            f"the weights that timm publishes for {name} are not to be had here "
            f"({type(error).__name__}: {error!s:.200}). Without a network, copy the cache of a machine "
            "that has them (~/.cache/huggingface, or where HF_HOME says), give a file of them with init=FILE "
            "(`faceprior import` makes one of a .pth), or start from random weights with init=random"
        ) from error
    if isinstance(encoder, VisionTransformer):
        key_drop_paths(encoder)
    return encoder


def classifier_names(encoder: nn.Module) -> tuple[str, ...]:
    """How the names of a timm model's classifiers begin, the auxiliary one of InceptionV3 among them."""
    named: Any = getattr(encoder, "pretrained_cfg", {}).get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return tuple(f"{name}." for name in (*names, "AuxLogits"))


def load_weights(model: Baseline, tensors: Mapping[str, Tensor]) -> None:
    """Loads the encoder's weights in place, strictly; those of a classifier are left out.

    Args:
        model: its last layers stay as they are.
        tensors: by timm's names, for VGG-Face by torchvision's or its own (conv1_1, …, fc7); a prefix
            `module.` is dropped.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; each is named. The model is unchanged.
    """
    own = model.encoder.state_dict()
    given = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if isinstance(model, VGGFace) and "conv1_1.weight" in given:
        given = {_VGG_NAME.sub(lambda found: _VGG_NAMES[found[0]], name): given[name] for name in given}
    missing = sorted(n for n in own.keys() - given.keys() if not n.endswith("num_batches_tracked"))
    unknown = sorted(n for n in given.keys() - own.keys() if not n.startswith(tuple(model.unused)))
    if missing or unknown:
        raise ValueError(
            f"not weights of this model: missing {_some(missing)}, unknown {_some(unknown)}; give those of "
            "the same model under timm's names (VGG-Face: torchvision's)"
        )
    arriving = {name: tensor for name, tensor in given.items() if name in own}
    wrong = other_shapes(own, arriving)
    if wrong:
        raise ValueError(f"shapes differ: {_some(wrong)}; build the model at the size of the weights")
    model.encoder.load_state_dict({**own, **arriving})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "nothing"


def _timm_arguments(name: str, image_size: tuple[int, int], drop_path_rate: float) -> dict[str, Any]:
    """What `timm.create_model(name, …)` needs; raises ValueError where it cannot be built."""
    if not is_timm_model(name):
        near = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), n=3)
        raise ValueError(f"timm has no model {name!r} (near: {', '.join(near) or 'none'})")
    arguments: dict[str, Any] = {"num_classes": 0}
    try:
        try:
            model = _on_meta(name, img_size=image_size)
            arguments["img_size"] = image_size
        except TypeError:  # a convolutional net takes images of any size
            model = _on_meta(name)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"timm model {name} cannot be built for images of {image_size}: {error}") from error
    if drop_path_rate:
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"{name} is not a plain ViT: set encoder.drop_path_rate=0, not {drop_path_rate}")
        arguments["drop_path_rate"] = drop_path_rate
    return arguments


def _on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0, **arguments)
    return model


def _num_features(encoder: nn.Module, image_size: tuple[int, int]) -> int:
    """D of what the encoder makes of an image, by trying; raises ValueError where it cannot."""
    blank = next(encoder.parameters()).new_zeros(1, 3, *image_size)
    was_training = encoder.training
    try:
        with torch.no_grad():
            features = encoder.eval()(blank)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"this model takes no images of {image_size}: {error}") from error
    encoder.train(was_training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(f"{type(encoder).__name__} gives no vector for an image: choose another timm model")
    return features.shape[1]


@contextlib.contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """What draws from torch's own generator draws as `generator` says, and leaves torch's as it was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=generator, device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
