"""Layer decay and weight decay, parameter by parameter, against the released optimiser groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.affect import AffectTask
from finetune.config import AffectConfig, HeadConfig
from finetune.dan import DAN, DANConfig
from finetune.emma import EMMA, FaceViT
from finetune.layerdecay import layer_decay_rules, layer_of
from pipelines.optim import param_groups
from pretrain.config import EncoderConfig
from pretrain.encoder import build_encoder
from pretrain.task import resolve_params
from tests.finetune.tiny import TINY_VIT, tiny_cotex

SCALES = [
    *(0.00369721, 0.00568801, 0.00875078, 0.01346274, 0.02071191, 0.03186448, 0.04902228),
    *(0.07541889, 0.11602906, 0.17850625, 0.274625, 0.4225, 0.65, 1.0),
]
Groups = dict[tuple[float, float], tuple[int, int]]


def released_groups() -> Groups:
    """(scale, weight decay) -> tensors and numbers in them: ViT-B with the head of EMMA."""
    found: Groups = {(SCALES[0], 0.0): (3, 152832), (SCALES[0], 0.05): (1, 589824)}
    for scale in SCALES[1:-1]:
        found |= {(scale, 0.0): (8, 9984), (scale, 0.05): (4, 7077888)}
    return found | {(1.0, 0.0): (4, 2068), (1.0, 0.05): (2, 403456)}


def groups_of(model: nn.Module) -> Groups:
    rules = AffectTask(AffectConfig(), depth=12, layer_decay=0.65).param_rules()
    return {
        (round(group["lr_scale"], 8), group["weight_decay"]): (
            len(group["params"]),
            sum(param.numel() for param in group["params"]),
        )
        for group in param_groups(model, rules, 0.05)
    }


@pytest.fixture(scope="module")
def emma() -> EMMA:
    """ViT-B, without memory behind it."""
    with torch.device("meta"):
        return EMMA(build_encoder(EncoderConfig(drop_path_rate=0.1)), DAN(DANConfig(8)), HeadConfig())


def test_the_groups_are_those_of_the_released_optimiser():
    with torch.device("meta"):
        model = FaceViT(build_encoder(EncoderConfig()), HeadConfig(), 8, 12, va=False)
    assert groups_of(model) == released_groups() and len(released_groups()) == 28


def test_emma_adds_its_va_head_to_the_last_and_nothing_of_the_frozen_dan(emma: EMMA):
    expected = released_groups()
    expected[1.0, 0.0] = (4 + 2, 2068 + 256 + 2)
    expected[1.0, 0.05] = (2 + 2, 403456 + 28 * 256 + 256 * 2)
    assert groups_of(emma) == expected
    settings = resolve_params(emma, layer_decay_rules(12, 0.65))
    assert settings.keys() == {name for name in settings if not name.startswith("cnn.")}
    assert settings["va_head.0.weight"] == (True, 1.0) and settings["va_head.2.bias"] == (False, 1.0)


def test_tokens_and_positions_are_not_decayed_and_belong_to_the_stem(emma: EMMA):
    settings = resolve_params(emma, layer_decay_rules(12, 0.65))
    for name in ("cls_token", "pos_embed", "patch_embed.proj.bias"):
        assert settings[f"encoder.{name}"] == (False, pytest.approx(0.65**13))
    assert settings["encoder.patch_embed.proj.weight"] == (True, pytest.approx(0.65**13))
    assert settings["encoder.blocks.10.attn.qkv.weight"] == (True, pytest.approx(0.65**2))
    assert settings["encoder.norm.weight"] == (False, 1.0)


def test_both_views_of_cotex_are_scaled_alike():
    settings = resolve_params(tiny_cotex(), layer_decay_rules(3, 0.5))
    first = {name: s for name, s in settings.items() if name.startswith("views.0.")}
    second = {name.replace("views.1.", "views.0."): s for name, s in settings.items() if "views.1." in name}
    assert first == second and len(first) * 2 == len(settings)
    assert {s.lr_scale for s in settings.values()} == {1 / 16, 1 / 8, 1 / 4, 1 / 2, 1}


def test_names_of_heads_are_not_taken_for_the_stem():
    assert layer_of("head.0.weight", 12) == layer_of("encoder.norm.bias", 12) == 13
    assert layer_of("encoder.blocks.0.norm1.weight", 12) == 1 and layer_of("blocks.11.mlp.fc1.bias", 12) == 12
    assert layer_of("readout.my_pos_embed_head.weight", 12) == 13
    assert layer_of("encoder.reg_token", 12) == layer_of("encoder.norm_pre.weight", 12) == 0


def test_one_rate_for_all_without_decay_or_without_blocks():
    encoder = build_encoder(TINY_VIT)
    for rules in (layer_decay_rules(3, 1.0), layer_decay_rules(0, 0.5)):
        settings = resolve_params(encoder, rules)
        assert {s.lr_scale for s in settings.values()} == {1.0}
        assert not settings["cls_token"].decay and settings["blocks.0.mlp.fc1.weight"].decay


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\]"):
        layer_decay_rules(12, decay)
