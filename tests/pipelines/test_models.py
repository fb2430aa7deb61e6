"""A finetuned model rebuilds itself from its own file, and strange files are refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.config import CoTEXConfig, HeadConfig
from finetune.dan import AFFECTNET8, CenteredDAN
from finetune.emma import EMMA
from pipelines.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    TensorFile,
    encoder_file,
    write_tensors,
)
from pipelines.models import ModelSpec, build_model, encoders_of, load_model, model_file, spec_from_facts
from pretrain.config import EncoderConfig
from shards.labels import AU12, EXPR8
from tests.finetune.tiny import faces

ENCODER = EncoderConfig("vit_tiny_patch16_224", (32, 32), (8, 8), 16, 2, 2, drop_path_rate=0.1)
VIT = ModelSpec("vit", (32, 32), EXPR8, AU12, True, ENCODER, HeadConfig("flat", 4, 8))
SPECS = {
    "vit": VIT,
    "vit of one kind": replace(VIT, au=(), va=False, head=HeadConfig("attention", 2, 0)),
    "emma": replace(VIT, kind="emma", cnn_heads=1, cnn_expr=AFFECTNET8, add_cnn=True),
    "cotex": replace(VIT, kind="cotex", expr=EXPR8[1:7], au=(), va=False, cotex=CoTEXConfig(0.5, 2.0)),
    "dan": ModelSpec("dan", (32, 32), ("happy", "sad", "neutral"), cnn_heads=1),
}
FACTS = {"task": "mtl", "rendered": True, "alignment": [{"size": 112}]}
BATCH = faces(3)


def outputs(model: nn.Module) -> list[torch.Tensor]:
    """All that a model says of the same faces."""
    with torch.no_grad():
        output = model(BATCH.images)
    if isinstance(model, CenteredDAN):
        return [*output.dan, output.centers]
    return [part for part in output if part is not None]


def moved(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """A model whose weights and statistics are not those of a fresh one."""
    model = build_model(spec, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("kind", SPECS)
def test_a_model_comes_back_from_its_file_with_the_same_outputs(kind: str, tmp_path: Path):
    spec = SPECS[kind]
    model = moved(spec)
    write_tensors(tmp_path / "model.safetensors", model_file(model, spec, FACTS))
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.spec == spec and not loaded.model.training
    assert {name: loaded.facts[name] for name in FACTS} == FACTS
    for found, expected in zip(outputs(loaded.model), outputs(model), strict=True):
        assert torch.equal(found, expected)
    fresh = outputs(build_model(spec, torch.Generator().manual_seed(0)).eval())
    assert not torch.equal(fresh[0], outputs(model)[0])


@pytest.mark.parametrize("kind", SPECS)
def test_a_specification_survives_json(kind: str):
    assert spec_from_facts(json.loads(json.dumps(asdict(SPECS[kind])))) == SPECS[kind]


def test_bytes_of_a_file_depend_on_the_model_alone(tmp_path: Path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, model_file(moved(VIT), VIT, FACTS))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_random_weights_come_from_the_generator_alone():
    one, two = (build_model(SPECS["emma"], torch.Generator().manual_seed(4)) for _ in range(2))
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


def test_which_encoders_start_from_pretraining():
    with torch.device("meta"):
        models = [build_model(SPECS[kind]) for kind in ("vit", "emma", "cotex", "dan")]
    assert [len(encoders_of(model)) for model in models] == [1, 1, 2, 0]


def test_dan_keeps_its_switches_in_emma():
    paper = moved(SPECS["emma"])
    assert isinstance(paper, EMMA) and paper.stop_gradient and paper.added == [0, 6, 5, 4, 1, 2, 3, 8]
    spec = replace(SPECS["emma"], stop_gradient=False, freeze_cnn=False, add_cnn=False)
    released = moved(spec)
    assert isinstance(released, EMMA) and not released.stop_gradient and released.added is None
    assert released.train().cnn.training and not paper.train().cnn.training
    assert not any(param.requires_grad for param in released.cnn.parameters())


def test_a_run_a_checkpoint_and_a_file_are_the_same_model(tmp_path: Path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for step in (1, 2):
        store.save(Checkpoint(step, step, {"model": model_file(moved(VIT, step), VIT, FACTS)}))
    expected = outputs(moved(VIT, 2))
    newest = tmp_path / "run" / "checkpoints" / "step-00000002"
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", newest, newest / "model.safetensors"):
        assert torch.equal(outputs(load_model(path).model)[0], expected[0])


def good() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    file = model_file(moved(VIT), VIT, FACTS)
    return dict(file.tensors), json.loads(json.dumps(dict(file.facts)))


def without_spec(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    del facts["spec"]


def of_the_future(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    facts["version"] = 2


def with_an_unknown_setting(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    facts["spec"]["head"]["magic"] = 1


def without_a_setting(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    del facts["spec"]["encoder"]


def of_an_unknown_kind(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    facts["spec"]["kind"] = "oracle"


def of_impossible_size(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    facts["spec"]["encoder"]["num_heads"] = 3


def with_a_spec_of_text(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    facts["spec"] = "vit"


def with_a_tensor_less(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    del tensors["encoder.norm.weight"]


def with_a_tensor_of_another_shape(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    tensors["encoder.norm.weight"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_spec, "does not say what model it is.*spec"),
        (of_the_future, "model format version 2, this program reads 1"),
        (with_an_unknown_setting, "does not say what model it is.*magic"),
        (without_a_setting, "does not say what model it is.*encoder"),
        (of_an_unknown_kind, "no model of kind 'oracle'"),
        (of_impossible_size, "16 is not a multiple of num_heads 3"),
        (with_a_spec_of_text, "does not say what model it is"),
        (with_a_tensor_less, r"Missing key.*encoder\.norm\.weight"),
        (with_a_tensor_of_another_shape, r"size mismatch for encoder\.norm\.weight"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(spoil: Any, message: str, tmp_path: Path):
    tensors, facts = good()
    spoil(tensors, facts)
    write_tensors(tmp_path / "model.safetensors", TensorFile(tensors, facts))
    with pytest.raises(CheckpointError, match=rf"(?s)model\.safetensors: .*{message}"):
        load_model(tmp_path / "model.safetensors")


def test_files_of_others_are_refused(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a finetuned model; give a run of `faceprior finetune`"):
        load_model(path)
    save_file({"weight": torch.zeros(2)}, path, {"faceprior": "[1]"})
    with pytest.raises(CheckpointError, match="its facts are no JSON object"):
        load_model(path)
    encoder = build_model(VIT).encoder  # type: ignore[union-attr]
    write_tensors(path, encoder_file(encoder, ENCODER, [], False))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not a finetuned model"):
        load_model(path)
    path.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(path)


def test_a_file_cut_short_or_missing_is_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, model_file(moved(VIT), VIT, FACTS))
    data = path.read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
            load_model(path)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_model(tmp_path / "nothing")
