"""docs/benchmarks.md, written from the records of `bench/results`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measure import RESULTS

PAGE = Path("docs/benchmarks.md")
_STATES = {True: "reached", False: "**not reached**", None: ""}
_UNMEASURED = "not measured"
_TRIED = Path(__file__).with_name("tried.md")  # written by hand


def write_page(benchmarks: Mapping[str, str], page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Writes the page; returns its path.

    Args:
        benchmarks: name -> what it measures, in the order of the page.
        results: a folder of records for each kind of device.
    """
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; the raw figures and settings of every contestant are in `bench/results`. "
        "Contestants take turns, a ratio is that of the same turn, and a figure is the median "
        "(minimum–maximum). Steps are timed in one process, so what ours tells the C libraries, how long "
        "threads spin and that freed memory is kept, holds for all. One benchmark alone: "
        "`python -m bench NAME`.",
    ]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()) if results.is_dir() else []:
        records = {
            name: json.loads(path.read_text())
            for name in benchmarks
            if (path := folder / f"{name}.json").is_file()
        }
        if records:
            lines += ["", *_device(records, benchmarks)]
    lines += ["", _TRIED.read_text().rstrip()]
    page.write_text("\n".join(lines) + "\n")
    return page


def _device(records: Mapping[str, Any], benchmarks: Mapping[str, str]) -> list[str]:
    facts = next(iter(records.values()))["machine"]
    lines = [f"## {facts.get('accelerator', facts['processor'])}", "", _versions(facts)]
    for name, record in records.items():
        title = benchmarks[name]
        lines += ["", f"### {title[0].upper()}{title[1:]}", ""]
        lines += [
            f"`python -m bench {name}`, {record['seconds']} s." + _differs(facts, record["machine"]),
            "",
        ]
        lines += ["| work | ours | peer | ratio | goal | |", "|---|---|---|---|---|---|"]
        notes = []
        for row in record["rows"]:
            ratio = row["ratio"]
            shown = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" if ratio else ""
            unmeasured = row["note"].startswith(_UNMEASURED)
            said = row["note"] if unmeasured else row["ours"]
            cells = (row["work"], said, row["peer"], shown, row["goal"], _STATES[row["reached"]])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            if row["note"] and not unmeasured:
                notes.append(f"* **{row['work']}**: {row['note']}")
        lines += ["", *notes] if notes else []
    return lines


def _versions(facts: Mapping[str, str]) -> str:
    named = [
        f"{key} {value}" for key, value in facts.items() if key not in ("processor", "accelerator", "threads")
    ]
    return f"{facts['processor']}, {facts['threads']} threads; {', '.join(named)}."


def _differs(facts: Mapping[str, str], others: Mapping[str, str]) -> str:
    changed = [f"{key} {value}" for key, value in others.items() if facts.get(key) != value]
    return f" Measured with {', '.join(changed)}." if changed else ""
