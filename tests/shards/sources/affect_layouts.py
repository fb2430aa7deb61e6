"""Tiny affect data sets in the official layouts: a few drawn faces, real names, codes and spellings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from shards.align.geometry import TEMPLATE
from tests.shards.sources.layouts import drawn

Files = dict[str, bytes | str]

HEADER = "image,valence,arousal,expression,aus"
ACTIVE = ",0,1,0,0,0,1,0,0,0,0,1,0"  # AU2, AU10, AU25
UNLABELLED = ",-1" * 12
TRAINING = (
    "6-30-1920x1080_left/00001.jpg,-0.25,0.5,4" + ACTIVE,
    "6-30-1920x1080_left/00002.jpg,-5,-5,-1" + ACTIVE,
    "6-30-1920x1080_right/00001.jpg,-1.0,1.0,7" + UNLABELLED,
    "video59/00231.jpg,-5.0,-5.0,0" + UNLABELLED,
)
VALIDATION = ("video92/00001.jpg,0.1,-0.2,-1" + ACTIVE,)
TEST = ("25-25-600x480/00010.jpg", "25-25-600x480/00011.jpg")
TEST_LIST = "MTL_Challenge_test_set_release.txt"


def table(rows: Sequence[str], header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


def affwild2_files() -> Files:
    """Lists and 112×112 frames; the folder of a video holds frames that no list names."""
    frames = [row.split(",")[0] for row in (*TRAINING, *VALIDATION, "video59/00232.jpg")]
    files: Files = {
        f"cropped_aligned/{name}": drawn(seed, (112, 112)) for seed, name in enumerate(sorted(frames))
    }
    files |= {
        f"cropped_aligned_2022_MTL_test/{name}": drawn(50 + seed, (112, 112))
        for seed, name in enumerate(TEST)
    }
    files["training_set_annotations.txt"] = table(TRAINING)
    files["validation_set_annotations.txt"] = table(VALIDATION)
    files[TEST_LIST] = table(TEST)
    return files


LSD_FOLDERS = ("ANGERE", "DISGUST", "FEAR", "HAPPINESS", "SADNESS", "SURPRISE")


def lsd_files() -> Files:
    """Folders of classes, one spelt as it officially is; the test has names only."""
    files: Files = {}
    for number, folder in enumerate(LSD_FOLDERS):
        for count in (1, 2):
            name = f"training_set_synthetic_images/{folder}/{count}.jpg"
            files[name] = drawn(10 * number + count, (112, 112))
        right = folder.replace("ANGERE", "ANGER")
        files[f"validation_set_real_images/{right}/{number + 100}.jpg"] = drawn(90 + number, (112, 112))
    files |= {f"test_set_real_images/{number}.jpg": drawn(number, (112, 112)) for number in range(3)}
    files["test_set_names.txt"] = "".join(f"{number}.jpg\n" for number in range(3))
    return files


def lsd_lists() -> Files:
    """Lists beside the folders: numbers in alphabetical order, and names."""
    train = [f"{folder}/{count}.jpg,{n}" for n, folder in enumerate(LSD_FOLDERS) for count in (1, 2)]
    val = [f"{n + 100}.jpg,{folder.replace('ERE', 'ER')}" for n, folder in enumerate(LSD_FOLDERS)]
    return {
        "training_set_labels.txt": table(train, "name,label"),
        "validation_set_labels.txt": table(val, "name,label"),
    }


def landmarks68(scale: float = 1.0, shift: tuple[float, float] = (0, 0)) -> np.ndarray[Any, Any]:
    """(68, 2) landmarks whose five points are the template's, scaled and shifted."""
    points = np.full((68, 2), 50.0)
    points[36:42], points[42:48] = TEMPLATE[0], TEMPLATE[1]
    points[[36, 39]] += ((-5, 0), (5, 0))
    points[30], points[48], points[54] = TEMPLATE[2:]
    return points * scale + shift


def npy(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(value))
    return out.getvalue()


def affectnet_files(as_text: bool = True) -> Files:
    """Eight training faces, one of each class, and two for validation; 224×224, numbered with gaps."""
    files: Files = {}

    def face(split: str, number: int, expr: int, valence: float, arousal: float) -> None:
        values = {"exp": expr, "val": valence, "aro": arousal}
        files[f"{split}/images/{number}.jpg"] = drawn(number, (224, 224))
        for kind, value in values.items():
            files[f"{split}/annotations/{number}_{kind}.npy"] = npy(str(value) if as_text else value)
        points = landmarks68(2.0).reshape(-1)
        lnd = [str(p) for p in points] if as_text else points
        files[f"{split}/annotations/{number}_lnd.npy"] = npy(lnd)

    for expr in range(8):
        face("train_set", 3 * expr, expr, 0.1 * expr - 0.4, -2.0 if expr == 1 else 0.25)
    face("val_set", 0, 7, -0.5, 0.5)
    face("val_set", 11, 1, 0.75, 0.0)
    return files


AFFECTNET_COLUMNS = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def affectnet_tables(header: bool = True) -> Files:
    """training.csv with every code, validation.csv (`header` False: as it is sometimes handed out)."""
    points = ";".join(f"{p:.2f}" for p in landmarks68(2.0, (40, 30)).reshape(-1))

    def row(name: str, code: int, valence: str, arousal: str) -> str:
        return f"{name},134,134,899,899,{points},{code},{valence},{arousal}"

    train = [
        row(f"{689 + c % 2}/{c:02x}ab.jpg", c, "-2" if c > 7 else "-0.017253", "0.25") for c in range(11)
    ]
    val = [row("17/cc.JPG", 7, "-2.000000", "-2"), row("17/dd.png", 0, "0.0", "0.0")]
    files: Files = {
        f"Manually_Annotated_Images/{line.split(',')[0]}": drawn(
            seed, (320, 300), "PNG" if ".png" in line else "JPEG"
        )
        for seed, line in enumerate((*train, *val))
    }
    files["Manually_Annotated_file_lists/training.csv"] = table(train, AFFECTNET_COLUMNS)
    files["Manually_Annotated_file_lists/validation.csv"] = (
        table(val, AFFECTNET_COLUMNS) if header else "\n".join(val) + "\n"
    )
    return files


def rafdb_files(num_train: int = 14, num_test: int = 7) -> Files:
    """EmoLabel/list_patition_label.txt and Image/aligned/, 100×100; labels go round from 1 to 7."""
    names = [f"train_{n:05d}" for n in range(1, num_train + 1)]
    names += [f"test_{n:04d}" for n in range(1, num_test + 1)]
    files: Files = {
        f"Image/aligned/{name}_aligned.jpg": drawn(seed, (100, 100)) for seed, name in enumerate(names)
    }
    rows = [f"{name}.jpg {n % 7 + 1}\n" for n, name in enumerate(names)]
    files["EmoLabel/list_patition_label.txt"] = "".join(rows)
    return files
