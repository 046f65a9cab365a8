"""How far each record's loss stands out from its peers: records trained on at about the same time, that ask the same.

The loss of a run falls fast, so a loss means nothing but beside those of the steps around it. Two measures, since slips
come in two forms: nats a token, which a cut or garbled answer has more of than answers to the same question; and nats
in all, where a long one hides its strangeness among tokens that are easy. Both under a square root, which keeps the
spread of good records nearly the same whether their loss is large or small (Bartlett 1936, for counts). Knows only
numbers, no text; it can't tell a slip from a good answer of a form that hardly any other has.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PEERS = 40
"""Enough for a median, few enough that they are of one time."""
MOST_OF_A_PASS = 6.0
"""Robust deviations above its peers that one pass can count. A slip stands out in each; late in a run, when nearly all
is learnt, a good record can be forgotten for once, and be far above peers that all have next to nothing."""
_REACH = 256
_BLOCK = 256
"""Peers are looked for among so many sightings before and after a block, so a large dataset costs no more a record."""
_TIME_SPAN = 100
_LENGTH_SPAN = 0.35
"""A length of e^0.35 times another is as far from it as a sighting 100 earlier or later."""
_LEAST_OF_A_QUESTION = 8
_LEAST_SPREAD = 0.02
"""Where peers agree to the third digit, a little more is still no finding."""
_ROUNDS = 2
"""Level of the time and level of the question are found in turn, each without the other."""
_ROBUST = 1.4826
"""The median absolute deviation times this is the standard deviation where values are normal."""


@dataclass(frozen=True)
class Sighting:
    """One record at one step. ``epoch`` counts the passes over the records, from 0."""

    record_id: str
    step: int
    epoch: int
    loss: float
    tokens: int


@dataclass
class Standing:
    """``score`` in robust standard deviations above its like, over all sightings. By sighting, ``expected`` are the
    peers' losses a token, and ``above`` is how far the record's own is above them, in robust standard deviations.
    """

    score: float
    sightings: list[Sighting] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)
    above: list[float] = field(default_factory=list)


def standings(sightings: Sequence[Sighting], questions: Mapping[str, str]) -> dict[str, Standing]:
    """Each record's standing over all the passes in which it was seen. ``questions`` names what each record asks.

    Losses must be finite. A pass in which only some of the records were seen counts like any other: each sighting is
    only compared with those around it.
    """
    found = {s.record_id: Standing(0.0) for s in sightings}
    deviations: dict[str, list[tuple[float, float]]] = {record_id: [] for record_id in found}
    for epoch in sorted({s.epoch for s in sightings}):
        seen = sorted((s for s in sightings if s.epoch == epoch), key=lambda s: s.step)
        expected, strange, heavy = _one_pass(seen, [questions.get(s.record_id, "") for s in seen])
        for n, sighting in enumerate(seen):
            standing = found[sighting.record_id]
            standing.sightings.append(sighting)
            standing.expected.append(float(expected[n]))
            standing.above.append(float(strange[n]))
            deviations[sighting.record_id].append((float(strange[n]), float(heavy[n])))
    means = np.array([np.minimum(deviations[i], MOST_OF_A_PASS).mean(axis=0) for i in found])
    centred = means - np.median(means, axis=0)
    scores = np.max([measure / spread(measure) for measure in centred.T], axis=0)
    for standing, score in zip(found.values(), scores, strict=True):
        standing.score = float(score)
    return found


def spread(deviations: Floats) -> float:
    """The robust standard deviation about zero."""
    return max(_LEAST_SPREAD, _ROBUST * float(np.median(np.abs(deviations))))


def _one_pass(seen: Sequence[Sighting], questions: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """What peers' losses were, and how far each sighting is above them a token and in all, in robust deviations.

    A record whose question at least ``_LEAST_OF_A_QUESTION`` others of the pass ask is compared with those; one that
    asks what few ask with records of like length, and then what it weighs in all says nothing.
    """
    lengths = np.log(np.array([max(1, s.tokens) for s in seen], dtype=float))
    a_token = np.sqrt(np.array([s.loss for s in seen]))
    in_all = a_token * np.exp(lengths / 2)
    asked = _common(questions)
    alone = asked == ""
    expected, heavy = np.zeros(len(seen)), np.zeros(len(seen))
    expected[alone] = _local_medians(a_token[alone], lengths[alone])
    expected[~alone] = _by_question(a_token[~alone], asked[~alone])
    strange = _by_spread(a_token - expected)
    heavy[~alone] = _by_spread(in_all[~alone] - _by_question(in_all[~alone], asked[~alone]))
    return expected**2, strange, heavy


def _common(questions: Sequence[str]) -> NDArray[np.str_]:
    """The questions, and "" for those that few records ask."""
    counts = Counter(questions)
    return np.array([q if counts[q] >= _LEAST_OF_A_QUESTION else "" for q in questions])


def _by_question(roots: Floats, questions: NDArray[np.str_]) -> Floats:
    """The level of each sighting's time, moved by what its question is above others."""
    level, offsets = _local_medians(roots), np.zeros(len(roots))
    for _ in range(_ROUNDS):
        for question in np.unique(questions):
            same = questions == question
            offsets[same] = np.median((roots - level)[same])
        level = _local_medians(roots - offsets)
    return level + offsets


def _by_spread(deviations: Floats) -> Floats:
    """In robust deviations of those around each in time: the losses of a first pass spread wider than a last one's."""
    around: Floats = np.maximum(_LEAST_SPREAD, _ROBUST * _local_medians(np.abs(deviations)))
    scaled: Floats = deviations / around
    return scaled


def _local_medians(roots: Floats, lengths: Floats | None = None) -> Floats:
    """The median of each value's ``PEERS`` nearest others in time and length. In blocks, so that memory stays small."""
    medians = roots.copy()
    for start in range(0, len(roots), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(roots)))
        near = np.arange(max(0, start - _REACH), min(start + _BLOCK + _REACH, len(roots)))
        apart = (near - block[:, None]) / _TIME_SPAN
        if lengths is not None:
            apart = np.hypot(apart, (lengths[near] - lengths[block, None]) / _LENGTH_SPAN)
        apart = np.abs(apart)
        apart[near == block[:, None]] = np.inf
        count = min(PEERS, len(near) - 1)
        if count:
            medians[block] = np.median(roots[near[np.argpartition(apart, count - 1)[:, :count]]], axis=1)
    return medians
