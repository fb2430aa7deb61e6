"""What do depth and thermal give MRAN? Trainings that differ in one thing, over seeds, on held-out people.

    python -m bench.guidance INIT [--seeds 0 1 2 3 4] [--cells NAME …] [key=value …]

INIT is a pretraining run. Each cell is `mran_demo` on the rendered default clips with at most two settings,
trained once for each seed (`runs/seeds/mran-…`; what was finished before is not trained again), and scored on
the frames of val and test together, people that no run learned from; dark clips also by themselves. In
"heat of others" every clip of every split has the thermal video of another person: a gain that stays was not
from heat. A figure is the mean over the seeds; a difference has a 95 % interval by a bootstrap over clips,
the same resamples on both sides. Then, as each run's report has it of val, the share of the attention that
lies on the face, divided by the face's share of the area. MRAN is a reconstruction and the clips are
rendered: no figure is a paper's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.seeds import finetune, held_out, run_of
from finetune.metrics import bootstrap_difference
from pipelines.data import make_default
from pipelines.predictions import Predictions
from pipelines.scores import RESAMPLES, figures_of, groups_of
from shards.build import BuildConfig, build
from shards.clips import read_clip_labels
from shards.frames import parse_frame
from shards.records import Encoded, Item, Maker, Rejected, SourceInfo
from shards.render import RenderedClips
from shards.shardset import open_shards

OTHERS = Path("data/rendered-clips-heat-of-others")
CELLS: dict[str, list[str]] = {
    "gates and scores": [],
    "gates": ["mran.guidance=gate"],
    "scores (late)": ["mran.guidance=late"],
    "colour alone": ["mran.guidance=none"],
    "random encoder": ["init=random"],
    "colour alone, random encoder": ["mran.guidance=none", "init=random"],
    "heat of others": [f"data.shards={OTHERS}"],
}
PAIRS = (
    ("gates and scores", "scores (late)"),
    ("gates and scores", "colour alone"),
    ("scores (late)", "colour alone"),
    ("gates", "colour alone"),
    ("heat of others", "colour alone"),
    ("gates and scores", "random encoder"),
    ("colour alone", "colour alone, random encoder"),
)
FIGURES = ("ccc_valence", "ccc_arousal")
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class HeatOfOthers:
    """Rendered clips with the thermal video of the next clip of the run that is made together."""

    clips: RenderedClips

    @property
    def info(self) -> SourceInfo:
        """That of the clips, under another name."""
        return replace(self.clips.info, name="rendered-clips, heat of others")

    def splits(self) -> Sequence[str]:
        """As the clips."""
        return self.clips.splits()

    def items(self, split: str) -> Sequence[Item]:
        """As the clips."""
        return self.clips.items(split)

    def open_maker(self) -> Maker:
        """Clips as they are rendered, then their heat handed on."""
        make = self.clips.open_maker()

        def exchanged(items: Sequence[Item]) -> Iterator[Encoded | Rejected]:
            made = [record for record in make(items) if isinstance(record, Encoded)]
            heat = [{name: data for name, data in one.members.items() if is_heat(name)} for one in made]
            for one, other in zip(made, [*heat[1:], heat[0]], strict=True):
                rest = {name: data for name, data in one.members.items() if not is_heat(name)}
                yield replace(one, members=rest | other)

        return exchanged


def is_heat(extension: str) -> bool:
    """Whether a member is a thermal picture."""
    frame = parse_frame(extension)
    return frame is not None and frame.modality == "thermal"


def dark_clips(shards: str) -> set[str]:
    """Keys of the held-out clips that are dark to the colour camera."""
    found = set()
    for split in ("val", "test"):
        opened = open_shards(shards, split)
        for sample in range(len(opened)):
            labels = read_clip_labels(opened, sample)
            if labels.extra["dark"]:
                found.add(labels.group or "")
    return found


def figure(predictions: Sequence[Predictions], name: str) -> Callable[[Rows], float]:
    """The mean over runs of one of `FIGURES`, as a function of rows."""
    parts = [figures_of(one)[name] for one in predictions]
    return lambda rows: float(np.mean([part(rows) for part in parts]))


def main() -> None:
    """Trains what is missing and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("init", metavar="INIT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME", help=", ".join(CELLS)
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    shards = str(make_default("clips"))
    if "heat of others" in asked.cells:
        build(HeatOfOthers(RenderedClips()), OTHERS, BuildConfig(shard_size=16))
    for seed in asked.seeds:
        for cell in asked.cells:
            settings = [f"init={asked.init}", f"data.shards={shards}", *asked.settings, *CELLS[cell]]
            finetune(f"mran {cell}", seed, "mran_demo", settings)
    found = {
        cell: [
            held_out(run_of(f"mran {cell}", seed), str(OTHERS) if cell == "heat of others" else shards)
            for seed in asked.seeds
        ]
        for cell in asked.cells
    }
    groups, _ = groups_of(found[asked.cells[0]][0])
    dark = np.isin(groups, sorted(dark_clips(shards)))
    for title, kept in (("all clips", np.ones_like(dark)), ("dark clips", dark)):
        print_table(
            title, {cell: [one.take(np.flatnonzero(kept)) for one in runs] for cell, runs in found.items()}
        )
    print("\nattention on the face, times its share of the area, clips of val")
    for cell in asked.cells:
        ratios = [face_attention(run_of(f"mran {cell}", seed)) for seed in asked.seeds]
        print(f"  {cell:28s} {np.mean(ratios):.2f}, by seed {', '.join(f'{one:.2f}' for one in ratios)}")


def face_attention(run: Path) -> float:
    """How many times the face's share of the area its share of the attention is, in a finished run."""
    regions = json.loads((run / "predictions" / "val.clips.json").read_text())["attention"]
    return float(next(one["ratio"]["value"] for one in regions if one["region"] == "face"))


def print_table(title: str, found: dict[str, list[Predictions]]) -> None:
    """Figures of every cell, then the differences of pairs."""
    groups, _ = groups_of(next(iter(found.values()))[0])
    every = np.arange(len(groups))
    print(f"\n{title}: {len(set(groups.tolist()))} held-out clips of {len(groups)} frames")
    for cell, runs in found.items():
        values = [f"{name} {figure(runs, name)(every):.3f}" for name in FIGURES]
        print(f"  {cell:28s} {'   '.join(values)}")
    for name in FIGURES:
        for better, other in (pair for pair in PAIRS if found.keys() >= set(pair)):
            ours, theirs = figure(found[better], name), figure(found[other], name)
            low, high = bootstrap_difference(ours, theirs, groups, RESAMPLES, seed=0)
            single = [
                figure([one], name)(every) - figure([two], name)(every)
                for one, two in zip(found[better], found[other], strict=True)
            ]
            print(
                f"  {name}: {better} less {other} {ours(every) - theirs(every):+.3f} "
                f"[{low:+.3f}, {high:+.3f}], by seed {', '.join(f'{value:+.3f}' for value in single)}"
            )


if __name__ == "__main__":
    main()
