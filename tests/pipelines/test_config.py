"""Settings are read by the type of their field; what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import CONFIGS, ConfigError, differences, find_config, load_config, to_yaml


def test_precedence_defaults_file_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 3\ntrain:\n  epochs: 7\n  global_batch_size: 64\n")
    config = load_config(str(file), ["train.epochs=9"])
    assert (config.seed, config.train.epochs, config.train.global_batch_size) == (3, 9.0, 64)
    assert config.optim.base_lr == 1.5e-4


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.yaml")])
def test_packaged_configurations_load_and_say_how_to_run_them(name: str) -> None:
    load_config(name)
    lines = find_config(name).read_text().splitlines()
    assert lines[0].startswith("# make ") and lines[1].startswith("# ") and "Expected" in "".join(lines[:6])


def test_what_is_saved_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config("", ["encoder.image_size=[96, 112]", "run=007", "data.shards=no", "encoder.depth=3"])
    assert config.run == "007" and config.data.shards == "no" and config.encoder.image_size == (96, 112)
    (tmp_path / "saved.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "saved.yaml")) == config


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.epoch=3", r"did you mean 'train\.epochs'"),
        ("base_lr=1", r"did you mean 'optim\.base_lr'"),
        ("optimizer.lr=1", "unknown setting"),
        ("train.epochs=many", "train.epochs='many' is not a number"),
        ("train.compile=2", "true or false"),
        ("seed=1.5", "whole number"),
        ("train=3", "group of settings"),
        ("encoder.image_size=[1,2,3]", "list"),
        ("seed", "key=value"),
        ("run=${oc.env:HOME}", r"no \$"),
        ("data.shards=${seed}", r"no \$"),
    ],
)
def test_bad_settings_are_refused(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config("", [setting])


@pytest.mark.parametrize(
    "text",
    [
        "- 1\n- 2\n",
        "seed: !!python/object/apply:os.system ['true']\n",
        "seed: [1\n",
        "run: ${oc.env:HOME}\n",
        "a: &a {x: 1}\nb: *a\n",
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "bad.yaml"))


def test_an_unknown_configuration_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="pretrain_demo"):
        load_config("pretrain_dmo")


def test_only_settings_that_change_results_count_as_different() -> None:
    old = load_config("", ["train.log_every=5", "data.num_workers=3", "train.epochs=2", "train.batch_size=8"])
    new = load_config("", ["seed=1", "optim.base_lr=0.1", "encoder.depth=3"])
    assert set(differences(old, new)) == {"seed", "optim.base_lr", "encoder.depth"}
