"""Records to tokens: what is trained on, and what is refused."""

from typing import Any

import pytest
from tests.trainer.conftest import make_record

from textmill.contracts.datasets import Message
from textmill.errors import JobFailed
from textmill_trainer.prepare import encode_all


def trained_text(tokenizer: Any, example: Any) -> str:
    return str(tokenizer.decode([t for t, s in zip(example.token_ids, example.supervised, strict=True) if s]))


def test_loss_is_on_the_answer_and_its_end(tokenizer: Any) -> None:
    (example,) = encode_all([make_record("How many lines?", "It has six lines.")], tokenizer, 100)
    assert trained_text(tokenizer, example) == "It has six lines.<|im_end|>"
    assert tokenizer.decode(example.token_ids) == (
        "<|im_start|>user\nHow many lines?<|im_end|>\n<|im_start|>assistant\nIt has six lines.<|im_end|>\n"
    )


def test_prompt_tokens_are_those_that_a_server_renders(tokenizer: Any) -> None:
    (example,) = encode_all([make_record("How many?", "Six.")], tokenizer, 100)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How many?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(example.token_ids[: len(prompt)]) == prompt
    assert example.supervised.index(True) == len(prompt)


def test_every_assistant_turn_is_supervised(tokenizer: Any) -> None:
    messages = [
        Message(role="system", content="Be short."),
        Message(role="user", content="One?"),
        Message(role="assistant", content="Yes."),
        Message(role="user", content="Two?"),
        Message(role="assistant", content="No."),
    ]
    (example,) = encode_all([make_record("q", "a", messages=messages)], tokenizer, 100)
    assert trained_text(tokenizer, example) == "Yes.<|im_end|>No.<|im_end|>"


def test_a_record_that_would_be_cut_is_refused_by_name(tokenizer: Any) -> None:
    record = make_record("Long?", "word " * 50)
    with pytest.raises(JobFailed, match=rf"{record.record_id} has \d+ tokens, max_tokens is 32"):
        encode_all([record], tokenizer, 32)


def test_a_record_without_an_answer_is_refused_by_name(tokenizer: Any) -> None:
    record = make_record("q", "a", messages=[Message(role="user", content="Hello?")])
    with pytest.raises(JobFailed, match=f"{record.record_id} has no assistant turn"):
        encode_all([record], tokenizer, 100)


def test_a_template_that_never_ends_a_turn_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(JobFailed, match="no end-of-turn token"):
        encode_all([make_record("q", "a")], tokenizer, 100)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    two_turns = [Message(role="user", content="a"), Message(role="assistant", content="b")] * 2
    with pytest.raises(JobFailed, match="renders turn 2 differently"):
        encode_all([make_record("q", "a", messages=two_turns)], tokenizer, 100)
