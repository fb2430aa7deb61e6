"""The demo: all stages in a row, one page, and nothing to do the second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import pipelines.config as config_module
import pipelines.data as data_module
import pipelines.demo as demo_module
from pipelines.config import ConfigError, RunConfig
from pipelines.demo import PAGE, STAGES, run_demo
from pipelines.rundir import RUNS, latest
from shards.render import RenderedClips, RenderedFaces
from tests.pipelines.tiny import TINY, TINY_MAE, TINY_RUN

TINY_FILES = {
    "pretrain_demo": ["task=pretrain", *TINY_MAE],
    "dan_demo": ["task=dan", *TINY_RUN, "encoder.image_size=32", "dan.num_heads=1"],
    "mtl_demo": ["task=mtl", *TINY, "head.readout=flat"],
    "lsd_demo": ["task=lsd", *TINY, "head.readout=flat"],
    "mran_demo": [
        "task=mran",
        *TINY,
        "mran.tuned_blocks=0",
        "mran.dim=4",
        "mran.hidden_dim=4",
        "clip.num_frames=2",
        "clip.stride=2",
    ],
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


@pytest.mark.usefixtures("few_resamples")
def test_all_stages_run_once_and_one_page_shows_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    faces = RenderedFaces(num_train=64, num_val=16, num_test=0, num_identities=16, size=32)
    clips = RenderedClips(num_train=16, num_val=2, num_test=0, num_identities=4, num_frames=3, size=32)
    monkeypatch.setattr(data_module, "_DEFAULTS", {"faces": lambda: faces, "clips": lambda: clips})
    assert run_demo([]) == 0
    assert str(PAGE) in capsys.readouterr().out
    runs = [latest(name.removesuffix("_demo")) for name in STAGES]
    assert [run.name for run in runs if run] == list(STAGES)
    page = PAGE.read_text()
    assert all("/".join(run.parts[-3:]) in page for run in runs if run)
    assert "Runs compared" not in page
    made = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*") if path.is_file()}
    assert len([path for path in made if path.suffix == ".safetensors"]) >= len(STAGES) and PAGE in made
    assert run_demo([]) == 0
    assert capsys.readouterr().out.count("finished before") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("*") if path.is_file()} == made
    (RUNS / "mtl" / "mtl_demo" / "predictions" / "val.csv").touch()
    assert run_demo([]) == 0
    assert PAGE.stat().st_mtime_ns > made[PAGE]


def test_on_faces_of_ones_own_there_are_no_clips_to_learn_from(
    folder: Path, smooth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def begin(config: RunConfig, name: str, *rest: Any) -> int:
        begun.append(name)
        return 0

    monkeypatch.setattr(demo_module, "run_stage", begin)
    monkeypatch.setattr(demo_module, "run_finetuning", begin)
    monkeypatch.setattr(demo_module, "write_report", lambda runs, page, compared: page)
    assert run_demo([f"data.shards={smooth}"]) == 0
    assert begun == [name for name in STAGES if name != "mran_demo"]


@pytest.mark.parametrize("setting", ["train.epochs=0.15", "cotex.js_weight=2"])
def test_a_setting_that_a_stage_cannot_take_is_refused_before_the_first(folder: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].partition(".")[2]):
        run_demo([setting])
    assert not RUNS.exists()
