"""Folders and zips of pictures, with and without labels."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shards.align import AlignConfig
from shards.build import BuildConfig, build
from shards.labels import AU12, EXPR8, DataError
from shards.records import Encoded, Rejected
from shards.shardset import open_shards
from shards.sources import AlignedFaces, FolderFaces, build_source, raw
from tests.shards.sources.layouts import drawn, labels, made, write_files, write_zip

NONE = AlignConfig(mode="none", size=32)

TABLE = """\
image;expr;valence;AU1;AU 04;AU5;person;mood
a.jpg;Anger;-0.5;1;0;1;p1;grim
b.jpg;;0.25;;;;p2;
sub/c.png;neutral;;;1;;p1;  calm
"""


def folder(root: Path, table: str | None = TABLE, name: str = "labels.csv") -> Path:
    files: dict[str, bytes | str] = {"a.jpg": drawn(0), "b.jpg": drawn(1), "sub/c.png": drawn(2, kind="PNG")}
    if table is not None:
        files[name] = table
    return write_files(root / "set", files)


def source(path: Path, **options: Any) -> AlignedFaces:
    return build_source("folder", path, NONE, **({"val_fraction": 0.0} | options))


def test_pictures_become_samples(tmp_path: Path) -> None:
    faces = source(folder(tmp_path, None))
    assert faces.splits() == ["train"]
    records = made(faces)
    assert list(records) == ["a", "b", "sub_c"]
    for record in records.values():
        assert isinstance(record, Encoded)
        assert list(record.members) == ["jpg", "json"] and record.members["json"] == b"{}"
    assert faces.info.name == "set"
    assert faces.info.alignment == NONE.recipe()


def test_labels_from_a_table(tmp_path: Path) -> None:
    faces = source(folder(tmp_path))
    records = made(faces)
    assert labels(records["a"]) == {
        "expr": "anger",
        "valence": -0.5,
        "identity": "p1",
        "au": {"AU1": 1, "AU4": 0},
        "extra": {"au": {"AU5": 1}, "mood": "grim"},
    }
    assert labels(records["b"]) == {"valence": 0.25, "identity": "p2"}
    assert labels(records["sub_c"])["extra"] == {"mood": "calm"}
    assert faces.info.label_space.expr == EXPR8
    assert [record.expr for record in records.values() if isinstance(record, Encoded)] == [1, -1, 0]


@pytest.mark.parametrize(
    "text", ["\ufeff" + TABLE, TABLE.replace("\n", "\r\n"), TABLE.replace(";", " ; "), TABLE + "\n;;\n"]
)
def test_marks_line_ends_and_blanks_do_not_matter(tmp_path: Path, text: str) -> None:
    assert labels(made(source(folder(tmp_path, text)))["a"])["au"] == {"AU1": 1, "AU4": 0}


@pytest.mark.parametrize("as_list", [True, False])
def test_labels_from_json(tmp_path: Path, as_list: bool) -> None:
    entries = {"a": {"expr": "fear", "au": {"AU12": 1}}, "b.jpg": {"arousal": 0.5}, "c": {"valence": None}}
    content: Any = [{"name": key, **value} for key, value in entries.items()] if as_list else entries
    records = made(source(folder(tmp_path, json.dumps(content), "labels.json")))
    assert labels(records["a"]) == {"expr": "fear", "au": {"AU12": 1}}
    assert labels(records["b"]) == {"arousal": 0.5}


def test_own_class_names_make_their_own_label_space(tmp_path: Path) -> None:
    faces = source(folder(tmp_path, "file,expression\na,Smiling\nb,neutral\nc,neutral\n"))
    assert faces.info.label_space.expr == ("neutral", "smiling")
    assert made(faces)["a"].expr == 1  # type: ignore[union-attr]


def test_every_label_of_a_face_can_come_from_a_table(tmp_path: Path) -> None:
    """Twelve units, expression, affect, identity, group and split; own classes in their own order."""
    units = ",".join(f"AU{name[2:]:0>2}" for name in AU12)
    states = ",".join(str(number % 2) for number in range(12))
    table = (
        f"file,expr,valence,arousal,{units},identity,group,split\n"
        f"a,Awake,-0.5,0.25,{states},p1,clip7,train\n"
        f"b,asleep,,,{',' * 11},p2,clip8,val\n"
        f"c,1,1,-1,{states},p1,clip9,test\n"
    )
    faces = source(folder(tmp_path, table), expr_names=["asleep", "awake", "unsure"])
    assert faces.info.label_space.expr == ("asleep", "awake", "unsure")
    assert faces.splits() == ["train", "val", "test"]
    assert labels(made(faces)["a"]) == {
        "expr": "awake",
        "valence": -0.5,
        "arousal": 0.25,
        "au": {name: number % 2 for number, name in enumerate(AU12)},
        "identity": "p1",
        "group": "clip7",
    }
    assert labels(made(faces, "val")["b"]) == {"expr": "asleep", "identity": "p2", "group": "clip8"}
    assert labels(made(faces, "test")["sub_c"])["expr"] == "awake"


def test_what_a_table_holds_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shards")
    source(folder(tmp_path))
    assert (
        "labels.csv: expr 2, valence 2, identity 3, AU1 1, AU4 2; columns kept as extra: mood" in caplog.text
    )


def test_numbers_need_names(tmp_path: Path) -> None:
    root = folder(tmp_path, "file,expr,valence,AU1\na,1,-5,-1\nb,-1,1,0\nc,0,-1,1\n")
    names = ["calm", "angry"]
    with pytest.raises(DataError, match=r"line 2: expr is '1': numbers are not guessed; give expr_names"):
        source(root)
    with pytest.raises(DataError, match=r"line 2: valence .*'-5'; if it stands for missing, give missing=-5"):
        source(root, expr_names=names)
    with pytest.raises(DataError, match=r"line 2: AU1 must be 0 or 1, got '-1'; .*missing=-1"):
        source(root, expr_names=names, missing=["-5"])
    records = made(source(root, missing=["-5", -1], expr_names=names))
    assert labels(records["a"]) == {"expr": "angry"}
    assert labels(records["b"]) == {"valence": 1.0, "au": {"AU1": 0}}
    assert labels(records["sub_c"]) == {"expr": "calm", "valence": -1.0, "au": {"AU1": 1}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,expr\na,anger\nb,fear,9\nc,\n", r"labels.csv line 3: 3 cells, but the header has 2"),
        ("image,valence\na,loud\nb,\nc,\n", r"line 2: valence must be a number in \[-1, 1\], got 'loud'"),
        ("image,valence\na,nan\nb,\nc,\n", r"line 2: valence"),
        ("image,AU1\na,2\nb,\nc,\n", r"line 2: AU1 must be 0 or 1, got '2'"),
        ("picture,AU1\na,1\nb,\nc,\n", "no image name"),
        ("image,AU1,AU1\na,1,1\n", "column 'AU1' occurs twice"),
        ("", "empty; it needs a header"),
        ("image,valance\na,0\nb,\nc,\n", r"line 2: column 'valance': did you mean 'valence'\? Rename it"),
        ("image,Groups\na,\nb,x\nc,\n", r"line 3: column 'Groups': did you mean 'group'"),
        ("image,person,identity\na,p,p\nb,,\nc,,\n", "'identity' and 'person' both say identity; remove one"),
        ("image,AU1,AU 01\na,1,1\nb,,\nc,,\n", "'AU 01' and 'AU1' both say AU1; remove one"),
        ("image,expr\na,fear\na.jpg,fear\nb,\nc,\n", r"line 3: a second row for 'a.jpg' .*line 2"),
        ("image,expr\na,fear\nz,fear\n", r"1 of 2 rows name no picture, as labels.csv line 3: 'z'"),
        ("image,expr\na,fear\n", r"2 of 3 pictures have no row, as 'b.jpg'"),
        ("image,split\na,train\nb,val\nc,later\n", r"line 4: split must be train, val or test, got 'later'"),
    ],
)
def test_bad_tables_name_the_line_and_the_remedy(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(folder(tmp_path, table))


@pytest.mark.parametrize(
    "content", ['{"a": 1}', "[3]", "{", "4", '[{"name": "a", "expr": ["x"]}]', "[" * 5000]
)
def test_bad_json_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"labels\.json"):
        source(folder(tmp_path, content, "labels.json"))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, None)
    (root / "labels.csv").write_bytes("image,mood\na,gr\xe4mlich\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv line 2: not UTF-8"):
        source(root)


def test_unmatched_labels_are_counted_when_allowed(tmp_path: Path) -> None:
    faces = source(folder(tmp_path, "image,expr\na,fear\nz,fear\n"), max_unmatched=1.0)
    assert faces.info.settings["labels_without_picture"] == 1
    assert faces.info.settings["pictures_without_labels"] == 2
    assert labels(made(faces)["b"]) == {}


def test_an_ambiguous_name_is_refused_and_a_full_one_is_not(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"x/a.jpg": drawn(0), "y/a.jpg": drawn(1)})
    (root / "labels.csv").write_text("image,expr\na.jpg,fear\n")
    with pytest.raises(DataError, match="fits several pictures"):
        source(root)
    (root / "labels.csv").write_text("image,expr\nx/a.jpg,fear\ny\\a,anger\n")
    assert [labels(record)["expr"] for record in made(source(root)).values()] == ["fear", "anger"]


def test_labels_can_lie_elsewhere_or_be_left(tmp_path: Path) -> None:
    root = folder(tmp_path)
    other = tmp_path / "other.csv"
    other.write_text("image,expr\na,fear\nb,fear\nc,fear\n")
    assert labels(made(source(root, labels=str(other)))["a"])["expr"] == "fear"
    assert labels(made(source(root, labels="none"))["a"]) == {}
    with pytest.raises(DataError, match="no such file"):
        source(root, labels="absent.csv")


def test_split_folders(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/a.jpg": drawn(0), "Valid/a.jpg": drawn(1), "test/d/b.jpg": drawn(2)})
    faces = source(root)
    assert faces.splits() == ["train", "val", "test"]
    assert [[item.key for item in faces.items(split)] for split in faces.splits()] == [["a"], ["a"], ["d_b"]]
    write_files(root, {"stray.jpg": drawn(3)})
    with pytest.raises(DataError, match=r"'stray\.jpg' lies in none of train, val, test"):
        source(root)


def test_people_are_in_one_split_only(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(200)]
    table = "image,person\n" + "".join(f"{name},p{i % 40}\n" for i, name in enumerate(names))
    root = write_files(tmp_path, {**dict.fromkeys(names, drawn(0)), "labels.csv": table})
    faces = source(root, val_fraction=0.3)
    people = {s: {json.loads(item.ref[1])["identity"] for item in faces.items(s)} for s in ("train", "val")}
    assert not people["train"] & people["val"]
    assert 20 < len(faces.items("val")) < 100
    assert len(faces.items("val")) + len(faces.items("train")) == 200
    bare = source(root, val_fraction=0.3, labels="none")
    assert 30 < len(bare.items("val")) < 90


def test_a_split_does_not_change_when_others_are_added(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(60)]
    root = write_files(tmp_path, dict.fromkeys(names[:40], drawn(0)))
    before = {item.key for item in source(root, val_fraction=0.3).items("val")}
    write_files(root, dict.fromkeys(names[40:], drawn(0)))
    after = {item.key for item in source(root, val_fraction=0.3).items("val")}
    assert before == {key for key in after if key < "040"}


def test_same_keys_are_refused_with_both_names(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"a.jpg": drawn(0), "a.png": drawn(1, kind="PNG")})
    with pytest.raises(DataError, match=r"'a\.jpg' and 'a\.png' have the same key 'a'"):
        source(root)


def test_names_in_other_scripts_keep_apart(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, {"顔.jpg": drawn(0), "表.jpg": drawn(1), "my face.JPG": drawn(2)}))
    keys = [item.key for item in faces.items("train")]
    assert len(set(keys)) == 3 and "my_face" in keys
    assert all(key.isascii() and "." not in key for key in keys)
    assert all(isinstance(record, Encoded) for record in made(faces).values())


def test_broken_pictures_are_rejected_with_reasons(tmp_path: Path) -> None:
    root = write_files(
        tmp_path, {"cut.jpg": drawn(0)[:400], "empty.png": b"", "good.jpg": drawn(1), "text.jpg": "hello"}
    )
    records = made(source(root))
    reasons = {key: record.reason for key, record in records.items() if isinstance(record, Rejected)}
    assert reasons == {
        "cut": "cannot decode: cut short",
        "empty": "cannot decode: empty file",
        "text": "cannot decode: not a JPEG, PNG, WebP, BMP, TIFF or GIF picture",
    }
    assert list(records) == ["cut", "empty", "good", "text"]


def test_a_picture_that_is_gone_is_an_error_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "_WAITS", ())
    faces = source(write_files(tmp_path, {"gone.jpg": drawn(0), "good.jpg": drawn(1)}))
    (tmp_path / "gone.jpg").unlink()
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read \(No such file.*empty file"):
        made(faces)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path, {"a.jpg": drawn(0), "closed/b.jpg": drawn(1)})
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"closed: cannot be listed \(Permission denied\)"):
        source(root)


def test_rarer_suffixes_are_pictures_and_other_files_are_counted_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_files(
        tmp_path,
        {
            "a.jfif": drawn(0),
            "b.JPE": drawn(1),
            "c.gif": drawn(2, kind="GIF"),
            "d.heic": b"",
            "e.HEIC": b"",
            "LICENSE": "",
            "labels.csv": "file,expr\na,fear\nb,fear\nc,anger\n",
        },
    )
    records = made(source(root))
    assert list(records) == ["a", "b", "c"] and all(isinstance(r, Encoded) for r in records.values())
    assert (
        "3 other files are no pictures that can be read and are passed over: 2 .heic, 1 without"
        in caplog.text
    )


def test_long_names_become_keys_that_fit_a_tar_and_keep_apart(tmp_path: Path) -> None:
    long = "x" * 120
    files: dict[str, bytes | str] = {f"{long}/{long}{n}.jpg": drawn(n, (32, 32)) for n in range(3)}
    faces = source(write_files(tmp_path / "in", files))
    keys = [item.key for item in faces.items("train")]
    assert len(set(keys)) == 3 and all(len(key) <= 80 for key in keys)
    build(faces, tmp_path / "out", BuildConfig(workers=1), quiet=True)
    assert open_shards(str(tmp_path / "out"), "train").key(0) in keys


def test_labels_that_no_file_can_hold_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.json entry 2: text that is not Unicode, in .*ud800"):
        source(folder(tmp_path, '{"a": {"mood": "x"}, "b": {"mood": "\\ud800"}}', "labels.json"))


def test_finished_jpegs_are_stored_as_they_are(tmp_path: Path) -> None:
    small, large = drawn(0, (32, 32)), drawn(1, (40, 40))
    records = made(source(write_files(tmp_path, {"a.jpg": small, "b.jpg": large})))
    assert isinstance(records["a"], Encoded) and records["a"].members["jpg"] == small
    assert isinstance(records["b"], Encoded) and records["b"].members["jpg"] != large


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", {"a.jpg": drawn(0)})
    write_files(tmp_path / "elsewhere", {"b.jpg": drawn(1)})
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "self").symlink_to(root)
    assert [item.key for item in source(root).items("train")] == ["a", "more_b"]


def test_a_zip_is_read_in_place(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "set.zip",
        {
            "faces/a.jpg": drawn(0),
            "faces/b.jpg": drawn(1),
            "faces/labels.csv": "image,expr\na,fear\nb,anger\n",
            "__MACOSX/faces/._a.jpg": b"x",
        },
    )
    before = sorted(tmp_path.iterdir())
    faces = pickle.loads(pickle.dumps(source(path)))
    records = made(faces)
    assert list(records) == ["a", "b"]
    assert labels(records["b"]) == {"expr": "anger"}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
def test_names_that_leave_the_zip_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "set.zip", {"a.jpg": drawn(0), name: drawn(1)})
    with pytest.raises(DataError, match="leaves the folder"):
        source(path)


def test_a_bomb_in_a_zip_is_not_unpacked(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"a.jpg": drawn(0), "bomb.bmp": b"\0" * 20_000_000})
    record = made(source(path))["bomb"]
    assert record == Rejected("bomb", "cannot read: unpacks to more than 200 times its size")


def test_damage_in_a_zip_costs_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jpg", drawn(0))
        archive.writestr("b.jpg", drawn(1))
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    records = made(source(path))
    assert records["a"] == Rejected("a", "cannot read: damaged zip member (BadZipFile)")
    assert isinstance(records["b"], Encoded)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or zip"):
        source(tmp_path / "absent")
    with pytest.raises(DataError, match="no pictures in it"):
        source(write_files(tmp_path / "bare", {"notes.txt": "x"}))
    with pytest.raises(DataError, match="SOURCE=tars"):
        source(write_files(tmp_path / "tars", {"0.tar": "x"}))
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        source(write_files(tmp_path / "odd", {"file.rar": "x"}) / "file.rar")
    (tmp_path / "cut.zip").write_bytes(
        write_zip(tmp_path / "whole.zip", {"a.jpg": drawn(0)}).read_bytes()[:50]
    )
    with pytest.raises(DataError, match="zip"):
        source(tmp_path / "cut.zip")


def test_the_factory_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"SOURCE=celebA: unknown \(did you mean 'celeba'\?\); there are folder"
    ):
        build_source("celebA", tmp_path)
    with pytest.raises(DataError, match=r"unknown option 'val_fracton' \(did you mean 'val_fraction'\?\)"):
        build_source("folder", folder(tmp_path), val_fracton=0.1)
    with pytest.raises(DataError, match="SRC is empty"):
        build_source("folder", "")
    with pytest.raises(DataError, match=r"val_fraction=1\.5"):
        build_source("folder", folder(tmp_path), val_fraction=1.5)
    with pytest.raises(DataError, match="no landmarks"):
        build_source("folder", folder(tmp_path), AlignConfig(mode="given"))


def test_photographs_become_aligned_faces(shared_data: Path) -> None:
    """Whole photographs, detected: six faces of a group, keys by number, boxes and confidence beside them."""
    faces = build_source("folder", shared_data / "photos", AlignConfig(faces="all"), val_fraction=0)
    wanted = [item for item in faces.items("train") if item.key in ("group_of_six", "no_face", "single_001")]
    records = list(faces.open_maker()(wanted))
    assert [record.key for record in records] == [
        *(f"group_of_six-{number}" for number in range(1, 7)),
        "no_face",
        "single_001-1",
    ]
    assert records[6] == Rejected("no_face", "no face")
    detection = labels(records[0])["extra"]["detection"]
    assert len(detection["box"]) == 4 and 0.9 <= detection["confidence"] <= 1


def test_london_has_its_labels(shared_data: Path) -> None:
    faces = AlignedFaces(FolderFaces(shared_data / "london"))
    assert faces.info.label_space.expr == ("neutral", "smiling")
    assert sum(len(faces.items(split)) for split in faces.splits()) == 102
    people = [{json.loads(item.ref[1])["identity"] for item in faces.items(s)} for s in faces.splits()]
    assert not set.intersection(*people) or len(people) == 1
