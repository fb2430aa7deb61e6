"""The configurations of video: they say what is whose, have their sources' lags, and a dry run passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.__main__ import main
from pipelines.config import find_config, load_config
from pipelines.dryrun import random_clips
from pipelines.finetuning import Sources, build_task, build_trainable, plan_model
from pipelines.models import build_model
from pipelines.optim import param_groups
from shards.records import LabelSpace
from shards.sources import afewva, recola, sewa
from shards.stream import plan_layout
from tests.pipelines.tiny import TINY_ENCODER

LAGS = {
    "mran_rgbdt": 0.0,
    "mran_afewva": afewva.LAG_SECONDS,
    "uran_afewva": afewva.LAG_SECONDS,
    "mran_recola": recola.LAG_SECONDS,
    "uran_recola": recola.LAG_SECONDS,
    "mran_sewa": sewa.LAG_SECONDS,
}
SMALL = [
    *TINY_ENCODER,
    "mran.dim=4",
    "mran.hidden_dim=4",
    "mran.volume_dims=[4]",
    "mran.tuned_blocks=1",
    "clip.num_frames=2",
    "clip.stride=2",
    "train.precision=fp32",
    "train.global_batch_size=4",
    "train.batch_size=2",
    "train.threads=1",
    "init=random",
]
SPACE = LabelSpace((), (), True)


def header(name: str) -> str:
    """The comment that opens a configuration, on one line."""
    lines = find_config(name).read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("# ") for line in lines[:count])


@pytest.mark.parametrize("name", LAGS)
def test_it_says_how_to_run_it_and_what_is_whose(name: str) -> None:
    first = find_config(name).read_text().splitlines()[0]
    assert first.startswith(f"# make finetune TASK=mran CONFIG={name} SHARDS=data/")
    said = ("Needs ", "Expected: ", "not measured here", "The paper's", "Ours: ", "reconstruction")
    assert all(word in header(name) for word in said)
    assert ("licensed" in header(name)) == (name != "mran_rgbdt")


@pytest.mark.parametrize(("name", "lag"), LAGS.items())
def test_its_lag_is_that_of_its_source_and_its_guidance_that_of_its_name(name: str, lag: float) -> None:
    config = load_config(name)
    assert config.clip.lag_seconds == lag and config.task == "mran"
    assert config.mran.guidance == ("none" if name.startswith("uran") else "gate")


@pytest.mark.parametrize("name", ["mran_rgbdt", "uran_recola"])  # the others differ in windows and lag
def test_its_own_model_can_be_built_and_its_batch_divides(name: str) -> None:
    config = load_config(name)
    spec = plan_model(config, SPACE, Sources())
    with torch.device("meta"):
        model = build_model(spec)
    groups = param_groups(model, build_task(config, spec).param_rules(), config.optim.weight_decay)
    assert len({group["lr_scale"] for group in groups}) > 1
    for world_size in (1, 4):
        layout = plan_layout(config.train.global_batch_size, config.train.batch_size, 0, world_size)
        assert layout.batch_size * layout.accum_steps * world_size == config.train.global_batch_size


@pytest.mark.parametrize("name", ["mran_sewa", "uran_afewva"])  # made small, the others are like one of them
def test_a_small_one_makes_a_step(name: str) -> None:
    config = load_config(name, SMALL)
    model, task = build_trainable(config)
    (output,) = task.step(model, [random_clips(2, config)])
    assert torch.isfinite(output.loss) and output.loss.requires_grad


def test_a_dry_run_of_one_passes_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "mran_rgbdt", *SMALL, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(said in text for said in ("2 × 2 accumulated = 4", "learning rate", "nothing was rendered"))
    assert list(tmp_path.iterdir()) == []
