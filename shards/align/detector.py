"""Where the faces are: MTCNN of facenet-pytorch, batched over pictures of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from PIL import Image

from shards.labels import DataError

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

MIN_DETECTED = 20  # smallest face the detector looks for, in pixels of its canvas
SECOND_STAGE_SIDE, LAST_STAGE_SIDE = 24, 48  # of the crops that its later stages look at

_SMALL_SIDE = 192  # smaller pictures are enlarged to this: faces in tight crops are found more surely
_GRID = 32  # canvases are padded to multiples of this, so that more pictures share a batch
_BATCH_PIXELS = 32_000_000  # searched at once on a GPU
_GRAIN = 16  # landmarks are rounded to 1/16 pixel
_BORDER = 0.25  # of the canvas, for the second look
_NO_CANDIDATE = "expected a non-empty list of Tensors"  # torch.cat, where all candidates lie outside


@dataclass(frozen=True)
class Faces:
    """The faces of one picture, largest first, in its own pixels.

    Attributes:
        boxes: (N, 4) float32, left, top, right, bottom.
        confidences: (N,) float32 in [0, 1].
        landmarks: (N, 5, 2) float32, x and y of left eye, right eye (as seen), nose, mouth corners.
        error: why the detector failed on this picture, if it did.
    """

    boxes: Floats
    confidences: Floats
    landmarks: Floats
    error: str = ""

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Looks:
    """What the last stage says of squares, in fractions of their sides from their upper left corners.

    Attributes:
        confidences: (N,) of being a face. boxes: (N, 4). landmarks: (N, 5, 2).
    """

    confidences: NDArray[np.float64]
    boxes: NDArray[np.float64]
    landmarks: NDArray[np.float64]


@dataclass(frozen=True)
class _Canvas:
    """A picture made ready: canvas pixel = picture pixel * scale + offset."""

    pixels: Picture
    scale: tuple[float, float]
    offset: int


class FaceDetector:
    """Finds faces and their five landmarks. What is found depends on the picture alone, not on its batch.

    (A batch changes last bits, which rounding nearly always takes away. On a CPU, where a batch is no faster,
    pictures are searched one by one in one thread, so that what is made from them is the same to the byte
    however they were grouped.)

    A picture is brought to a longer side of at most `side`, padded to a common grid, and searched together
    with those of the same canvas size. Where nothing is found it is searched once more with a black border:
    MTCNN misses faces that touch the edge.
    """

    def __init__(
        self,
        side: int = 512,
        min_confidence: float = 0.9,
        device: str | None = None,
        batch_pixels: int | None = None,
    ) -> None:
        """
        Args:
            side: longer side of the pictures as they are searched, pixels.
            min_confidence: detections below it are dropped, in [0, 1].
            device: "cpu", "cuda", …; by default a GPU if there is one.
            batch_pixels: pixels searched at once; by default one picture on a CPU, 32 million on a GPU.

        Raises:
            DataError: a GPU that is not there.
        """
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise DataError(f"align.device={device}: there is no GPU that can be used; give align.device=cpu")
        self.side = side
        self.min_confidence = min_confidence
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        default = 1 if self.device.type == "cpu" else _BATCH_PIXELS
        self.batch_pixels = default if batch_pixels is None else batch_pixels
        self._net: Any = MTCNN(
            keep_all=True, select_largest=True, min_face_size=MIN_DETECTED, device=self.device
        ).eval()

    def detect(self, pictures: Sequence[Picture]) -> list[Faces]:
        """Searches pictures for faces.

        Args:
            pictures: each (H, W, 3) uint8 RGB, of any size.

        Returns:
            For each picture its faces, in the same order; empty where there are none.
        """
        found = self._search(pictures, range(len(pictures)), border=0.0)
        again = [index for index, faces in found.items() if not len(faces)]
        for index, faces in self._search(pictures, again, border=_BORDER).items():
            if len(faces) or not faces.error:
                found[index] = faces
        return [found[index] for index in range(len(pictures))]

    @torch.inference_mode()
    def second_stage(self, crops: Picture) -> NDArray[np.float64]:
        """Where the second of the three stages sees the faces of places that are known already.

        Args:
            crops: (N, 24, 24, 3) uint8 RGB, squares around faces.

        Returns:
            (N, 4) boxes as fractions of the square.
        """
        with _one_thread():
            moves, _ = self._net.rnet(self._normalised(crops))
        return _whole(moves)

    @torch.inference_mode()
    def last_stage(self, crops: Picture) -> Looks:
        """What the last stage says of such places; see `second_stage`.

        Args:
            crops: (N, 48, 48, 3) uint8 RGB.
        """
        with _one_thread():
            moves, points, probs = self._net.onet(self._normalised(crops))
        places = points.double().cpu().numpy().reshape(-1, 2, 5).transpose(0, 2, 1)
        return Looks(probs[:, 1].double().cpu().numpy(), _whole(moves), places)

    def _normalised(self, crops: Picture) -> torch.Tensor:
        images = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2)
        return (images.float() - 127.5) / 128

    def canvas_pixel(self, picture: Picture) -> float:
        """Side of a pixel of the canvas that a picture is searched on, in the picture's pixels."""
        longer: int = max(picture.shape[:2])
        return longer / _canvas_side(longer, self.side)

    def _search(self, pictures: Sequence[Picture], indices: Sequence[int], border: float) -> dict[int, Faces]:
        groups: dict[tuple[int, ...], list[tuple[int, _Canvas]]] = {}
        for index in indices:
            canvas = _canvas(pictures[index], self.side, border)
            groups.setdefault(canvas.pixels.shape, []).append((index, canvas))
        out: dict[int, Faces] = {}
        with _one_thread():
            for shape, group in groups.items():
                count = max(1, self.batch_pixels // (shape[0] * shape[1]))
                for start in range(0, len(group), count):
                    batch = group[start : start + count]
                    for (index, canvas), faces in zip(batch, self._batch([c for _, c in batch])):
                        out[index] = _in_picture(faces, canvas, pictures[index].shape)
        return out

    def _batch(self, canvases: Sequence[_Canvas]) -> list[Faces]:
        """Searches canvases of one size.

        Raises:
            DataError: out of memory on the GPU with a single picture.
            RuntimeError: any other fault of the device: it says nothing of the picture.
        """
        try:
            boxes, confidences, landmarks = self._net.detect(
                np.stack([canvas.pixels for canvas in canvases]), landmarks=True
            )
        except torch.OutOfMemoryError:
            if len(canvases) > 1:
                half = len(canvases) // 2
                return self._batch(canvases[:half]) + self._batch(canvases[half:])
            raise DataError(
                "the GPU has too little memory to search for faces: give fewer build.workers, or "
                "align.device=cpu"
            ) from None
        except (IndexError, ValueError, RuntimeError) as error:
            # facenet-pytorch loses count when a candidate lies wholly outside: only that picture is lost.
            if isinstance(error, RuntimeError) and _NO_CANDIDATE not in str(error):
                raise
            if len(canvases) > 1:
                return [self._batch([canvas])[0] for canvas in canvases]
            return [_no_faces(f"detector failed: {type(error).__name__}")]
        return [self._faces(*found) for found in zip(boxes, confidences, landmarks)]

    def _faces(self, boxes: Any, confidences: Any, landmarks: Any) -> Faces:
        """One picture's part of MTCNN's answer: arrays of objects, or None for no face."""
        if boxes is None:
            return _no_faces()
        score = np.asarray(confidences, np.float32).reshape(-1)
        points = np.asarray(landmarks, np.float32).reshape(-1, 5, 2)
        box = np.asarray(boxes, np.float32).reshape(-1, 4)
        keep = (score >= self.min_confidence) & np.isfinite(points).all((1, 2)) & np.isfinite(box).all(1)
        return Faces(box[keep], score[keep], points[keep])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """MTCNN's hundreds of tiny operations gain nothing from threads, and lose much on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _no_faces(error: str = "") -> Faces:
    zeros = np.zeros
    return Faces(zeros((0, 4), np.float32), zeros(0, np.float32), zeros((0, 5, 2), np.float32), error)


def _canvas(picture: Picture, side: int, border: float) -> _Canvas:
    """Resizes to a longer side in [192, side], pads with black: all around by `border`, then to the grid."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    wanted = _canvas_side(longer, side)
    pixels = picture
    if wanted != longer:
        size = (max(1, round(width * wanted / longer)), max(1, round(height * wanted / longer)))
        image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        pixels = np.asarray(image)
    scale = (pixels.shape[1] / width, pixels.shape[0] / height)
    offset = round(border * wanted)
    rows, columns = (
        -(-max(length + 2 * offset, 2 * MIN_DETECTED) // _GRID) * _GRID for length in pixels.shape[:2]
    )
    out = np.zeros((rows, columns, 3), np.uint8)
    out[offset : offset + pixels.shape[0], offset : offset + pixels.shape[1]] = pixels
    return _Canvas(out, scale, offset)


def _whole(moves: torch.Tensor) -> NDArray[np.float64]:
    """Boxes from how far the sides of (0, 0, 1, 1) are to be moved."""
    return np.asarray(moves.double().cpu().numpy() + np.array([0.0, 0.0, 1.0, 1.0]))


def _canvas_side(longer: int, side: int) -> int:
    """Longer side of the canvas, without its border, of a picture of this longer side."""
    return min(max(longer, min(_SMALL_SIDE, side)), side)


def on_grain(points: Any) -> NDArray[np.float64]:
    """Landmarks as they are given out: rounding errors of the device do not reach the image."""
    return np.round(np.asarray(points, np.float64) * _GRAIN) / _GRAIN


def _in_picture(faces: Faces, canvas: _Canvas, shape: tuple[int, ...]) -> Faces:
    """From canvas pixels to the picture's, with the centre of the first pixel at 0 on both sides."""
    scale = np.array(canvas.scale, np.float32)

    def back(points: Floats) -> Floats:
        return np.asarray((points - canvas.offset + 0.5) / scale - 0.5, np.float32)

    boxes = back(faces.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    boxes = np.clip(boxes, 0, np.array([shape[1], shape[0], shape[1], shape[0]], np.float32))
    landmarks = on_grain(back(faces.landmarks)).astype(np.float32)
    return Faces(boxes, faces.confidences, landmarks, faces.error)
