"""Who is in the rendered data sets: people, spread over samples and kept apart between splits.

Faces and clips of one seed show the same people, each in the same split of both: an encoder that was
pretrained on the faces has seen nobody of the clips' held-out splits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from shards.keyed import generator, sample_key
from shards.records import SPLITS
from shards.render.head import Head, build_head

LICENCE = "rendered faces of people who do not exist; head mesh CC0 (MakeHuman community); pictures CC0"

_BLOCK = 16
"""Identities that take turns: neighbours in the data set differ, and this many heads are kept at a time."""

_HEADS = 2**20
"""Added to a split's number where the key is a person's and not a sample's."""


class Ref(NamedTuple):
    """What the maker needs to know of a sample: its split's number, its own, its person's."""

    split: int
    sample: int
    identity: int


def check_counts(counts: Mapping[str, int], num_identities: int) -> None:
    """
    Raises:
        ValueError: no samples, a negative number of them, or no people.
    """
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise ValueError(f"numbers of samples must be positive, got {dict(counts)}")
    if num_identities < 1:
        raise ValueError(f"num_identities must be at least 1, got {num_identities}")


def num_people(counts: Mapping[str, int], split: str, num_identities: int) -> int:
    """Identities of one split: of the train split `num_identities`, of others as many to a sample."""
    reference = counts["train"] or max(counts.values())
    return max(1, min(counts[split], round(counts[split] * num_identities / reference)))


def refs(counts: Mapping[str, int], split: str, num_identities: int) -> list[Ref]:
    """All samples of one split, as even over its people as can be; the people of a block take turns.

    Raises:
        ValueError: there is no such split.
    """
    there = [name for name in SPLITS if counts.get(name)]
    if split not in there:
        raise ValueError(f"no split {split!r}; there are {there}")
    count, people = counts[split], num_people(counts, split, num_identities)
    turns = -(-count // people)
    order = [
        person
        for first in range(0, people, _BLOCK)
        for _ in range(turns)
        for person in range(first, min(first + _BLOCK, people))
    ]
    # Where the count does not divide, the excess is taken from the last turns of the first people.
    excess = len(order) - count
    if excess:
        seen: dict[int, int] = {}
        kept = []
        for person in order:
            seen[person] = seen.get(person, 0) + 1
            if seen[person] < turns or person >= excess:
                kept.append(person)
        order = kept
    return [Ref(SPLITS.index(split), sample, person) for sample, person in enumerate(order)]


def identity_name(ref: Ref) -> str:
    """The person of a sample, in the data set's own words."""
    return f"{SPLITS[ref.split]}-{ref.identity:05d}"


def build_person(seed: int, ref: Ref) -> Head:
    """The person of one sample: a pure function of seed, split and identity."""
    return build_head(generator(sample_key(seed, _HEADS + ref.split, ref.identity), "head"))


class People:
    """Heads as a maker needs them, those of one block kept."""

    def __init__(self, seed: int) -> None:
        """`seed`: of the data set."""
        self._seed = seed
        self._heads: OrderedDict[tuple[int, int], Head] = OrderedDict()

    def head(self, ref: Ref) -> Head:
        """The person of one sample."""
        person = (ref.split, ref.identity)
        if person not in self._heads:
            self._heads[person] = build_person(self._seed, ref)
            if len(self._heads) > _BLOCK:
                self._heads.popitem(last=False)
        return self._heads[person]
