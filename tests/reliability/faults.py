"""Row 8: what goes wrong around a training that is itself well."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.reliability.row import Row, Scale, verdict
from tests.reliability.training import Life, Training

_LIMIT = 60.0
_VICTIMS = "tests.reliability.victims"
_SAVE = "write checkpoints/"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: of it.
        live: lives until it has happened; returns that life.
        status: exit status of the process that speaks.
        says: part of its message.
        world_size: processes; speaker: which of them is to say it.
    """

    name: str
    live: Callable[[Training], Life]
    status: int
    says: str
    world_size: int = 1
    speaker: int = 0


def measure(scale: Scale) -> list[Row]:
    """Row 8."""
    settings = ["train.save_every=2", "train.epochs=1", "eval.max_samples=8"]
    faults = [fault for fault in _faults() if not scale.short or fault.name in _SHORT]
    worlds = sorted({fault.world_size for fault in faults})
    whole = {world: Training(scale, f"faultless-{world}", world, settings) for world in worlds}
    problems = [f"no run to compare with: {world}" for world, run in whole.items() if run.start().end()]
    longest = 0.0
    for number, fault in enumerate(faults):
        training = replace(whole[fault.world_size], name=f"fault-{number}", drawn={})
        started = time.monotonic()
        problems += [f"{fault.name}: {text}" for text in _suffer(training, fault, whole[fault.world_size])]
        longest = max(longest, time.monotonic() - started)
    on_disk, count = _full_disks(scale, whole[1])
    problems += on_disk
    names = ", ".join(fault.name for fault in faults)
    text = (
        f"{len(faults) + count} faults ({names}{', a disk that is really full or read-only' * bool(count)}): "
        f"each with its message and exit status, gone on with to the very weights, {longest:.0f} s at most "
        "for the fault and both lives"
    )
    return [
        Row(
            8,
            "full and failing disks, stale files, signals, dead processes, NaN",
            "a clear message, an exit status, can go on, no hang over 60 s",
            not problems,
            verdict(problems, text),
        )
    ]


def _suffer(training: Training, fault: Fault, whole: Training) -> list[str]:
    life = fault.live(training)
    try:
        life.end(_LIMIT)
    except TimeoutError as error:
        return [str(error)[-300:]]
    speaker = life.children[fault.speaker]
    said, problems = speaker.said(), []
    if speaker.status != fault.status:
        problems.append(f"ends with {speaker.status}, not {fault.status}: {said[-300:]}")
    if fault.says not in said or "Traceback" in said:
        problems.append(f"does not say {fault.says!r}: {said[-300:]}")
    if training.start().end() != 0:
        problems.append("cannot go on")
    elif training.weights() != whole.weights():
        problems.append("other weights")
    return problems


def _trapped(at: int, act: str, only: str) -> Callable[[Training], Life]:
    return lambda training: training.start(trap={"at": at, "act": act, "only": only})


def _called(name: str) -> Callable[[Training], Life]:
    return lambda training: training.start(call=f"{_VICTIMS}:{name}")


def _signalled(number: signal.Signals, who: Callable[[Life], int], *more: str) -> Callable[[Training], Life]:
    """Sends a signal to one of a life's processes when it has made three steps."""

    def live(training: Training) -> Life:
        life = training.start(*more, call=f"{_VICTIMS}:slowly")
        end = time.monotonic() + _LIMIT
        while life.steps_made() < 3 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(who(life), number)
        return life

    return live


def _loader_worker(life: Life) -> int:
    pid = life.children[0].pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


def _stale(training: Training) -> Life:
    """What older, killed lives may have left."""
    folder = training.run / "checkpoints"
    for name in (".step-00000002.tmp", ".step-00000001.old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"half")
    (folder / ".latest.77.tmp").write_bytes(b"half")
    (training.run / ".run.json.77.tmp").write_bytes(b"half")
    return training.start("train.stop_at_step=4")


def _unreadable(training: Training) -> Life:
    training.start("train.stop_at_step=4").end()
    return training.start(call=f"{_VICTIMS}:unreadable_checkpoints")


_SHORT = ("no space", "SIGUSR1", "a loader process killed")


def _faults() -> Iterator[Fault]:
    full, broken, locked = "the disk is full", "input/output error", "the file system is read-only"
    yield Fault("no space", _trapped(3, "ENOSPC", _SAVE), 1, full)
    yield Fault("no space for the pointer", _trapped(2, "ENOSPC", "write checkpoints/latest"), 1, full)
    yield Fault("no space for run.json", _trapped(1, "ENOSPC", "write run.json"), 1, full)
    yield Fault("EIO in fsync", _trapped(9, "EIO", "fsync checkpoints/"), 1, broken)
    yield Fault("EIO in rename", _trapped(12, "EIO", "rename checkpoints/"), 1, broken)
    yield Fault("a folder that becomes read-only", _trapped(2, "EROFS", "mkdir checkpoints/"), 1, locked)
    yield Fault("stale temporary files", _stale, 0, "stopped at step 4, saved")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        live = _signalled(number, lambda life: life.children[0].pid)
        yield Fault(number.name, live, 128 + number, "saved; the same command goes on from there")
    live = _signalled(signal.SIGKILL, _loader_worker, "data.num_workers=1")
    yield Fault("a loader process killed", live, 1, "faceprior: a loader process died")
    yield Fault("NaN", _called("poisoned"), 1, "had a loss or gradient that is not finite")
    yield Fault("Inf", _called("infinite"), 1, "had a loss or gradient that is not finite")
    yield Fault("shards that cannot be read", _called("unreadable_shards"), 1, "cannot be read (Input/output")
    yield Fault("checkpoints that cannot be read", _unreadable, 1, "nothing was changed: make it readable")
    for victim, name in ((1, "the second of two processes killed"), (0, "the first of two processes killed")):
        live = _signalled(signal.SIGKILL, lambda life, victim=victim: life.children[victim].pid)
        yield Fault(name, live, 1, "faceprior: the connection to another process", 2, 1 - victim)


def _full_disks(scale: Scale, whole: Training) -> tuple[list[str], int]:
    """A file system of its own that fills up, then one that is mounted read-only: for who may mount."""
    mount = scale.folder / "disk"
    mount.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)]
    if os.getuid() != 0 or scale.short or subprocess.run(made, capture_output=True).returncode:
        return [], 0
    problems = []
    try:
        training = replace(whole, name=str(mount / "run"), drawn={})
        (mount / "ballast").write_bytes(bytes(2_600_000))
        problems += _refused(training, "the disk is full")
        (mount / "ballast").unlink()
        if training.start("train.stop_at_step=6").end():
            problems.append("cannot go on when there is room again")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        problems += _refused(training, "the file system is read-only")
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
        if training.start().end() or training.weights() != whole.weights():
            problems.append("does not go on to the same weights where it may write again")
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", str(mount)], check=False)
    return [f"a disk of its own: {problem}" for problem in problems], 2


def _refused(training: Training, says: str) -> list[str]:
    life = training.start()
    status = life.end(_LIMIT)
    if status != 1 or says not in life.said() or "Traceback" in life.said():
        return [f"status {status}, no {says!r}: {life.said()[-300:]}"]
    return []
