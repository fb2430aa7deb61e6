import pytest
from tiny import tiny_mae
from torch import nn

from pretrain.mae_task import MaeTask
from pretrain.task import ParamRule, ParamSetting, resolve_params


def test_every_trainable_parameter_of_mae_has_exactly_one_setting():
    model = tiny_mae()
    settings = resolve_params(model, MaeTask(16).param_rules())
    assert list(settings) == [name for name, param in model.named_parameters() if param.requires_grad]
    assert not any("pos_embed" in name for name in settings)


def test_mae_decays_matrices_and_tokens_alone():
    settings = resolve_params(tiny_mae(), MaeTask(16).param_rules())
    for name in ("encoder.cls_token", "mask_token", "encoder.patch_embed.proj.weight", "decoder_pred.weight"):
        assert settings[name].decay
    for name in ("encoder.norm.weight", "encoder.blocks.0.attn.qkv.bias", "decoder_norm.weight"):
        assert not settings[name].decay


def test_the_last_rule_to_name_a_property_holds():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rules = [
        ParamRule(r"weight$", lr_scale=0.5),
        ParamRule(r"^0\.", decay=False),
        ParamRule(lambda name, param: name == "0.weight", lr_scale=0.1),
    ]
    assert resolve_params(model, rules) == {
        "0.weight": ParamSetting(False, 0.1),
        "0.bias": ParamSetting(False, 1.0),
        "1.weight": ParamSetting(True, 0.5),
        "1.bias": ParamSetting(True, 1.0),
    }


def test_a_rule_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="'haed' matches no trainable parameter"):
        resolve_params(nn.Linear(2, 2), [ParamRule("haed", lr_scale=2.0)])
