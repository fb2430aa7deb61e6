"""What an examination finds, as records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.labels import ClipLabels, FaceLabels
from shards.manifest import Manifest

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
VA_BINS = 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, doubtful (warning) or worth knowing (note).

    Attributes:
        severity: "error" = samples are lost, wrong, or shared between splits.
        where: the file, and the sample's key if it is about one.
        what: what was found there.
        remedy: what to do; empty if nothing need be done.
    """

    severity: Severity
    where: str
    what: str
    remedy: str = ""


class Notebook:
    """Findings as they come; of one kind at one place only the first few are kept, the rest counted."""

    def __init__(self, where: str, keep: int = 3) -> None:
        """Args: where: the file they are about; keep: findings of one kind that are kept."""
        self.where, self.keep = where, keep
        self.findings: list[Finding] = []
        self._more: Counter[tuple[Severity, str, str]] = Counter()
        self._seen: Counter[str] = Counter()

    def add(self, severity: Severity, what: str, remedy: str = "", where: str = "") -> None:
        """Notes one finding about a file."""
        self.findings.append(Finding(severity, where or self.where, what, remedy))

    def add_sample(self, severity: Severity, kind: str, key: str, what: str, remedy: str) -> None:
        """Notes one finding about a sample; `kind` says which findings are alike."""
        self._seen[kind] += 1
        if self._seen[kind] <= self.keep:
            self.findings.append(Finding(severity, f"{self.where}: sample {key}", what, remedy))
        else:
            self._more[severity, kind, remedy] += 1

    def close(self) -> list[Finding]:
        """All findings, those that were only counted as one each."""
        more = [
            Finding(severity, self.where, f"{count} more samples: {kind}", remedy)
            for (severity, kind, remedy), count in self._more.items()
        ]
        return self.findings + more


@dataclass
class LabelCounts:
    """Histograms of the labels of some samples.

    Attributes:
        num_samples: samples whose labels could be read.
        expr: expression -> samples.
        au_positive, au_valid: unit -> samples where it is 1, where it is known.
        num_au: samples with at least one unit labelled.
        va_map: (20, 20) samples (of clips: frames) by arousal (row, from −1 up) and valence (column, from −1
            up).
        num_va: samples with both valence and arousal; num_half_va: with one of them (of clips: in no frame
            both).
        num_identity: samples that say who it is.
        num_bare: samples without any label.
    """

    num_samples: int = 0
    expr: Counter[str] = field(default_factory=Counter)
    au_positive: Counter[str] = field(default_factory=Counter)
    au_valid: Counter[str] = field(default_factory=Counter)
    num_au: int = 0
    va_map: NDArray[np.int64] = field(default_factory=lambda: np.zeros((VA_BINS, VA_BINS), np.int64))
    num_va: int = 0
    num_half_va: int = 0
    num_identity: int = 0
    num_bare: int = 0

    def observe(self, labels: FaceLabels) -> None:
        """Counts one sample."""
        self.num_samples += 1
        if labels.expr is not None:
            self.expr[labels.expr] += 1
        for name, state in labels.au.items():
            self.au_valid[name] += 1
            self.au_positive[name] += state
        if labels.valence is not None and labels.arousal is not None:
            self.num_va += 1
            self.va_map[_va_bin(labels.arousal), _va_bin(labels.valence)] += 1
        elif labels.valence is not None or labels.arousal is not None:
            self.num_half_va += 1
        self.num_au += bool(labels.au)
        self.num_identity += labels.identity is not None
        known = (labels.expr, labels.valence, labels.arousal, labels.identity, labels.group)
        self.num_bare += not labels.au and all(value is None for value in known)

    def observe_clip(self, labels: ClipLabels) -> None:
        """Counts one clip as one sample; only the map of valence and arousal counts its frames."""
        self.num_samples += 1
        pairs = [(v, a) for v, a in zip(labels.valence, labels.arousal) if v is not None and a is not None]
        for valence, arousal in pairs:
            self.va_map[_va_bin(arousal), _va_bin(valence)] += 1
        any_label = any(value is not None for value in (*labels.valence, *labels.arousal))
        self.num_va += bool(pairs)
        self.num_half_va += any_label and not pairs
        self.num_identity += labels.identity is not None
        self.num_bare += not any_label and labels.identity is None and labels.group is None

    def merge(self, other: LabelCounts) -> None:
        """Adds the counts of other samples."""
        self.expr.update(other.expr)
        self.au_positive.update(other.au_positive)
        self.au_valid.update(other.au_valid)
        self.va_map = self.va_map + other.va_map
        for name in ("num_samples", "num_au", "num_va", "num_half_va", "num_identity", "num_bare"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def _va_bin(value: float) -> int:
    return min(int((value + 1) / 2 * VA_BINS), VA_BINS - 1)


@dataclass(frozen=True)
class Face:
    """One sample's image and where its bytes lie."""

    split: str
    tar: Path
    key: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: the tar is gone.
        """
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Twin:
    """Two samples with the same picture.

    Attributes:
        first, second: the two.
        same_bytes: their files are equal byte for byte.
        distance: bits in which their 64-bit hashes differ.
        likeness: correlation of their 16×16 grey pictures.
    """

    first: Face
    second: Face
    same_bytes: bool
    distance: int
    likeness: float


@dataclass(frozen=True)
class Overlap:
    """Pictures that two splits share (or one split with itself).

    Attributes:
        first, second: names of the splits; equal for repeats within one.
        same_bytes: samples of `second` whose file is also in `first`.
        look_alike: further samples of `second` that look like one of `first`.
    """

    first: str
    second: str
    same_bytes: int
    look_alike: int


@dataclass
class SplitRecord:
    """One split folder as it was found.

    Attributes:
        name: the folder as text.
        split: "train", "val", "test"; the folder's name where there is no manifest.
        set_folder: the set it belongs to.
        manifest: None where there is none that can be read.
        num_samples: samples that could be looked at; num_lost: listed, but no longer to be found.
        num_damaged: samples of those looked at with a damaged member, image or label.
        num_bytes: of the tars.
        num_tars: tars listed and present.
        labels: histograms.
        sizes: (height, width) -> images.
        num_flat: images of nearly one colour.
        quarantine: reason -> raw samples left out.
    """

    name: str
    folder: Path
    split: str
    set_folder: Path
    manifest: Manifest | None = None
    num_samples: int = 0
    num_lost: int = 0
    num_damaged: int = 0
    num_bytes: int = 0
    num_tars: int = 0
    labels: LabelCounts = field(default_factory=LabelCounts)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    num_flat: int = 0
    quarantine: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Examination:
    """All that was found.

    Attributes:
        splits: in the order they were found.
        findings: errors first.
        overlaps: pictures shared between and within splits.
        twins: the first of the pairs behind `overlaps`, those between splits first.
        faces: some samples, evenly spread, to be looked at.
        seconds: how long it took.
    """

    splits: tuple[SplitRecord, ...]
    findings: tuple[Finding, ...]
    overlaps: tuple[Overlap, ...]
    twins: tuple[Twin, ...]
    faces: tuple[Face, ...]
    seconds: float

    @property
    def num_samples(self) -> int:
        """Samples that were looked at."""
        return sum(split.num_samples for split in self.splits)

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def healthy(self) -> bool:
        """True if there is no error (warnings and notes there may be)."""
        return self.count("error") == 0
