"""Raw data sets in their own layouts, as sources of aligned faces and of aligned clips.

Reading order: raw (what a layout must say, and the one way from there), pictures, tables, splits, listing;
then folder, celeba, tars, emotionet, affwild2, lsd, affectnet, rafdb. A new data set is a new raw source and
a line in `_RAW`. Of video: recordings, tracks, series, alignedclips; then afewva, rig, recola, sewa,
affwild2va, with their lines in `_CLIPS`. What `shards.render` makes needs no raw data: `_RENDERED`.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shards.align.config import AlignConfig
from shards.labels import DataError
from shards.records import Source
from shards.render import RenderedClips, RenderedFaces
from shards.sources.afewva import AfewVA
from shards.sources.affectnet import AffectNet
from shards.sources.affwild2 import AffWild2
from shards.sources.affwild2va import AffWild2VA
from shards.sources.alignedclips import AlignedClips
from shards.sources.celeba import CelebA
from shards.sources.emotionet import EmotioNet
from shards.sources.folder import FolderFaces
from shards.sources.lsd import LSD
from shards.sources.rafdb import RafDB
from shards.sources.raw import AlignedFaces, RawFace, RawSource, Reader
from shards.sources.recola import Recola
from shards.sources.recordings import RecordingSource
from shards.sources.rig import Rig
from shards.sources.sewa import Sewa
from shards.sources.tars import TarFaces

__all__ = [
    "LSD",
    "AfewVA",
    "AffWild2",
    "AffWild2VA",
    "AffectNet",
    "AlignedClips",
    "AlignedFaces",
    "CelebA",
    "EmotioNet",
    "FolderFaces",
    "RafDB",
    "RawFace",
    "RawSource",
    "Reader",
    "Recola",
    "RecordingSource",
    "Rig",
    "Sewa",
    "TarFaces",
    "build_source",
    "source_names",
    "source_options",
]

_RAW: Mapping[str, Callable[..., RawSource]] = {
    "folder": FolderFaces,
    "celeba": CelebA,
    "tars": TarFaces,
    "emotionet": EmotioNet,
    "affwild2": AffWild2,
    "lsd": LSD,
    "affectnet": AffectNet,
    "rafdb": RafDB,
}
_CLIPS: Mapping[str, Callable[..., RecordingSource]] = {
    "afewva": AfewVA,
    "rig": Rig,
    "recola": Recola,
    "sewa": Sewa,
    "affwild2va": AffWild2VA,
}
_RENDERED: Mapping[str, Callable[..., RenderedFaces | RenderedClips]] = {
    "rendered": RenderedFaces,
    "rendered-clips": RenderedClips,
}
_ALL: Mapping[str, Callable[..., RawSource | RecordingSource | RenderedFaces | RenderedClips]] = {
    **_RAW,
    **_CLIPS,
    **_RENDERED,
}

NO_SRC = "-"
"""What stands for the path of a source that reads none."""


def source_names() -> tuple[str, ...]:
    """What `build_source` takes."""
    return tuple(_ALL)


def source_options(name: str) -> dict[str, Any]:
    """Options of a source beside its path: name -> type.

    Raises:
        DataError: no such source.
    """
    if name not in _ALL:
        raise DataError(f"SOURCE={name}: unknown{_guess(name, _ALL)}; there are {', '.join(_ALL)}")
    hints = typing.get_type_hints(_ALL[name].__init__)
    return {option: kind for option, kind in hints.items() if option not in ("path", "return")}


def build_source(name: str, src: str | Path, align: AlignConfig | None = None, /, **options: Any) -> Source:
    """The data set `name` at `src`, to be aligned: faces, or clips of video; or to be rendered.

    Args:
        name: one of `source_names()`.
        src: folder, zip or tar, as the data set has it; `NO_SRC` for what is rendered.
        align: by default `AlignConfig()`; nothing rendered takes any.
        options: those of the raw source's constructor.

    Raises:
        DataError: unknown name or option, nothing at `src`, or not in the layout it should have.
    """
    if name not in _ALL:
        raise DataError(f"SOURCE={name}: unknown{_guess(name, _ALL)}; there are {', '.join(_ALL)}")
    if name in _RENDERED:
        return _rendered(name, src, align, options)
    if str(src).strip() in ("", NO_SRC):
        raise DataError("SRC is empty: give the folder, zip or tar of the data set")
    _check_options(name, options)
    path = Path(src).expanduser()
    if name in _CLIPS:
        return AlignedClips(_CLIPS[name](path, **options), align)
    return AlignedFaces(_RAW[name](path, **options), align)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    known = [option for option in inspect.signature(_ALL[name]).parameters if option != "path"]
    for option in options:
        if option not in known:
            raise DataError(
                f"source {name}: unknown option {option!r}{_guess(option, known)}; "
                f"there are {', '.join(known)}"
            )


def _rendered(
    name: str, src: str | Path, align: AlignConfig | None, options: Mapping[str, Any]
) -> RenderedFaces | RenderedClips:
    if str(src).strip() not in ("", NO_SRC):
        raise DataError(f"source {name} reads nothing: leave SRC out, or give {NO_SRC} for it, not {src}")
    if align not in (None, AlignConfig()):
        raise DataError(f"source {name} renders its faces aligned: no align.… applies; size and margin do")
    _check_options(name, options)
    try:
        return _RENDERED[name](**options)
    except ValueError as error:
        raise DataError(f"source {name}: {error}") from None


def _guess(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
