"""Settings that a run would not read are refused by name; those that it reads are not."""

from __future__ import annotations

import pytest

from pipelines.config import CONFIGS, ConfigError, RunConfig, leaves, load_config
from pipelines.finetuning import build_trainable, model_kind, run_finetuning
from pipelines.models import BASELINES
from pipelines.unread import READING_KINDS, READING_TASKS, refuse_unread

SHIPPED = sorted(str(path.relative_to(CONFIGS))[:-5] for path in CONFIGS.rglob("*.yaml"))
KINDS = ("mae", "emma", "vit", "cotex", "dan", "mran", *BASELINES)


def kind_of(config: RunConfig) -> str:
    return "mae" if config.task == "pretrain" else model_kind(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_is_read_whole(name: str) -> None:
    config = load_config(name)
    refuse_unread(config, kind_of(config))


def test_the_table_names_settings_and_models_that_exist() -> None:
    keys = [key for key, _, _ in leaves(RunConfig())]
    for name in (*READING_KINDS, *READING_TASKS):
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name
    assert {kind for kinds in READING_KINDS.values() for kind in kinds} == set(KINDS)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("pretrain_demo", "model=vit"),
        ("pretrain_demo", "head.readout=flat"),
        ("pretrain_demo", "encoder.drop_path_rate=0.1"),
        ("pretrain_demo", "encoder.patch_drop_rate=0.5"),
        ("lsd_demo", "encoder.patch_drop_rate=0.5"),
        ("paper/table1_resnet50", "encoder.patch_drop_rate=0.5"),
        ("paper/table1_resnet50", "encoder.patch_embedding=hog"),
        ("dan_demo", "encoder.patch_embedding=hog"),
        ("mtl_demo", "mae.mask_ratio=0.5"),
        ("mtl_demo", "eval.pictures=3"),
        ("expr_demo", "eval.probe_train=0"),
        ("mtl_demo", "cotex.mask_ratio=0.5"),
        ("mtl_demo", "dan.num_heads=1"),
        ("mtl_demo", "baseline.linear=true"),
        ("lsd_demo", "baseline.linear=true"),
        ("lsd_demo", "cnn=runs/dan/x"),
        ("lsd_demo", "head.hidden_dim=16"),
        ("lsd_demo", "affect.va_weight=2"),
        ("expr_demo", "affect.add_cnn=true"),
        ("expr_demo", "affect.preset=released"),
        ("expr_demo", "affect.va_weight=2"),
        ("va_demo", "affect.expr_weight=2"),
        ("va_demo", "affect.au_weight=2"),
        ("dan_demo", "init=random"),
        ("dan_demo", "encoder.depth=4"),
        ("dan_demo", "head.readout=flat"),
        ("dan_demo", "affect.expr_weight=2"),
        ("dan_demo", "optim.layer_decay=0.75"),
        ("dan_demo", "train.grad_checkpointing=true"),
        ("paper/table1_resnet50", "head.hidden_dim=0"),
        ("paper/table1_resnet50", "encoder.name=vit_tiny_patch16_224"),
        ("paper/table1_resnet50", "cnn=runs/dan/x"),
        ("paper/table1_vggface", "encoder.drop_path_rate=0.1"),
        ("paper/table1_emotionnet", "baseline.linear=true"),
    ],
)
def test_what_a_run_would_not_read_is_refused(name: str, setting: str) -> None:
    config = load_config(name, [setting])
    who = "pretraining" if config.task == "pretrain" else f"task {config.task} with model {kind_of(config)}"
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}=\S*: {who} does not read this setting; leave it out"):
        refuse_unread(config, kind_of(config))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mtl_demo", ["cnn=runs/dan/x", "init=random", "affect.va_gradient=true", "affect.au_weight=2"]),
        ("mtl_demo", ["affect.preset=released", "affect.au_pos_weight=[]"]),
        ("mran_demo", ["mran.guidance=none", "clip.stride=2", "init=random", "optim.layer_decay=0.5"]),
        ("mtl_demo", ["head.hidden_dim=16", "affect.add_cnn=true", "train.grad_checkpointing=true"]),
        ("mtl_demo", ["model=vit", "encoder.depth=4", "affect.va_weight=2"]),
        ("lsd_demo", ["cotex.js_weight=0", "head.readout_dim=4", "optim.layer_decay=0.5"]),
        ("dan_demo", ["dan.num_heads=1", "dan.partition_weight=0", "data.order=epoch"]),
        ("va_demo", ["affect.preset=released", "affect.va_weight=2", "eval.max_samples=10"]),
        ("au_demo", ["affect.preset=released", "affect.au_weight=2"]),
        ("paper/table2_clip_vit_base", ["baseline.linear=true", "init=x.safetensors"]),
        ("paper/table1_vggface", ["baseline.linear=false", "affect.expr_weight=2"]),
        ("mtl_demo", ["cotex.mask_ratio=0.75", "eval.pictures=10", "mae.norm_pix=true"]),  # the defaults
    ],
)
def test_what_a_run_reads_is_not(name: str, settings: list[str]) -> None:
    config = load_config(name, settings)
    refuse_unread(config, kind_of(config))


def test_finetuning_asks_before_it_makes_or_opens_anything() -> None:
    config = load_config("expr_demo", ["dan.num_heads=1", "data.shards=nowhere"])
    for start in (lambda: run_finetuning(config, "expr_demo"), lambda: build_trainable(config)):
        with pytest.raises(ConfigError, match=r"dan\.num_heads=1: task expr with model vit does not read"):
            start()
