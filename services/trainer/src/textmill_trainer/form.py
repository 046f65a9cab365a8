"""What an answer's form has that hardly any answer to the same question has: its end, its marks, its writing.

Format slips leave such traces whatever the text says: a quote or brace that nothing else has, a line of its own with a
key, no full stop at the end, another script. It is no proof, since a good answer may be the only one with a list. Knows
no loss, no model and no language.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

RARE = 0.1
"""Of the answers to a question. Slips of all kinds together were 5 % in the owner's worst data."""
LEAST_PEERS = 16
"""Among fewer, one is no less than a tenth of them by more than chance."""
_SENTENCE = frozenset(",.;!?'’-–—·…，。；！？、")
"""Marks that any prose has; what is rare of them is chance."""
_ENDS = frozenset(".!?…。！？")


def oddities(answers: Mapping[str, tuple[str, str]]) -> dict[str, list[str]]:
    """Of each record the features of its answer that are rare, in words: none for most. Records that have too few peers
    to tell, or no text, aren't in it.

    ``answers`` holds question and answer by record id. Questions that few records ask are one, by what comes before
    their last "/" (language and strategy).
    """
    counts = Counter(question for question, _ in answers.values())
    groups: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for record_id, (question, answer) in answers.items():
        if not answer.strip():
            continue
        asked = question if counts[question] >= LEAST_PEERS else question.rpartition("/")[0]
        groups[asked][record_id] = frozenset(features(answer))
    return dict(found for group in groups.values() if len(group) >= LEAST_PEERS for found in _rare(group))


def features(answer: str) -> Iterator[str]:
    """The form of a text that isn't empty, each feature in words."""
    text = answer.strip()
    yield f"ends {_end(text[-1])}"
    yield f"written in {' and '.join(sorted(_scripts(text))) or 'no script'}"
    for mark in set(text):
        if mark == "\n":
            yield "has a line break"
        elif not (mark.isalnum() or mark.isspace() or mark in _SENTENCE):
            yield f"has {mark}"


def _rare(group: Mapping[str, frozenset[str]]) -> Iterator[tuple[str, list[str]]]:
    holders = Counter(feature for held in group.values() for feature in held)
    for record_id, held in group.items():
        rare = sorted(f for f in held if holders[f] <= RARE * len(group))
        yield record_id, [f"{feature} ({holders[feature]} of {len(group)})" for feature in rare]


def _end(last: str) -> str:
    if last in _ENDS:
        return "with a full stop"
    return "within a sentence" if last.isalnum() else f"with {last}"


def _scripts(text: str) -> set[str]:
    """The first word of a letter's Unicode name: LATIN, CJK, CYRILLIC."""
    names = (unicodedata.name(letter, "") for letter in set(text) if letter.isalpha())
    return {name.split()[0].capitalize() if not name.startswith("CJK") else "CJK" for name in names if name}
