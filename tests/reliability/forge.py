"""Processes forked from one that has loaded everything: real ones that die real deaths, in tenths of a
second.

The server is a process of its own that only imports and forks, so that a child begins as a fresh interpreter
would behind its imports: no thread, no generator and no handle of the tests is in it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.pipelines.launched import environment, free_port

_LOADED = (
    "pipelines.__main__",
    "pipelines.pretraining",
    "pipelines.dryrun",
    "pipelines.report",
    "tests.reliability.victims",
)


@dataclass
class Child:
    """One forked process.

    Attributes:
        forge: its server.
        pid: of it; it leads a session of its own.
        log: file with all that it says.
        status: as of `subprocess.Popen.returncode`; None while it lives.
    """

    forge: Forge
    pid: int
    log: Path
    status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            self.status = self.forge.ask({"do": "poll", "pid": self.pid})
        return self.status

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status; one that hangs longer is killed, and the wait fails."""
        end = time.monotonic() + seconds
        pause = 0.002
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"{self.log}: no end after {seconds:g} s: {self.said()[-2000:]}")
            time.sleep(pause)
            pause = min(1.5 * pause, 0.05)
        assert self.status is not None
        return self.status

    def send(self, number: signal.Signals) -> None:
        """Signals the process alone, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process and its loader workers."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Forge:
    """Forks processes that call a function."""

    def __init__(self, sabotage: str = "") -> None:
        """`sabotage`: what is broken in every child; see `tests.reliability.sabotage`."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.forge", sabotage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def __enter__(self) -> Forge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        call: str,
        arguments: Sequence[Any],
        folder: Path,
        log: Path,
        environ: Mapping[str, str] | None = None,
    ) -> Child:
        """Forks a process that calls `call`, "module:function", with JSON values.

        Args:
            arguments: what it is called with; an integer that it returns is the exit status.
            folder: working directory.
            log: gets its output, anew.
            environ: variables beyond the server's.
        """
        request = {"do": "start", "call": call, "arguments": list(arguments), "folder": str(folder)}
        request |= {"log": str(log), "environ": dict(environ or {})}
        return Child(self, self.ask(request), log)

    def start_all(
        self,
        call: str,
        arguments: Sequence[Sequence[Any]],
        folder: Path,
        log: Path,
    ) -> list[Child]:
        """One process for each list of arguments, joined as a launcher would join them."""
        world = {"WORLD_SIZE": str(len(arguments)), "LOCAL_WORLD_SIZE": str(len(arguments))}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [
            self.start(
                call,
                each,
                folder,
                log.with_name(f"{log.name}.{rank}"),
                world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, each in enumerate(arguments)
        ]


def end_together(children: Sequence[Child], seconds: float = 120.0, grace: float = 30.0) -> list[int]:
    """Waits as a launcher does: once one has failed the others are asked to end, and killed after `grace`."""
    end, asked = time.monotonic() + seconds, 0.0
    while any(child.poll() is None for child in children):
        failed = any(child.status not in (None, 0) for child in children)
        if failed and not asked:
            asked = time.monotonic()
            for child in children:
                child.send(signal.SIGTERM)
        late = asked and time.monotonic() > asked + grace
        if late or time.monotonic() > end:
            for child in children:
                child.kill()
            if not late:
                raise TimeoutError(f"no end after {seconds:g} s: {children[0].said()[-2000:]}")
        time.sleep(0.01)
    return [child.wait() for child in children]


def _serve(sabotage: str) -> None:
    """Answers requests, one a line, until there are no more; then kills what is left."""
    for name in _LOADED:
        importlib.import_module(name)
    if sabotage:
        from tests.reliability.sabotage import apply

        apply(sabotage)
    living: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if request["do"] == "start":
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                _live(request)
            living.add(answer)
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            living.discard(pid)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in living:
        os.killpg(pid, signal.SIGKILL)


def _live(request: Mapping[str, Any]) -> None:
    """The child: does its call and ends, without what the server would do at its end."""
    status = 1
    try:
        os.setsid()
        os.chdir(request["folder"])
        os.environ.update(request["environ"])
        for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, request["log"], os.O_WRONLY)):
            handle = os.open(path, mode | os.O_CREAT | (os.O_TRUNC if number else 0), 0o644)
            os.dup2(handle, number)
            os.close(handle)
        os.dup2(1, 2)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        module, _, name = request["call"].partition(":")
        call: Callable[..., Any] = getattr(importlib.import_module(module), name)
        status = int(call(*request["arguments"]) or 0)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


if __name__ == "__main__":
    _serve(sys.argv[1])
