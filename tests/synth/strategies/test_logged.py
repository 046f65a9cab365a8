"""A logged conversation becomes a record word for word; nothing else does."""

import asyncio

import pytest

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message
from textmill.contracts.documents import Passage, Span
from textmill.contracts.traffic import transcript
from textmill_synth.strategies.base import Answer, Rejection, Source
from textmill_synth.strategies.logged import Logged


def source(text):
    span = Span(char_start=0, char_end=len(text), byte_start=0, byte_end=len(text.encode()))
    passage = Passage(
        passage_id=content_id("psg", text),
        document_id=content_id("doc", "d"),
        document_sha256="00",
        index=0,
        text=text,
        language="en",
        span=span,
        exact=True,
    )
    return Source(passage)


def settled(text):
    (request,) = Logged().plan(source(text))
    return asyncio.run(Logged().settle(source(text), request))


def test_question_answer_and_what_came_before():
    turns = [
        ("system", "Be brief."),
        ("user", "Hexagrams?"),
        ("assistant", "64."),
        ("user", "Lines?"),
        ("assistant", "6."),
    ]
    messages = [Message(role=role, content=content) for role, content in turns]
    text = transcript(messages)
    (answer,) = settled(text)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.topic.ask[0].question) == ("6.", "Lines?")
    assert answer.topic.ask[0].history == tuple(messages[:3])
    assert text[slice(*answer.evidence)] == "6."


@pytest.mark.parametrize("text", ["Plain text.", "[user]\nLines?", "[assistant]\nSix.", "[user]\na\n\n[user]\nb"])
def test_other_passages_are_rejected(text):
    (found,) = settled(text)
    assert isinstance(found, Rejection)
    assert found.reason == "format"
