"""Makes the slips that people make when they type, and never where it would change what is asked.

English: a key beside the right one, two letters swapped, a letter left out. Chinese: a word of the same sound or look,
a particle left out. Names, numbers and the fact that is asked for stay as they are.
"""

import random
import re
from collections.abc import Sequence

from textmill.contracts.documents import Language
from textmill_synth.asking.mention import protected_spans
from textmill_synth.asking.near import numbers_in
from textmill_synth.numerals import numbers

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {key: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in _ROWS for at, key in enumerate(row)}
_WORD = re.compile(r"(?<![\w'’-])[A-Za-z][a-z]{3,}(?![\w'’-])")
_WORDS_FOR_TWO_SLIPS = 7
_CONFUSED_LIST = """
象征:像征 代表:带表 表示:表式 什么:神么 哪些:那些 哪里:那里 哪几:那几 哪个:那个 哪两:那两 为什么:为神么
解释:解事 描述:苗述 介绍:介召 意思:义思 含义:含意 位置:位制 应该:因该 知道:知到 已经:以经
需要:须要 必须:必需 其他:其它 部分:部份 联系:连系 构成:够成 组成:组城 包括:包扩 原因:原音 要求:要球 安装:按装
规定:规订 制定:制订 多少:多小 排列:排例 完整:完正 问题:问提 告诉:告述 简单:间单 主要:住要 内容:内溶
方法:方发 区别:区另 作用:做用 表达:表答 理解:理介 核心:核新 概括:概扩 道理:到理 读者:读着 拆成:折成
"""
_CONFUSED = {pair.split(":")[0]: pair.split(":")[1] for pair in _CONFUSED_LIST.split()}
_CONFUSED_WORD = re.compile("|".join(sorted(_CONFUSED, key=len, reverse=True)))
_PARTICLE = re.compile("[的了吗呢]")


def with_typos(question: str, protected: Sequence[str], passage: str, language: Language, seed: str) -> str | None:
    """The question with one slip, in a long one two; None where there is no place for one.

    The same seed makes the same slips. A slip that makes another word of the question or the passage is none.
    """
    dice = random.Random(f"{seed}:{question}")
    kept = protected_spans(question, protected)
    slipped = _chinese(question, kept, dice) if language == "zh" else _english(question, kept, passage, dice)
    return slipped if slipped and slipped != question and numbers(slipped) == numbers_in(question) else None


def _english(question: str, kept: Sequence[tuple[int, int]], passage: str, dice: random.Random) -> str | None:
    free = [m for m in _WORD.finditer(question) if not _touches(m.span(), kept) and _is_plain(m)]
    known = {word.casefold() for word in re.findall(r"[^\W_]+", f"{question} {passage}")}
    dice.shuffle(free)
    slips: list[tuple[re.Match[str], str]] = []
    for match in free:
        wrong = _slip(match.group(), dice)
        if wrong.casefold() not in known:
            slips.append((match, wrong))
        if len(slips) == (2 if len(free) >= _WORDS_FOR_TWO_SLIPS else 1):
            break
    for match, wrong in sorted(slips, key=lambda slip: -slip[0].start()):
        question = question[: match.start()] + wrong + question[match.end() :]
    return question if slips else None


def _is_plain(word: re.Match[str]) -> bool:
    """No number, and no name: capitals only where a sentence starts."""
    starts = not word.string[: word.start()].strip() or word.string[: word.start()].rstrip().endswith((".", "?", "!"))
    return not numbers(word.group()) and (word.group().islower() or starts)


def _slip(word: str, dice: random.Random) -> str:
    """The first letter stays: people notice a wrong one."""
    at = dice.randrange(1, len(word) - 1)
    kind = dice.choice(("neighbour", "swap", "drop"))
    if kind == "neighbour":
        return word[:at] + dice.choice(_NEIGHBOURS[word[at]]) + word[at + 1 :]
    if kind == "swap" and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :]


def _chinese(question: str, kept: Sequence[tuple[int, int]], dice: random.Random) -> str | None:
    slips = [(m.span(), _CONFUSED[m.group()]) for m in _CONFUSED_WORD.finditer(question)]
    slips += [(m.span(), "") for m in _PARTICLE.finditer(question)]
    free = [slip for slip in slips if not _touches(slip[0], kept)]
    if not free:
        return None
    (start, end), wrong = dice.choice(free)
    return question[:start] + wrong + question[end:]


def _touches(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < span[1] and span[0] < end for start, end in spans)
