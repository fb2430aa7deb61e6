"""Row 9: input made to do harm. All of it goes through a process that is watched."""

from __future__ import annotations

import json
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.checkpoint import CheckpointError
from pipelines.config import ConfigError
from shards.align.decode import ImageError
from shards.labels import DataError
from tests.reliability.row import Row, Scale, verdict

TYPED = (DataError, CheckpointError, ConfigError, ImageError)
Case = Callable[[Path], Any]
"""Takes a folder of its own. It is refused by a typed error, or returns what came of it, looked at."""

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "webbrowser.open",
    "pty.spawn",
)
_SECONDS = 20
_MEGABYTES = 512


def measure(scale: Scale) -> list[Row]:
    """Row 9."""
    folder = scale.folder / "hostile"
    folder.mkdir()
    out = folder / "outcomes.json"
    child = scale.forge.start(
        "tests.reliability.hostile:run_all", [str(folder), str(out)], folder, folder / "log"
    )
    problems = [] if child.wait(600) == 0 else [f"the process died: {child.said()[-500:]}"]
    outcomes: dict[str, Any] = json.loads(out.read_bytes()) if out.exists() else {}
    cases = outcomes.get("cases", {})
    problems += [f"{name}: {what}" for name, (kind, what) in cases.items() if kind == "wrong"]
    problems += [f"did {event}" for event in outcomes.get("events", [])]
    grown = outcomes.get("megabytes", 0)
    if grown > _MEGABYTES:
        problems.append(f"{grown} MB of memory")
    network = _offline(scale)
    problems += network
    kinds = Counter(kind for kind, _ in cases.values())
    text = (
        f"{len(cases)} cases: {kinds['refused']} refused by a typed error, {kinds['harmless']} taken and "
        f"harmless, {kinds['wrong']} otherwise; {len(outcomes.get('events', []))} commands, unpicklings or "
        f"connections; {grown} MB at most beyond what the process had; a whole training with every network "
        f"connection refused {'fails' if network else 'runs'}"
    )
    return [
        Row(
            9,
            "hostile files: pickles, pipes, traversal, links, bombs, lying headers, tags, injections",
            "60 cases or more, 0 executed, memory bounded, typed errors",
            not problems and len(cases) >= 60,
            verdict(problems, text),
        )
    ]


def run_all(folder: str, out: str) -> None:
    """In a child: every case, watched by an audit hook, an alarm and a look at its memory."""
    from tests.reliability.hostile_files import CASES as FILES
    from tests.reliability.hostile_texts import CASES as TEXTS

    events: list[str] = []
    current = ""

    def watch(event: str, arguments: Any) -> None:
        if current and event in _FORBIDDEN:
            events.append(f"{event} in {current}")

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {_SECONDS} s")

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, late)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases = {}
    for number, (name, case) in enumerate((FILES | TEXTS).items()):
        place = Path(folder) / f"{number:03d}"
        place.mkdir()
        current = name
        signal.alarm(_SECONDS)
        high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cases[name] = _outcome(case, place)
        signal.alarm(0)
        current = ""
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - high) // 1024
        if list(place.rglob("canary*")):
            cases[name] = ("wrong", "it was executed")
        elif grown > _MEGABYTES:
            cases[name] = ("wrong", f"{grown} MB of memory")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    outcomes = {"cases": cases, "events": events, "megabytes": grown}
    Path(out).write_text(json.dumps(outcomes))


def _outcome(case: Case, place: Path) -> tuple[str, str]:
    try:
        return "harmless", str(case(place))[:200]
    except TYPED as error:
        return "refused", f"{type(error).__name__}: {error}"[:200]
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "wrong", f"{type(error).__name__}: {error} ({Path(where.filename).name} {where.lineno})"[:200]


def _offline(scale: Scale) -> list[str]:
    """A training from shards to report, with every connection refused but those on this machine."""
    from tests.reliability.training import Training

    training = Training(scale, "offline", settings=["train.epochs=1", "eval.max_samples=8"])
    life = training.start(call="tests.reliability.victims:offline")
    if life.end() != 0:
        return [f"a training without a network: {life.said()[-300:]}"]
    return []
