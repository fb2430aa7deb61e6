"""Raw data sets -> raw faces, and the one adapter that turns raw faces into finished samples.

A raw source only knows a layout: where the bytes, the labels and perhaps the landmarks of a face are.
Decoding, detection, alignment and encoding happen in `AlignedFaces`, the same for all.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from shards.align import AlignConfig, AlignedFace, Aligner, Alignment, ImageError, encode_jpeg, load_image
from shards.align.decode import Picture, count_pixels, finished_jpeg
from shards.labels import DataError, FaceLabels, ReadError
from shards.records import Encoded, Item, Maker, Rejected, SourceInfo, canonical_json

Content = TypeVar("Content")

_BATCH_PIXELS = 48_000_000  # of pictures held at once: 144 MB, or a single larger one
_WAITS = (0.2, 2.0, 10.0)  # seconds before each further try to read
# What foreign labels and pictures can make a reader or an encoder raise; all else is a fault of ours or of
# the machine.
_OF_THE_ITEM = (ImageError, DataError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError)


@dataclass(frozen=True)
class RawFace:
    """One picture as the data set has it.

    Attributes:
        data: bytes of an image file.
        labels: what is known about the face in it.
        landmarks: (5, 2) x and y in pixels of the upright picture (left eye as seen, right eye, nose, mouth
            corners), if the data set has them.
    """

    data: bytes
    labels: FaceLabels = field(default_factory=FaceLabels)
    landmarks: Any = None


Reader = Callable[[Item], RawFace]


class RawSource(Protocol):
    """A data set in one layout. Picklable; lists in the parent process, reads in the workers."""

    @property
    def info(self) -> SourceInfo:
        """Its `alignment` says how the data set itself aligned its faces, and is empty where it did not:
        `AlignedFaces` puts the whole recipe in its place."""
        ...

    @property
    def has_landmarks(self) -> bool: ...

    def splits(self) -> Sequence[str]: ...

    def items(self, split: str) -> Sequence[Item]: ...

    def open_reader(self) -> Reader:
        """What reads one item. The reader raises ReadError or OSError where a file cannot be read, and
        DataError where what is in it cannot be used: such an item is left out."""
        ...


class Listed:
    """A raw source that lists its data once, in the cached property `_listing`, which pickles leave out."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_listing"}


class AlignedFaces:
    """A raw source as a `Source` of aligned faces: JPEG and JSON, or the reason for leaving a picture out.

    Labels belong to a picture's face. Where `align.faces` is "all" and a picture shows several, nobody knows
    whose they are: only `group` and `extra` are kept. Detected faces carry `extra.detection`
    {box: left, top, right, bottom in pixels of the upright picture, confidence}.
    """

    def __init__(self, raw: RawSource, align: AlignConfig | None = None) -> None:
        """
        Raises:
            DataError: the data set cannot be listed, or has no landmarks though `align` asks for them.
        """
        self.raw, info = raw, raw.info
        self.align = (align or AlignConfig()).resolve(raw.has_landmarks, bool(info.alignment))
        self.info = replace(info, alignment=self.align.recipe(info.alignment))

    def splits(self) -> Sequence[str]:
        return self.raw.splits()

    def items(self, split: str) -> Sequence[Item]:
        return self.raw.items(split)

    def open_maker(self) -> Maker:
        return _AlignedMaker(self.raw.open_reader(), Aligner(self.align, self.align.device), self.info)


@dataclass(frozen=True)
class _Read:
    item: Item
    raw: RawFace


@dataclass(frozen=True)
class _Loaded(_Read):
    picture: Picture


class _AlignedMaker:
    """Items -> samples, in order; pictures are aligned together up to a number of pixels."""

    def __init__(self, reader: Reader, aligner: Aligner, info: SourceInfo) -> None:
        self.reader, self.aligner = reader, aligner
        self.config = aligner.config
        self.expr_index = {name: index for index, name in enumerate(info.label_space.expr)}

    def __call__(self, items: Sequence[Item]) -> Iterator[Encoded | Rejected]:
        batch: list[_Loaded | Rejected] = []
        pixels = 0
        for item in items:
            read = self._read(item)
            more = count_pixels(read.raw.data) if isinstance(read, _Read) else 0
            if batch and pixels + more > _BATCH_PIXELS:
                yield from self._finish(batch)
                batch, pixels = [], 0
            batch.append(_load(read) if isinstance(read, _Read) else read)
            pixels += more
        yield from self._finish(batch)

    def _read(self, item: Item) -> _Read | Rejected:
        """
        Raises:
            DataError: its file cannot be read, however often it is tried. That is no reason to leave it out:
                a disk or network that fails for an hour would cost a share of the data set for ever.
        """
        try:
            raw = patiently(functools.partial(self.reader, item), f"picture {item.key}")
        except ReadError:
            raise
        except _OF_THE_ITEM as error:
            return Rejected(item.key, _reason(error))
        expr = raw.labels.expr
        if expr is not None and expr not in self.expr_index:
            return Rejected(item.key, f"unknown expression {expr!r:.40}")
        return _Read(item, raw)

    def _finish(self, batch: Sequence[_Loaded | Rejected]) -> Iterator[Encoded | Rejected]:
        loaded = [record for record in batch if isinstance(record, _Loaded)]
        landmarks = [record.raw.landmarks for record in loaded]
        try:
            aligned = iter(self.aligner.align([record.picture for record in loaded], landmarks))
        except RuntimeError as error:
            raise DataError(
                f"{loaded[0].item.key} … {loaded[-1].item.key}: the search for faces failed "
                f"({type(error).__name__}: {error!s:.200}): run the same command again (finished work is "
                "kept), with align.device=cpu if it was on a GPU"
            ) from error
        for record in batch:
            if isinstance(record, Rejected):
                yield record
                continue
            alignment = next(aligned)
            try:
                encoded = list(self._encode(record, alignment))
            except _OF_THE_ITEM as error:
                encoded = [Rejected(record.item.key, _reason(error))]
            yield from encoded

    def _encode(self, record: _Loaded, alignment: Alignment) -> Iterator[Encoded | Rejected]:
        key, labels = record.item.key, record.raw.labels
        if not alignment.faces:
            yield Rejected(key, alignment.reason)
            return
        if len(alignment.faces) > 1:
            labels = FaceLabels(group=labels.group, extra=labels.extra)
        for number, face in enumerate(alignment.faces, start=1):
            name = f"{key}-{number}" if self.config.faces == "all" else key
            expr = -1 if labels.expr is None else self.expr_index[labels.expr]
            yield Encoded(
                name,
                {
                    "jpg": self._jpeg(record.raw.data, face),
                    "json": canonical_json(_with_detection(labels, face).to_json()),
                },
                expr,
            )

    def _jpeg(self, data: bytes, face: AlignedFace) -> bytes:
        kept = finished_jpeg(data, self.config.size) if self.config.mode == "none" else None
        return encode_jpeg(face.image, self.config.quality) if kept is None else kept


def patiently(read: Callable[[], Content], what: str) -> Content:
    """What `read` gives; a file that cannot be read is tried again, for network disks lose sight of files.

    Args:
        read: raises ReadError or OSError where a file cannot be read.
        what: names it where the error does not.

    Raises:
        ReadError: not to be read at all; names the file.
        Exception: what else the reader raises.
    """
    for wait in _WAITS:
        try:
            return read()
        except (ReadError, OSError):
            time.sleep(wait)
    try:
        return read()
    except (ReadError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        file = getattr(cause, "filename", None) or what
        reason = getattr(cause, "strerror", None) or str(error) or type(error).__name__
        raise ReadError(
            f"{file}: cannot be read ({reason}; tried {len(_WAITS) + 1} times): mend it or put an empty file "
            "in its place, which is left out, and run the same command again (finished work is kept)"
        ) from error


def _load(read: _Read) -> _Loaded | Rejected:
    try:
        return _Loaded(read.item, read.raw, load_image(read.raw.data))
    except ImageError as error:
        return Rejected(read.item.key, str(error))


def _reason(error: Exception) -> str:
    if isinstance(error, (ImageError, DataError)):
        return str(error)
    return f"cannot be used: {type(error).__name__}: {error!s:.120}"


def _with_detection(labels: FaceLabels, face: AlignedFace) -> FaceLabels:
    if face.box is None or face.confidence is None:
        return labels
    detection = {"box": [round(x, 1) for x in face.box], "confidence": round(face.confidence, 4)}
    return replace(labels, extra={**labels.extra, "detection": detection})
