"""Keywords, slips of the pen, templates and their validation: what is made, and what is left alone."""

import pytest
from pydantic import ValidationError

from textmill.contracts.documents import Language
from textmill.contracts.synthesis import AskingOptions, AskingTemplate
from textmill_synth.asking.keywords import keywords
from textmill_synth.asking.mention import find_mention
from textmill_synth.asking.templates import filled, from_templates, templates_for
from textmill_synth.asking.typos import with_typos
from textmill_synth.asking.ways import WordingTemplate, built_in_ways
from textmill_synth.numerals import numbers
from textmill_synth.topics import Phrasing

EN = ("7", "Shi", "the Army")
ZH = ("七", "师", "地水师")
ZH_PASSAGE = "第七卦是师卦。第十二条规定会议的有效期。"

KEYWORDS: list[tuple[Language, str, list[str]]] = [
    (
        "en",
        "Which lines of hexagram 7, Shi, are solid?",
        ["lines hexagram 7 Shi solid", "hexagram 7 Shi lines solid"],
    ),
    ("en", "Where does Shi, the Army, have its solid lines?", ["Shi Army solid lines"]),
    ("en", "What does hexagram 7, Shi, stand for?", []),
    ("en", "I cast hexagram 7. What is it about?", []),
    ("en", "Which lines of hexagram 7 are not solid?", []),
    ("zh", "第七卦师卦的哪几爻是阳爻？", ["第七卦师卦 阳爻"]),
    ("zh", "师卦的会议有效期是多久？", ["师卦 会议有效期 多久"]),
    ("zh", "请说出师卦的内卦与外卦。", ["师卦 内卦 外卦"]),
    ("zh", "师卦没有断开的是哪几层？", []),
    ("zh", "师卦是什么？", []),
]


@pytest.mark.parametrize(("language", "question", "expected"), KEYWORDS)
def test_keywords_say_what_is_asked_of_what_or_there_are_none(
    language: Language, question: str, expected: list[str]
) -> None:
    subject = EN if language == "en" else ZH
    mention = find_mention(question, subject, language)
    assert keywords(question, subject, mention, ZH_PASSAGE, language) == expected


@pytest.mark.parametrize("seed", [str(n) for n in range(40)])
def test_slips_never_touch_names_numbers_or_the_fact(seed: str) -> None:
    question = "Which seven lines of hexagram 7, Shi, stand under a trusted leader in Boston?"
    slipped = with_typos(question, ["hexagram 7, Shi,", "trusted leader"], "", "en", seed)
    assert slipped is not None
    assert slipped != question
    for kept in ("hexagram 7, Shi,", "trusted leader", "seven", "Boston"):
        assert kept in slipped
    assert with_typos(question, ["hexagram 7, Shi,", "trusted leader"], "", "en", seed) == slipped


def test_a_slip_that_is_a_word_of_the_passage_is_none() -> None:
    made, others = (
        {with_typos("What trial is it?", [], passage, "en", str(seed)) for seed in range(60)}
        for passage in ("", "A trail leads up.")
    )
    assert "What trail is it?" in made
    assert "What trail is it?" not in others


def test_chinese_slips_are_of_sound_or_look_or_a_particle() -> None:
    question = "第七卦师卦象征什么样的道理？"
    made = {with_typos(question, ["第七卦师卦"], "", "zh", str(seed)) for seed in range(40)}
    assert made == {
        "第七卦师卦像征什么样的道理？",
        "第七卦师卦象征神么样的道理？",
        "第七卦师卦象征什么样道理？",
        "第七卦师卦象征什么样的到理？",
    }
    assert with_typos("师卦 象征", ["象征"], "", "zh", "0") is None


def test_owners_templates_come_first_and_the_built_in_ones_take_turns() -> None:
    own = AskingTemplate(axis="register", language="en", text="Hi support! {question}")
    other = AskingTemplate(axis="register", language="zh", text="客服你好，{question}")
    options = AskingOptions(templates=(own, other))
    orders = [[t.id for t in templates_for("register", "en", options, turn)] for turn in range(3)]
    assert {order[0] for order in orders} == {"owner-1"}
    assert len({order[1] for order in orders}) == 3
    assert templates_for("register", "zh", options, 0)[0].text == other.text


def test_every_template_meets_every_wording_once() -> None:
    asked = [Phrasing(f"ask-{n}", f"Which colour has tower {n}?") for n in range(4)]
    made = list(from_templates(templates_for("persona", "en", AskingOptions(), 0), asked, (), "en"))
    count = sum(t.axis == "persona" for t in built_in_ways("en").templates)
    assert len(made) == len({p.question for p in made}) == len({p.way for p in made}) == 4 * count
    assert len({p.way.split("/")[0] for p in made[:count]}) == count


FILLED: list[tuple[Language, str, str, str | None]] = [
    ("en", "quick question: {question}", "Which lines has Shi?", "quick question: which lines has Shi?"),
    ("en", "I am new. {question}", "Which lines has Shi?", "I am new. Which lines has Shi?"),
    ("en", "One thing: {question}", "Shi: which lines?", "One thing: Shi: which lines?"),
    ("en", "{question} Thanks.", "Shi lines", None),
    ("en", "I wonder {embedded}.", "Explain Shi.", None),
    ("zh", "请教一下：{question}", "请说出师卦的内卦。", None),
    ("zh", "想了解一下{embedded}。", "师卦的核心是什么？", "想了解一下师卦的核心是什么。"),
]


@pytest.mark.parametrize(("language", "text", "question", "expected"), FILLED)
def test_a_filled_template_is_a_sentence(language: Language, text: str, question: str, expected: str | None) -> None:
    template = WordingTemplate(id="t", axis="register", text=text)
    assert filled(template, question, EN if language == "en" else ZH, language) == expected


@pytest.mark.parametrize("language", ["en", "zh"])
def test_built_in_templates_bring_no_number_of_their_own(language: Language) -> None:
    ways = built_in_ways(language)
    assert {t.axis for t in ways.templates} == {"register", "persona", "indirect"}
    assert len({t.id for t in ways.templates}) == len(ways.templates)
    assert not [t.text for t in ways.templates if numbers(t.text)]
    assert not [text for text in ways.openings if numbers(text)]


@pytest.mark.parametrize(
    "options",
    [
        {"quotas": {"register": -1}},
        {"quotas": {"typo": 51}},
        {"templates": ({"axis": "register", "language": "en", "text": "{name}: {question}"},)},
        {"templates": ({"axis": "register", "language": "en", "text": "{question} {question}"},)},
        {"templates": ({"axis": "register", "language": "en", "text": "Good day."},)},
        {"templates": ({"axis": "typo", "language": "en", "text": "Hm {question}"},)},
    ],
)
def test_asking_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AskingOptions.model_validate(options)
