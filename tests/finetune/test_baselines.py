"""Baselines: timm's models, VGG-Face and EmotionNet, and the weights that each starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.affect import AffectTask
from finetune.baselines import (
    VGGFACE_STATS,
    PixelStats,
    TimmFace,
    VGGFace,
    build_timm,
    is_timm_model,
    load_weights,
    pixel_stats,
    timm_depth,
)
from finetune.config import AffectConfig
from finetune.emma import AffectOutput
from finetune.emotionnet import INCEPTION, EmotionNet
from finetune.layerdecay import layer_decay_rules
from pretrain.task import resolve_params
from shards.stream import Batch, Labels

SIZE = (32, 32)
RESNET, VIT = "test_resnet", "test_vit"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build_face(name: str = RESNET, size: tuple[int, int] = SIZE, seed: int = 0, **settings: Any) -> TimmFace:
    encoder = build_timm(name, size, settings.pop("drop_path_rate", 0.0), generator=seeded(seed))
    return TimmFace(encoder, size, generator=seeded(seed), **settings)


def images(count: int = 4, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=seeded(1))


def batch(seed: int, count: int = 4) -> Batch:
    draw = seeded(seed)
    labels = Labels(
        va=torch.rand(count, 2, generator=draw) * 2 - 1,
        va_valid=torch.ones(count, 2, dtype=torch.bool),
        expr=torch.randint(0, 8, (count,), generator=draw),
        expr_valid=torch.ones(count, dtype=torch.bool),
        au=torch.randint(0, 2, (count, 12), generator=draw).float(),
        au_valid=torch.ones(count, 12, dtype=torch.bool),
    )
    pictures = torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=draw)
    keys = torch.randint(0, 2**62, (count,), generator=draw)
    return Batch([str(i) for i in range(count)], pictures, keys, labels, count)


def gradients(model: nn.Module, batches: Sequence[Batch], task: AffectTask) -> list[Tensor]:
    model.zero_grad()
    for output in task.step(model, batches):
        output.loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", [RESNET, VIT, "test_efficientnet", "test_byobnet"])
def test_any_timm_model_gives_what_is_wanted(name: str) -> None:
    model = build_face(name).eval()
    output = model(images())
    assert (output.va.shape, output.expr.shape, output.au.shape) == ((4, 2), (4, 8), (4, 12))
    assert isinstance(output, AffectOutput) and output.scores is None
    only = build_face(name, num_expr=6, num_au=0, va=False).eval()(images())
    assert only.expr.shape == (4, 6) and only.au is None and only.va is None


def test_inception_has_no_auxiliary_output() -> None:
    model = build_face("inception_v3", (80, 80))
    assert model.train()(images(2, (80, 80))).expr.shape == (2, 8)


def test_weights_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    build_timm(RESNET, SIZE, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    one, two, other = build_face(seed=3), build_face(seed=3), build_face(seed=4)
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.encoder.conv1[0].weight, other.encoder.conv1[0].weight)


def test_images_are_normalised_as_the_models_own_were() -> None:
    stats = pixel_stats("vit_base_patch16_clip_224.openai")
    assert stats.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert pixel_stats("resnet50.tv_in1k").mean == (0.485, 0.456, 0.406)
    assert pixel_stats("inception_v3.tv_in1k") == PixelStats((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = build_face(stats=stats).eval()
    faces = images()
    by_hand = (faces / 255 - torch.tensor(stats.mean)[:, None, None]) / torch.tensor(stats.std)[:, None, None]
    torch.testing.assert_close(model(faces).expr, model(by_hand).expr)
    assert not torch.allclose(model(faces).expr, build_face().eval()(faces).expr)


def test_vggface_takes_pixels_of_0_to_255_minus_the_mean_face() -> None:
    with torch.device("meta"):
        pixels = VGGFace().pixels
    assert pixels.scale.device.type == "meta"
    mean, std = torch.tensor(VGGFACE_STATS.mean), torch.tensor(VGGFACE_STATS.std)
    torch.testing.assert_close((1 - mean) / std, 255 - torch.tensor([129.1863, 104.7624, 93.5940]))


def test_linear_leaves_the_encoder_as_it_was() -> None:
    model = build_face(linear=True).train()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.0.weight",
        "head.0.bias",
    ]
    assert not any(part.training for part in model.encoder.modules()) and model.head.training
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    head = model.head[0].weight.detach().clone()
    gradients(model, [batch(0)], AffectTask(AffectConfig()))
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.encoder.state_dict().items())
    assert not torch.equal(head, model.head[0].weight)


def test_finetuning_trains_all_of_it() -> None:
    model = build_face().train()
    assert len(gradients(model, [batch(0)], AffectTask(AffectConfig()))) == len(list(model.parameters()))


def test_accumulation_moves_batchnorms_statistics_once() -> None:
    task, batches = AffectTask(AffectConfig()), [batch(0), batch(1)]
    model, plain = build_face().train(), build_face().train()
    gradients(model, batches, task)
    with torch.no_grad():
        for one in batches:
            plain(one.images)
    for ours, expected in zip(model.encoder.buffers(), plain.encoder.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_drop_path_follows_the_keys() -> None:
    model = build_face(VIT, drop_path_rate=0.5).train()
    faces, keys = images(), torch.arange(4)
    assert torch.equal(model(faces, keys).expr, model(faces, keys).expr)
    assert not torch.equal(model(faces, keys).expr, model(faces, keys + 7).expr)
    with pytest.raises(ValueError, match="keys"):
        model(faces)


def test_layer_decay_knows_a_timm_vits_layers() -> None:
    name = "vit_base_patch16_clip_224.openai"
    assert (timm_depth(name), timm_depth("resnet50"), timm_depth("efficientnet_b2")) == (12, 0, 0)
    with torch.device("meta"):
        model = TimmFace(build_timm(name, (224, 224)), (224, 224))
    settings = resolve_params(model, layer_decay_rules(12, 0.65))
    assert settings["head.0.weight"].lr_scale == 1
    assert settings["encoder.blocks.11.attn.qkv.weight"].lr_scale == pytest.approx(0.65)
    for stem in ("patch_embed.proj.weight", "pos_embed", "cls_token", "norm_pre.weight"):
        assert settings[f"encoder.{stem}"].lr_scale == pytest.approx(0.65**13)


def test_published_weights_without_a_network_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights that timm publishes for resnet10t.*HF_HOME.*init=FILE"):
        build_timm("resnet10t", SIZE, pretrained=True)


@pytest.mark.parametrize(
    ("name", "size", "rate", "said"),
    [
        ("resnet5", SIZE, 0.0, r"timm has no model 'resnet5' \(near: .*resnet"),
        (RESNET, SIZE, 0.1, "not a plain ViT: set encoder.drop_path_rate=0"),
        ("swin_tiny_patch4_window7_224.ms_in1k", (0, 0), 0.0, "cannot be built for images of"),
    ],
)
def test_what_timm_cannot_build_is_refused(name: str, size: tuple[int, int], rate: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_timm(name, size, rate)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", SIZE), (VIT, (8, 8))])
def test_images_too_small_are_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="takes no images of"):
        build_face(name, size)


def test_names_with_and_without_tags() -> None:
    known = ("resnet50", "resnet50.tv_in1k", "resnet50_clip.openai", "vit_base_patch16_clip_224.openai")
    assert all(is_timm_model(name) for name in known)
    assert not any(is_timm_model(name) for name in ("vit", "emma", "resnet50.nothing", ""))


def test_weights_of_a_file_load_and_its_classifier_is_left_out() -> None:
    model, source = build_face(seed=0), build_face(seed=5)
    file = {f"module.{name}": value for name, value in source.encoder.state_dict().items()}
    file |= {"module.fc.weight": torch.zeros(10, 96), "module.AuxLogits.fc.weight": torch.zeros(1)}
    head = model.head[0].weight.detach().clone()
    load_weights(model, file)
    ours, theirs = model.encoder.state_dict(), source.encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.equal(model.head[0].weight, head)


def test_weights_of_another_model_are_refused_and_change_nothing() -> None:
    model = build_face()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = build_face(seed=5).encoder.state_dict()
    short = dict(list(good.items())[5:])
    with pytest.raises(ValueError, match=r"missing conv1\.0\.weight"):
        load_weights(model, short)
    with pytest.raises(ValueError, match=r"unknown extra\.weight"):
        load_weights(model, {**good, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"shapes differ: conv1\.0\.weight \(1,\)"):
        load_weights(model, {**good, "conv1.0.weight": torch.zeros(1)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_vggface_trains_its_last_layers_and_takes_both_kinds_of_names() -> None:
    with torch.device("meta"):
        linear, connected = VGGFace(), VGGFace(linear=False)
    assert [name for name, p in linear.named_parameters() if p.requires_grad] == [
        "head.0.weight",
        "head.0.bias",
    ]
    assert {name.partition(".")[2][:12] for name, p in connected.named_parameters() if p.requires_grad} == {
        "0.weight",
        "0.bias",
        "classifier.0",
        "classifier.3",
    }
    own = [name for name in linear.encoder.state_dict() if name.endswith("weight")]
    caffe = [f"conv{s}_{i}" for s, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1)]
    shapes = {name: tensor.shape for name, tensor in linear.encoder.state_dict().items()}
    file = {}
    for name, short in zip(own, [*caffe, "fc6", "fc7"], strict=True):
        file[f"{short}.weight"] = torch.empty(shapes[name], device="meta")
        file[f"{short}.bias"] = torch.empty(shapes[name][:1], device="meta")
    load_weights(linear, {**file, "fc8.weight": torch.empty(1, device="meta")})
    torchvisions = {**linear.encoder.state_dict(), "classifier.6.weight": torch.empty(1, device="meta")}
    load_weights(linear, torchvisions)
    with pytest.raises(ValueError, match=r"missing classifier\.0"):
        load_weights(linear, {name: value for name, value in file.items() if not name.startswith("fc6")})


def test_emotionnet_learns_all_three_from_its_own_units() -> None:
    size = (80, 80)
    model = EmotionNet(build_timm(INCEPTION, size, generator=seeded()), generator=seeded()).train()
    output = model(images(2, size))
    assert (output.va.shape, output.expr.shape, output.au.shape) == ((2, 2), (2, 8), (2, 12))
    (output.va.sum() + output.expr.sum() + output.au.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()
    model(images(2, size)).au[:, 3].sum().backward()
    heads = [bool(head.weight.grad.any()) for head in model.au_heads]
    assert heads == [i == 3 for i in range(12)]
    assert model.expr.turns.grad is None and len(model.units) == 17


def test_emotionnet_starts_from_an_inception_of_images_or_faces() -> None:
    source = TimmFace(build_timm(INCEPTION, (80, 80), generator=seeded(1)), (80, 80))
    model = EmotionNet(build_timm(INCEPTION, (80, 80), generator=seeded(2)))
    load_weights(model, source.encoder.state_dict())
    weights = (model.encoder.Mixed_6e.branch1x1.conv.weight, source.encoder.Mixed_6e.branch1x1.conv.weight)
    assert torch.equal(*weights)


def test_emotionnet_refuses_other_encoders_and_lacking_labels() -> None:
    with pytest.raises(ValueError, match="InceptionV3, not ResNet"):
        EmotionNet(build_timm(RESNET, SIZE))
    with torch.device("meta"):
        encoder = build_timm(INCEPTION, (80, 80))
    with pytest.raises(ValueError, match="expressions and action units together"):
        EmotionNet(encoder, num_au=0)
