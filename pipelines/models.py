"""Finetuned models: built from a specification, saved with it, and rebuilt from their own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.baselines import PixelStats, TimmFace, VGGFace, build_timm, load_weights
from finetune.config import CoTEXConfig, HeadConfig, MRANConfig
from finetune.cotex import CoTEX
from finetune.dan import DAN, CenteredDAN, DANConfig, class_order
from finetune.emma import EMMA, FaceViT
from finetune.emotionnet import EmotionNet
from finetune.mran import MRAN, build_mran
from pipelines.checkpoint import (
    CheckpointError,
    TensorFile,
    check_encoder,
    describe,
    find_file,
    read_tensors,
)
from pretrain.config import EncoderConfig
from pretrain.encoder import VisionTransformer, build_encoder
from shards.config import ClipConfig

FORMAT = "faceprior-model"
VERSION = 1
BASELINES = ("timm", "vggface", "emotionnet")


@dataclass(frozen=True)
class ModelSpec:
    """All that it takes to build a model anew; its weights come after.

    Attributes:
        kind: "emma", "vit", "cotex", "dan", "mran", or of others' models "timm", "vggface" or "emotionnet".
        image_size: height and width in pixels.
        expr: names of the expression classes it tells apart; empty for none.
        au: names of its action units; empty for none.
        va: whether it gives valence and arousal.
        encoder: of the ViT, or of both of CoTEX; of a timm model its drop path.
        head: of the ViT.
        cotex: masks.
        mran: of MRAN. clip: the windows that it reads.
        cnn_heads: attention heads of the DAN. cnn_expr: names of its classes. cnn_size: size of its
            images, where it is not `image_size`.
        stop_gradient, freeze_cnn, add_cnn: see `EMMA`.
        timm_name: of the encoder of a timm model or of EmotionNet.
        linear: see `BaselineConfig`.
        mean, std: what a timm model's images are normalised by; empty for the other kinds.
    """

    kind: str
    image_size: tuple[int, int]
    expr: tuple[str, ...] = ()
    au: tuple[str, ...] = ()
    va: bool = False
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    cotex: CoTEXConfig = field(default_factory=CoTEXConfig)
    mran: MRANConfig = field(default_factory=MRANConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    cnn_heads: int = 4
    cnn_expr: tuple[str, ...] = ()
    cnn_size: tuple[int, ...] = ()
    stop_gradient: bool = True
    freeze_cnn: bool = True
    add_cnn: bool = False
    timm_name: str = ""
    linear: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class LoadedModel:
    """A model from a checkpoint, in eval mode.

    Attributes:
        model: with its weights.
        spec: what it is.
        facts: what else its file says: alignment, rendered, task.
        checkpoint: which of its run's, in words; "" for a file that is in none.
    """

    model: nn.Module
    spec: ModelSpec
    facts: Mapping[str, Any]
    checkpoint: str = ""


def build_model(
    spec: ModelSpec, generator: torch.Generator | None = None, published: bool = False
) -> nn.Module:
    """A model with random weights.

    Args:
        spec: what it is.
        generator: source of the weights; None draws from torch's own.
        published: the encoder of a timm model or EmotionNet has the weights that timm publishes.

    Raises:
        ValueError: sizes that do not fit together, or weights that are not to be had.
    """
    if spec.kind in BASELINES:
        return _build_baseline(spec, generator, published)
    if spec.kind == "dan":
        return CenteredDAN(build_dan(spec, generator), generator)
    if spec.kind == "mran" and spec.mran.encoder != "vit":
        return build_mran(spec.mran, spec.image_size, None, generator)
    encoder = build_encoder(spec.encoder, generator)
    if spec.kind == "mran":
        return build_mran(spec.mran, spec.image_size, encoder, generator)
    if spec.kind == "cotex":
        second = build_encoder(spec.encoder, generator)
        return CoTEX(encoder, second, spec.cotex, spec.head, len(spec.expr), generator)
    if spec.kind == "vit":
        drop_rate = spec.encoder.patch_drop_rate
        return FaceViT(encoder, spec.head, len(spec.expr), len(spec.au), spec.va, drop_rate, generator)
    if spec.kind == "emma":
        return EMMA(
            encoder,
            build_dan(spec, generator),
            spec.head,
            len(spec.expr),
            len(spec.au),
            spec.stop_gradient,
            spec.freeze_cnn,
            class_order(spec.expr, spec.cnn_expr) if spec.add_cnn else None,
            (spec.cnn_size[0], spec.cnn_size[1]) if spec.cnn_size else None,
            spec.encoder.patch_drop_rate,
            generator,
        )
    raise ValueError(f"no model of kind {spec.kind!r}")


def _build_baseline(spec: ModelSpec, generator: torch.Generator | None, published: bool) -> nn.Module:
    num_expr, num_au = len(spec.expr), len(spec.au)
    if spec.kind == "vggface":
        return VGGFace(num_expr, num_au, spec.va, spec.linear, generator)
    stats = PixelStats(spec.mean, spec.std)
    encoder = build_timm(spec.timm_name, spec.image_size, spec.encoder.drop_path_rate, published, generator)
    if spec.kind == "emotionnet":
        return EmotionNet(encoder, num_expr, num_au, stats, generator)
    return TimmFace(encoder, spec.image_size, num_expr, num_au, spec.va, spec.linear, stats, generator)


def build_dan(spec: ModelSpec, generator: torch.Generator | None) -> DAN:
    """The DAN of a specification: alone it tells apart `expr`, in EMMA `cnn_expr`.

    In EMMA, where it is only run forward, its weights lie channels last: on a CPU 1.3 to 1.6 times as fast,
    while its training would be slower.
    """
    if spec.kind == "dan":
        return DAN(DANConfig(len(spec.expr), spec.cnn_heads), generator=generator)
    dan = DAN(DANConfig(len(spec.cnn_expr), spec.cnn_heads), generator=generator)
    return dan.to(memory_format=torch.channels_last)


def encoders_of(model: nn.Module) -> list[VisionTransformer]:
    """The ViTs that start from a pretrained encoder."""
    if isinstance(model, CoTEX):
        return [view.encoder for view in model.views]  # type: ignore[misc]
    if isinstance(model, MRAN):
        return [model.encoder] if isinstance(model.encoder, VisionTransformer) else []
    return [model.encoder] if isinstance(model, EMMA | FaceViT) else []


def load_baseline(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Loads another model's encoder in place: of a run or checkpoint of `faceprior finetune`, or of a file.

    Args:
        model: of `spec`; its last layers stay as they are.
        path: a run, a checkpoint, or a safetensors file of weights made elsewhere.

    Raises:
        ValueError: weights of another model.
        CheckpointError: nothing readable there.
    """
    assert isinstance(model, TimmFace | VGGFace | EmotionNet)
    file = read_tensors(path) if path.is_file() else None
    if file is not None and file.facts.get("format") != FORMAT:
        return load_weights(model, file.tensors)
    start = load_model(path)
    if not isinstance(start.model, TimmFace | VGGFace | EmotionNet):
        raise ValueError(
            f"{path}: a model of kind {start.spec.kind}, which is not one of {', '.join(BASELINES)}"
        )
    names = [name.partition(".")[0] or "VGG-Face" for name in (start.spec.timm_name, spec.timm_name)]
    if names[0] != names[1]:
        raise ValueError(
            f"{path}: a {names[0]}, and {names[1]} is to start from it: give a run of the same model"
        )
    return load_weights(model, start.model.encoder.state_dict())


def model_file(model: nn.Module, spec: ModelSpec, facts: Mapping[str, Any]) -> TensorFile:
    """The content of model.safetensors: weights, and what rebuilds the model from them."""
    marks = {"format": FORMAT, "version": VERSION, "spec": asdict(spec)}
    return TensorFile(dict(model.state_dict()), {**facts, **marks})


def load_model(path: Path) -> LoadedModel:
    """The model of a run (its best checkpoint by score if it has one), a checkpoint or a model.safetensors.

    Raises:
        CheckpointError: not there, not a finetuned model, of another version, or a specification or tensors
            that do not fit.
    """
    file_path = find_file(path, "model.safetensors", "best")
    file = read_tensors(file_path)
    if file.facts.get("format") != FORMAT:
        raise CheckpointError(f"{file_path}: not a finetuned model; give a run of `faceprior finetune`")
    if file.facts.get("version") != VERSION:
        raise CheckpointError(
            f"{file_path}: model format version {file.facts.get('version')!r:.80}, this program reads "
            f"{VERSION}: use the faceprior that wrote it (run.json of its run says which)"
        )
    try:
        spec = spec_from_facts(file.facts["spec"])
        if spec.kind in ("emma", "vit", "cotex", "mran"):
            check_encoder(spec.encoder, file.tensors)
        model = build_model(spec)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file_path}: does not say what model it is ({error!r})") from error
    try:
        model.load_state_dict(file.tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file_path}: {error}") from error
    return LoadedModel(model.eval(), spec, file.facts, describe(file_path))


def spec_from_facts(data: Mapping[str, Any]) -> ModelSpec:
    """The inverse of `dataclasses.asdict`, after a way through JSON."""
    plain = dict(data)
    nested = {"encoder": EncoderConfig, "head": HeadConfig, "cotex": CoTEXConfig}
    for name, kind in nested.items():
        plain[name] = kind(**plain[name])
    later = {"mran": MRANConfig, "clip": ClipConfig}  # models saved before there was video say nothing of it
    for name, kind in later.items():
        plain[name] = kind(**plain.get(name, {}))
    for name in ("expr", "au", "cnn_expr", "cnn_size", "image_size", "mean", "std"):
        plain[name] = tuple(plain.get(name, ()))
    return ModelSpec(**plain)
