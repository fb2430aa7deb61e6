"""The report: one file that needs no other, and says what the faces were."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipelines.report import write_report
from shards.labels import DataError


def test_it_holds_everything_and_asks_for_nothing(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "data:image/png;base64," in html and "held-out masked error" in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "rendered faces" not in html


def test_rendered_faces_are_said_to_be_rendered_and_names_are_escaped(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    facts = json.loads((run / "run.json").read_text())
    facts["data"] |= {"rendered": True, "rendered_only": True, "sources": ["<script>alert(1)</script>"]}
    facts["command"] = ["faceprior", "demo", "run=<b>"]
    (run / "run.json").write_text(json.dumps(facts))
    html = write_report([run]).read_text()
    assert "This run learned from <b>rendered faces</b>: people who do not exist" in html
    assert "<script>" not in html
    assert ">faceprior demo run=&lt;b&gt;<" in html
    facts["data"] |= {"rendered_only": False, "sources": ["one", "two", "one"]}
    (run / "run.json").write_text(json.dumps(facts))
    html = write_report([run]).read_text()
    assert "Some of the faces that this run learned from are <b>rendered</b>" in html
    assert "faces from one, two · licence" in html


def test_several_runs_stand_side_by_side(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    html = write_report([run, finished]).read_text()
    assert html.count("<h1>") == 2


def test_no_run_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run there"):
        write_report([tmp_path])
