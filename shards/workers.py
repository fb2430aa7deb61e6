"""Jobs done by several processes, and what becomes of them when a process dies."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.labels import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
Report = Callable[[int], None]
"""Takes how much more of its job a worker has done."""

_PRELOAD = ["torch", "torchvision.io"]
"""Loaded once by the server that all workers are forked from: a new one starts in hundredths of a second."""

_open_work: Any = None
_work: Any = None
_done: Any = None


@dataclass(frozen=True)
class Died:
    """What became of a job that took its process with it twice: among others, and alone.

    Attributes:
        done: how much of it had been reported by then.
    """

    done: int


def num_cores() -> int:
    """Cores that this process may use: those of its job or container, not of the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    open_work: Callable[[], Callable[[Job, Report], Result]],
    jobs: Sequence[Job],
    num_workers: int,
    show: Callable[[int], None] = lambda done: None,
    alone: Callable[[Job], Job] = lambda job: job,
) -> Iterator[tuple[int, Result | Died]]:
    """Yields (number, result) of every job, as they are done.

    A damaged picture can bring a decoder and its process down, and a system short of memory kills one; with
    it go all jobs under way. Those are then done one by one, each in a process of its own, so that it is
    known which of them it was; the others go on as before.

    Args:
        open_work: called in each process for what does a job; picklable.
        jobs: picklable.
        num_workers: processes.
        show: told now and then how much is done, all jobs together; less again where one is repeated.
        alone: what to make of a job that is done by itself.

    Raises:
        DataError: processes die before they begin.
        Exception: what a job raised; jobs not begun are dropped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    done = context.RawArray("q", [-1] * len(jobs))  # each written by one process; -1 not begun
    left = dict(enumerate(jobs))
    while left:
        suspect = next((number for number in left if done[number] >= 0), None)
        batch = left if suspect is None else {suspect: alone(left[suspect])}
        before = len(left)
        with ProcessPoolExecutor(min(num_workers, len(batch)), context, _start, (open_work, done)) as pool:
            try:
                for number, result in _outcomes(pool, batch, lambda: show(sum(n for n in done if n > 0))):
                    del left[number]
                    yield number, result
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if suspect in left:
            del left[suspect]
            yield suspect, Died(done[suspect])
        elif len(left) == before and all(done[number] < 0 for number in left):
            raise DataError("worker processes die as they start (see above); try it with a single worker")


def _outcomes(pool: Any, batch: dict[int, Any], look: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    """(number, result) of the jobs that come to an end before the pool breaks."""
    try:
        pending: dict[Future[Any], int] = {
            pool.submit(_run, number, job): number for number, job in batch.items()
        }
    except BrokenProcessPool:
        return
    while pending:
        finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        look()
        for future in finished:
            number = pending.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            yield number, result


def _start(open_work: Any, done: Any) -> None:
    global _open_work, _done
    _open_work, _done = open_work, done


def _run(number: int, job: Any) -> Any:
    global _work
    _done[number] = 0
    if _work is None:
        _work = _open_work()

    def report(count: int) -> None:
        _done[number] += count

    return _work(job, report)
