"""Summaries in the owner's styles: one row a style."""

import json

from scripted import Reply, Says, generate, passages

from textmill.contracts.synthesis import SynthOptions

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red."
OPTIONS = SynthOptions(strategies=("styles",), styles=("one sentence", "for children"))


def said(prompt: str) -> Reply:
    text = "It is painted red." if "for children" in prompt else "It was built in 1821."
    return json.dumps({"content": "The lighthouse", "summary": text})


def test_each_style_is_asked_for_by_its_name() -> None:
    run = generate(OPTIONS, passages(TEXT, heading="# Fern Island"), said)
    first, second = run.answers()
    assert (first.text, second.text) == ("It was built in 1821.", "It is painted red.")
    assert first.topic.ask[0].question == "Summarise Fern Island. Style: one sentence."
    assert all("for children" in phrasing.question for phrasing in second.topic.ask)
    assert (first.evidence, run.tally.requested["styles"]) == ((0, len(TEXT)), 2)


def test_without_a_heading_the_title_is_the_llms() -> None:
    run = generate(OPTIONS, passages(TEXT), said)
    assert run.answers()[0].topic.ask[0].question == "Summarise The lighthouse. Style: one sentence."


def test_each_style_fails_alone() -> None:
    def reply(prompt: str) -> Reply:
        return said(prompt) if "one sentence" in prompt else Says("{", "length")

    run = generate(OPTIONS, passages(TEXT), reply)
    assert (len(run.answers()), run.reasons()) == (1, {"truncated": 1})
