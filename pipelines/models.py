"""Finetuned models: built from a specification, saved with it, and rebuilt from their own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.cotex import CoTEX, CoTEXConfig
from finetune.dan import DAN, CenteredDAN, DANConfig, class_order
from finetune.emma import EMMA, FaceViT
from finetune.readout import HeadConfig
from pipelines.checkpoint import CheckpointError, TensorFile, find_checkpoint, read_tensors
from pretrain.encoder import EncoderConfig, VisionTransformer, build_encoder

FORMAT = "faceprior-model"
VERSION = 1


@dataclass(frozen=True)
class ModelSpec:
    """All that it takes to build a model anew; its weights come after.

    Attributes:
        kind: "emma", "vit", "cotex" or "dan".
        image_size: height and width in pixels.
        expr: names of the expression classes it tells apart; empty for none.
        au: names of its action units; empty for none.
        va: whether it gives valence and arousal.
        encoder: of the ViT, or of both of CoTEX.
        head: of the ViT.
        cotex: masks.
        cnn_heads: attention heads of the DAN. cnn_expr: names of its classes.
        stop_gradient, freeze_cnn, add_cnn: see `EMMA`.
    """

    kind: str
    image_size: tuple[int, int]
    expr: tuple[str, ...] = ()
    au: tuple[str, ...] = ()
    va: bool = False
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    cotex: CoTEXConfig = field(default_factory=CoTEXConfig)
    cnn_heads: int = 4
    cnn_expr: tuple[str, ...] = ()
    stop_gradient: bool = True
    freeze_cnn: bool = True
    add_cnn: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model from a checkpoint, in eval mode.

    Attributes:
        model: with its weights.
        spec: what it is.
        facts: what else its file says: alignment, rendered, task.
    """

    model: nn.Module
    spec: ModelSpec
    facts: Mapping[str, Any]


def build_model(spec: ModelSpec, generator: torch.Generator | None = None) -> nn.Module:
    """A model with random weights.

    Raises:
        ValueError: sizes that do not fit together.
    """
    if spec.kind == "dan":
        return CenteredDAN(build_dan(spec, generator), generator)
    encoder = build_encoder(spec.encoder, generator)
    if spec.kind == "cotex":
        second = build_encoder(spec.encoder, generator)
        return CoTEX(encoder, second, spec.cotex, spec.head, len(spec.expr), generator)
    if spec.kind == "vit":
        return FaceViT(encoder, spec.head, len(spec.expr), len(spec.au), spec.va, generator)
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
            generator,
        )
    raise ValueError(f"no model of kind {spec.kind!r}")


def build_dan(spec: ModelSpec, generator: torch.Generator | None) -> DAN:
    """The DAN of a specification: alone it tells apart `expr`, in EMMA `cnn_expr`."""
    names = spec.expr if spec.kind == "dan" else spec.cnn_expr
    return DAN(DANConfig(len(names), spec.cnn_heads), generator=generator)


def encoders_of(model: nn.Module) -> list[VisionTransformer]:
    """The ViTs that start from a pretrained encoder."""
    if isinstance(model, CoTEX):
        return [view.encoder for view in model.views]  # type: ignore[misc]
    return [model.encoder] if isinstance(model, EMMA | FaceViT) else []


def model_file(model: nn.Module, spec: ModelSpec, facts: Mapping[str, Any]) -> TensorFile:
    """The content of model.safetensors: weights, and what rebuilds the model from them."""
    marks = {"format": FORMAT, "version": VERSION, "spec": asdict(spec)}
    return TensorFile(dict(model.state_dict()), {**facts, **marks})


def load_model(path: Path) -> LoadedModel:
    """The model of a run, a checkpoint or a model.safetensors.

    Raises:
        CheckpointError: not there, not a finetuned model, of another version, or tensors that do not fit.
    """
    file_path = path if path.is_file() else find_checkpoint(path) / "model.safetensors"
    file = read_tensors(file_path)
    if file.facts.get("format") != FORMAT:
        raise CheckpointError(f"{file_path}: not a finetuned model; give a run of `faceprior finetune`")
    if file.facts.get("version") != VERSION:
        raise CheckpointError(
            f"{file_path}: model format version {file.facts.get('version')!r}, this program reads {VERSION}"
        )
    spec = spec_from_facts(file.facts["spec"])
    model = build_model(spec)
    try:
        model.load_state_dict(file.tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file_path}: {error}") from error
    return LoadedModel(model.eval(), spec, file.facts)


def spec_from_facts(data: Mapping[str, Any]) -> ModelSpec:
    """The inverse of `dataclasses.asdict`, after a way through JSON."""
    plain = dict(data)
    nested = {"encoder": EncoderConfig, "head": HeadConfig, "cotex": CoTEXConfig}
    for name, kind in nested.items():
        plain[name] = kind(**plain[name])
    for name in ("expr", "au", "cnn_expr", "image_size"):
        plain[name] = tuple(plain[name])
    return ModelSpec(**plain)
