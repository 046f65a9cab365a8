"""Training rows that give away an evaluation question are found, in its wording and in others; no other row is."""

from collections.abc import Iterator

import pytest
from corpora import put_corpus, zhouyi_questions, zhouyi_texts
from made_records import made_record

from textmill.contracts.datasets import Record
from textmill.contracts.documents import Language
from textmill.store import MemoryStore
from textmill_synth.augment import eval_documents
from textmill_synth.corpus import Corpus
from textmill_synth.quality.contamination import DocumentFrequencies, KnownFacts, KnownWordings
from textmill_synth.quality.rows import Row, read_row
from textmill_synth.sentences import sentence_around
from textmill_synth.topics import owner_topics

HEXAGRAMS = 40


class Exam:
    """The evaluation rows of a dataset, and what its other rows are held against."""

    def __init__(self, *rows: Record) -> None:
        self.frequencies = DocumentFrequencies()
        self.rows = [read_row(row) for row in rows]
        self.wordings = KnownWordings(self.rows.__getitem__)
        self.facts = KnownFacts(self.rows.__getitem__, self.frequencies)
        for number, row in enumerate(self.rows):
            self.note(row.record)
            self.wordings.add(number, row)
            self.facts.add(number, row)

    def note(self, *records: Record) -> None:
        for record in records:
            self.frequencies.note(record.document_id, read_row(record).question.words)

    def similarity(self, record: Record) -> float:
        row: Row = read_row(record)
        matches = [self.wordings.closest(row), self.facts.closest(row)]
        return max((match.similarity for match in matches if match), default=0.0)


def zhouyi(language: Language) -> Iterator[tuple[bool, str, Record]]:
    """Rows of the example: of the evaluation split or not, the kind of wording, the row."""
    store = MemoryStore()
    corpus = Corpus(store, put_corpus(store, zhouyi_texts(language, HEXAGRAMS), language))
    held_back = eval_documents(corpus.manifest.document_ids, 0.25, 0)
    for passage in corpus.passages():
        for topic in owner_topics(passage, [zhouyi_questions(language)]):
            assert topic.key is not None
            answer = passage.text[slice(*sentence_around(passage.text, *topic.key))]
            for kind, phrasings in (("ask", topic.ask), ("held_out", topic.held_out)):
                for phrasing in phrasings:
                    made = made_record(
                        phrasing.question, answer, passage.document_id, key_facts=[passage.text[slice(*topic.key)]]
                    )
                    yield passage.document_id in held_back, kind, made


@pytest.mark.parametrize(("language", "least"), [("en", 0.95), ("zh", 0.85)])
def test_questions_put_in_other_words_are_found_and_no_others(language: Language, least: float) -> None:
    """The example's held-out wordings are paraphrases, by hand, of what the evaluation split asks."""
    rows = list(zhouyi(language))
    exam = Exam(*(row for evaluated, kind, row in rows if evaluated and kind == "ask"))
    train = [row for evaluated, _, row in rows if not evaluated]
    exam.note(*train)
    told = [
        made_record(row.question, f"{row.answer} {row.answer}", f"copy of {row.document_id}")
        for evaluated, kind, row in rows
        if evaluated and kind == "held_out"
    ]
    assert len(told) >= 18
    assert sum(exam.similarity(row) >= 0.8 for row in told) >= least * len(told)
    assert [row.question for row in train if exam.similarity(row) >= 0.8] == []


LIGHTHOUSES = [
    made_record("When was the lighthouse on Fern Island built?", "It was built in 1821.", "fern"),
    made_record("Who built the lighthouse on Fern Island?", "Thomas Reed built it.", "fern"),
    made_record("石岛的灯塔建于哪一年？", "石岛灯塔建于1846年。", "石岛"),
    made_record("When was the harbour of Aldport dug?", "It was dug in 1790.", "aldport"),
    made_record("望海镇的码头是谁修的？", "码头是陈大海修的。", "望海镇"),
]
ISLANDS = ("Gull", "Seal", "Tern", "Crab", "Kelp", "Storm"), ("风岛", "雾岛", "鹿岛", "盐岛", "花岛", "虎岛")
TRAINED = [
    *(
        made_record(f"{how} the lighthouse on {name} Island {what}?", f"An answer on {name}.", name)
        for name in ISLANDS[0]
        for how, what in (("When was", "built"), ("Who built", "then"), ("In what year did they build", "there"))
    ),
    *(
        made_record(f"{name}{asked}", f"{name}的回答。", name)
        for name in ISLANDS[1]
        for asked in ("的灯塔建于哪一年？", "的码头是谁修的？", "的灯塔是哪年建成的？", "那座灯塔有多高？")
    ),
]
LEAKS = [
    ("When was the lighthouse on Fern Island built?", "It was built in 1821."),
    ("So when was the lighthouse on Fern Island built?", "In the year 1821."),
    ("In what year did they build the Fern Island lighthouse?", "It was built in 1821."),
    ("The Fern Island lighthouse: who was its builder?", "Thomas Reed built it."),
    ("石岛的灯塔建于哪一年呢？", "建于1846年。"),
    ("石岛那座灯塔，建于哪一年？", "石岛的灯塔建于1846年。"),
    ("石岛的灯塔是哪年建成的？", "石岛灯塔建于1846年。"),
]
CLEAN = [
    ("When was the lighthouse on Gull Island built?", "It was built in 1821."),
    ("Who paints the lighthouse on Fern Island?", "The keeper's family paints it each spring."),
    ("Who built the lighthouse on Gull Island?", "Thomas Reed built it."),
    ("How tall is the lighthouse on Fern Island?", "It is 40 metres tall."),
    ("风岛的灯塔建于哪一年？", "风岛灯塔建于1846年。"),
    ("石岛的灯塔有多高？", "石岛灯塔高四十米。"),
]


@pytest.mark.parametrize(("question", "answer"), LEAKS)
def test_leaks(question: str, answer: str) -> None:
    exam = Exam(*LIGHTHOUSES)
    exam.note(*TRAINED)
    assert exam.similarity(made_record(question, answer, "copy")) >= 0.8


@pytest.mark.parametrize(("question", "answer"), CLEAN)
def test_other_facts_are_no_leak(question: str, answer: str) -> None:
    exam = Exam(*LIGHTHOUSES)
    exam.note(*TRAINED)
    assert exam.similarity(made_record(question, answer, "copy")) < 0.8


def test_an_answer_without_the_key_fact_gives_nothing_away() -> None:
    asked = made_record("When was the tower of Fern built?", "It was built in 1821.", "fern", key_facts=["1821"])
    exam = Exam(asked, *LIGHTHOUSES[2:])
    question = "The tower of Fern, when was it built?"
    assert exam.similarity(made_record(question, "It was built long ago.", "copy")) < 0.8
    assert exam.similarity(made_record(question, "Long ago, in 1821.", "copy")) >= 0.8


def test_words_weigh_by_how_few_documents_have_them() -> None:
    frequencies = DocumentFrequencies()
    assert frequencies.weight("tower") == 1
    for n in range(20):
        frequencies.note(f"doc_{n}", frozenset({"tower", f"name{n}"}))
    assert frequencies.weight("tower") == pytest.approx(0, abs=0.01)
    assert 0.6 < frequencies.weight("name7") < 0.9
    assert frequencies.weight("unheard") == 1
    for n in range(5_000):
        frequencies.note(f"doc_{n}", frozenset({"tower"}))
    assert 0 <= frequencies.weight("tower") < 0.01
