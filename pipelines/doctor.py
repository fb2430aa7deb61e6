"""Draws what `shards.doctor` found: text for the terminal, and one HTML page that holds everything.

Keys, labels and file names come from anywhere: control characters are taken out of all of them, and the
page's template escapes the rest.
"""

from __future__ import annotations

import base64
import io
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from shards import transforms
from shards.doctor import Examination, Face, Finding, LabelCounts, SplitRecord, examine
from shards.doctor.findings import SEVERITIES, VA_BINS
from shards.files import write_atomic
from shards.labels import DataError
from shards.shardset import set_folders

_TEMPLATES = Path(__file__).parent / "templates"
_THUMB = 112
_TEXT_FINDINGS = 40
HEALTHY, DAMAGED, UNUSABLE = 0, 1, 2


def run_doctor(names: str, out: Path | None, quiet: bool = False) -> int:
    """Examines shard sets, prints what was found and, if asked, writes the page.

    Args:
        names: shard sets, comma-separated: SHARDS=a,b.
        out: HTML file to write, or a folder that gets doctor.html; None = text only.
        quiet: no progress bar.

    Returns:
        The exit status: 0 healthy, 1 damage found, 2 nothing there to examine or the page cannot be written.
    """
    folders = set_folders(names)
    try:
        if out is not None and not out.is_dir() and not out.parent.is_dir():
            raise DataError(f"{out}: no such folder to write the page into")
        examination = examine(folders, quiet=quiet)
        print(draw_text(examination))
        if out is not None:
            path = out / "doctor.html" if out.is_dir() else out
            write_page(examination, path)
            print(f"page: {plain(path)}")
    except (DataError, OSError) as error:
        print(f"faceprior: {plain(error)}", file=sys.stderr, flush=True)
        return UNUSABLE
    return HEALTHY if examination.healthy else DAMAGED


def plain(text: object) -> str:
    """`text` in one line, with every character that steers a terminal or turns text around made visible."""
    return "".join("�" if unicodedata.category(c) in _STEERING else c for c in str(text))


_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def verdict(examination: Examination) -> str:
    """One line: healthy or not, and how many findings of each severity."""
    counts = [
        f"{count} {severity}{'s' * (count != 1)}"
        for severity in SEVERITIES
        if (count := examination.count(severity))
    ]
    return ("healthy" if examination.healthy else "damaged") + (f": {', '.join(counts)}" if counts else "")


def draw_text(examination: Examination) -> str:
    """The examination as a few lines for a terminal."""
    speed = examination.num_samples / max(examination.seconds, 1e-9)
    lines = [f"{examination.num_samples:,} samples in {examination.seconds:.1f} s ({speed:,.0f}/s)", ""]
    names = _short_names(examination.splits)
    lines += [*_text_table([_COLUMNS, *(_split_row(split, names) for split in examination.splits)]), ""]
    for split in examination.splits:
        for line in _label_lines(split):
            lines += textwrap.wrap(f"{names[split.name]}: {line}", 110, subsequent_indent="    ")
    for overlap in examination.overlaps:
        pair = " and ".join(dict.fromkeys((names[overlap.first], names[overlap.second])))
        counts = f"{overlap.same_bytes} the same file, {overlap.look_alike} look alike"
        lines.append(f"{pair}: pictures that occur twice: {counts}")
    lines.append("")
    for finding in examination.findings[:_TEXT_FINDINGS]:
        lines.append(f"{finding.severity.upper():8}{plain(finding.where)}: {plain(finding.what)}")
        if finding.remedy:
            lines.append(f"        -> {plain(finding.remedy)}")
    if len(examination.findings) > _TEXT_FINDINGS:
        lines.append(
            f"… and {len(examination.findings) - _TEXT_FINDINGS} more findings (all are in the page)"
        )
    return "\n".join([*lines, verdict(examination)])


_COLUMNS = ["split", "samples", "lost", "damaged", "left out", "tars", "bytes", "images", "source", "licence"]


def _split_row(split: SplitRecord, names: Mapping[str, str]) -> list[str]:
    manifest = split.manifest
    tars = str(split.num_tars) if manifest is None else f"{split.num_tars}/{len(manifest.shards)}"
    return [
        names[split.name],
        f"{split.num_samples:,}",
        f"{split.num_lost:,}",
        f"{split.num_damaged:,}",
        f"{manifest.num_quarantined:,}" if manifest else "?",
        tars,
        _bytes(split.num_bytes),
        _sizes(split),
        plain(manifest.source + (" (rendered)" if manifest.rendered else "")) if manifest else "?",
        plain(manifest.licence) if manifest else "?",
    ]


def _short_names(splits: Sequence[SplitRecord]) -> dict[str, str]:
    """Split -> its name in tables: no longer than is needed to tell the splits apart."""
    for short in (
        {s.name: plain(s.folder.name) for s in splits},
        {s.name: plain(f"{s.set_folder.name}/{s.folder.name}") for s in splits},
    ):
        if len(set(short.values())) == len(splits):
            return short
    return {split.name: plain(split.name) for split in splits}


def _text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns: names to the left, figures to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    figures = range(1, 7)
    return [
        "  ".join(
            cell.rjust(width) if i in figures else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _label_lines(split: SplitRecord) -> Iterable[str]:
    labels = split.labels
    if labels.expr:
        total = labels.expr.total()
        shares = ", ".join(
            f"{plain(c)} {labels.expr[c] / total:.0%}" for c in _class_names([split], "expr", labels.expr)
        )
        yield f"expressions of {total:,}: {shares}"
    if labels.au_valid:
        shares = ", ".join(
            f"{plain(unit)} {labels.au_positive[unit] / valid:.0%} of {valid:,}"
            for unit in _class_names([split], "au", labels.au_valid)
            if (valid := labels.au_valid[unit])
        )
        yield f"action units: {shares}"
    if labels.num_va:
        yield f"valence and arousal of {labels.num_va:,}"
    if labels.num_bare:
        yield f"no label at all: {labels.num_bare:,}"


def _class_names(splits: Sequence[SplitRecord], part: str, seen: Iterable[str]) -> list[str]:
    """Names in the order of the label spaces, then those that only samples have."""
    spaces = [getattr(split.manifest.label_space, part) for split in splits if split.manifest is not None]
    return list(dict.fromkeys([*(name for space in spaces for name in space), *sorted(seen)]))


def _sizes(split: SplitRecord) -> str:
    common = split.sizes.most_common()
    shown = ", ".join(f"{width}×{height}" for (height, width), _ in common[:2])
    return shown + (f" and {len(common) - 2} more" if len(common) > 2 else "")


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


@dataclass(frozen=True)
class _Bar:
    """One cell of a label table: a bar of `share` (0 to 1 of the longest) and its text."""

    share: float
    text: str


def write_page(examination: Examination, path: Path) -> None:
    """Writes the page: one file, nothing is fetched from elsewhere.

    Raises:
        DataError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("doctor.html").render(**_view(examination))
    write_atomic(path, html.encode())


def _view(examination: Examination) -> dict[str, Any]:
    """What the template draws: plain text, figures and data URLs."""
    splits, names = examination.splits, _short_names(examination.splits)
    manifests = [split.manifest for split in splits if split.manifest is not None]
    return {
        "sets": list(dict.fromkeys(plain(split.set_folder) for split in splits)),
        "verdict": verdict(examination),
        "state": _state(examination),
        "rendered": any(manifest.rendered for manifest in manifests),
        "num_samples": examination.num_samples,
        "seconds": examination.seconds,
        "findings": [_plain_finding(finding) for finding in examination.findings],
        "columns": _COLUMNS,
        "splits": [_split_row(split, names) for split in splits],
        "alignments": [
            (
                plain(split.name),
                plain(split.manifest.alignment_hash[:12]),
                plain(dict(split.manifest.alignment)),
            )
            for split in splits
            if split.manifest is not None
        ],
        "names": [names[split.name] for split in splits],
        "expressions": _expression_table(splits),
        "units": _unit_table(splits),
        "missing": _missing_table(splits),
        "maps": [(names[s.name], _va_cells(s.labels), s.labels.num_va) for s in splits if s.labels.num_va],
        "bins": VA_BINS,
        "overlaps": [
            (names[o.first], names[o.second], o.same_bytes, o.look_alike) for o in examination.overlaps
        ],
        "twins": [
            {
                "pictures": [(names[f.split], plain(f.key), _face_url(f)) for f in (twin.first, twin.second)],
                "text": "the same file" if twin.same_bytes else f"likeness {twin.likeness:.3f}",
                "leak": twin.first.split != twin.second.split,
            }
            for twin in examination.twins
        ],
        "quarantine": [
            (names[split.name], plain(reason), count)
            for split in splits
            for reason, count in _gather(split.quarantine).most_common(8)
        ],
        "faces": [(names[face.split], plain(face.key), _face_url(face)) for face in examination.faces],
    }


def _state(examination: Examination) -> str:
    return next((severity for severity in SEVERITIES[:2] if examination.count(severity)), "healthy")


def _plain_finding(finding: Finding) -> Finding:
    return Finding(finding.severity, plain(finding.where), plain(finding.what), plain(finding.remedy))


def _gather(reasons: Counter[str]) -> Counter[str]:
    """Reasons without what is only of one image (after a colon), so that alike ones are counted together."""
    gathered: Counter[str] = Counter()
    for reason, count in reasons.items():
        gathered[reason.partition(":")[0][:120]] += count
    return gathered


def _expression_table(splits: Sequence[SplitRecord]) -> list[tuple[str, list[_Bar]]]:
    seen = {name for split in splits for name in split.labels.expr}
    if not seen:
        return []
    rows = []
    for name in _class_names(splits, "expr", seen):
        shares = [split.labels.expr[name] / max(split.labels.expr.total(), 1) for split in splits]
        texts = [f"{split.labels.expr[name]:,} · {share:.1%}" for split, share in zip(splits, shares)]
        rows.append((plain(name), [_Bar(share, text) for share, text in zip(shares, texts)]))
    return _longest_is_one(rows)


def _unit_table(splits: Sequence[SplitRecord]) -> list[tuple[str, list[_Bar]]]:
    seen = {name for split in splits for name in split.labels.au_valid}
    rows = []
    for name in _class_names(splits, "au", seen) if seen else []:
        bars = []
        for split in splits:
            valid, positive = split.labels.au_valid[name], split.labels.au_positive[name]
            text = f"{positive / valid:.1%} of {valid:,}" if valid else "none labelled"
            bars.append(_Bar(positive / max(valid, 1), text))
        rows.append((plain(name), bars))
    return _longest_is_one(rows)


def _longest_is_one(rows: Sequence[tuple[str, list[_Bar]]]) -> list[tuple[str, list[_Bar]]]:
    longest = max((bar.share for _, bars in rows for bar in bars), default=0) or 1
    return [(name, [_Bar(bar.share / longest, bar.text) for bar in bars]) for name, bars in rows]


def _missing_table(splits: Sequence[SplitRecord]) -> list[tuple[str, list[str]]]:
    """How many samples lack which label."""

    def row(name: str, present: Sequence[int]) -> tuple[str, list[str]]:
        counts = [(s.labels.num_samples - p, s.labels.num_samples) for s, p in zip(splits, present)]
        return name, [f"{missing:,} · {missing / max(total, 1):.1%}" for missing, total in counts]

    labels = [split.labels for split in splits]
    return [
        row("expression", [counts.expr.total() for counts in labels]),
        row("any action unit", [counts.num_au for counts in labels]),
        row("valence or arousal", [counts.num_va for counts in labels]),
        row("identity", [counts.num_identity for counts in labels]),
        row("all of them", [counts.num_samples - counts.num_bare for counts in labels]),
    ]


def _va_cells(labels: LabelCounts) -> list[tuple[int, int, float, int]]:
    """(column, row from the top, darkness 0.06 to 1, samples) of each cell that holds samples."""
    most = int(labels.va_map.max())
    return [
        (column, VA_BINS - 1 - row, 0.06 + 0.94 * float(count / most) ** 0.5, int(count))
        for row, counts in enumerate(labels.va_map.tolist())
        for column, count in enumerate(counts)
        if count
    ]


def _face_url(face: Face) -> str:
    """A small picture of one sample as a data URL; empty if it is gone since."""
    try:
        pixels = transforms.decode(face.read(), face.key).permute(1, 2, 0).contiguous().numpy()
    except (DataError, OSError):
        return ""
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMB, _THUMB))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
