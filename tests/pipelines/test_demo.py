"""The demo: four stages in a row, one page, and nothing to do the second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import pipelines.config as config_module
from pipelines.config import ConfigError
from pipelines.demo import PAGE, STAGES, run_demo
from pipelines.rundir import RUNS, latest
from tests.pipelines.tiny import TINY, TINY_MAE, TINY_RUN

TINY_FILES = {
    "pretrain_demo": ["task=pretrain", *TINY_MAE],
    "dan_demo": ["task=dan", *TINY_RUN, "encoder.image_size=32", "dan.num_heads=1"],
    "mtl_demo": ["task=mtl", *TINY, "head.readout=flat"],
    "lsd_demo": ["task=lsd", *TINY, "head.readout=flat"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose demo is tiny."""
    for name, settings in TINY_FILES.items():
        OmegaConf.save(OmegaConf.from_dotlist([*settings, "train.epochs=1"]), tmp_path / f"{name}.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_module, "CONFIGS", tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def test_all_stages_run_once_and_one_page_shows_them(smooth: Path, folder: Path, capsys: Any) -> None:
    settings = [f"data.shards={smooth}"]
    assert run_demo(settings) == 0
    assert str(PAGE) in capsys.readouterr().out
    runs = [latest(name.removesuffix("_demo")) for name in STAGES]
    assert [run.name for run in runs if run] == list(STAGES)
    page = PAGE.read_text()
    assert all("/".join(run.parts[-3:]) in page for run in runs if run)
    models = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*.safetensors")}
    assert len(models) >= len(STAGES)
    assert run_demo(settings) == 0
    assert capsys.readouterr().out.count("finished before") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("*.safetensors")} == models


@pytest.mark.parametrize("setting", ["train.epochs=0.15", "cotex.js_weight=2"])
def test_a_setting_that_a_stage_cannot_take_is_refused_before_the_first(folder: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].partition(".")[2]):
        run_demo([setting])
    assert not RUNS.exists()
