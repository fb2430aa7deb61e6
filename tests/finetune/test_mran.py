"""MRAN: what each switch gives, URAN within it, what is missing, mirrors and reversed time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.baselines import load_weights
from finetune.config import MRANConfig
from finetune.mran import MRAN, MapReadout, MRANOutput, VolumeBlocks, build_mran, spatial_attention
from finetune.mran_maps import ConvMap, ConvStem, InceptionMap, PatchStem, ViTMap
from pretrain.encoder import encode
from shards.clips import ClipBatch
from tests.finetune.clips import SIZE, SMALL, clips, take, tiny_mran
from tests.finetune.tiny import TINY_VIT, random, tiny_encoder

GUIDED = ("gate", "map", "early", "late", "both")
BATCH = clips(3)


def run(model: MRAN, batch: ClipBatch = BATCH) -> MRANOutput:
    output: MRANOutput = model(batch.images, batch.valid, batch.rng)
    return output


def without(batch: ClipBatch, *names: str) -> dict[str, Tensor]:
    """`valid`, with no frame of these modalities."""
    return batch.valid | {name: torch.zeros_like(batch.valid[name]) for name in names}


def full(batch: ClipBatch) -> dict[str, Tensor]:
    return {name: torch.ones_like(valid) for name, valid in batch.valid.items()}


# ---- switches


@pytest.mark.parametrize("guidance", [*GUIDED, "none"])
@pytest.mark.parametrize("encoder", ["vit", "conv"])
def test_every_frame_gets_values_in_range_and_every_parameter_a_gradient(guidance: str, encoder: str) -> None:
    model = tiny_mran(guidance=guidance, encoder=encoder).train()
    output = run(model)
    assert output.va.shape == (3, 4, 2) and output.va.abs().max() <= 1
    assert output.attention.shape == (3, 4, 4, 4)
    output.va.square().sum().backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []


@pytest.mark.parametrize(
    "settings",
    [
        {"modalities": ("thermal",)},
        {"temporal": "gru"},
        {"temporal": "tcn"},
        {"readout": "flat", "readout_dim": 2},
        {"readout": "flat", "readout_dim": 3, "guidance": "late", "temporal": "gru"},
        {"encoder": "vit", "stem": "patch"},
        {"encoder": "vit", "tuned_blocks": 1, "guidance": "map"},
    ],
    ids=str,
)
def test_the_other_switches_give_values_too(settings: dict[str, Any]) -> None:
    model = tiny_mran(**settings).train()
    output = run(model)
    assert output.va.shape == (3, 4, 2) and output.va.isfinite().all()
    output.va.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_the_face_net_gives_its_last_map_and_takes_given_weights() -> None:
    config = MRANConfig(encoder="inception", tuned_blocks=0, **SMALL)
    model = build_mran(config, (80, 112), generator=random(0)).train()
    net = InceptionResnetV1(classify=True, num_classes=5).eval()
    assert isinstance(model.color, InceptionMap)
    load_weights(model.color, net.state_dict())
    images = torch.randint(0, 256, (2, 3, 80, 112), dtype=torch.uint8, generator=random(1))
    found = model.color(images)
    kept: list[Tensor] = []
    net.block8.register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        net((images.float() - 127.5) / 128)
    torch.testing.assert_close(found, kept[0], atol=1e-5, rtol=1e-5)
    assert found.shape[1:] == (model.color.num_features, *model.color.grid) and not found.requires_grad
    assert not {name for name, p in model.named_parameters() if name.startswith("color.") and p.requires_grad}
    again = build_mran(config, (80, 112), generator=random(0))
    fresh = build_mran(config, (80, 112), generator=random(0))
    for one, other in zip(again.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_a_vits_map_is_its_patch_tokens_where_they_lie() -> None:
    encoder = tiny_encoder().eval()
    images = torch.randn(2, 3, *SIZE, generator=random(0))
    tokens = encode(encoder, images)
    for tuned in (None, 0, 2):
        found = ViTMap(tiny_encoder(), tuned).eval()(images)
        assert torch.equal(found[:, :, 2, 3], tokens[:, 1 + 2 * 4 + 3])
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens[:, 1:])


@torch.no_grad()
def test_a_patch_stem_starts_as_the_vit_sees_a_grey_picture() -> None:
    encoder = tiny_encoder()
    grey = torch.randn(2, 1, *SIZE, generator=random(0))
    expected = encoder.patch_embed.proj(grey.expand(-1, 3, -1, -1)).relu()
    torch.testing.assert_close(PatchStem(encoder)(grey), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (2, 2), (3, 5)])
def test_a_stem_meets_the_grid_of_colour(grid: tuple[int, int]) -> None:
    assert ConvStem(SIZE, grid, 12)(torch.zeros(2, 1, *SIZE)).shape == (2, 12, *grid)


@torch.no_grad()
def test_a_stem_keeps_the_level_that_normalisation_would_divide_out() -> None:
    stem = ConvStem(SIZE, (4, 4), 12, random(0))
    cold, warm = (stem(torch.full((1, 1, *SIZE), value)) for value in (0.2, 0.4))
    torch.testing.assert_close(warm, 2 * cold)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "resnet"},
        {"guidance": "gates"},
        {"stem": "pixels"},
        {"temporal": "lstm"},
        {"loss": "mae"},
        {"modalities": ("depth", "color")},
        {"modalities": ()},
        {"tuned_blocks": -1},
        {"encoder": "conv", "tuned_blocks": 2},
        {"encoder": "conv", "stem": "patch"},
        {"volume_dims": ()},
        {"dim": 0},
        {"modality_dropout": 1.0},
        {"frame_dropout": -0.1},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mran") as caught:
        MRANConfig(**settings)
    assert next(reversed(settings)) in str(caught.value)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a ViT"):
        build_mran(MRANConfig(), SIZE)
    histograms = tiny_encoder(config=replace(TINY_VIT, patch_embedding="hog"))
    with pytest.raises(ValueError, match="starts as a ViT's convolution; colour has none: use conv"):
        build_mran(MRANConfig(stem="patch"), SIZE, histograms)
    with pytest.raises(ValueError, match="has 3 blocks"):
        tiny_mran(encoder="vit", tuned_blocks=4)
    with pytest.raises(ValueError, match="75 pixels or more"):
        build_mran(MRANConfig(encoder="inception"), (74, 112))
    with pytest.raises(ValueError, match="8 pixels"):
        ConvMap((7, 32))
    with pytest.raises(ValueError, match="must be even"):
        tiny_mran(temporal="gru", volume_dims=(6, 7))
    with pytest.raises(ValueError, match="random keys"):
        tiny_mran().train()(BATCH.images, BATCH.valid)


# ---- URAN


@pytest.mark.parametrize("guidance", GUIDED)
@pytest.mark.parametrize("absent", ["not valid", "not there"])
def test_without_guidance_it_is_uran_to_the_last_bit(guidance: str, absent: str) -> None:
    """Outputs and gradients on the shared weights, even after training has moved every bias."""
    model, uran = tiny_mran(guidance=guidance), tiny_mran(guidance="none")
    shared = uran.state_dict()
    drawn = model.state_dict()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in shared.items())  # by one seed
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=random(param.numel())))
    uran.load_state_dict({name: model.state_dict()[name] for name in shared})
    images = BATCH.images if absent == "not valid" else {"color": BATCH.images["color"]}
    valid = without(BATCH, "depth", "thermal")
    outputs = [each.train()(images, valid, BATCH.rng) for each in (model, uran)]
    for output in outputs:
        output.va.square().sum().backward()
    assert torch.equal(outputs[0].va, outputs[1].va)
    assert torch.equal(outputs[0].attention, outputs[1].attention)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, param in uran.named_parameters():
        assert torch.equal(gradients.pop(name), param.grad), name
    assert gradients and all(g is not None for g in gradients.values())
    guided = model.eval()(BATCH.images, BATCH.valid)
    assert not torch.allclose(guided.va, uran.eval()(BATCH.images, BATCH.valid).va, atol=1e-5)


def test_uran_holds_nothing_of_guidance_and_looks_at_colour_alone() -> None:
    uran = tiny_mran(guidance="none").eval()
    assert [name for name, _ in uran.named_parameters() if "guid" in name] == []
    color = {"color": BATCH.images["color"]}
    assert torch.equal(uran(color, BATCH.valid).va, run(uran).va)


# ---- attention


def test_attention_sums_to_the_number_of_places_and_keeps_the_scale() -> None:
    attention = spatial_attention(torch.randn(2, 3, 5, 7, generator=random(0)) * 3)
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.full((2, 3), 35.0))
    assert (attention > 0).all()
    assert torch.equal(spatial_attention(torch.full((1, 4, 4), 8.0)), torch.ones(1, 4, 4))
    assert spatial_attention(torch.randn(1, 4, 4).bfloat16()).dtype == torch.float32
    for guidance in (*GUIDED, "none"):
        torch.testing.assert_close(
            run(tiny_mran(guidance=guidance).eval()).attention.sum(dim=(2, 3)), torch.full((3, 4), 16.0)
        )


@torch.no_grad()
def test_boosted_features_are_colours_times_attention() -> None:
    """The whole model once more, in plain steps, from its parts."""
    model, valid = tiny_mran().eval(), full(BATCH)
    kept: list[Tensor] = []
    model.volume.register_forward_hook(lambda module, given, out: kept.append(given[0]))
    output = model(BATCH.images, valid)
    for t in range(4):
        features = model.project(model.color(BATCH.images["color"][:, t]))
        expected = features * output.attention[:, t, None]
        torch.testing.assert_close(kept[0][:, t], expected, atol=1e-6, rtol=1e-5)
    states = {
        name: model.guide.lstms[name](
            torch.stack(
                [
                    model.guide.projects[name](model.guide.stems[name](frame))
                    for frame in BATCH.images[name].unbind(1)
                ],
                dim=1,
            )
        )
        for name in ("depth", "thermal")
    }
    both = torch.cat([states["depth"], states["thermal"]], dim=2)
    guidance = [model.guide_gates(F.relu(model.guide.fuse(frame))) for frame in both.unbind(1)]
    color = torch.stack([model.project(model.color(f)) for f in BATCH.images["color"].unbind(1)], dim=1)
    hidden = model.attention_lstm(color, torch.stack(guidance, dim=1))
    scores = torch.stack([model.attend(state)[:, 0] for state in hidden.unbind(1)], dim=1)
    attention = F.softmax(scores.flatten(2), dim=2).view_as(scores) * 16
    torch.testing.assert_close(output.attention, attention, atol=1e-5, rtol=1e-5)


# ---- what is missing


@pytest.mark.parametrize("guidance", GUIDED)
def test_what_stands_in_a_missing_frame_is_never_seen(guidance: str) -> None:
    model = tiny_mran(guidance=guidance).train()
    spoilt = {"color": BATCH.images["color"].clone()}
    spoilt["color"][~BATCH.valid["color"]] = 77
    for name in ("depth", "thermal"):
        gone = ~BATCH.valid[name]
        spoilt[name] = BATCH.images[name].masked_fill(gone[:, :, None, None, None], math.nan)
    found = []
    for images in (BATCH.images, spoilt):
        model.zero_grad()
        output = model(images, BATCH.valid, BATCH.rng)
        output.va.square().sum().backward()
        found.append((output.va.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["color", "depth", "thermal"])
def test_a_missing_modality_changes_its_clip_alone(name: str) -> None:
    model = tiny_mran().eval()
    whole, valid = model(BATCH.images, full(BATCH)), full(BATCH)
    valid[name][1] = False
    lacking = model(BATCH.images, valid)
    assert lacking.va.isfinite().all() and not torch.equal(lacking.va[1], whole.va[1])
    torch.testing.assert_close(lacking.va[[0, 2]], whole.va[[0, 2]], atol=1e-6, rtol=1e-5)


def test_dropout_is_the_clips_own_in_any_batch() -> None:
    """Which modality is lost, and which colour frames, follows from the key alone."""
    settings = {"modality_dropout": 0.5, "frame_dropout": 0.4, "encoder": "vit"}  # the ViT has drop path
    batch, model = clips(24, known=1.0), tiny_mran(**settings).train()
    with torch.no_grad():
        whole = run(model, batch)
        parts = [run(model, take(batch, rows)).va for rows in (range(10), range(10, 24))]
        single = run(model, take(batch, [17])).va
    torch.testing.assert_close(torch.cat(parts), whole.va, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(single[0], whole.va[17], atol=1e-5, rtol=1e-5)
    seen = model._seen(batch.images, batch.valid, batch.rng)
    lost = {name: ~seen[name].any(1) for name in ("depth", "thermal")}
    assert all(torch.equal(seen[name].all(1), ~lost[name]) for name in lost)
    kinds = {(bool(d), bool(t)) for d, t in zip(lost["depth"], lost["thermal"], strict=True)}
    assert len(kinds) == 4  # none, each, both
    assert 0.2 < (~seen["color"]).float().mean() < 0.6
    for name, valid in model.eval()._seen(batch.images, batch.valid, None).items():
        assert torch.equal(valid, batch.valid[name])


def test_half_precision_is_near_and_keeps_attention_whole() -> None:
    model = tiny_mran(encoder="vit").eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(model)
    output.va.sum().backward()
    assert output.va.dtype == output.attention.dtype == torch.float32
    torch.testing.assert_close(output.attention.sum(dim=(2, 3)), torch.full((3, 4), 16.0))
    torch.testing.assert_close(output.va, run(model).va, atol=5e-2, rtol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- frozen


def test_a_frozen_encoder_builds_no_graph_and_has_no_gradient() -> None:
    model = tiny_mran(encoder="vit", tuned_blocks=0).train()
    before = {name: tensor.clone() for name, tensor in model.color.state_dict().items()}
    maps = model.color(BATCH.images["color"].flatten(0, 1), BATCH.rng.repeat_interleave(4))
    assert not maps.requires_grad and not model.color.encoder.training
    run(model).va.sum().backward()
    assert all(p.grad is None for p in model.color.parameters())
    assert model.project.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.color.state_dict().items())
    conv = tiny_mran(tuned_blocks=0).train()
    run(conv).va.sum().backward()
    assert all(p.grad is None for p in conv.color.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_partly_frozen_vit_learns_from_its_last_blocks_on(checkpointing: bool) -> None:
    model = tiny_mran(encoder="vit", tuned_blocks=2).train()
    encoder: Any = model.encoder
    encoder.set_grad_checkpointing(checkpointing)
    seen: list[bool] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out.requires_grad))
    run(model).va.sum().backward()
    assert seen[:3] == [False, True, True]
    learns = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert learns == {
        name for name, _ in encoder.named_parameters() if name.startswith(("blocks.1", "blocks.2", "norm."))
    }


# ---- mirrors and time


def mirrored(model: MRAN) -> MRAN:
    """The same model for mirrored pictures: every convolution's weights from right to left."""
    other = tiny_mran(guidance=model.config.guidance, tuned_blocks=model.config.tuned_blocks)
    other.load_state_dict(
        {name: tensor.flip(-1) if tensor.ndim >= 4 else tensor for name, tensor in model.state_dict().items()}
    )
    return other.eval()


@torch.no_grad()
@pytest.mark.parametrize("guidance", [*GUIDED, "none"])
def test_mirrored_pictures_give_a_mirrored_model_mirrored_attention(guidance: str) -> None:
    """All modalities flipped, weights flipped: the same values; colour flipped alone: others."""
    model = tiny_mran(guidance=guidance).eval()
    flipped = {name: images.flip(-1) for name, images in BATCH.images.items()}
    expected, other = run(model), mirrored(model)
    found = other(flipped, BATCH.valid)
    torch.testing.assert_close(found.va, expected.va, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.attention, expected.attention.flip(-1), atol=1e-5, rtol=1e-4)
    if guidance != "none":
        alone = other({**BATCH.images, "color": flipped["color"]}, BATCH.valid)
        assert not torch.allclose(alone.va, expected.va, atol=1e-4)


@torch.no_grad()
def test_reversed_time_is_another_video_but_not_without_memory() -> None:
    """Without recurrence, a kept cell and neighbours in time, each frame stands alone: any order will do."""
    model = tiny_mran().eval()
    backwards = {name: images.flip(1) for name, images in BATCH.images.items()}
    valid = {name: seen.flip(1) for name, seen in BATCH.valid.items()}
    assert not torch.allclose(model(backwards, valid).va.flip(1), run(model).va, atol=1e-4)
    for lstm in (model.attention_lstm, *model.guide.lstms.values()):
        lstm.recur.weight.zero_()
        lstm.bias[lstm.hidden_dim : 2 * lstm.hidden_dim] = -1e4
    assert not torch.allclose(model(backwards, valid).va.flip(1), run(model).va, atol=1e-4)
    for convolution in model.volume.convs:
        convolution.weight[:, :, [0, 2]] = 0
    found = model(backwards, valid)
    torch.testing.assert_close(found.va.flip(1), run(model).va, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.attention.flip(1), run(model).attention, atol=1e-6, rtol=1e-5)
    alone = model(*({n: t[:, 2:3] for n, t in part.items()} for part in (BATCH.images, BATCH.valid)))
    torch.testing.assert_close(alone.va[:, 0], run(model).va[:, 2], atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("guidance", GUIDED)
def test_guidance_speaks_from_the_past_alone_to_attention(guidance: str) -> None:
    model = tiny_mran(guidance=guidance, temporal="none").eval()
    changed = {**BATCH.images, "thermal": BATCH.images["thermal"].clone()}
    changed["thermal"][:, 2:] *= -1
    found = model(changed, full(BATCH)).attention
    expected = model(BATCH.images, full(BATCH)).attention
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=1e-6, rtol=1e-5)
    assert torch.allclose(found[:, 2:], expected[:, 2:], atol=1e-5) == (guidance == "late")


@torch.no_grad()
def test_places_side_by_side_tell_what_the_mean_over_them_cannot() -> None:
    maps = torch.rand(1, 1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    for readout, tells in (("mean", False), ("flat", True)):
        config = MRANConfig(volume_dims=(4,), readout=readout, readout_dim=2)
        module = MapReadout(config, 4, (3, 5), random(0))
        one, other = module(maps), module(maps.flip(4))
        assert one.shape == (1, 1, module.num_features) and module.num_features == (30 if tells else 4)
        assert torch.allclose(one, other) is not tells


def test_a_clip_does_not_depend_on_its_batch() -> None:
    model = tiny_mran().eval()
    torch.testing.assert_close(
        run(model, take(BATCH, [2, 0])).va, run(model).va[[2, 0]], atol=1e-6, rtol=1e-5
    )


@torch.no_grad()
def test_blocks_norm_frame_by_frame() -> None:
    """A window of one part of the frames differs at its ends alone, by as many frames as there are blocks."""
    blocks = VolumeBlocks(3, (4, 6), random(0))
    features = torch.randn(2, 9, 3, 4, 4, generator=random(1))
    part, whole = blocks(features[:, 2:9]), blocks(features)
    torch.testing.assert_close(part[:, 2:], whole[:, 4:], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(part[:, 0], whole[:, 2], atol=1e-4)
    assert isinstance(blocks.norms[0], nn.GroupNorm)
