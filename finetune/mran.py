"""MRAN: valence and arousal from colour video, guided by depth and thermal video. A reconstruction.

Of "Multi-Modal Recurrent Attention Networks for Facial Expression Recognition" (TIP 2020) and its forerunner
URAN (colour alone) the abstracts were at hand, not the bodies: sizes, rates and whatever is not named there
are ours, and no figure of this model is the paper's.

    colour F^c  ─────────────────────────────┬─> GA-LSTM ─> H_t ─> spatial softmax · H·W = A_t
    depth F^d   ─> ConvLSTM ┐                │      ↑                                        │
    thermal F^t ─> ConvLSTM ┴> φ = G ────────│──────┘ (guidance in each gate)                │
                                             └─> A ⊙ F^c ─> 3-D convolutions ─> mean ─> valence, arousal

What is missing is zero: a frame that is not valid has features of zeros, no matter what stands in it, and
nothing from guidance to its use has a bias of its own. A ConvLSTM carries its state over missing frames;
where nothing guides at all, the model is URAN on the same weights, to the last bit, however it is guided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from facenet_pytorch import InceptionResnetV1
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.baselines import seeded
from finetune.config import MRANConfig
from finetune.convlstm import ConvLSTM
from finetune.mran_maps import ColorMap, ConvMap, ConvStem, InceptionMap, PatchStem, ViTMap
from finetune.mran_volume import (
    MapReadout,
    VolumeBlocks,
    build_temporal,
    by_frame,
    place_by_place,
    without_bias,
)
from finetune.readout import build_head
from pretrain.encoder import VisionTransformer, has_convolution
from shards import keyed

_HEAD_START = 0.1
"""Of Xavier's weights: values start near 0, where tanh is steep, and not here and there at its ends."""


class MRANOutput(NamedTuple):
    """What MRAN says of B clips of T frames.

    Attributes:
        va: (B, T, 2) valence and arousal in [-1, 1].
        attention: (B, T, h, w), each frame's sums to h·w.
    """

    va: Tensor
    attention: Tensor


class MRAN(nn.Module):
    """The model; with guidance "none" it is URAN.

    The colour path draws its initial weights first, so that one seed gives it the same with any guidance.

    Args:
        color: colour frames -> maps (`build_color`).
        config: all else.
        image_size: height and width in pixels of all modalities.
        generator: source of the initial weights; None draws from torch's own.

    Raises:
        ValueError: a stem that starts as a ViT's, without a ViT.
    """

    def __init__(
        self,
        color: ColorMap,
        config: MRANConfig,
        image_size: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.modalities = config.modalities if config.guided else ()
        self.color = color
        self.project = place_by_place(color.num_features, config.dim, generator)
        self.attention_lstm = ConvLSTM(config.dim, config.hidden_dim, generator=generator)
        self.attend = without_bias(config.hidden_dim, 1, 3, generator)
        self.volume = VolumeBlocks(config.dim, config.volume_dims, generator)
        self.readout = MapReadout(config, config.volume_dims[-1], self.volume.grid_of(color.grid), generator)
        num_features = self.readout.num_features
        self.temporal = build_temporal(config.temporal, num_features, generator)
        self.head = build_head(num_features, 2, 0, generator)
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        last.weight.data.mul_(_HEAD_START)
        if config.guided:
            self.guide = Guide(color, config, image_size, generator)
        if config.guidance in ("gate", "both", "early"):
            self.guide_gates = without_bias(self.guide.num_features, 4 * config.hidden_dim, 3, generator)
            for gate in self.guide_gates.weight.data.chunk(4):
                nn.init.xavier_uniform_(gate, generator=generator)
        elif config.guidance == "map":
            self.guide_attend = without_bias(config.hidden_dim, 1, 3, generator)
        if config.guidance in ("late", "both"):
            self.guide_readout = MapReadout(config, config.hidden_dim, color.grid, generator, silent=True)
            self.guide_head = nn.Linear(self.guide_readout.num_features, 2, bias=False)
            nn.init.xavier_uniform_(self.guide_head.weight, generator=generator)

    @property
    def encoder(self) -> nn.Module:
        """The encoder of the colour frames."""
        return self.color.encoder

    def forward(
        self, images: Mapping[str, Tensor], valid: Mapping[str, Tensor], keys: Tensor | None = None
    ) -> MRANOutput:
        """Valence and arousal of every frame.

        Args:
            images: "color" (B, T, 3, H, W), uint8, or float already normalised; "depth" and "thermal"
                (B, T, 1, H, W) float32 of the order of 1, on scales of fixed units. One that is absent has
                no valid frame, one that does not guide is not looked at.
            valid: of the same names, (B, T) bool.
            keys: (B,) int64 the clips' random keys, needed in training where there is drop path or dropout.

        Raises:
            ValueError: no keys, and something to drop.
        """
        seen = self._seen(images, valid, keys)
        color = _only(seen["color"], images["color"])
        frame_keys = None if keys is None else keys.repeat_interleave(color.shape[1])
        maps = by_frame(lambda frames: self.project(self.color(frames, frame_keys)), color)
        features = _only(seen["color"], maps)
        kind = self.config.guidance
        guidance = self.guide(images, seen) if self.config.guided else features[:0]
        added = by_frame(self.guide_gates, guidance) if kind in ("gate", "both", "early") else None
        scores = by_frame(self.attend, self.attention_lstm(features, added))
        if kind == "map":
            scores = scores + by_frame(self.guide_attend, guidance)
        attention = spatial_attention(scores[:, :, 0])
        pooled = self.readout(self.volume(attention[:, :, None] * features))
        said = self.head(self.temporal(pooled))
        if kind in ("late", "both"):
            said = said + self.guide_head(self.guide_readout(guidance))
        return MRANOutput(torch.tanh(said.float()), attention)

    def _seen(
        self, images: Mapping[str, Tensor], valid: Mapping[str, Tensor], keys: Tensor | None
    ) -> dict[str, Tensor]:
        """(B, T) bool of each modality: frames that are valid and, in training, not dropped."""
        shape = images["color"].shape[:2]
        nothing = torch.zeros(shape, dtype=torch.bool, device=images["color"].device)
        seen = {name: valid[name] if name in images else nothing for name in ("color", *self.modalities)}
        shares = self.config.modality_dropout, self.config.frame_dropout
        if not self.training or not ((self.modalities and shares[0]) or shares[1]):
            return seen
        if keys is None:
            raise ValueError("modality and frame dropout need the clips' random keys: pass them in training")
        for name in self.modalities:
            seen[name] = seen[name] & (keyed.uniform_noise(keys, f"modality.{name}", 1) >= shares[0])
        seen["color"] = seen["color"] & (keyed.uniform_noise(keys, "frame", shape[1]) >= shares[1])
        return seen


class Guide(nn.Module):
    """Depth and thermal frames -> guidance, zero as long as no frame of theirs was seen.

    "early" gives both modalities' features as they are, channel by channel; the others φ of what a ConvLSTM
    of each makes of them: one convolution without bias, and ReLU.

    Args:
        color: whose grid the maps take, and for stem "patch" whose ViT's weights.
        config, image_size, generator: see `MRAN`.

    Attributes:
        num_features: channels of the guidance.
    """

    def __init__(
        self,
        color: ColorMap,
        config: MRANConfig,
        image_size: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.modalities, self.recurrent = config.modalities, config.guidance != "early"
        self.stems, self.projects, self.lstms = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name in self.modalities:
            if config.stem == "conv":
                stem: ConvStem | PatchStem = ConvStem(image_size, color.grid, config.dim, generator)
            elif isinstance(color.encoder, VisionTransformer) and has_convolution(color.encoder):
                stem = PatchStem(color.encoder)
            else:
                raise ValueError("mran.stem=patch starts as a ViT's convolution; colour has none: use conv")
            self.stems[name] = stem
            self.projects[name] = place_by_place(stem.num_features, config.dim, generator)
            if self.recurrent:
                self.lstms[name] = ConvLSTM(config.dim, config.hidden_dim, silent=True, generator=generator)
        self.num_features = config.hidden_dim if self.recurrent else len(self.modalities) * config.dim
        if self.recurrent:
            self.fuse = without_bias(
                len(self.modalities) * config.hidden_dim, config.hidden_dim, 3, generator
            )

    def forward(self, images: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
        """Guidance of every frame.

        Args:
            images: see `MRAN.forward`; of the colour images the size alone is read.
            seen: (B, T) bool of each modality.

        Returns:
            (B, T, num_features, h, w).
        """
        parts = []
        for name in self.modalities:
            shape = seen[name].shape
            if name in images:
                frames = _only(seen[name], images[name])
            else:  # all parameters take part in every step, or several processes would wait for them
                frames = torch.zeros((*shape, 1, *images["color"].shape[-2:]), device=seen[name].device)
            maps = by_frame(self.projects[name], by_frame(self.stems[name], frames))
            features = _only(seen[name], maps)
            parts.append(self.lstms[name](features) if self.recurrent else features)
        joined = torch.cat(parts, dim=2)
        return F.relu(by_frame(self.fuse, joined)) if self.recurrent else joined


def spatial_attention(scores: Tensor) -> Tensor:
    """Softmax over places times their number, so that attention keeps the features' scale.

    Args:
        scores: (..., h, w).

    Returns:
        (..., h, w) float32 or better; every frame sums to h·w, and all ones is no attention.
    """
    flat = scores.flatten(-2)
    precise = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    return (F.softmax(precise, dim=-1) * flat.shape[-1]).view_as(scores)


def build_color(
    config: MRANConfig,
    image_size: tuple[int, int],
    encoder: VisionTransformer | None = None,
    generator: torch.Generator | None = None,
) -> ColorMap:
    """What a configuration makes of colour frames.

    Nothing is downloaded: InceptionResnetV1 starts from random weights, and `baselines.load_weights` takes
    facenet-pytorch's.

    Args:
        config: which.
        image_size: height and width in pixels.
        encoder: the ViT, for "vit".
        generator: source of the initial weights; None draws from torch's own.

    Raises:
        ValueError: no ViT and one is needed, or images too small for the encoder.
    """
    tuned = config.tuned_blocks is None
    if config.encoder == "conv":
        return ConvMap(image_size, tuned, generator)
    if config.encoder == "inception":
        with seeded(generator):
            return InceptionMap(InceptionResnetV1(), image_size, tuned)
    if encoder is None:
        raise ValueError("mran.encoder=vit needs a ViT: give one, or use conv or inception")
    return ViTMap(encoder, config.tuned_blocks)


def build_mran(
    config: MRANConfig,
    image_size: tuple[int, int],
    encoder: VisionTransformer | None = None,
    generator: torch.Generator | None = None,
) -> MRAN:
    """The model of a configuration. Arguments and errors as for `build_color` and `MRAN`."""
    return MRAN(build_color(config, image_size, encoder, generator), config, image_size, generator)


def _only(seen: Tensor, values: Tensor) -> Tensor:
    """(B, T, …) values where seen (B, T), 0 elsewhere, whatever stands there."""
    return values.where(seen[(...,) + (None,) * (values.ndim - 2)], 0)
