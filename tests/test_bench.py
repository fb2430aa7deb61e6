"""The frame that benchmarks share: turns, spreads, and the page made of their records."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.__main__ import BENCHMARKS
from bench.measure import Row, Spread, take_turns, times_as_fast
from bench.page import write_page
from bench.recipe_longer import recorded


def test_contestants_take_turns_after_the_warm_up() -> None:
    calls: list[str] = []
    seconds = take_turns({"ours": lambda: calls.append("o"), "peer": lambda: calls.append("p")}, turns=3)
    assert "".join(calls) == "opopopop"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_ratio_is_that_of_the_same_turn() -> None:
    assert times_as_fast([1.0, 2.0, 4.0], [2.0, 8.0, 4.0]) == Spread(1.0, 2.0, 4.0)
    assert Spread.of([1712.4, 1690, 1730]).text() == "1,712 (1,690–1,730)"


def test_every_benchmark_that_is_listed_is_there() -> None:
    assert all(importlib.util.find_spec(f"bench.{name}") for name in BENCHMARKS)


def test_the_page_has_a_line_for_each_row_and_says_what_was_not_measured(tmp_path: Path) -> None:
    rows = [
        Row("decode", "1,700/s", "1,800/s", "PIL 700/s", Spread(2.1, 2.5, 2.9), True, "half is decoding"),
        Row("train | GPU", "45 %", "", note="not measured: needs a CUDA device"),
        Row("step", "2 ×", "1.0/s", "plain 1.0/s", Spread(0.9, 1.0, 1.1), False),
    ]
    for device, facts in {
        "cpu": {"processor": "2 × X (AVX2)", "threads": "2", "torch": "2.14"},
        "cuda": {"processor": "16 × Y (AVX512)", "threads": "16", "accelerator": "Z", "torch": "2.11"},
    }.items():
        (tmp_path / device).mkdir()
        record = {"machine": facts, "seconds": 12, "rows": [asdict(row) for row in rows]}
        (tmp_path / device / "reading.json").write_text(json.dumps(record))
    text = write_page(BENCHMARKS, tmp_path / "page.md", tmp_path).read_text()
    assert text.count("`python -m bench reading`, 12 s.") == 2
    assert "## 2 × X (AVX2)" in text and "## Z" in text
    assert "| decode | 1,800/s | PIL 700/s | 2.50 (2.10–2.90) | 1,700/s | reached |" in text
    assert "| train \\| GPU | not measured: needs a CUDA device |  |  | 45 % |  |" in text
    assert "| 2 × | **not reached** |" in text and "* **decode**: half is decoding" in text
    assert "what was predicted, tried and measured" in text


def test_recorded_scores_are_taken_of_the_same_processor_library_and_settings_alone(tmp_path: Path) -> None:
    here, path = {"processor": "A", "torch": "2"}, tmp_path / "recipe_worth.json"
    with pytest.raises(SystemExit, match="not there; run"):
        recorded(path, here, "epochs=8")
    rows = [
        {"settings": {"usual": "epochs=8"}, "values": {"usual, score": scores, "fast, score": [9.0, 9.0]}}
        for scores in ([1.0, 2.0], [3.0, 4.0])
    ]
    path.write_text(json.dumps({"machine": {**here, "threads": "1"}, "rows": rows}))
    assert recorded(path, here, "epochs=8") == ([1.0, 2.0], [3.0, 4.0])
    for other in ({"processor": "B"}, {"torch": "3"}, {"accelerator": "C"}):
        with pytest.raises(SystemExit, match="run `python -m bench recipe_worth` first"):
            recorded(path, {**here, **other}, "epochs=8")
    with pytest.raises(SystemExit, match="other settings today; run"):
        recorded(path, here, "epochs=9")
