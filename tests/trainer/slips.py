"""The format slips that ruined the owner's first data sets, made on purpose and from a seed.

The owner's LLM was to answer ``content:"..."``, newline, ``summary:"..."``, and what stood between the quotes after
``summary:`` became the answer. Each slip here is what that search leaves of a response that didn't keep to the form.
Knows nothing of training; ``bench/losswatch.py`` plants these and counts how many are found.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A good question and answer, the passage it is from, and the same answer in another language."""

    question: str
    answer: str
    passage: str
    foreign: str


def slip(sample: Sample, kind: str, rng: random.Random) -> str:
    """The answer that a slip of this kind leaves; never the good one."""
    return SLIPS[kind](sample, rng)


def _extra_block(sample: Sample, rng: random.Random) -> str:
    """A third block that nobody asked for behind the summary."""
    return f"{sample.answer}\n{rng.choice(('interpretation', 'image'))}: {_another(sample, rng)}"


def _nested_content(sample: Sample, rng: random.Random) -> str:
    """A second ``content`` inside the first, so that the answer begins with the question's block."""
    return f'content:"{sample.question}"\nsummary:"{sample.answer}'


def _summary_twice(sample: Sample, rng: random.Random) -> str:
    return f'{sample.answer}"\nsummary:"{rng.choice((sample.answer, _another(sample, rng)))}'


def _cut_short(sample: Sample, rng: random.Random) -> str:
    """A quote doubled in the middle ends the search too soon."""
    end = max(2, round(len(sample.answer) * rng.uniform(0.2, 0.7)))
    return sample.answer[:end].rstrip()


def _cut_long(sample: Sample, rng: random.Random) -> str:
    """A closing quote is missing: the search runs on into the next sample."""
    return f'{sample.answer}\n\ncontent:"{_another(sample, rng)}'


def _other_language(sample: Sample, rng: random.Random) -> str:
    return sample.foreign


def _foreign_words(sample: Sample, rng: random.Random) -> str:
    """Words of the other language in the middle, and a brace of JSON left open."""
    start = rng.randrange(max(1, len(sample.foreign) - 4))
    middle = rng.randrange(1, len(sample.answer))
    return f'{sample.answer[:middle]}{sample.foreign[start : start + 4]}{sample.answer[middle:]}"}}'


def _another(sample: Sample, rng: random.Random) -> str:
    """A sentence of the passage that isn't the answer."""
    full_stop = "。" if "。" in sample.passage else ". "
    sentences = [s.strip() for s in sample.passage.split(full_stop)]
    return rng.choice([s for s in sentences if s and s not in sample.answer])


SLIPS: Mapping[str, Callable[[Sample, random.Random], str]] = {
    "extra_block": _extra_block,
    "nested_content": _nested_content,
    "summary_twice": _summary_twice,
    "cut_short": _cut_short,
    "cut_long": _cut_long,
    "other_language": _other_language,
    "foreign_words": _foreign_words,
}
