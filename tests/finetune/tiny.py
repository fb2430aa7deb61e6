"""Tiny models and labelled faces for the tests of finetuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import CoTEXConfig, HeadConfig
from finetune.cotex import CoTEX
from finetune.dan import DAN, DANConfig
from finetune.emma import EMMA, FaceViT
from pretrain.config import EncoderConfig
from pretrain.encoder import VisionTransformer, build_encoder
from shards import keyed
from shards.stream import Batch, Labels

TINY_VIT = EncoderConfig("vit_tiny_patch16_224", 32, 8, 32, 3, 2, drop_path_rate=0.4)  # type: ignore[arg-type]
FLAT = HeadConfig("flat", readout_dim=4, hidden_dim=24)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_encoder(seed: int = 0, config: EncoderConfig = TINY_VIT) -> VisionTransformer:
    """Three blocks of which the last two are dropped now and then; 16 patches."""
    return build_encoder(config, random(seed))


def tiny_dan(num_classes: int = 8) -> DAN:
    return DAN(DANConfig(num_classes, 1), generator=random(3))


def tiny_emma(dan: DAN | None = None, **settings: Any) -> EMMA:
    return EMMA(tiny_encoder(), dan or tiny_dan(), FLAT, generator=random(1), **settings)


def tiny_vit(**settings: Any) -> FaceViT:
    return FaceViT(tiny_encoder(), HeadConfig("attention", 2, 24), generator=random(1), **settings)


def tiny_cotex(mask_ratio: float = 0.75, num_classes: int = 8) -> CoTEX:
    """Its heads start larger than the paper's, or gradients of the encoders would be all but nothing."""
    config = CoTEXConfig(mask_ratio)
    model = CoTEX(tiny_encoder(), tiny_encoder(5), config, HeadConfig(), num_classes, random(1))
    for view in model.views:
        nn.init.normal_(view.head.weight, std=0.05, generator=random(2))
    return model


def faces(count: int, seed: int = 0, known: float = 0.6) -> Batch:
    """Smooth pictures of 32 pixels; each label is there with probability `known`."""
    generator = random(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    pictures = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")

    def coins(*shape: int, share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    labels = Labels(
        va=torch.rand(count, 2, generator=generator) * 2 - 1,
        va_valid=coins(count, 2, share=known),
        expr=torch.randint(0, 8, (count,), generator=generator),
        expr_valid=coins(count, share=known),
        au=coins(count, 12, share=0.3).float(),
        au_valid=coins(count, 12, share=known),
    )
    rng = keyed.to_tensor(np.array([keyed.sample_key(seed, 0, i) for i in range(count)], np.uint64))
    keys = [f"face-{seed}-{i}" for i in range(count)]
    return Batch(keys, (pictures * 255).byte(), rng, labels, count)


def take(batch: Batch, rows: Sequence[int] | slice) -> Batch:
    """Some faces of a batch."""
    chosen = list(range(batch.size))[rows] if isinstance(rows, slice) else list(rows)
    labels = Labels(*(part[chosen] for part in batch.labels))
    keys = [batch.keys[row] for row in chosen]
    return Batch(keys, batch.images[chosen], batch.rng[chosen], labels, len(chosen))


def portions(batch: Batch, size: int) -> list[Batch]:
    """The batch in micro-batches of `size`."""
    return [take(batch, slice(start, start + size)) for start in range(0, batch.size, size)]


def without(batch: Batch, *kinds: str) -> Batch:
    """The batch without any label of these kinds ("va", "expr", "au")."""
    gone = {f"{kind}_valid": torch.zeros_like(getattr(batch.labels, f"{kind}_valid")) for kind in kinds}
    return replace(batch, labels=batch.labels._replace(**gone))


def run_step(
    task: Any, model: nn.Module, batches: Sequence[Batch]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Logs of one step, summed over its micro-batches, and the gradients it leaves."""
    model.zero_grad(set_to_none=True)
    logs: dict[str, float] = {}
    for output in task.step(model, batches):
        output.loss.backward()
        for name, value in output.logs.items():
            logs[name] = logs.get(name, 0.0) + value.item()
    return logs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
