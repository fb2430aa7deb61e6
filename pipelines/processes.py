"""The processes of a run: who is who, what they agree on, and the signals that ask them to stop.

Agreement goes through a gloo group of its own, on the CPU, one step behind: no process waits for a device,
and all stop at the same step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from shards.labels import DataError

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_MESSAGE, _REPORT = 1 << 16, 1 << 12  # bytes
_SAME_CTRL_C = 1.0  # seconds within which a launcher passes on the Ctrl-C that the terminal sent to all


class PeerError(DataError):
    """Another process of the run could not go on; says which, and why."""


def plain_error(error: RuntimeError) -> DataError:
    """What torch raises where another process has died, in words; any other error is raised as it is.

    It can come at any line: torch looks after its loader processes in a signal handler, and the process group
    notices a lost connection in whatever it exchanges.
    """
    text = str(error)
    if "DataLoader worker" in text:
        cause = text.strip().splitlines()[0].rstrip(". ")
        return DataError(
            f"a loader process died ({cause}): short of memory, or killed. Lower data.num_workers if it "
            "happens again; the same command goes on from the last checkpoint"
        )
    if isinstance(error, dist.DistError) or "/gloo/" in text:
        return PeerError(
            f"the connection to another process of the run was lost ({text.strip().splitlines()[0]:.300}): "
            "what ended it is in its own messages; the same command goes on from the last checkpoint"
        )
    raise error


class Processes:
    """This process among the others of the run."""

    def __init__(self) -> None:
        """Joins the process group that the launcher set up, if there is one."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if several else 0
        self.world_size = dist.get_world_size() if several else 1
        self._group: Any = dist.new_group(backend="gloo") if several else None
        self._posted: tuple[torch.Tensor, dist.Work | None] | None = None

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def post(self, flags: Sequence[int]) -> list[int]:
        """Hands in this process's flags; returns the largest of all processes' flags of the call before.

        The first call returns zeros. Every process must call it at the same steps.
        """
        flags_tensor = torch.tensor(list(flags), dtype=torch.int64)
        if self._group is None:
            return flags_tensor.tolist()
        previous = self._posted
        work = dist.all_reduce(flags_tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._posted = (flags_tensor, work)
        if previous is None:
            return [0] * len(flags)
        tensor, pending = previous
        if pending is not None:
            pending.wait()
        return tensor.tolist()

    def finish_posts(self) -> None:
        """Waits for the last `post`, so that no exchange is left under way."""
        if self._posted is not None and self._posted[1] is not None:
            self._posted[1].wait()
        self._posted = None

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of a CPU tensor over processes."""
        if self._group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self._group)
        return total / self.world_size

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """A CPU tensor of the same shape from every process, in order of rank."""
        if self._group is None:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values.contiguous(), group=self._group)
        return gathered

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def together(self, work: Callable[[], T]) -> T:
        """Does `work` in every process and waits for all; where it fails in one, all raise.

        Else the others would wait for that one until something ends them.

        Raises:
            PeerError: it failed in another process. In that one its own error is raised.
        """
        if self._group is None:
            return work()
        failure: Exception | None = None
        try:
            done = work()
        except Exception as error:
            failure = error
        said = "" if failure is None else str(failure) or type(failure).__name__
        reports = [_to_text(report) for report in self.gather(_to_bytes(said, _REPORT))]
        if failure is not None:
            raise failure
        for rank, report in enumerate(reports):
            if report:
                raise PeerError(f"process {rank} of {self.world_size}: {report}")
        return done

    def agree(self, message: str) -> str:
        """The main process's text, in every process (up to 64 KiB)."""
        if self._group is None:
            return message
        buffer = _to_bytes(message if self.is_main else "", _MESSAGE)
        dist.broadcast(buffer, 0, group=self._group)
        return _to_text(buffer)


def leave() -> None:
    """Leaves the launcher's process group, after work that went well.

    A group that is still there at the interpreter's end can bring the process down: gloo's threads hold
    tensors then (pytorch/pytorch#179291). Not after an error: it would wait for exchanges that nobody ends.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _to_bytes(text: str, size: int) -> torch.Tensor:
    """(size,) uint8: the text, cut if it is too long, and zeros."""
    return torch.tensor(list(text.encode()[: size - 1].ljust(size, b"\0")), dtype=torch.uint8)


def _to_text(buffer: torch.Tensor) -> str:
    return bytes(buffer.tolist()).rstrip(b"\0").decode(errors="replace")


class StopRequest:
    """Set by SIGTERM, SIGUSR1 (a scheduler's grace signal) or Ctrl-C: save at the next step and end."""

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler. A second Ctrl-C interrupts at once, unless it is the first, passed on by torchrun."""
        now = time.monotonic()
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            if now - self._since > _SAME_CTRL_C:
                raise KeyboardInterrupt
            return
        self.signal, self._since = number, now


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches stop signals while the block runs; handlers are put back after it."""
    global _catching
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in (*STOP_SIGNALS, signal.SIGINT)}
    _catching = True
    _die_with_launcher()
    try:
        yield request
    finally:
        _catching = False
        for number, handler in before.items():
            signal.signal(number, handler)


_catching = False


def _leave_signals_to_parent() -> None:
    """In a forked loader worker: a stop signal sent to all processes is the training process's to answer.

    A worker that died of it would take the run down before it has saved. Only the parent may end a worker.
    """
    if _catching:
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, signal.SIGINT))
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


os.register_at_fork(after_in_child=_leave_signals_to_parent)


def _die_with_launcher() -> None:
    """`accelerate launch` of one process passes no SIGTERM on: the kernel does, when that parent dies."""
    parent = os.getppid()
    try:
        by_accelerate = b"accelerate" in Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return
    if by_accelerate:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    orphaned = parent == 1 and not by_accelerate and "ACCELERATE_MIXED_PRECISION" in os.environ
    if orphaned or os.getppid() != parent:  # it died while this process was starting
        os.kill(os.getpid(), signal.SIGTERM)
