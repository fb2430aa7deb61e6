"""Plain implementations of CoTEX, EMMA and MRAN, which `bench.finetune_steps` compares ours with.

Each takes copies of the very modules that ours trains, so weights and sizes are the same, and runs them as
a short reading of the paper does: patches are masked after all of them were embedded, DAN is part of the
graph, video goes through the model frame by frame. Images are float and normalised, every label is there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.convlstm import ConvLSTM
from finetune.cotex import CoTEX
from finetune.dan import DAN
from finetune.emma import EMMA
from finetune.mran import MRAN
from finetune.mran_maps import ViTMap


def masked_tokens(encoder: Any, images: Tensor, noise: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """MAE's masking as in its reference code: every patch is embedded and placed, then some are gathered.

    Args:
        encoder: a timm ViT.
        images: (B, 3, H, W) normalised.
        noise: (B, L); the patches of the least noise are kept.
        num_keep: K.

    Returns:
        Tokens (B, 1 + K, D) after the final norm, and the mask (B, L) in position order, 1 = removed.
    """
    patches = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    batch_size, length, dim = patches.shape
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    kept = torch.gather(patches, 1, ids_shuffle[:, :num_keep, None].expand(-1, -1, dim))
    mask = torch.ones(batch_size, length, device=images.device)
    mask[:, :num_keep] = 0
    mask = torch.gather(mask, 1, ids_restore)
    cls = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(batch_size, -1, -1)
    return encoder.norm(encoder.blocks(torch.cat([cls, kept], dim=1))), mask


class PlainCoTEX(nn.Module):
    """Masked CoTEX: one ViT after the other.

    Args:
        model: whose weights are copied.
        js_weight: λ.
    """

    def __init__(self, model: CoTEX, js_weight: float) -> None:
        super().__init__()
        self.views, self.num_keep = copy.deepcopy(model.views), model.num_keep
        self.num_patches, self.js_weight = model.num_patches, js_weight

    def loss(self, images: Tensor, expr: Tensor, noises: list[Tensor] | None = None) -> Tensor:
        """Cross-entropy of each view and their divergence.

        Args:
            images: (B, 3, H, W) normalised.
            expr: (B,) int64.
            noises: of each view (B, L), instead of random ones.
        """
        logits = []
        views: Any = self.views
        for number, view in enumerate(views):
            shape = len(images), self.num_patches
            noise = noises[number] if noises else torch.rand(shape, device=images.device)
            tokens, _ = masked_tokens(view.encoder, images, noise, self.num_keep)
            logits.append(view.head(tokens[:, 0]))
        first, second = (F.softmax(one.float(), dim=1) for one in logits)
        middle = ((first + second) / 2).clamp(min=1e-7).log()
        js = sum(F.kl_div(middle, one, reduction="batchmean") for one in (first, second)) / 2
        return F.cross_entropy(logits[0], expr) + F.cross_entropy(logits[1], expr) + self.js_weight * js


class PlainEMMA(nn.Module):
    """EMMA as its released code runs it: DAN trains along in the graph, its BatchNorm statistics move.

    Args:
        model: whose weights are copied.
        frozen: DAN has no gradient, as in the paper.
    """

    def __init__(self, model: EMMA, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.encoder, self.readout = copy.deepcopy(model.encoder), copy.deepcopy(model.readout)
        self.head, self.va_head = copy.deepcopy(model.head), copy.deepcopy(model.va_head)
        self.num_expr = model.num_expr
        self.cnn = DAN(model.cnn.config)
        self.cnn.load_state_dict(model.cnn.state_dict())
        self.cnn.requires_grad_(not frozen)

    def loss(self, images: Tensor, labels: Any, detached: bool = False) -> Tensor:
        """The three losses summed.

        Args:
            images: (B, 3, H, W) normalised.
            labels: expr (B,), au (B, 12) and va (B, 2), all there.
            detached: as the paper has it: valence and arousal train nothing but their own head.
        """
        outputs = self.head(self.readout(self.encoder.forward_features(images)))
        scores = torch.cat([self.cnn(images).logits, outputs], dim=1)
        va = self.va_head(scores.detach() if detached else scores)
        expr = F.cross_entropy(outputs[:, : self.num_expr].float(), labels.expr)
        au = F.binary_cross_entropy_with_logits(outputs[:, self.num_expr :].float(), labels.au)
        return expr + au + ccc_loss(va.float(), labels.va)


def ccc_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 − (CCC of valence + CCC of arousal) of (N, 2)."""
    mean_pred, mean_target = pred.mean(0), target.mean(0)
    covariance = ((pred - mean_pred) * (target - mean_target)).mean(0)
    spread = pred.var(0, unbiased=False) + target.var(0, unbiased=False)
    return 1 - (2 * covariance / (spread + (mean_pred - mean_target) ** 2)).sum()


class PlainMRAN(nn.Module):
    """MRAN with one loop over the frames, in which everything is computed that belongs to a frame.

    Args:
        model: whose weights are copied; guided in the gates, with or without the scores.
        loss: "ccc" or "mse".
    """

    def __init__(self, model: MRAN, loss: str) -> None:
        super().__init__()
        self.model, self.kind = copy.deepcopy(model), loss

    def loss(self, images: Mapping[str, Tensor], va: Tensor) -> Tensor:
        """CCC or squared error of clips.

        Args:
            images: "color" (B, T, 3, H, W) normalised, "depth" and "thermal" (B, T, 1, H, W); all valid.
            va: (B, T, 2).
        """
        pred = self(images).flatten(0, 1)
        target = va.flatten(0, 1)
        return ccc_loss(pred, target) if self.kind == "ccc" else F.mse_loss(pred, target)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """(B, T, 2)."""
        model: Any = self.model
        guide = model.guide
        states: dict[str, tuple[Tensor, Tensor] | None] = dict.fromkeys(("color", *guide.modalities))
        boosted, guidance = [], []
        for t in range(images["color"].shape[1]):
            features = model.project(_color_map(model, images["color"][:, t]))
            hidden = []
            for name in guide.modalities:
                maps = guide.projects[name](guide.stems[name](images[name][:, t]))
                states[name] = state = _cell(guide.lstms[name], maps, states[name])
                hidden.append(state[0])
            guidance.append(F.relu(guide.fuse(torch.cat(hidden, dim=1))))
            gates = model.guide_gates(guidance[-1])
            states["color"] = state = _cell(model.attention_lstm, features, states["color"], gates)
            scores = model.attend(state[0])
            attention = F.softmax(scores.flatten(1), dim=1).view_as(scores) * scores[0].numel()
            boosted.append(attention * features)
        said = model.head(model.temporal(model.readout(model.volume(torch.stack(boosted, dim=1)))))
        if model.config.guidance == "both":
            said = said + model.guide_head(model.guide_readout(torch.stack(guidance, dim=1)))
        return torch.tanh(said.float())


def _color_map(model: MRAN, frames: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, D, h, w)."""
    if not isinstance(model.color, ViTMap):
        maps: Tensor = model.color(frames)
        return maps
    encoder: Any = model.encoder
    tokens: Tensor = encoder.forward_features(frames)[:, 1:]
    return tokens.transpose(1, 2).reshape(len(frames), -1, *model.color.grid)


def _cell(
    lstm: ConvLSTM, features: Tensor, state: tuple[Tensor, Tensor] | None, added: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """One frame of a ConvLSTM: (hidden, cell) of the last frame to that of this one."""
    if state is None:
        zeros = features.new_zeros(len(features), lstm.hidden_dim, *features.shape[-2:])
        state = (zeros, zeros)
    bias = F.pad(lstm.bias, (0, 4 * lstm.hidden_dim - len(lstm.bias)))[:, None, None]
    gates = lstm.inputs(features) + lstm.recur(state[0]) + bias + added
    take, keep, give, candidate = gates.chunk(4, dim=1)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(take) * torch.tanh(candidate)
    return torch.sigmoid(give) * torch.tanh(cell), cell
