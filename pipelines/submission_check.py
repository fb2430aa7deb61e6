"""The checker of challenge files: every fault of one, by line.

MTL: header `image,valence,arousal,expression,aus`, rows of 16 fields: name, valence, arousal, class of EXPR8,
12 action units. LSD: header `name,label`, rows of name and class of LSD6.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.labels import AU12, EXPR8, DataError

LSD6 = tuple(sorted(set(EXPR8) - {"neutral", "other"}))
MTL_HEADER = "image,valence,arousal,expression,aus"
LSD_HEADER = "name,label"

_NUMBER = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_CLASS = re.compile(r"[0-9]{1,3}")


class Problem(NamedTuple):
    """One fault of a submission file.

    Attributes:
        line: where it is, from 1; for a missing row, where it belongs.
        name: the row's; "" for the header.
        text: what is wrong.
    """

    line: int
    name: str
    text: str

    def __str__(self) -> str:
        return (
            f"line {self.line}: {self.name}: {self.text}" if self.name else f"line {self.line}: {self.text}"
        )


def check_mtl(path: Path, names: Sequence[str], header: str | None = MTL_HEADER) -> list[Problem]:
    """Faults of a multi-task submission: header, rows missing, extra, twice or moved, fields, values.

    Args:
        path: the file.
        names: the official list.
        header: what the first line must be; None = no header.

    Returns:
        By line; empty for a good file. Of moved rows the fewest that explain the order are named.

    Raises:
        DataError: the file cannot be read, or the list is empty or has a name twice.
    """
    return _check(path, names, header, 16, _mtl_faults)


def check_lsd(path: Path, names: Sequence[str], header: str | None = LSD_HEADER) -> list[Problem]:
    """Faults of a synthetic-data submission; as `check_mtl`."""
    return _check(path, names, header, 2, _lsd_faults)


def check_names(names: Sequence[str], where: str) -> None:
    """Refuses an official list that has no names, or one that is empty or there twice."""
    if not names:
        raise DataError(f"{where}: no names")
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise DataError(f"{where}: {name!r} is there twice" if name else f"{where}: an empty name")
        seen.add(name)


def _check(
    path: Path,
    names: Sequence[str],
    header: str | None,
    num_fields: int,
    faults: Callable[[Sequence[str]], Iterator[str]],
) -> list[Problem]:
    check_names(names, "the official list")
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise DataError(f"{path}: cannot read the submission ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    places = {name: place for place, name in enumerate(names)}
    rows = list(enumerate((line.removesuffix("\r").split(",") for line in lines), start=1))
    problems: list[Problem] = []
    if header is not None:
        first = lines[0].removesuffix("\r") if lines else ""
        if first != header:
            problems.append(Problem(1, "", f"header is {first!r:.80}, must be {header!r}"))
        if rows and (first == header or rows[0][1][0] not in places):
            del rows[0]
    line_of: dict[str, int] = {}
    for line, fields in rows:
        name = fields[0]
        if name not in places:
            problems.append(Problem(line, name or "(no name)", "extra row: not on the official list"))
        elif name in line_of:
            problems.append(Problem(line, name, f"duplicate of line {line_of[name]}"))
        else:
            line_of[name] = line
        if len(fields) != num_fields:
            problems.append(Problem(line, name or "(no name)", f"{len(fields)} fields, must be {num_fields}"))
        else:
            problems += [Problem(line, name, fault) for fault in faults(fields)]
    belongs = {name: place + 1 + (header is not None) for name, place in places.items()}
    problems += [Problem(belongs[name], name, "missing row") for name in names if name not in line_of]
    for name in _moved(list(line_of), places):
        problems.append(Problem(line_of[name], name, f"reordered row: belongs in line {belongs[name]}"))
    return sorted(problems, key=lambda problem: problem.line)


def _moved(found: Sequence[str], places: Mapping[str, int]) -> list[str]:
    """The fewest names whose removal leaves the rest in the order of `places`."""
    ends: list[int] = []
    lengths = []
    for name in found:
        at = bisect_left(ends, places[name])
        ends[at : at + 1] = [places[name]]
        lengths.append(at)
    wanted, limit, moved = len(ends) - 1, len(places), []
    for name, length in zip(reversed(found), reversed(lengths)):
        if length == wanted and places[name] < limit:
            wanted, limit = wanted - 1, places[name]
        else:
            moved.append(name)
    return moved[::-1]


def _mtl_faults(fields: Sequence[str]) -> Iterator[str]:
    for label, text in zip(("valence", "arousal"), fields[1:3]):
        if not _NUMBER.fullmatch(text):
            yield f"{label} {text!r:.40} is not a finite number"
        elif abs(float(text)) > 1:
            yield f"{label} {text} is outside of [-1, 1]"
    yield from _class_faults("expression", fields[3], len(EXPR8))
    for unit, text in zip(AU12, fields[4:]):
        if text not in ("0", "1"):
            yield f"{unit} {text!r:.40} must be 0 or 1"


def _lsd_faults(fields: Sequence[str]) -> Iterator[str]:
    yield from _class_faults("label", fields[1], len(LSD6))


def _class_faults(label: str, text: str, count: int) -> Iterator[str]:
    if not _CLASS.fullmatch(text) or int(text) >= count:
        yield f"{label} {text!r:.40} must be a class 0..{count - 1}"
