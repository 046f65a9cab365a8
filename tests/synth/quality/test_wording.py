"""How much alike two questions are, and which can't be about the same matter, in both languages."""

import pytest

from textmill_synth.quality.wording import likeness, read_wording, similarity


def like(a: str, b: str) -> float:
    return likeness(read_wording(a), read_wording(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is the lower trigram of Zhun?", "what's the lower trigram of ZHUN"),
        ("What does Qian stand for?", "So what does Qian stand for?"),
        ("When were the lighthouses of Fern Island built?", "When was the lighthouse of Fern Island built?"),
        ("屯卦的下卦是什么？", "屯卦的下卦是什么呢？"),
        ("风岛灯塔建于哪一年？", "请问风岛灯塔建于哪一年？"),
        ("ＡＢＣ型水泵的额定功率是多少？", "abc型水泵的额定功率是多少"),
    ],
)
def test_the_same_question_with_other_small_words(a: str, b: str) -> None:
    assert like(a, b) >= 0.88


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What does hexagram 3 stand for?", "What does hexagram 13 stand for?"),
        ("What is the lower trigram of Zhun?", "What is the lower trigram of Tun?"),
        ("What is the lower trigram of Zhun?", "What is the upper trigram of Zhun?"),
        ("When was the lighthouse built?", "Where was the lighthouse built?"),
        ("What happens before the harvest?", "What happens after the harvest?"),
        ("May the valve be opened?", "May the valve not be opened?"),
        ("屯卦的下卦是什么？", "蒙卦的下卦是什么？"),
        ("屯卦的下卦是什么？", "屯卦的上卦是什么？"),
        ("第三卦象征着什么？", "第十三卦象征着什么？"),
        ("阀门可以打开吗？", "阀门不可以打开吗？"),
        ("上海海上的灯塔叫什么？", "海上上海的灯塔叫什么？"),
    ],
)
def test_another_subject_is_another_question_however_alike_the_words(a: str, b: str) -> None:
    assert similarity(read_wording(a), read_wording(b)) > 0.75
    assert like(a, b) == 0


LONG_EN = (
    "You are writing to a new keeper of the lighthouse on Fern Island, who has never seen a fog bell before. Explain "
    "in a friendly tone how the bell is wound up in the evening, how often it must be wound during a foggy night, and "
    "what the keeper has to write down in the log when the {} fog has lifted in the morning."
)
LONG_ZH = (
    "请以一位老守塔人的口吻，写信给刚刚上岛的年轻人，向他说明{}的雾钟怎样在傍晚上紧发条，大雾的夜里每隔多久要再上一次，"
    "清晨雾散之后又应当在日志里记下哪些事情，语气要亲切，不要使用对方可能听不懂的行话，最后祝他平安。"
)


@pytest.mark.parametrize(
    ("text", "one", "other"), [(LONG_EN, "", "thick"), (LONG_ZH, "风岛", "风岛的"), (LONG_ZH, "风岛", "风岛那里")]
)
def test_long_texts_are_alike_when_a_word_is_put_in(text: str, one: str, other: str) -> None:
    assert like(text.format(one), text.format(other)) >= 0.9


@pytest.mark.parametrize(
    ("text", "one", "other"), [(LONG_EN, "Tuesday", "Friday"), (LONG_EN, "3 a.m.", "4 a.m."), (LONG_ZH, "风岛", "石岛")]
)
def test_long_texts_that_name_different_things_are_not(text: str, one: str, other: str) -> None:
    assert similarity(read_wording(text.format(one)), read_wording(text.format(other))) > 0.75
    assert like(text.format(one), text.format(other)) == 0


def test_the_common_subsequence_is_counted_in_characters() -> None:
    assert similarity(read_wording("abcd"), read_wording("abxcy")) == pytest.approx(2 * 3 / 9)
    assert similarity(read_wording("abc"), read_wording("xyz")) == 0
    assert similarity(read_wording(""), read_wording("")) == 1
