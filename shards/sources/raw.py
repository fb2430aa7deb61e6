"""Raw data sets -> raw faces, and the one adapter that turns raw faces into finished samples.

A raw source only knows a layout: where the bytes, the labels and perhaps the landmarks of a face are.
Decoding, detection, alignment and encoding happen in `AlignedFaces`, the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from shards.align import AlignConfig, AlignedFace, Aligner, Alignment, ImageError, encode_jpeg, load_image
from shards.align.decode import Picture, is_finished_jpeg
from shards.labels import DataError, FaceLabels
from shards.records import Encoded, Item, Maker, Rejected, SourceInfo, canonical_json

_BATCH_PIXELS = 48_000_000  # pictures held at once: 144 MB


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
        """What reads one item. The reader raises DataError or OSError for an item it cannot read."""
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
        return _AlignedMaker(self.raw.open_reader(), Aligner(self.align), self.info)


@dataclass(frozen=True)
class _Loaded:
    item: Item
    raw: RawFace
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
            loaded = self._load(item)
            batch.append(loaded)
            if isinstance(loaded, _Loaded):
                pixels += loaded.picture.shape[0] * loaded.picture.shape[1]
            if pixels > _BATCH_PIXELS:
                yield from self._finish(batch)
                batch, pixels = [], 0
        yield from self._finish(batch)

    def _load(self, item: Item) -> _Loaded | Rejected:
        try:
            raw = self.reader(item)
            labels = raw.labels
            if labels.expr is not None and labels.expr not in self.expr_index:
                return Rejected(item.key, f"unknown expression {labels.expr!r:.40}")
            return _Loaded(item, raw, load_image(raw.data))
        except (ImageError, DataError) as error:
            return Rejected(item.key, str(error))
        except OSError as error:
            return Rejected(item.key, f"cannot read: {error.strerror or type(error).__name__}")

    def _finish(self, batch: Sequence[_Loaded | Rejected]) -> Iterator[Encoded | Rejected]:
        loaded = [record for record in batch if isinstance(record, _Loaded)]
        landmarks = [record.raw.landmarks for record in loaded]
        aligned = iter(self.aligner.align([record.picture for record in loaded], landmarks))
        for record in batch:
            if isinstance(record, Rejected):
                yield record
            else:
                yield from self._encode(record, next(aligned))

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
        if self.config.mode == "none" and is_finished_jpeg(data, self.config.size):
            return data
        return encode_jpeg(face.image, self.config.quality)


def _with_detection(labels: FaceLabels, face: AlignedFace) -> FaceLabels:
    if face.box is None or face.confidence is None:
        return labels
    detection = {"box": [round(x, 1) for x in face.box], "confidence": round(face.confidence, 4)}
    return replace(labels, extra={**labels.extra, "detection": detection})
