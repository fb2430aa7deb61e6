"""The batch script: what it holds, what it does on signals, and that a run gets through it to its end."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config import ConfigError
from pipelines.slurm import Job, add_arguments, run_arguments, run_slurm, sbatch_script
from shards.labels import DataError
from tests.pipelines.fake_slurm import calls, install
from tests.pipelines.launched import (
    STEPS,
    Launched,
    environment,
    losses,
    wait_until,
    workplace,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a stub of SLURM on the path."""
    install(tmp_path, stub=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def _slurm(script: Path, more: dict[str, str], nodes: int = 1) -> dict[str, str]:
    """The environment of a job, with the stand-ins first on the path."""
    job = {
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "2",
    }
    return environment(PATH=f"{script.parent}/bin:{os.environ['PATH']}", **job, **more)


def test_the_command_in_the_job_is_the_one_that_was_asked_for_whatever_it_holds(here: Path) -> None:
    settings = ["run=runs/a", 'init=it\'s $(touch hacked) `x` "y" {{NODES}} \\', "train.global_batch_size=64"]
    (here / "job.sbatch").write_text(sbatch_script("pretrain_demo", settings, Job(nodes=2, gpus_per_node=8)))
    environ = _slurm(here / "job.sbatch", {"STATUS": "0"})
    subprocess.run(["bash", str(here / "job.sbatch")], env=environ, check=True, timeout=60)
    command = json.loads((here / "command.json").read_text())
    assert command[-2 - len(settings) :] == ["pretrain", "pretrain_demo", *settings]
    assert "--nnodes=2" in command and "--nproc-per-node=8" in command
    assert "--master-addr=127.0.0.1" in command and "--master-port=20041" in command
    assert not (here / "hacked").exists()


def test_the_header_asks_for_what_the_job_says(here: Path) -> None:
    job = Job(2, 4, 0, "12:00:00", "gpu", "faces", ("--qos=high",), 300)
    header = [
        line for line in sbatch_script("pretrain_demo", [], job).splitlines() if line.startswith("#SBATCH")
    ]
    log = here / "runs/pretrain/pretrain_demo/slurm-%j.out"
    options = {
        "--job-name=pretrain_demo --nodes=2 --ntasks-per-node=1 --cpus-per-task=32 --gpus-per-node=4",
        f"--time=12:00:00 --partition=gpu --account=faces --qos=high --output={log}",
        "--open-mode=append --requeue --signal=B:USR1@300",
    }
    assert {line.removeprefix("#SBATCH ") for line in header} == {
        o for group in options for o in group.split()
    }


@pytest.mark.parametrize(
    ("status", "sent", "saved", "requeued"),
    [
        ("0", None, False, False),  # finished
        ("1", None, False, False),  # failed by itself: again would fail again
        ("143", signal.SIGUSR1, True, True),
        ("1", signal.SIGUSR1, True, True),  # torchrun ends with 1 when it was stopped
        ("1", signal.SIGUSR1, False, False),  # it could not save: again would end at the same step
        ("0", signal.SIGUSR1, False, False),  # finished while it was being stopped
        ("1", signal.SIGTERM, True, False),  # scancel
    ],
)
def test_a_job_goes_back_into_the_queue_only_if_the_scheduler_stopped_it_and_it_has_saved(
    here: Path, status: str, sent: signal.Signals | None, saved: bool, requeued: bool
) -> None:
    script, mark = here / "job.sbatch", here / "runs" / "pretrain" / "pretrain_demo" / "stopped"
    mark.parent.mkdir(parents=True)
    mark.touch()  # of an earlier time
    script.write_text(sbatch_script("pretrain_demo", [], Job()))
    more = {"STATUS": status} | ({"WAIT": "yes"} if sent else {}) | ({"SAVED": str(mark)} if saved else {})
    with subprocess.Popen(["bash", str(script)], env=_slurm(script, more), start_new_session=True) as job:
        if sent:
            wait_until((here / "command.json").exists, script.read_text)
            job.send_signal(sent)
        if sent == signal.SIGTERM:  # SLURM sends it to the step too
            step = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            os.kill(int(step[0]), signal.SIGUSR1)
        assert job.wait(60) == int(status)
    assert calls(here) == (["scontrol requeue 41"] if requeued else [])


def test_the_script_is_kept_in_the_run_directory_and_submitted(here: Path) -> None:
    assert run_slurm("pretrain_demo", ["run=runs/a"], Job()) == 0
    assert calls(here) == ["sbatch runs/a/job.sbatch"]
    assert (here / "runs/a/job.sbatch").read_text() == sbatch_script("pretrain_demo", ["run=runs/a"], Job())


def test_print_writes_and_submits_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    line = "pretrain_demo seed=3 --print --nodes 2 --gpus-per-node 0 --sbatch=--qos=high"
    assert run_arguments(parser.parse_args(shlex.split(line))) == 0
    job = Job(nodes=2, gpus_per_node=0, options=("--qos=high",))
    assert capsys.readouterr().out == sbatch_script("pretrain_demo", ["seed=3"], job)
    assert not (here / "runs").exists() and calls(here) == []


def test_a_refusal_of_sbatch_and_its_absence_are_messages(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE", "yes")
    with pytest.raises(ConfigError, match="sbatch refused"):
        run_slurm("pretrain_demo", [], Job())
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(ConfigError, match="no sbatch here"):
        run_slurm("pretrain_demo", [], Job())


@pytest.mark.parametrize(
    ("settings", "job", "message"),
    [
        (["run=a\nb"], Job(), "line breaks"),
        (["run=runs/two words"], Job(), "#SBATCH line"),
        ([], Job(partition="gpu --wrap=x"), "#SBATCH line"),
        ([], Job(time="1\n#SBATCH --x"), "#SBATCH line"),
        ([], Job(options=("qos=high",)), "--name=value"),
        ([], Job(nodes=0), "at least 1"),
        ([], Job(gpus_per_node=-1), "negative"),
        (["no.such=1"], Job(), "unknown setting"),
        (["data.shards=nowhere"], Job(), "no such folder"),
    ],
)
def test_what_could_not_run_is_refused_before_it_waits_in_a_queue(
    here: Path, settings: list[str], job: Job, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_slurm("pretrain_demo", settings, job)
    assert calls(here) == []


def test_a_batch_that_the_processes_cannot_share_is_refused(here: Path) -> None:
    with pytest.raises(DataError, match="cannot be shared by 24"):
        run_slurm("pretrain_demo", ["train.global_batch_size=64"], Job(nodes=3, gpus_per_node=8))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[list[Launched]]:
    """Jobs of one test; killed if it fails."""
    install(tmp_path)
    started: list[Launched] = []
    yield started
    for job in started:
        job.kill()


@pytest.mark.e2e
@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_that_is_stopped_saves_and_finishes_when_it_runs_again(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    jobs: list[Launched],
    nodes: int,
) -> None:
    folder = workplace(tmp_path_factory.getbasetemp())
    monkeypatch.chdir(folder)
    name = f"job-{nodes}"
    script = tmp_path / "job.sbatch"
    script.write_text(sbatch_script("tiny.yaml", [f"run={name}"], Job(nodes, gpus_per_node=0)))
    job = Launched(folder, name, ["bash", str(script)], environ=_slurm(script, {}, nodes))
    jobs.append(job)
    job.start()
    job.wait_for_steps(5)
    job.process.send_signal(signal.SIGUSR1)
    assert job.wait() == 1, job.log()
    saved = job.saved_step()
    assert 5 <= saved < STEPS
    assert f"stopped at step {saved}, saved" in job.log()
    assert calls(tmp_path) == ["scontrol requeue 41"]

    assert job.start().wait() == 0, job.log()
    assert f"going on from step {saved}" in job.log()
    assert calls(tmp_path) == ["scontrol requeue 41"]
    assert list(losses(job.run)) == list(range(1, STEPS + 1))
