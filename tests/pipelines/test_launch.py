"""One run, whatever launches it: the same weights, a clean end on signals, and no process left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import loop
from pipelines.__main__ import main
from pipelines.config import ConfigError, TrainConfig
from pipelines.processes import stop_requests
from tests.pipelines.launched import (
    ACCELERATE,
    PYTHON,
    STEPS,
    TORCHRUN,
    Launched,
    free_port,
    losses,
    workplace,
)

CONFIGS = Path(__file__).resolve().parents[2] / "pipelines" / "launch"
TWO = [*TORCHRUN, "--standalone", "--nproc_per_node", "2"]
ONE_BY_ACCELERATE = [*ACCELERATE, "--config_file", str(CONFIGS / "cpu.yaml")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workplace(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def uninterrupted(folder: Path) -> Iterator[dict[str, Launched]]:
    """The same training three ways, side by side."""
    runs = {
        "plain": Launched(folder, "plain", PYTHON).start(),
        "accelerate": Launched(folder, "accelerate", ONE_BY_ACCELERATE).start(),
        "two": Launched(folder, "two", TWO).start(),
    }
    try:
        for run in runs.values():
            assert run.wait() == 0, run.log()
        yield runs
    finally:
        for run in runs.values():
            run.kill()


@pytest.fixture
def interrupted(folder: Path) -> Iterator[list[Launched]]:
    """Runs of one test; killed if it fails."""
    runs: list[Launched] = []
    yield runs
    for run in runs:
        run.kill()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_config_files_and_they_leave_precision_to_us(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(path))
    assert config.mixed_precision is None
    given = ["--config_file", str(path), "-m", "pipelines", "pretrain"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    expected = {
        "cpu": (1, False),
        "one_gpu": (1, False),
        "eight_gpus": (8, True),
        "several_machines": (16, True),
    }
    assert (arguments.num_processes, arguments.multi_gpu) == expected[path.stem]
    assert arguments.mixed_precision == "no"


def test_the_first_ctrl_c_asks_and_a_later_one_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun every process gets each Ctrl-C twice: from the terminal and from the launcher."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with stop_requests() as request:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
        now = 102.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_processes_that_accelerate_did_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would train a model of its own, and nobody would notice."""

    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(loop, "Accelerator", lambda **_: Alone())
    with pytest.raises(ConfigError, match="4 processes were launched, but accelerate joined 1"):
        loop.build_accelerator(TrainConfig())


@pytest.mark.e2e
def test_accelerate_launch_trains_the_very_weights_of_the_plain_command(
    uninterrupted: dict[str, Launched],
) -> None:
    assert uninterrupted["accelerate"].encoder() == uninterrupted["plain"].encoder()


@pytest.mark.e2e
def test_two_processes_follow_the_losses_of_one(uninterrupted: dict[str, Launched]) -> None:
    one, two = losses(uninterrupted["plain"].run), losses(uninterrupted["two"].run)
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    assert two == pytest.approx(one, rel=0, abs=1e-5)
    assert len(set(one.values())) == STEPS


@pytest.fixture(scope="session")
def stopped(folder: Path) -> Iterator[dict[str, Launched]]:
    """SIGTERM to the launcher: torchrun passes it on; for accelerate's child the kernel does.

    The run of two processes has loader workers, to which torchrun passes it on as well.
    """
    runs = {
        "two": Launched(folder, "two-stopped", TWO, ["data.num_workers=1"]),
        "accelerate": Launched(folder, "accelerate-stopped", ONE_BY_ACCELERATE),
    }
    try:
        for run in runs.values():  # one after the other: the quicker one must not end before it is stopped
            run.start()
            run.wait_for_steps(5)
            run.process.send_signal(signal.SIGTERM)
        for run in runs.values():
            assert run.wait() != 0
        shutil.copytree(runs["two"].run, folder / "fewer")
        yield runs
    finally:
        for run in runs.values():
            run.kill()


@pytest.mark.e2e
def test_a_stopped_run_has_saved_and_goes_on_to_the_same_weights(
    uninterrupted: dict[str, Launched], stopped: dict[str, Launched]
) -> None:
    saved = {name: run.saved_step() for name, run in stopped.items()}
    for name, run in stopped.items():
        assert f"stopped at step {saved[name]}, saved" in run.log()
        assert 5 <= saved[name] < STEPS
        run.start()
    for name, run in stopped.items():
        assert run.wait() == 0, run.log()
        assert f"going on from step {saved[name]}" in run.log()
        assert run.encoder() == uninterrupted[name].encoder()
        assert losses(run.run) == losses(uninterrupted[name].run)


@pytest.mark.e2e
def test_a_run_goes_on_with_another_number_of_processes(
    folder: Path,
    uninterrupted: dict[str, Launched],
    stopped: dict[str, Launched],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    before = losses(folder / "fewer")
    assert 5 <= len(before) < STEPS
    assert main(["pretrain", "tiny.yaml", "run=fewer"]) == 0
    assert losses(folder / "fewer") == pytest.approx(losses(uninterrupted["plain"].run), rel=0, abs=1e-5)
    starts = json.loads((folder / "fewer" / "run.json").read_text())["starts"]
    assert [(start["world_size"], start["step"]) for start in starts] == [(2, 0), (1, len(before))]


def program(folder: Path, name: str, patch: str) -> str:
    """A script that does what `-m` does with its arguments, after `patch`."""
    path = folder / f"{name}.py"
    path.write_text(f"import os, signal, sys\n{patch}\nfrom pipelines.__main__ import main\n")
    with path.open("a") as file:
        file.write("sys.exit(main(sys.argv[3:]))\n")  # behind "-m pipelines"
    return str(path)


@pytest.mark.e2e
def test_a_run_that_is_killed_in_its_last_evaluation_is_finished_by_the_same_command(
    folder: Path, uninterrupted: dict[str, Launched], interrupted: list[Launched]
) -> None:
    patch = (
        "from pipelines.observe import MAEObserver\n"
        "MAEObserver.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    launcher = [*PYTHON, program(folder, "killed_in_evaluation", patch)]
    run = Launched(folder, "killed-in-evaluation", launcher).start()
    interrupted.append(run)
    assert run.wait() == -signal.SIGKILL
    assert run.saved_step() == STEPS and not (run.run / "report.html").exists()
    again = Launched(folder, run.name, PYTHON).start()
    interrupted.append(again)
    assert again.wait() == 0, again.log()
    assert (again.run / "report.html").exists() and "done: " in again.log()
    whole = uninterrupted["plain"]
    assert again.encoder() == whole.encoder()
    assert (again.run / "metrics.jsonl").read_text().splitlines()[-1] == (
        (whole.run / "metrics.jsonl").read_text().splitlines()[-1]
    )


@pytest.mark.e2e
def test_where_one_process_cannot_read_the_checkpoint_all_end_and_nothing_is_moved(
    folder: Path, interrupted: list[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a checkpoint of its own they would train a mixture, or wait for each other for ever."""
    monkeypatch.chdir(folder)
    settings = ["train.epochs=2", "train.stop_at_step=4", "train.save_every=2"]
    assert main(["pretrain", "tiny.yaml", "run=unreadable", *settings]) == 0
    patch = (
        "if os.environ['RANK'] == '1':\n"
        "    from pipelines import checkpoint\n"
        "    def stale(path):\n"
        "        raise OSError(116, 'Stale file handle')\n"
        "    checkpoint.sha256_file = stale\n"
    )
    launcher = [*TWO, program(folder, "unreadable", patch)]
    second = Launched(folder, "unreadable", launcher, ["train.epochs=2"]).start()
    interrupted.append(second)
    assert second.wait() != 0
    assert second.log().count("faceprior: ") == 2
    assert "cannot be read (Stale file handle)" in second.log()
    assert "faceprior: process 1 of 2: " in second.log()
    saved = sorted(path.name for path in (second.run / "checkpoints").glob("*step-*"))
    assert saved == ["step-00000002", "step-00000004"]
    assert main(["pretrain", "tiny.yaml", "run=unreadable", "train.epochs=2"]) == 0
    assert sorted(losses(second.run)) == list(range(1, 21))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_all_processes_at_once_saves_too(
    folder: Path, interrupted: list[Launched], number: signal.Signals
) -> None:
    """As systemd, some schedulers and Ctrl-C send it; torchrun's own copy comes on top."""
    run = Launched(folder, f"all-at-once-{number.name}", TWO, ["data.num_workers=1"]).start()
    interrupted.append(run)
    run.wait_for_steps(5)
    pids = run.processes()
    assert len(pids) == 5  # the launcher, two processes, a loader worker of each
    for pid in pids:
        os.kill(pid, number)
    assert run.wait() != 0
    assert f"stopped at step {run.saved_step()}, saved" in run.log()


@pytest.mark.e2e
@pytest.mark.slow
def test_when_one_process_is_killed_the_run_ends_and_can_go_on(
    folder: Path, uninterrupted: dict[str, Launched], interrupted: list[Launched]
) -> None:
    run = Launched(folder, "one-killed", TWO, ["train.save_every=5"]).start()
    interrupted.append(run)
    run.wait_for_steps(8)
    victim = max(set(run.processes()) - {run.process.pid})
    os.kill(victim, signal.SIGKILL)
    assert run.wait() != 0
    assert run.saved_step() % 5 == 0
    assert run.start().wait() == 0, run.log()
    assert run.encoder() == uninterrupted["two"].encoder()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines_train_the_weights_of_two_processes(
    folder: Path, uninterrupted: dict[str, Launched], interrupted: list[Launched], launcher: str
) -> None:
    """Two launchers on this machine stand for the machines; the second writes nothing."""
    port = str(free_port())
    for rank in ("0", "1"):
        if launcher == "torchrun":
            each = [*TORCHRUN, "--nnodes", "2", "--node_rank", rank, "--nproc_per_node", "1"]
            each += ["--master_addr", "127.0.0.1", "--master_port", port]
        else:
            each = [
                *ACCELERATE,
                "--config_file",
                str(CONFIGS / "several_machines.yaml"),
                "--machine_rank",
                rank,
            ]
            each += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        interrupted.append(Launched(folder, f"machines-{launcher}", each).start())
    for run in interrupted:
        assert run.wait() == 0, run.log()
    assert interrupted[0].encoder() == uninterrupted["two"].encoder()
    assert losses(interrupted[0].run) == losses(uninterrupted["two"].run)
