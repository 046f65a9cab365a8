"""Which rows are dropped as near-duplicates, which are conflicts, and which twins are wanted."""

from made_records import made_record

from textmill.contracts.datasets import Message, Record
from textmill_synth.quality.duplicates import Doubles, find_doubles
from textmill_synth.quality.minhash import MeetingPlace
from textmill_synth.quality.rows import read_row


def doubles(*records: Record, threshold: float = 0.9) -> Doubles:
    rows, place = [read_row(record) for record in records], MeetingPlace()
    for number, row in enumerate(rows):
        place.add(number, row.keys)
    return find_doubles(place.meetings(), rows.__getitem__, threshold)


QUESTION, AGAIN = "When was the lighthouse of Fern Island built?", "So when was the lighthouse of Fern Island built?"
FRAGE, NOCHMAL = "风岛的灯塔建于哪一年？", "风岛的灯塔建于哪一年呢？"


def test_same_question_and_same_answer_stays_once() -> None:
    first = made_record(QUESTION, "It was built in 1821.")
    found = doubles(first, made_record(AGAIN, "It was built in 1821."), made_record("Who built it?", "Thomas Reed."))
    assert list(found.duplicates) == [1]
    assert found.duplicates[1].record_id == first.record_id
    assert 0.9 <= found.duplicates[1].similarity < 1
    assert found.conflicts == {}


def test_same_question_and_another_answer_is_a_conflict() -> None:
    found = doubles(made_record(FRAGE, "灯塔建于1821年。"), made_record(NOCHMAL, "灯塔建于1832年。"))
    assert (found.duplicates, list(found.conflicts)) == ({}, [1])


def test_a_row_is_compared_with_those_that_stay() -> None:
    rows = [made_record(q, "It was built in 1821.") for q in (QUESTION, AGAIN, f"{AGAIN} Please.")]
    found = doubles(*rows)
    assert {number: match.record_id for number, match in found.duplicates.items()} == {
        1: rows[0].record_id,
        2: rows[0].record_id,
    }


def test_the_threshold_is_a_similarity() -> None:
    pair = made_record(FRAGE, "1821年。"), made_record(NOCHMAL, "1821年。")
    assert list(doubles(*pair, threshold=0.9).duplicates) == [1]
    assert doubles(*pair, threshold=1.0).duplicates == {}


def test_ways_of_asking_about_one_answer_stay() -> None:
    answer = "Qian stands for Heaven."
    questions = ("What does Qian stand for?", "Qian meaning", "Explain Qian.", "Please explain what Qian symbolizes.")
    assert doubles(*(made_record(q, answer) for q in questions)) == Doubles()


def test_slips_of_the_pen_stand_beside_the_question_without() -> None:
    long = (
        "Please tell me: when was the lighthouse that stands on Fern Island built, and who was it that built it then?"
    )
    plain, slip = made_record(long, "In 1821."), made_record(long.replace("then", "than"), "In 1821.", axis="typo")
    elsewhere = made_record(f"Well. {long}", "In 1821.", passage_id="another")
    assert doubles(plain, slip).duplicates == {}
    assert list(doubles(plain, elsewhere).duplicates) == [1]


def test_a_follow_up_is_compared_with_what_was_said_before() -> None:
    def talk(about: str, answer: str) -> Record:
        turns = (("user", f"What is {about}?"), ("assistant", "A hexagram."), ("user", "And what does it stand for?"))
        messages = tuple(Message(role=role, content=text) for role, text in (*turns, ("assistant", answer)))  # type: ignore[arg-type]
        return made_record("x", answer, messages=messages)

    assert doubles(talk("Qian", "Heaven."), talk("Kun", "Earth.")) == Doubles()
    assert list(doubles(talk("Qian", "Heaven."), talk("the Qian", "Heaven.")).duplicates) == [1]
