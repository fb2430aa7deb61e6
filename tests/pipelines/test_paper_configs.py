"""Every configuration of the papers' tables loads, builds its own model, and makes a step of a small one."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.dan import AFFECTNET8
from pipelines.checkpoint import TensorFile, write_tensors
from pipelines.config import CONFIGS, ConfigError, RunConfig, TrainConfig, find_config, load_config
from pipelines.finetuning import (
    Sources,
    build_parts,
    build_task,
    build_trainable,
    find_sources,
    model_kind,
    plan_model,
    start_model,
)
from pipelines.loop import Trainee, build_accelerator, train_step
from pipelines.models import ModelSpec, build_model, encoders_of, load_model, model_file
from pipelines.optim import build_optimizer, param_groups
from pipelines.stage import run_stage
from shards.records import LabelSpace
from shards.stream import Batch, Labels, plan_layout
from tests.pipelines.tiny import TINY, TINY_ENCODER, metrics

PAPER = sorted(f"paper/{path.stem}" for path in (CONFIGS / "paper").glob("*.yaml"))
OTHERS = ["mtl_affwild2", "lsd_abaw4", "dan_affectnet", "dan_rafdb"]

MTL_ROWS = {  # AU F1, VA CCC, EXPR F1, total
    "Table 1": (
        ("total 30",),
        ("30.36", "22.60", "18.86", "71.82"),
        ("48.85", "33.55", "22.00", "104.40"),
        ("49.53", "35.41", "18.27", "103.21"),
        ("47.53", "37.85", "18.66", "104.46"),
        ("50.60", "41.74", "28.19", "120.53"),
        ("50.41", "41.21", "31.68", "123.29"),
        ("50.54", "45.88", "30.28", "126.71"),
    ),
    "Table 5": (
        ("47.67", "32.61", "24.65", "104.92"),
        ("50.41", "41.21", "31.68", "123.29"),
        ("45.38", "42.57", "27.02", "114.96"),
        ("49.00", "47.11", "22.51", "118.62"),
        ("50.54", "45.88", "30.28", "126.71"),
        ("50.56", "42.90", "28.74", "122.20"),
        ("51.56", "46.59", "32.29", "130.44"),
        ("52.45", "47.10", "34.17", "133.68"),
    ),
}
LSD_ROWS = {  # accuracy, F1
    "Table 2": (
        ("67.58", "59.71"),
        ("67.71", "63.33"),
        ("73.06", "63.83"),
        ("70.84", "62.13"),
        ("71.95", "64.24"),
        ("72.84", "64.67"),
        ("75.77", "70.68"),
    ),
    "Table 6": (
        ("71.95", "64.24"),
        ("72.81", "64.67"),
        ("72.53", "64.98"),
        ("74.17", "67.67"),
        ("74.82", "68.99"),
        ("75.77", "70.68"),
        ("78.54", "73.75"),
        ("81.18", "78.62"),
        ("83.85", "82.33"),
    ),
}
ROWS = [
    (table, number + 1, figures)
    for table, rows in {**MTL_ROWS, **LSD_ROWS}.items()
    for number, figures in enumerate(rows)
]
SMALLER = {
    "resnet50.tv_in1k": "test_resnet",
    "resnet50_clip.openai": "test_resnet",
    "efficientnet_b2.ra_in1k": "test_efficientnet",
    "inception_v3.tv_in1k": "test_resnet",
    "vit_base_patch16_clip_224.openai": "test_vit",
}


def header(name: str) -> str:
    """The comment that opens a configuration, on one line."""
    lines = find_config(name).read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("# ") for line in lines[:count])


def space_of(name: str) -> LabelSpace:
    """The labels of the data that a configuration names."""
    if "data/lsd" in header(name):
        return LabelSpace(("anger", "disgust", "fear", "happiness", "sadness", "surprise"), (), False)
    if "data/affectnet" in header(name):
        return LabelSpace(AFFECTNET8, (), True)
    if "data/rafdb" in header(name):
        return LabelSpace(
            ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"), (), False
        )
    return LabelSpace()


def spec_of(config: RunConfig, space: LabelSpace) -> ModelSpec:
    spec = plan_model(config, space, Sources())
    return replace(spec, cnn_expr=AFFECTNET8) if spec.kind == "emma" else spec


def random_batch(spec: ModelSpec, count: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    labels = Labels(
        va=torch.rand(count, 2, generator=draw) * 2 - 1,
        va_valid=torch.ones(count, 2, dtype=torch.bool),
        expr=torch.randint(0, max(1, len(spec.expr)), (count,), generator=draw),
        expr_valid=torch.ones(count, dtype=torch.bool),
        au=torch.randint(0, 2, (count, len(spec.au)), generator=draw).float(),
        au_valid=torch.ones(count, len(spec.au), dtype=torch.bool),
    )
    images = torch.randint(0, 256, (count, 3, *spec.image_size), dtype=torch.uint8, generator=draw)
    keys = torch.randint(0, 2**62, (count,), generator=draw)
    return Batch([str(i) for i in range(count)], images, keys, labels, count)


@pytest.mark.parametrize(("table", "row", "figures"), ROWS)
def test_every_row_has_one_configuration_that_names_its_figures(
    table: str, row: int, figures: tuple[str, ...]
) -> None:
    named = [name for name in PAPER if re.search(rf"{table}, row {row}(,| and Table)", header(name))]
    assert len(named) == 1
    assert all(figure in header(named[0]) for figure in figures)


@pytest.mark.parametrize("name", PAPER + OTHERS)
def test_it_says_how_to_run_it_and_what_is_whose(name: str) -> None:
    lines = find_config(name).read_text().splitlines()
    config = load_config(name)
    assert lines[0].startswith(f"# make finetune TASK={config.task} CONFIG={name} SHARDS=data/")
    assert all(
        word in header(name) for word in ("Needs ", "licensed", "Expected: ", "not measured here", "Ours: ")
    )


@pytest.mark.parametrize("name", PAPER + OTHERS)
def test_its_batch_divides_on_one_process_and_on_four(name: str) -> None:
    train = load_config(name).train
    for world_size in (1, 4):
        layout = plan_layout(train.global_batch_size, train.batch_size, 0, world_size)
        assert layout.batch_size * layout.accum_steps * world_size == train.global_batch_size


@pytest.mark.parametrize("name", PAPER + OTHERS)
def test_its_own_model_can_be_built(name: str) -> None:
    config = load_config(name)
    spec = spec_of(config, space_of(name))
    with torch.device("meta"):
        model = build_model(spec)
    groups = param_groups(model, build_task(config, spec).param_rules(), config.optim.weight_decay)
    scales = {group["lr_scale"] for group in groups}
    assert len(scales) == (14 if config.optim.layer_decay < 1 else 1)


@pytest.mark.parametrize("name", PAPER + OTHERS)
def test_a_small_one_makes_a_step(name: str) -> None:
    own = load_config(name)
    changes = ["train.precision=fp32", "optim.warmup_epochs=0", "encoder.image_size=32", "init=random"]
    if own.model in SMALLER:
        changes.append(f"model={SMALLER[own.model]}")
    elif own.model == "emotionnet":
        changes.append("encoder.image_size=80")
    elif own.model != "vggface":
        changes += [*TINY_ENCODER, "encoder.image_size=64"]
    config = load_config(name, changes)
    assert model_kind(config) == model_kind(own)
    spec = spec_of(config, space_of(name))
    model, task = start_model(spec, Sources(), config.seed), build_task(config, spec)
    groups = param_groups(model, task.param_rules(), config.optim.weight_decay)
    accelerator = build_accelerator(TrainConfig())
    optimizer = build_optimizer(groups, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = config.optim.base_lr * group["lr_scale"]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    accumulated = plan_layout(own.train.global_batch_size, own.train.batch_size, 0, 1).accum_steps > 1
    batches = [random_batch(spec, 2, seed) for seed in range(2 if accumulated else 1)]
    logs = train_step(Trainee(task, model.train(), optimizer), batches, config.optim, accelerator)
    assert all(math.isfinite(float(value)) for value in logs.values()) and not logs["nonfinite"]
    after = dict(model.named_parameters())
    assert [
        name for name, value in before.items() if torch.equal(value, after[name]) and value.ndim > 1
    ] == []


@pytest.fixture(scope="module")
def from_random(smooth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of expressions by a small timm model."""
    folder = tmp_path_factory.mktemp("from_random")
    settings = ["task=expr", "model=test_resnet", "init=random", "optim.base_lr=0.001", "train.epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_small(smooth, folder / "expr", settings)


def run_small(smooth: Path, run: Path, settings: list[str]) -> Path:
    config = load_config("", [*TINY, f"data.shards={smooth}", f"run={run}", *settings])
    assert run_stage(config, "small", build_parts) == 0
    return run


def test_a_run_of_expressions_starts_a_run_of_all_tasks(
    smooth: Path, tmp_path: Path, from_random: Path
) -> None:
    start = load_model(from_random)
    assert (start.spec.kind, start.spec.timm_name, start.spec.mean) == (
        "timm",
        "test_resnet",
        (0.5, 0.5, 0.5),
    )
    config = load_config(
        "", ["task=mtl", "model=timm:test_resnet", f"init={from_random}", "encoder.image_size=32"]
    )
    sources = find_sources(config)
    model = start_model(plan_model(config, LabelSpace(), sources), sources, 0)
    theirs, ours = start.model.encoder.state_dict(), model.encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert model.head[0].out_features == 22 and encoders_of(model) == []
    settings = [
        "task=mtl",
        "model=test_resnet",
        f"init={from_random}",
        "train.epochs=1",
        "train.batch_size=8",
    ]
    run = run_small(smooth, tmp_path / "mtl", settings)
    assert "val_score" in metrics(run)[-1] and (run / "predictions" / "val.csv").is_file()
    again = load_model(run)
    assert again.facts["init"] == str(from_random)
    faces = random_batch(again.spec, 2, 0).images
    assert again.model(faces).expr.shape == (2, 8)


def test_weights_of_a_file_start_a_model_of_the_same_name_only(tmp_path: Path, from_random: Path) -> None:
    state = load_model(from_random).model.encoder.state_dict()
    write_tensors(tmp_path / "file.safetensors", TensorFile(dict(state), {"format": "faceprior-foreign"}))
    for name, said in (("test_resnet", ""), ("test_vit", "not weights of this model")):
        settings = ["task=mtl", f"model={name}", f"init={tmp_path}/file.safetensors", "encoder.image_size=32"]
        config = load_config("", settings)
        sources = find_sources(config)
        spec = plan_model(config, LabelSpace(), sources)
        if said:
            with pytest.raises(ConfigError, match=said):
                start_model(spec, sources, 0)
        else:
            loaded = start_model(spec, sources, 0).encoder.state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in state.items())
    config = load_config("", ["task=mtl", "model=test_vit", f"init={from_random}", "encoder.image_size=32"])
    sources = find_sources(config)
    with pytest.raises(ConfigError, match="a test_resnet, and test_vit is to start from it"):
        start_model(plan_model(config, LabelSpace(), sources), sources, 0)


def test_a_baseline_is_rebuilt_from_its_own_file(tmp_path: Path) -> None:
    config = load_config("", ["task=va", "model=test_vit", "baseline.linear=true", "encoder.image_size=32"])
    spec = plan_model(config, LabelSpace(), Sources())
    model = start_model(spec, Sources(), 0).eval()
    write_tensors(tmp_path / "model.safetensors", model_file(model, spec, {}))
    loaded = load_model(tmp_path / "model.safetensors")
    faces = random_batch(spec, 2, 0).images
    assert loaded.spec == spec and torch.equal(loaded.model(faces).va, model(faces).va)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["task=mtl", "model=resnet5"], "task mtl takes emma or vit or .* or the name of a timm model"),
        (["task=lsd", "model=resnet50"], "task lsd takes cotex"),
        (["task=expr", "model=emotionnet"], "task expr takes vit or vggface or the name of a timm model"),
    ],
)
def test_models_that_do_not_go_with_a_task_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model_kind(load_config("", settings))


def test_layer_decay_without_layers_is_refused() -> None:
    config = load_config(
        "", ["task=mtl", "model=test_resnet", "optim.layer_decay=0.65", "encoder.image_size=32"]
    )
    with pytest.raises(ConfigError, match="test_resnet is not a plain ViT"):
        build_trainable(config)


def test_vggface_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match=r"faceprior import vgg_face_dag\.pth FILE"):
        find_sources(load_config("", ["task=mtl", "model=vggface"]))


def test_published_weights_are_the_start_of_a_timm_model_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = load_config("", ["task=mtl", "model=resnet10t", "encoder.image_size=32"])
    sources = find_sources(config)
    assert sources == Sources(published=True) and sources.start == "published by timm"
    with pytest.raises(ConfigError, match="give a file of them with init=FILE"):
        start_model(plan_model(config, LabelSpace(), sources), sources, 0)


def test_an_unknown_name_lists_the_tables_rows_too() -> None:
    with pytest.raises(ConfigError, match="paper/table1_resnet50"):
        find_config("table1_resnet50")
