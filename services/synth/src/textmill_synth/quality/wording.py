"""Says how much alike two texts are, and whether they can be about the same matter at all.

Chinese is read character by character, other scripts word by word. Knows nothing of records.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from textmill_synth.numerals import numbers

HAN_SHINGLE = 5
WORD_SHINGLE = 3
_SHORT_HAN, _SHORT_WORDS = 64, 32
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_TOKEN = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+(?:['’][^\W_{_HAN}]+)*")
_HAN_RUN = re.compile(f"[{_HAN}]+")
_NAME = re.compile(rf"(?<=[\w,;:，；：] )[A-Z][^\W_{_HAN}]*|[^\W_{_HAN}]*\d[^\W_{_HAN}]*")
# Words that may differ between two wordings of one question. Who, when, where, why, how, not, before, above and the
# like are no such words.
_FUNCTION_WORD_LIST = """
a an the is are was were be been do does did has have had will would can could what which that this these those
it its of in on at for to and so then well ok okay please tell me us you your i we my our just exactly actually also
there hi hello hey
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())
_FUNCTION_HAN = frozenset("的地得了吗呢吧啊呀哦嘛么什哪是请问您你我它他她们这那个些就也都")


@dataclass(frozen=True)
class Wording:
    """A text as it is compared. ``raw`` has its case still: capitals tell names."""

    raw: str
    tokens: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        return "".join(self.tokens)

    @cached_property
    def content(self) -> tuple[str, ...]:
        """The words (stripped of a plural's s) and characters that say what it is about, in their order."""
        return tuple(filter(None, map(_content, self.tokens)))

    @cached_property
    def words(self) -> frozenset[str]:
        """The content, with Chinese in pairs of neighbours: a character alone says too little to look texts up by."""
        found = {t for t in self.content if not _is_han(t)}
        for run in _HAN_RUN.findall("".join(t if t not in _FUNCTION_HAN else " " for t in self.tokens)):
            found.update({run} if len(run) == 1 else {run[i : i + 2] for i in range(len(run) - 1)})
        return frozenset(found)

    @cached_property
    def marks(self) -> frozenset[str]:
        """Names and numbers in whatever script: long texts that differ here are about different things."""
        return self.names | numbers(self.raw)

    @cached_property
    def names(self) -> frozenset[str]:
        """Capitalised words inside a sentence, and words with digits."""
        return frozenset(_singular(m.group().casefold()) for m in _NAME.finditer(self.raw))

    @property
    def is_short(self) -> bool:
        return len(self.tokens) < (_SHORT_HAN if self._is_chinese else _SHORT_WORDS)

    @cached_property
    def shingles(self) -> tuple[str, ...]:
        """Runs of five tokens in Chinese, of three words elsewhere; the whole text where it is shorter."""
        length = HAN_SHINGLE if self._is_chinese else WORD_SHINGLE
        tokens = self.tokens
        return tuple(" ".join(tokens[i : i + length]) for i in range(max(1, len(tokens) - length + 1)))

    @cached_property
    def _is_chinese(self) -> bool:
        return 2 * sum(map(_is_han, self.tokens)) > len(self.tokens)


@lru_cache(maxsize=1024)
def read_wording(text: str) -> Wording:
    """Case, width, punctuation and spacing make no difference. Some 5 us for a question."""
    raw = unicodedata.normalize("NFKC", text)
    return Wording(raw, tuple(t.replace("’", "'") for t in _TOKEN.findall(raw.casefold())))


def likeness(a: Wording, b: Wording) -> float:
    """The similarity of two texts, and 0 for those that can't be about the same matter."""
    return similarity(a, b) if same_matter(a, b) else 0.0


def same_matter(a: Wording, b: Wording) -> bool:
    """No if they differ in what says what they are about.

    In short texts that is every content word: "hexagram 3" and "hexagram 13", 屯卦 and 蒙卦. In long ones it is numbers
    and names; as Chinese names have no mark, two texts that each have a character the other lacks count as different.
    """
    if a.is_short and b.is_short:
        return a.content == b.content
    mine, theirs = set(a.content), set(b.content)
    return a.marks == b.marks and not (_han(mine - theirs) and _han(theirs - mine))


def swapped_names(a: Wording, b: Wording) -> bool:
    """Whether each has a name that the other doesn't have at all."""
    return not a.names <= {*b.names, *b.content} and not b.names <= {*a.names, *a.content}


def similarity(a: Wording, b: Wording) -> float:
    """1 for equal texts, 0 for texts that share nothing.

    Short texts by their longest common subsequence of characters, 2 * common / (length + length): one changed character
    in twelve leaves only a quarter of the five-character shingles. Long ones by the Jaccard similarity of the shingles.
    """
    if a.text == b.text:
        return 1.0
    if a.is_short and b.is_short:
        return 2 * _common_subsequence(a.text, b.text) / (len(a.text) + len(b.text))
    mine, theirs = set(a.shingles), set(b.shingles)
    return len(mine & theirs) / len(mine | theirs)


def _common_subsequence(a: str, b: str) -> int:
    """The length of the longest common subsequence, one bit a character (Hyyrö 2004, algorithm LLCS)."""
    places: dict[str, int] = {}
    for index, char in enumerate(a):
        places[char] = places.get(char, 0) | 1 << index
    everywhere = (1 << len(a)) - 1
    open_places = everywhere
    for char in b:
        matched = open_places & places.get(char, 0)
        open_places = (open_places + matched | open_places - matched) & everywhere
    return len(a) - open_places.bit_count()


def _han(tokens: set[str]) -> Sequence[str]:
    return [t for t in tokens if _is_han(t)]


def _is_han(token: str) -> bool:
    return "\u3400" <= token <= "\u9fff"


@lru_cache(maxsize=1 << 15)
def _content(token: str) -> str:
    """The token without a plural's s; nothing for a word that says nothing by itself."""
    word = _singular(token)
    return "" if token in _FUNCTION_WORDS or word in _FUNCTION_WORDS or token in _FUNCTION_HAN else word


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
