"""Says whether two stretches of text that take each other's place mean different things: two names, two figures.

"The firm" for "the company" is no swap, "the tenant" for "the landlord" is one. Figures and capitalised names show by
themselves; Chinese names by their surnames, and all else by how the passage uses the two.
"""

import re
from dataclasses import dataclass

from textmill_synth.alignment import Run
from textmill_synth.reading import Reading, Unit
from textmill_synth.terms import stem

MIN_SHARED_WORDS = 1.5
"""How many words two clauses must share for others to be compared. A Chinese character is half a word."""
MAX_FIGURE_TERMS = 3
MAX_WORDS = 3
_PLACED = frozenset("至到在于往")
_SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余于杜叶程苏魏吕丁任沈姚卢姜崔钟"
    "谭陆汪范金石廖贾韦夏付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤鲁费倪殷毕安常傅齐康"
    "伍穆萧祁庞纪舒屈项祝阮蓝季强童颜梅盛樊凌霍虞柯管房"
)
_OPPOSITE_LIST = """left right|upper lower|north south|east west|northern southern|eastern western|front rear
inner outer|buyer seller|tenant landlord|lessee lessor|lender borrower|employer employee|minimum maximum
左 右|前 后|上 下|东 西|南 北|内 外|甲 乙|出 承|买 卖|大 小|高 低|增 减|升 降|早 晚|春 秋|夏 冬|男 女|父 母|师 徒
雌 雄|进 出|入 出|收 付"""
_OPPOSITES = frozenset(frozenset(stem(w) for w in pair.split()) for pair in re.split(r"[|\n]", _OPPOSITE_LIST))


@dataclass(frozen=True)
class Pair:
    """``own`` of the answer and ``other`` of the passage, in two clauses that share ``weight`` words.

    ``full``: all else that the answer's clause says stands in the passage's.
    """

    own: Run
    other: Run
    full: bool
    weight: float
    passage: Reading

    @property
    def before(self) -> bool:
        return self.own.before is not None and self.own.before == self.other.before

    @property
    def after(self) -> bool:
        return self.own.after is not None and self.own.after == self.other.after

    @property
    def interior(self) -> bool:
        return None not in (self.own.before, self.own.after)

    @property
    def same_place(self) -> bool:
        """Between the same words, or at the same end of the clause."""
        same = self.own.before == self.other.before and self.own.after == self.other.after
        return same and (self.before or self.after)

    def are_rivals(self) -> bool:
        """Whether the two can stand for each other without meaning the same."""
        own, other = self.own, self.other
        if own.is_figure or other.is_figure:
            return own.keys[0] in self.passage.content and self._rival_figures()
        if not all(key in self.passage.content for key in own.keys):
            return False
        if "name" in own.kinds or "name" in other.kinds:
            return self._rival_names()
        persons = is_person(own) and is_person(other)
        if persons and (self.before or self.after) and self.weight >= 1:
            return True
        if self.weight < MIN_SHARED_WORDS or not (own.is_latin or self._stands_in_passage()):
            return False
        if persons or ((self.before or self.after) and self._are_opposites()):
            return True
        return self.same_place and (self._rival_words() if own.is_latin else self._rival_characters())

    def is_invented(self) -> bool:
        """Whether a Chinese name that the passage hasn't stands in a name's place: nothing marks names in Chinese."""
        own, other = self.own, self.other
        if own.is_latin or own.is_figure or self.weight <= 1 or len(other.keys) < 2 or self._stands_in_passage():
            return False
        if is_person(own) and is_person(other):
            return self.before or self.after
        strange = sum(key not in self.passage.content for key in own.keys)
        if own.kinds != {"word"} or not self.full or not self.same_place or strange * 2 < len(own.keys):
            return False
        copied = self.interior and len(own.keys) == len(other.keys) == strange and self.weight >= 2 * MIN_SHARED_WORDS
        return len(own.keys) == 4 or (len(own.keys) < 4 and (own.before in _PLACED or copied))

    def _rival_figures(self) -> bool:
        own, other = self.own, self.other
        if own.terms[0].kind != other.terms[0].kind or max(len(own.keys), len(other.keys)) > MAX_FIGURE_TERMS:
            return False
        if own.terms[0].kind == "date":
            aligned = self.weight > 1 and (self.before or self.after)
            return aligned or (self.full and self.weight > MIN_SHARED_WORDS)
        bare = len(own.keys) == len(other.keys) == 1
        if own.is_latin and not bare and own.keys[1:] != other.keys[1:] and self._counts_alone():
            return False
        return self.weight >= MIN_SHARED_WORDS and (self.before or (self.after and bare))

    def _counts_alone(self) -> bool:
        """Whether the word behind the own number counts nothing else in the passage: then the two belong together."""
        own = self.own.keys
        return len(own) > 1 and {n for n, word in self.passage.counted if word == own[1]} == {own[0]}

    def _rival_names(self) -> bool:
        if "name" not in self.own.kinds & self.other.kinds or not (self.full or self.weight > 1):
            return False
        return self.before or self.after or self.own.kinds == self.other.kinds == {"name"}

    def _rival_words(self) -> bool:
        if are_parallel(self.own, self.other, self.passage):
            return True
        sizes = len(self.own.keys), len(self.other.keys)
        even = self.interior or (self.full and sizes[0] == sizes[1] > 1)
        return even and max(sizes) <= MAX_WORDS and self._are_contrasted()

    def _rival_characters(self) -> bool:
        if self.interior and self.full and self.weight >= 2 * MIN_SHARED_WORDS:
            return True
        less, more = sorted((len(self.own.keys), len(self.other.keys)))
        # A single character is no match for a word of two.
        if less != more and not (self.full and less > 1 and 2 * more <= 3 * less):
            return False
        return self.interior or are_parallel(self.own, self.other, self.passage) or self._are_contrasted()

    def _are_opposites(self) -> bool:
        both = self.own.keys + self.other.keys
        return len(both) == 2 and frozenset(both) in _OPPOSITES

    def _stands_in_passage(self) -> bool:
        return any(self.passage.neighbours(self.own.keys))

    def _are_contrasted(self) -> bool:
        """Whether a sentence of the passage has both: then they are two things, and not two words for one."""
        return any(_has(s, self.own) and _has(s, self.other) for s in self.passage.sentences)


def is_person(run: Run) -> bool:
    """Whether the run is like a Chinese name of two or three characters, a title before it or not: 知县何文渊."""
    size = min(len(run.keys), 3)
    return size > 1 and run.keys[-size] in _SURNAMES


def are_parallel(own: Run, other: Run, passage: Reading) -> bool:
    """Whether the passage uses both beside the same word, as it does with "red lamp" and "green lamp"."""
    mine, theirs = passage.neighbours(own.keys), passage.neighbours(other.keys)
    if own.before in mine[0] or own.after in mine[1]:
        return True
    return bool((mine[0] & theirs[0] | mine[1] & theirs[1]) & passage.content)


def _has(unit: Unit, run: Run) -> bool:
    if not unit.key_set.issuperset(run.keys):
        return False
    return run.is_latin or "".join(run.keys) in "".join(unit.keys)
