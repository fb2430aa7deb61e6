"""Everything on the default faces and clips: prior, DAN, EMMA, masked CoTEX, MRAN, and one page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.config import check_schedule, load_config
from pipelines.finetuning import model_kind, run_finetuning
from pipelines.loop import build_accelerator
from pipelines.pretraining import build_parts as build_pretraining
from pipelines.processes import Processes
from pipelines.report import write_report
from pipelines.rundir import RUNS
from pipelines.stage import run_path, run_stage
from pipelines.unread import refuse_unread

STAGES = ("pretrain_demo", "dan_demo", "mtl_demo", "lsd_demo", "mran_demo")
PAGE = RUNS / "demo.html"


def run_demo(settings: Sequence[str]) -> int:
    """Runs each stage unless it was finished before, then writes one report of all; see `stage.run_stage`.

    Args:
        settings: `key=value` for every stage. Where they name shards, these are of faces, and MRAN, which
            learns from clips, is left out.

    Returns:
        0, or the exit status of a stage that was stopped: the same command goes on from there.
    """
    configs = {name: load_config(name, settings) for name in STAGES}
    if configs[STAGES[0]].data.shards:
        configs = {name: config for name, config in configs.items() if config.data_kind == "faces"}
    for config in configs.values():
        check_schedule(config)
        refuse_unread(config, "mae" if config.task == "pretrain" else model_kind(config))
    for name, config in configs.items():
        is_prior = config.task == "pretrain"
        status = run_stage(config, name, build_pretraining) if is_prior else run_finetuning(config, name)
        if status:
            return status
    build_accelerator(configs[STAGES[0]].train)
    if Processes().is_main:
        runs = [run_path(config, name) for name, config in configs.items()]
        if not _is_newer(PAGE, runs):
            write_report(runs[::-1], PAGE, compared=False)
        print(f"all stages done; one page of all: {PAGE}")
    return 0


def _is_newer(page: Path, runs: Sequence[Path]) -> bool:
    """Whether nothing that a page shows of these runs was written after it."""
    shown = [path for run in runs for path in (*run.glob("*"), *run.glob("predictions/*"))]
    return page.is_file() and all(path.stat().st_mtime < page.stat().st_mtime for path in shown)
