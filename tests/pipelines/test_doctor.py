"""The doctor's text and page: exit status, what is shown, and that nothing hostile gets through."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.doctor import plain, run_doctor
from shards.records import Encoded, SourceInfo
from shards.shardset import open_shards
from tests.shards.doctor.sets import edit_manifest, made_set, picture, put_shard

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\n'\"&"


class Page(HTMLParser):
    """Tags of a page, what its attributes refer to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_set(tmp_path_factory.mktemp("healthy") / "set", images={"val-0005": picture(7, quality=60)})


def test_a_healthy_set_is_status_0_with_its_text_and_page(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(str(healthy), tmp_path / "page.html", quiet=True) == 0
    text = capsys.readouterr().out
    assert re.search(r"^train +40 +0 +0 +0 +3/3 .* 48×48 +made +CC0$", text, re.M)
    assert "healthy: 1 warning" in text and "leak: pictures of one split" in text
    assert "train: valence and arousal of 40" in text and "neutral 12%" in text
    page = Page((tmp_path / "page.html").read_text())
    for expected in (
        "Expressions",
        "AU26",
        "Valence and arousal",
        "Missing labels",
        "Some samples",
        "0 · 0.0%",
    ):
        assert expected in page.text
    assert page.tags.count("svg") == 2 and page.tags.count("img") == 20 + 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)


def test_a_damaged_set_is_status_1_and_the_place_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made_set(tmp_path / "set")
    (out / "train" / "faces-000001.tar").unlink()
    assert run_doctor(f" {out} ,", tmp_path, quiet=True) == 1
    text = capsys.readouterr().out
    assert re.search(r"^ERROR .*train/faces-000001\.tar: missing", text, re.M) and "damaged: 1 error" in text
    assert "faces-000001.tar" in Page((tmp_path / "doctor.html").read_text()).text


def test_nothing_to_examine_or_no_place_for_the_page_is_status_2(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(str(tmp_path / "none"), None, quiet=True) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run_doctor("", None, quiet=True) == 2
    assert run_doctor(str(healthy), tmp_path / "none" / "page.html", quiet=True) == 2


def test_hostile_names_and_labels_reach_neither_terminal_nor_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = SourceInfo(HOSTILE, HOSTILE, alignment={HOSTILE: HOSTILE})
    labels = {
        "train-0003": {"expr": HOSTILE},
        "train-0004": {"au": {HOSTILE: 1}},
        "train-0005": {"identity": HOSTILE},
        "val-0005": {"identity": HOSTILE},
    }
    out = made_set(tmp_path / "set", info=info, labels=labels)
    shards = open_shards(str(out), "val")
    members = {**shards.read(0).members, "json": json.dumps({"valence": HOSTILE}).encode()}
    put_shard(out / "val", 1, [Encoded('"><img onerror=x \x1b]0;', members)])
    (out / "train" / "<b>\x1b[2J.tar").write_bytes(b"x")
    (out / "train" / "\udcff.tmp").write_bytes(b"x")
    edit_manifest(out / "val", num_quarantined=1)
    (out / "val" / "quarantine.csv").write_text(f'key,reason\na,"{HOSTILE.replace(chr(34), "")}"\n')
    assert run_doctor(str(out), tmp_path / "page.html", quiet=True) == 1
    text = capsys.readouterr().out
    assert "alert(1)" in text and not set(text) & {"\x1b", "\u202e", "\x07"}
    raw = (tmp_path / "page.html").read_text()
    page = Page(raw)
    assert not {"script", "b"} & set(page.tags) and "onerror" not in page.attributes
    assert "<script>" not in raw and "onerror=x" in html.unescape(raw)
    assert "\x1b" not in raw and "\u202e" not in raw


def test_plain_keeps_letters_of_any_language_and_shows_what_it_takes_out() -> None:
    assert plain("Zoë 顔 نص") == "Zoë 顔 نص"
    assert plain("a\x1b[0m\r\n\u202eb\u200b\ud800") == "a�[0m���b��"
