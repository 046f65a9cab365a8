"""Where a question names its subject, what a pronoun makes of it, and how it becomes a clause."""

import pytest

from textmill.contracts.documents import Language
from textmill_synth.asking.clauses import as_clause
from textmill_synth.asking.mention import find_mention, with_pronoun

EN = ("7", "Shi", "the Army")
ZH = ("七", "师", "地水师")

MENTIONS: list[tuple[Language, str, str | None]] = [
    ("en", "Which lines of hexagram 7, Shi, are solid?", "hexagram 7, Shi,"),
    ("en", "What is the meaning of Shi, the Army?", "Shi, the Army"),
    ("en", "Looking at Shi (number 7), which trigram carries which?", "Shi (number 7)"),
    ("en", "What do readers see in the sign Shi?", "the sign Shi"),
    ("en", "Does Shiny 17 have lines?", None),
    ("en", "Number 7 in the King Wen order, Shi: which figures?", None),
    ("en", "Is Shi the same as Shi?", None),
    ("zh", "第七卦师卦的哪几爻是阳爻？", "第七卦师卦"),
    ("zh", "把第七卦（师）拆成两个经卦，会得到什么？", "第七卦（师）"),
    ("zh", "师（第七卦）的核心是什么？", "师（第七卦）"),
    ("zh", "第六十七卦的下卦是什么？", None),
    ("zh", "排在第七的师，代表什么？", None),
]


@pytest.mark.parametrize(("language", "question", "named"), MENTIONS)
def test_the_subject_is_found_with_its_article_kind_and_brackets(
    language: Language, question: str, named: str | None
) -> None:
    mention = find_mention(question, EN if language == "en" else ZH, language)
    assert (question[mention.start : mention.end] if mention else None) == named


PRONOUNS: list[tuple[Language, str, str | None]] = [
    ("en", "Which lines of hexagram 7, Shi, are solid?", "And which lines of it are solid?"),
    ("en", "What are hexagram 7's two trigrams?", "And what are its two trigrams?"),
    ("en", "Take hexagram 7, Shi, apart: what are its two halves?", "Take it apart: what are its two halves?"),
    ("en", "Name the trigrams of Shi, the Army, the lower one first.", "Name the trigrams of it, the lower one first."),
    ("en", "Hexagram 7, Shi: what is its theme?", None),
    ("en", "The six-line figure number 7, Shi: where is it yang?", None),
    ("zh", "第七卦师卦的哪几爻是阳爻？", "那它的哪几爻是阳爻？"),
    ("zh", "请描述师卦的爻象，从最下面一爻开始。", "请描述它的爻象，从最下面一爻开始。"),
    ("zh", "师卦 下卦 上卦", None),
    ("zh", "读者从师卦里能读出什么？", None),
]


@pytest.mark.parametrize(("language", "question", "asked"), PRONOUNS)
def test_a_pronoun_takes_the_subjects_place_or_nothing_does(
    language: Language, question: str, asked: str | None
) -> None:
    mention = find_mention(question, EN if language == "en" else ZH, language)
    assert mention is not None
    assert with_pronoun(question, mention, language) == asked


CLAUSES: list[tuple[Language, str, str | None]] = [
    ("en", "What does hexagram 7, Shi, stand for?", "what hexagram 7, Shi, stands for"),
    ("en", "Where does Shi, the Army, have its solid lines?", "where Shi, the Army, has its solid lines"),
    ("en", "What is the meaning of Shi, the Army?", "what the meaning of Shi, the Army is"),
    ("en", "Which lines of hexagram 7 are solid?", "which lines of hexagram 7 are solid"),
    ("en", "What message does Shi, number 7, carry?", "what message Shi, number 7, carries"),
    ("en", "What does Shi really mean?", None),
    ("en", "Which figures is Shi made of?", None),
    ("en", "I cast hexagram 7. What is it about?", None),
    ("en", "Explain hexagram 7.", None),
    ("zh", "第七卦师卦象征什么？", "第七卦师卦象征什么"),
    ("zh", "请说出师卦的内卦与外卦。", None),
    ("zh", "第七卦，下面是什么卦，上面又是什么卦？", None),
    ("zh", "师卦有阳爻吗？", None),
]


@pytest.mark.parametrize(("language", "question", "clause"), CLAUSES)
def test_a_question_becomes_a_clause_where_its_form_is_known(
    language: Language, question: str, clause: str | None
) -> None:
    mention = find_mention(question, EN if language == "en" else ZH, language)
    assert as_clause(question, mention, language) == clause
