"""The zhouyi example against the King Wen sequence: is every fact in its 128 documents right, and can it be asked for?

The sequence is kept here as line patterns, apart from the texts, and is itself held against its own structure and
Unicode's trigrams and hexagrams. Knows nothing of textmill: it reads the question files as an owner would.
"""

import re
import unicodedata
from pathlib import Path
from typing import TypedDict

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "zhouyi"
LANGUAGES = ("en", "zh")
NUMBERS = range(1, 65)

# Lines from bottom to top, 1 is solid; eight hexagrams a row, in the received order.
KING_WEN_ROWS = (
    "111111 000000 100010 010001 111010 010111 010000 000010",
    "111011 110111 111000 000111 101111 111101 001000 000100",
    "100110 011001 110000 000011 100101 101001 000001 100000",
    "100111 111001 100001 011110 010010 101101 001110 011100",
    "001111 111100 000101 101000 101011 110101 001010 010100",
    "110001 100011 111110 011111 000110 011000 010110 011010",
    "101110 011101 100100 001001 001011 110100 101100 001101",
    "011011 110110 010011 110010 110011 001100 101010 010101",
)
KING_WEN = [pattern for row in KING_WEN_ROWS for pattern in row.split()]

# All in the order of U+2630 to U+2637, whose line patterns count down from 111 to 000.
TRIGRAMS_EN = ("Heaven", "Lake", "Fire", "Thunder", "Wind", "Water", "Mountain", "Earth")
TRIGRAMS_ZH = ("乾", "兑", "离", "震", "巽", "坎", "艮", "坤")
IMAGES_ZH = ("天", "泽", "火", "雷", "风", "水", "山", "地")
DIGITS_ZH = "零一二三四五六七八九"


class Question(TypedDict):
    """One thing to ask, with the pattern of the fact that answers it."""

    id: str
    key: str
    ask: list[str]
    held_out: list[str]


class QuestionFile(TypedDict):
    """What a questions.*.yaml file holds."""

    language: str
    subject: str
    questions: list[Question]


def load_questions(language: str) -> QuestionFile:
    text = (EXAMPLE / f"questions.{language}.yaml").read_text(encoding="utf-8")
    questions: QuestionFile = yaml.safe_load(text)
    return questions


def find_document(language: str, number: int) -> Path:
    (path,) = (EXAMPLE / language).glob(f"{number:02d}-*.md")
    return path


def read_passage(language: str, number: int) -> str:
    return find_document(language, number).read_text(encoding="utf-8").removesuffix("\n")


def match_slots(file: QuestionFile, passage: str) -> dict[str, str]:
    match = re.match(file["subject"], passage)
    assert match is not None, passage
    return match.groupdict()


def match_keys(question: Question, passage: str) -> list[str]:
    return [match["key"] for match in re.finditer(question["key"], passage)]


def trigram_indexes(number: int) -> tuple[int, int]:
    """Lower and upper trigram, each as its offset from U+2630."""
    lines = KING_WEN[number - 1]
    return 7 - int(lines[:3], 2), 7 - int(lines[3:], 2)


def solid_lines(number: int) -> list[int]:
    return [place for place, line in enumerate(KING_WEN[number - 1], start=1) if line == "1"]


def numeral_zh(number: int) -> str:
    """The Chinese numeral, good for 1 to 99."""
    tens, units = divmod(number, 10)
    head = "" if tens == 0 else "十" if tens == 1 else f"{DIGITS_ZH[tens]}十"
    return head + (DIGITS_ZH[units] if units else "")


def state_lines_en(number: int) -> str:
    solid = [str(place) for place in solid_lines(number)]
    if len(solid) in (0, 6):
        return f"All six lines are {'solid' if solid else 'broken'}."
    if len(solid) == 1:
        return f"Counted from the bottom, only line {solid[0]} is solid."
    return f"Counted from the bottom, lines {', '.join(solid[:-1])} and {solid[-1]} are solid."


def state_lines_zh(number: int) -> str:
    solid = [DIGITS_ZH[place] for place in solid_lines(number)]
    if len(solid) in (0, 6):
        return f"六爻皆{'阳' if solid else '阴'}。"
    only = "只有" if len(solid) == 1 else ""
    return f"自下而上，{only}第{'、'.join(solid)}爻是阳爻。"


def state_facts_en(number: int, slots: dict[str, str]) -> str:
    lower, upper = (TRIGRAMS_EN[index] for index in trigram_indexes(number))
    subject = f"Hexagram {number} is {slots['name']}, {slots['title']}."
    return f"{subject} It has {lower} below and {upper} above. {state_lines_en(number)} It stands for "


def state_facts_zh(number: int, slots: dict[str, str]) -> str:
    lower, upper = (TRIGRAMS_ZH[index] for index in trigram_indexes(number))
    lower_image, upper_image = (IMAGES_ZH[index] for index in trigram_indexes(number))
    title = f"{lower}为{lower_image}" if lower == upper else f"{upper_image}{lower_image}{slots['name']}"
    subject = f"第{numeral_zh(number)}卦是{slots['name']}卦，名为{title}。"
    trigrams = f"下卦为{lower}，上卦为{upper}，即下{lower_image}上{upper_image}。"
    return f"{subject}{trigrams}{state_lines_zh(number)}它象征"


STATE_FACTS = {"en": state_facts_en, "zh": state_facts_zh}


def test_sequence_has_every_pattern_once() -> None:
    assert sorted(KING_WEN) == [f"{value:06b}" for value in range(64)]


@pytest.mark.parametrize("odd", NUMBERS[::2])
def test_sequence_pairs_are_inversions_or_else_complements(odd: int) -> None:
    first, second = KING_WEN[odd - 1], KING_WEN[odd]
    complement = first.translate(str.maketrans("01", "10"))
    assert second == (complement if first == first[::-1] else first[::-1])


def test_trigrams_are_in_unicode_order() -> None:
    assert [unicodedata.name(chr(0x2630 + index)) for index in range(8)] == [
        f"TRIGRAM FOR {name.upper()}" for name in TRIGRAMS_EN
    ]


def test_unicode_names_the_doubled_hexagrams_after_their_trigram() -> None:
    last_words = {n: unicodedata.name(chr(0x4DC0 + n - 1)).split()[-1].title() for n in NUMBERS}
    doubled = {n: trigram_indexes(n)[0] for n in NUMBERS if len(set(trigram_indexes(n))) == 1}
    assert {n: word for n, word in last_words.items() if word in TRIGRAMS_EN} == {
        n: TRIGRAMS_EN[index] for n, index in doubled.items()
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_folder_holds_64_documents(language: str) -> None:
    numbers = sorted(int(path.name[:2]) for path in (EXAMPLE / language).iterdir())
    assert numbers == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_file_name_is_the_plain_pinyin_in_both_languages(number: int) -> None:
    name = match_slots(load_questions("en"), read_passage("en", number))["name"]
    letters = unicodedata.normalize("NFD", name).encode("ascii", "ignore").decode().lower().replace(" ", "")
    assert {find_document(language, number).name for language in LANGUAGES} == {f"{number:02d}-{letters}.md"}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_passage_is_one_paragraph_of_six_sentences(language: str, number: int) -> None:
    passage = read_passage(language, number)
    sentences = re.findall(r"[^.。]+[.。]", passage)
    assert "".join(sentences) == passage
    assert len(sentences) == 6
    assert not re.search(r"\n|  ", passage)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_facts_are_those_of_the_sequence_and_each_key_finds_one(language: str, number: int) -> None:
    file, passage = load_questions(language), read_passage(language, number)
    facts = STATE_FACTS[language](number, match_slots(file, passage))
    assert passage.startswith(facts)
    keys = {question["id"]: match_keys(question, passage) for question in file["questions"]}
    assert {id: len(found) for id, found in keys.items()} == {"trigrams": 1, "lines": 1, "meaning": 1}
    assert keys["trigrams"][0] in facts
    assert keys["lines"][0] in facts
    assert passage.removeprefix(facts).startswith(keys["meaning"][0])


def test_meanings_are_easily_told_apart() -> None:
    for language, first_word in (("en", r"(?:an? |the )?(\w+)"), ("zh", r"(..)")):
        meaning = load_questions(language)["questions"][2]
        (keys,) = zip(*(match_keys(meaning, read_passage(language, n)) for n in NUMBERS), strict=True)
        starts = [re.findall(first_word, key)[0] for key in keys]
        assert len(set(keys)) == len(set(starts)) == 64


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_phrasings_are_never_trained_on(language: str) -> None:
    questions = load_questions(language)["questions"]
    asked = [phrasing.casefold() for question in questions for phrasing in question["ask"]]
    held_out = [phrasing.casefold() for question in questions for phrasing in question["held_out"]]
    assert len(set(asked + held_out)) == len(asked) + len(held_out) == 60
    assert all("{number}" in phrasing and "{name}" in phrasing for phrasing in held_out)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_filled_phrasing_means_one_hexagram_and_hides_the_answer(language: str) -> None:
    file = load_questions(language)
    passages = [read_passage(language, n) for n in NUMBERS]
    slots = [match_slots(file, passage) for passage in passages]
    for question in file["questions"]:
        (keys,) = zip(*(match_keys(question, passage) for passage in passages), strict=True)
        for phrasing in question["ask"] + question["held_out"]:
            filled = [phrasing.format_map(each) for each in slots]
            assert len(set(filled)) == 64, phrasing
            assert not [text for text, key in zip(filled, keys, strict=True) if key in text]
