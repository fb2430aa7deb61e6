"""What every benchmark shares: timing side by side, the rows of the table, and the record kept of each run.

A benchmark is a module of this folder with `def rows(asked: Asked) -> list[Row]`; `python -m bench` runs each
in a process of its own. What competes is timed in turns (ours, peer, ours, peer …), so that a busy machine
slows both, and a ratio is that of the same turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch

PEERS = Path(sys.prefix) / "peers"
RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "lightly",
    "webdataset",
    "accelerate",
    "pillow",
    "numpy",
)


@dataclass(frozen=True)
class Asked:
    """What a run of the benchmarks was asked for.

    Attributes:
        quick: the smallest sizes and fewest turns that still run every line (no figures worth keeping).
        device: "cpu" or "cuda".
    """

    quick: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of values; at least one."""
        return cls(min(values), statistics.median(values), max(values))

    def text(self, digits: str = ",.0f") -> str:
        """Such as "1,712 (1,690–1,730)"."""
        low, median, high = (format(value, digits) for value in (self.low, self.median, self.high))
        return f"{median} ({low}–{high})"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what was done, with sizes. goal: what is asked of it. ours: our figure with its unit.
        peer: what it is compared with, and that one's figure; "" if nothing.
        ratio: how many times as good as the peer, a turn at a time, where there is a peer.
        reached: whether the goal is; None where there is none, or where it could not be measured: then `ours`
            or `note` begins with "not measured" and says why.
        note: where the time goes, what was tried; one or two sentences.
        settings: of each contestant, enough to repeat it. values: each contestant's raw figures.
    """

    work: str
    goal: str
    ours: str
    peer: str = ""
    ratio: Spread | None = None
    reached: bool | None = None
    note: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)


def take_turns(
    contestants: Mapping[str, Callable[[], object]], turns: int, warmups: int = 1, *, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each call, the contestants one after the other in every turn.

    Args:
        contestants: name -> the work to time. turns: how often each is timed, after `warmups` untimed ones.
        device: "cuda" waits for the device before each clock is read.
    """
    for _ in range(warmups):
        for work in contestants.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, work in contestants.items():
            gc.collect()
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rates(seconds: Sequence[float], amount: float) -> list[float]:
    """Amounts a second."""
    return [amount / one for one in seconds]


def times_as_fast(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """How many times as fast ours is, turn by turn; both in seconds."""
    return Spread.of([other / own for own, other in zip(ours, peer, strict=True)])


def gemm_flops(dtype: torch.dtype, device: str = "cpu", size: int = 0, turns: int = 8) -> float:
    """FLOP/s of the best large matrix product here: the ceiling that utilisation is measured against."""
    size = size or (8192 if device == "cuda" else 1536)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = take_turns({"product": lambda: one @ other}, turns, warmups=3, device=device)["product"]
    return 2 * size**3 / min(seconds)


def peer_available(package: str) -> bool:
    """Makes the peers that `make bench` set up importable; whether one of them is there."""
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def machine(device: str) -> dict[str, str]:
    """What a figure depends on: processor or accelerator, threads, versions."""
    peer_available("transformers")
    facts = {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name()
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts


def _processor() -> str:
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").is_file()
        else [platform.processor() or platform.machine()]
    )
    best = torch.backends.cpu.get_cpu_capability()
    return f"{len(names)} × {names[0]} ({best})"


def run_alone(module: str, rows: Callable[[Asked], list[Row]]) -> None:
    """What `python -m bench.NAME` does: measures, prints, and keeps the record in `RESULTS`.

    Args:
        module: the module's `__spec__.name`. rows: its measurement.
    """
    parser = argparse.ArgumentParser(description=f"{module}: see its module docstring")
    parser.add_argument("--quick", action="store_true", help="smallest sizes; prints, keeps nothing")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    options = parser.parse_args()
    start = time.monotonic()
    found = rows(Asked(options.quick, options.device))
    for row in found:
        ratio = f", {row.ratio.text('.2f')} ×" if row.ratio else ""
        state = {True: ": reached", False: ": NOT reached", None: ""}[row.reached]
        against = f" against {row.peer}" if row.peer else ""
        print(f"{row.work}\n    {row.ours}{against}{ratio}; {row.goal}{state}")
        if row.note:
            print(f"    {row.note}")
    if options.quick:
        return
    folder = RESULTS / options.device
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(options.device),
        "seconds": round(time.monotonic() - start),
        "rows": [asdict(row) for row in found],
    }
    name = module.rpartition(".")[2]
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
