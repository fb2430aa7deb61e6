"""Rows 11 and 12: several processes at one work, and at one folder."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.reliability.forge import Child
from tests.reliability.row import Row, Scale, verdict
from tests.reliability.training import Training
from tests.shards.faces import build_smooth

_VICTIMS = "tests.reliability.victims"
_BUSY = "another process is working there"


def evaluations(scale: Scale) -> list[Row]:
    """Row 11."""
    settings = ["train.epochs=1", "train.global_batch_size=12", "eval.batch_size=3"]
    whole = Training(scale, "evaluated", settings=settings)
    problems = [] if whole.start().end() == 0 else ["no run to evaluate"]
    found: dict[int, list[str]] = {}
    for world in (1, 2, 3):
        training = replace(whole, name=f"evaluated-{world}", world_size=world)
        shutil.copytree(whole.run, training.run)
        (training.run / "finished").unlink()
        lines = (training.run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (training.run / "metrics.jsonl").write_text("".join(line for line in lines if '"train"' in line))
        life = training.start(call=f"{_VICTIMS}:counting")
        if life.end() != 0:
            problems.append(f"{world} processes: {life.said()[-300:]}")
        lines = (training.run / "metrics.jsonl").read_text().splitlines()
        found[world] = [line for line in lines if json.loads(line)["kind"] == "eval"]
        keys = [
            key
            for file in training.folder.glob(f"{training.name}.*.ledger.*.seen")
            for key in file.read_text().split()
        ]
        if sorted(keys) != sorted(f"val-{number:04d}" for number in range(16)):
            problems.append(f"{world} processes scored {len(keys)} samples, {len(set(keys))} different ones")
        if len(found[world]) != 1 or found[world] != found[1]:
            problems.append(f"{world} processes: {found[world]}, one: {found[1]}")
    return [
        Row(
            11,
            "evaluation on 1, 2 and 3 processes",
            "equal to the last bit, each sample once",
            not problems,
            verdict(problems, f"the same line of metrics.jsonl, each of 16 samples once: {found[1]}"),
        )
    ]


def conflicts(scale: Scale) -> list[Row]:
    """Row 12."""
    problems = []
    acts = (("build", _build), ("resume", _resume), ("render", _render))
    for name, act in acts[:2] if scale.short else acts:
        problems += [f"{name}: {text}" for text in act(scale)]
    return [
        Row(
            12,
            "two processes that build one shard set, render one default set, or go on with one run",
            "one wins, the other says so, and a lock does not outlive who holds it",
            not problems,
            verdict(
                problems,
                "build, render and resume: the second process says that another works there (of what is "
                "rendered it waits for it), the first is killed, and the next finishes it to the same bytes",
            ),
        )
    ]


def _wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def _build(scale: Scale) -> list[str]:
    folder = scale.folder
    whole, out = build_smooth(folder / "built-whole", counts={"train": 24}), folder / "built"

    def start(name: str, seconds: float) -> Child:
        log = folder / f"build-{name}.log"
        return scale.forge.start(f"{_VICTIMS}:build_slowly", [str(out), seconds], folder, log)

    first = start("first", 0.5)
    _wait_for(lambda: any((out / "train").glob(".faces-*.tmp")))
    second = start("second", 0.0)
    problems = []
    if second.wait(60) != 1 or _BUSY not in second.said():
        problems.append(f"the second does not say so: {second.said()[-200:]}")
    first.kill()
    first.wait()
    third = start("third", 0.0)
    if third.wait(60) != 0 or _bytes(out / "train") != _bytes(whole / "train"):
        problems.append(f"the third does not finish it: {third.said()[-200:]}")
    return problems


def _render(scale: Scale) -> list[str]:
    place = scale.folder / "rendered"
    place.mkdir()

    def start(name: str) -> Child:
        return scale.forge.start(f"{_VICTIMS}:render_few", [], place, place / f"{name}.log")

    first = start("first")
    _wait_for(lambda: any(place.glob("data/*/train/.faces-*.tmp")))
    second = start("second")
    _wait_for(lambda: _BUSY in second.said() or second.poll() is not None)
    first.kill()
    problems = []
    if first.wait() != -signal.SIGKILL:
        problems.append("the first was done before it could be killed")
    if second.wait(90) != 0 or _BUSY not in second.said():
        problems.append(f"the second does not take over: {second.said()[-300:]}")
    third = start("third")
    if third.wait(60) != 0 or "rendering the default" in third.said():
        problems.append(f"the third does not find it: {third.said()[-200:]}")
    return problems


def _resume(scale: Scale) -> list[str]:
    settings = ["train.epochs=1", "train.save_every=2", "eval.max_samples=8"]
    whole, contested = (Training(scale, name, settings=settings) for name in ("uncontested", "contested"))
    if whole.start().end() != 0:
        return ["no run to compare with"]
    first = contested.start(call=f"{_VICTIMS}:slowly")
    _wait_for(lambda: first.steps_made() >= 3)
    second = contested.start()
    problems = []
    if second.end() != 1 or _BUSY not in second.said():
        problems.append(f"the second does not say so: {second.said()[-200:]}")
    first.children[0].kill()
    first.end()
    if contested.start().end() != 0 or contested.weights() != whole.weights():
        problems.append("the third does not finish it to the same weights")
    return problems


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] != "."}
