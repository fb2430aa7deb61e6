"""What no shard shows alone: keys, people and pictures that occur twice, splits that do not fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from shards.doctor.findings import Face, Finding, Notebook, Overlap, Severity, SplitRecord, Twin
from shards.doctor.shard import PICTURE, ShardRecord
from shards.doctor.twins import find_pairs, likeness
from shards.manifest import Manifest
from shards.template import relative_geometry

_REGROUP = "split the source by person, and build again"


@dataclass
class Part:
    """One split and its shards, as they were examined."""

    record: SplitRecord
    shards: list[ShardRecord] = field(default_factory=list)


def check_keys(parts: Sequence[Part]) -> list[Finding]:
    """Keys that occur twice in a split (error), or in the same split of two joined sets (warning)."""
    findings: list[Finding] = []
    seen: dict[str, dict[str, tuple[Part, ShardRecord]]] = {}
    for part in parts:
        of_split = seen.setdefault(part.record.split, {})
        for shard in part.shards:
            book = Notebook(str(shard.tar))
            for key in shard.keys:
                other, place = of_split.setdefault(key, (part, shard))
                if other is not part:
                    text = f"the same key is in {place.tar}"
                    remedy = "predictions of the joined sets cannot tell them apart: give one set other keys"
                    book.add_sample("warning", "keys of another joined set", key, text, remedy)
                elif place is not shard:
                    text = f"the same key is in {place.tar.name}"
                    book.add_sample("error", "keys of another shard", key, text, "build the set again")
            for key in (key for key, count in Counter(shard.keys).items() if count > 1):
                book.add_sample(
                    "error", "keys twice in this shard", key, "occurs twice", "build the set again"
                )
            findings += book.close()
    return findings


def _people(part: Part, name: str) -> dict[str, str]:
    """Who occurs in a split -> the first place."""
    people: dict[str, str] = {}
    for shard in part.shards:
        for who, key in getattr(shard, name).items():
            people.setdefault(who, f"{shard.tar.name}: sample {key}")
    return people


def check_people(parts: Sequence[Part]) -> list[Finding]:
    """Identities and groups of one source that occur in two splits."""
    findings: list[Finding] = []
    for name in ("identities", "groups"):
        people = [_people(part, name) for part in parts]
        for i, j in combinations(range(len(parts)), 2):
            first, second = parts[i].record, parts[j].record
            if first.split == second.split or _source(first) != _source(second):
                continue
            both = sorted(people[i].keys() & people[j].keys())
            if both:
                shown = "; ".join(f"{who!r:.60} ({people[i][who]} · {people[j][who]})" for who in both[:3])
                text = f"{len(both)} {name} in both splits: {shown}"
                findings.append(Finding("error", f"{first.name} and {second.name}", text, _REGROUP))
    return findings


def _source(record: SplitRecord) -> str:
    return record.manifest.source if record.manifest is not None else str(record.set_folder)


def check_manifests(parts: Sequence[Part]) -> list[Finding]:
    """Splits whose kind, label space or alignment recipe keep them from being used together."""
    findings: list[Finding] = []
    firsts: dict[Path, SplitRecord] = {}
    for record in (part.record for part in parts):
        manifest = record.manifest
        if manifest is None:
            continue
        first = firsts.setdefault(record.set_folder, record)
        own_set = first is not record
        if not own_set:  # the sets are compared by their first splits
            first = next(iter(firsts.values()))
        assert first.manifest is not None
        here, there = _traits(manifest), _traits(first.manifest)
        for name in here:
            absent = not here[name] or not there[name]
            if here[name] == there[name] or (absent and not own_set):
                continue
            severity: Severity = "warning" if name == "alignment recipe" and not own_set else "error"
            text = f"{name}: not the same as in {first.name}"
            findings.append(Finding(severity, record.name, text, "build all with the same settings"))
        one, other = (relative_geometry(m.alignment) for m in (manifest, first.manifest))
        if not own_set and one is not None and other is not None and one != other:
            text = f"faces lie elsewhere in their images than in {first.name} ({one}; {other})"
            remedy = "build one of them again with the other's align.margin"
            findings.append(Finding("error", record.name, text, remedy))
        if manifest.rendered != first.manifest.rendered:
            findings.append(Finding("note", record.name, f"rendered and real faces mix (see {first.name})"))
    return findings


def _traits(manifest: Manifest) -> dict[str, object]:
    """What must agree for splits to be used together."""
    return {
        "kind": manifest.kind,
        "expression classes": manifest.label_space.expr,
        "action units": manifest.label_space.au,
        "alignment recipe": dict(manifest.alignment),
    }


def check_pictures(parts: Sequence[Part], keep: int) -> tuple[list[Overlap], list[Twin], list[Finding]]:
    """Pictures that occur twice: counts, the first `keep` pairs, and what is to be said of them."""
    shards = [(number, shard) for number, part in enumerate(parts) for shard in part.shards]
    sizes = [len(shard.pictures) for _, shard in shards]
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    pictures = np.concatenate([np.zeros(0, PICTURE), *(shard.pictures for _, shard in shards)])
    for i, (_, shard) in enumerate(shards):
        shard.pictures = pictures[starts[i] : starts[i + 1]]  # frees the copy
    split = np.repeat([number for number, _ in shards], sizes).astype(np.int64)
    pairs = find_pairs(pictures, split, len(parts), keep)

    def face(sample: int) -> Face:
        shard = int(np.searchsorted(starts, sample, side="right")) - 1
        number, record = shards[shard]
        row, key = pictures[sample], record.keys[sample - int(starts[shard])]
        return Face(parts[number].record.name, record.tar, key, int(row["offset"]), int(row["size"]))

    def twin(i: int, j: int) -> Twin:
        a, b = pictures[i], pictures[j]
        same = all(a[name] == b[name] for name in ("crc32", "size", "hash"))
        alike = float(likeness(a["thumb"][None], b["thumb"][None])[0])
        return Twin(face(i), face(j), same, int(np.bitwise_count(a["hash"] ^ b["hash"])), alike)

    twins = [twin(i, j) for i, j in [*pairs.between, *pairs.within][:keep]]
    overlaps = []
    for i in range(len(parts)):
        for j in range(i, len(parts)):
            same = pairs.same_bytes[split == j, i]
            alike = pairs.look_alike[split == j, i] & ~same
            if same.any() or alike.any():
                names = parts[i].record.name, parts[j].record.name
                overlaps.append(Overlap(*names, int(same.sum()), int(alike.sum())))
    findings = _say_overlaps(parts, overlaps, twins)
    if pairs.num_crowded:
        text = f"{pairs.num_crowded} pictures are so alike that not all pairs of them were compared"
        findings.append(Finding("note", "all splits", text))
    findings += [
        Finding(
            "warning",
            part.record.name,
            f"{part.record.num_flat} images of nearly one colour",
            "look at them: a failed crop, a black frame?",
        )
        for part in parts
        if part.record.num_flat
    ]
    return overlaps, twins, findings


def _say_overlaps(parts: Sequence[Part], overlaps: Sequence[Overlap], twins: Sequence[Twin]) -> list[Finding]:
    named = {part.record.name: part.record for part in parts}
    findings = []
    for overlap in overlaps:
        counts = f"{overlap.same_bytes} the same file, {overlap.look_alike} look alike"
        shown = next(
            (t for t in twins if {t.first.split, t.second.split} == {overlap.first, overlap.second}), None
        )
        if shown is not None:
            counts += (
                f"; {shown.first.tar.name}: {shown.first.key} · {shown.second.tar.name}: {shown.second.key}"
            )
        if overlap.first == overlap.second:
            severity: Severity = "warning" if overlap.same_bytes else "note"
            text = f"pictures that occur twice ({counts})"
            findings.append(
                Finding(severity, overlap.first, text, "frames of one video are; others need not be")
            )
        elif named[overlap.first].split == named[overlap.second].split:
            text = f"joined sets share pictures ({counts})"
            findings.append(
                Finding("warning", f"{overlap.first} and {overlap.second}", text, "join one of them")
            )
        else:
            text = f"leak: pictures of one split are in the other ({counts})"
            remedy = "take them out of one split: figures on the second flatter"
            findings.append(Finding("warning", f"{overlap.first} and {overlap.second}", text, remedy))
    return findings


def check_labels(part: Part) -> list[Finding]:
    """Classes that no sample has, labels that no task reads, sizes that differ."""
    record = part.record
    if record.manifest is None or not record.labels.num_samples:
        return []
    space, labels, findings = record.manifest.label_space, record.labels, []

    def note(text: str, remedy: str = "", severity: Severity = "note") -> None:
        findings.append(Finding(severity, record.name, text, remedy))

    absent = [name for name in space.expr if not labels.expr[name]]
    if labels.expr and absent:
        note(f"no sample of expression {', '.join(absent)}")
    constant = [name for name in space.au if labels.au_valid[name] and not labels.au_positive[name]]
    if constant:
        note(f"action units that are never positive: {', '.join(constant)}")
    unread = sorted(set(labels.au_valid) - set(space.au))
    if unread:
        shown = ", ".join(f"{name!r:.40}"[1:-1] for name in unread[:8])
        note(f"{len(unread)} labelled action units are not in the label space, so not read: {shown}")
    if labels.expr and not space.expr:
        note("expressions are labelled, but the label space has none: they are not read")
    if labels.num_va and not space.va:
        note("valence and arousal are labelled, but the label space has none: they are not read")
    if len(record.sizes) > 1 and record.manifest.kind == "faces":
        aligned = bool(record.manifest.alignment)
        text = f"images of {len(record.sizes)} sizes" + (", though all were aligned" if aligned else "")
        note(text, "", "warning" if aligned else "note")
    return findings
