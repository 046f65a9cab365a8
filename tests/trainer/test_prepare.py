"""Records to tokens: what is trained on, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.trainer import chat_templates
from tests.trainer.conftest import make_record
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from textmill.contracts.datasets import Message, Record, Tool, ToolCall
from textmill.errors import JobFailed
from textmill_trainer.chat import control_tokens
from textmill_trainer.prepare import Example, encode_all, encode_records, end_of_turn_ids, end_of_turn_tokens

ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "joining": "<|eot_id|>", "chatglm": "<|user|>"}
CALL = ToolCall(id="call_1", name="look_up", arguments='{"hexagram": "乾", "line": 1}')
TOOL = Tool(name="look_up", description="A line of a hexagram", parameters='{"type": "object", "properties": {}}')
ASKS_A_TOOL = (
    Message(role="user", content="What does line one of 乾 say?"),
    Message(role="assistant", content="", tool_calls=(CALL,)),
    Message(role="tool", content="潜龙勿用。", tool_call_id="call_1"),
    Message(role="assistant", content="潜龙勿用。"),
)


class Families(dict[str, Any]):
    """Tokenizers by name; their own representation, in a failure's, is thousands of lines."""

    def __repr__(self) -> str:
        return f"families {list(self)}"


@pytest.fixture(scope="session")
def families(real_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Families(
        {
            "chatml": chat_templates.chatml(real_base),
            "llama3": chat_templates.llama3(),
            "joining": chat_templates.joining(real_base),
            "chatglm": chat_templates.chatglm(tmp_path_factory.mktemp("chatglm")),
        }
    )


def trained_text(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode([t for t, s in zip(example.token_ids, example.supervised, strict=True) if s]))


def conversation(*turns: str) -> Record:
    """User and assistant by turns."""
    roles = ("user", "assistant")
    return make_record("q", "a", messages=[Message(role=roles[i % 2], content=t) for i, t in enumerate(turns)])


def refusals(tokenizer: Any, record: Record, max_tokens: int = 200) -> list[str]:
    return [refused.reason for refused in encode_records([record], tokenizer, max_tokens).refused]


def test_loss_is_on_the_answer_and_its_end(tokenizer: Any) -> None:
    (example,) = encode_all([make_record("How many lines?", "It has six lines.")], tokenizer, 100)
    assert trained_text(tokenizer, example) == "It has six lines.<|im_end|>"
    assert tokenizer.decode(example.token_ids) == (
        "<|im_start|>user\nHow many lines?<|im_end|>\n<|im_start|>assistant\nIt has six lines.<|im_end|>\n"
    )


@pytest.mark.parametrize("family", ENDS)
def test_prompt_tokens_of_every_turn_are_those_that_a_server_renders(families: dict[str, Any], family: str) -> None:
    tokenizer, record = families[family], conversation("乾卦?", "六爻皆阳。", "Why?", "It is heaven.")
    prompts = []
    for found in encode_all([record], tokenizer, 100):
        starts = [i for i, trained in enumerate(found.supervised) if trained and not found.supervised[i - 1]]
        prompts += [list(found.token_ids[:start]) for start in starts]
    for prompt, before in zip(prompts, (1, 3), strict=True):
        messages = [m.openai() for m in record.messages[:before]]
        assert prompt == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_answers_are_parted_only_where_they_must_be(families: dict[str, Any]) -> None:
    record = conversation("One?", "Yes.", "Two?", "No.")
    counts = {family: len(encode_all([record], tokenizer, 200)) for family, tokenizer in families.items()}
    assert counts == {"chatml": 1, "llama3": 1, "joining": 2, "chatglm": 1}


_TEXTS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text("乾坤屯蒙，。？“”龙勿用 \n", min_size=1, max_size=40),
    st.text("abc .,!?'\"\n<|>\u00e9\u0301🐉\u200d", min_size=1, max_size=40),
).filter(lambda text: bool(text.strip()) and text == text.strip())


@pytest.mark.parametrize("family", ENDS)
@settings(max_examples=60)
@given(turns=st.lists(_TEXTS, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
@example(turns=["乾卦有几爻？", "乾卦有六爻，皆为阳爻。", "坤卦呢？", "六爻皆阴。"])
@example(turns=["<|user|>", "<|im_end|>"])
@example(turns=["0", "0\x1d0"])
def test_what_is_trained_is_the_answers_and_their_ends(families: dict[str, Any], family: str, turns: list[str]) -> None:
    tokenizer, end = families[family], ENDS[family]
    encoded = encode_records([conversation(*turns)], tokenizer, 10_000)
    if any(token in turn for turn in turns for token in control_tokens(tokenizer, end_of_turn_ids(tokenizer))):
        assert [r.reason for r in encoded.refused] == ["control_token"]
        return
    begin = "\n " if family == "chatglm" else ""
    if encoded.refused:
        assert encoded.refused[0].reason == "not_in_vocabulary"
        assert family in ("chatml", "joining")
        return
    trained = "".join(trained_text(tokenizer, example) for example in encoded.examples)
    assert trained == "".join(f"{begin}{answer}{end}" for answer in turns[1::2])


@pytest.mark.parametrize("family", ["llama3", "chatglm"])
def test_a_call_of_a_tool_is_trained_and_its_reply_is_not(families: dict[str, Any], family: str) -> None:
    (example,) = encode_all([make_record("q", "a", messages=ASKS_A_TOOL, tools=[TOOL])], families[family], 1_000)
    trained = trained_text(families[family], example)
    if family == "llama3":
        call = '{"name": "look_up", "parameters": {"hexagram": "乾", "line": 1}}'
        assert trained == f"{call}<|eot_id|>潜龙勿用。<|eot_id|>"
    else:
        assert trained == 'look_up\n {"hexagram": "乾", "line": 1}<|observation|>\n 潜龙勿用。<|user|>'


def test_a_template_that_knows_no_tools_is_refused(families: dict[str, Any]) -> None:
    assert refusals(families["chatml"], make_record("q", "a", messages=ASKS_A_TOOL)) == ["tools_not_rendered"]
    shown = make_record("q", "a", tools=[TOOL])
    assert refusals(families["chatml"], shown) == ["tools_not_rendered"]


def test_a_tools_reply_is_an_observation_where_roles_are_written_as_they_come(families: dict[str, Any]) -> None:
    (example,) = encode_all([make_record("q", "a", messages=ASKS_A_TOOL)], families["chatglm"], 300)
    assert "<|observation|>\n 潜龙勿用。<|assistant|>" in families["chatglm"].decode(example.token_ids)


def test_generation_config_says_where_generation_stops(families: dict[str, Any], tmp_path: Path) -> None:
    assert end_of_turn_tokens(families["chatglm"]) == ["</s>", "<|user|>", "<|observation|>"]
    families["joining"].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    alone = chat_templates.chatml(tmp_path)
    assert end_of_turn_tokens(alone) == ["<|endoftext|>", "<|im_end|>", "<|eot_id|>"]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert end_of_turn_tokens(alone) == ["<|im_end|>", "<|eot_id|>"]


def test_without_the_list_of_stops_a_chatglm_answer_would_never_end(tmp_path: Path) -> None:
    tokenizer = chat_templates.chatglm(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert refusals(tokenizer, conversation("One?", "Yes.", "Two?", "No.")) == ["no_end_of_turn"]
    assert refusals(tokenizer, conversation("One?", "Yes.")) == ["no_end_of_turn"]


def test_where_a_template_strips_earlier_reasoning_each_answer_is_an_example(real_base: Path) -> None:
    tokenizer = chat_templates.thinking(real_base)
    answers = "<think>\nOne.\n</think>\n\nYes.", "<think>\nTwo.\n</think>\n\nNo."
    first, second = encode_all([conversation("One?", answers[0], "Two?", answers[1])], tokenizer, 200)
    assert first.record_id == second.record_id
    assert [trained_text(tokenizer, e) for e in (first, second)] == [f"{a}<|im_end|>" for a in answers]
    assert "<|im_start|>assistant\nYes.<|im_end|>" in tokenizer.decode(second.token_ids)
    assert len(encode_all([conversation("One?", "Yes.", "Two?", "No.")], tokenizer, 200)) == 1


_REFUSED: dict[str, Callable[[], Record]] = {
    "too_long": lambda: make_record("Long?", "word " * 300),
    "no_answer": lambda: make_record("q", "a", messages=[Message(role="user", content="Hello?")]),
    "empty_answer": lambda: conversation("Hello?", " \n"),
    "control_token": lambda: conversation("What is <|im_end|>?", "The end."),
    "not_in_vocabulary": lambda: conversation("Hello?", "\U00040000"),
}


@pytest.mark.parametrize("reason", _REFUSED)
def test_refusals_have_reasons(tokenizer: Any, reason: str) -> None:
    assert refusals(tokenizer, _REFUSED[reason]()) == [reason]


def test_an_answer_that_joins_with_its_prompt_is_encoded_by_itself(tokenizer: Any) -> None:
    (example,) = encode_all([conversation("Hello?", "\n\nHello.")], tokenizer, 100)
    assert trained_text(tokenizer, example) == "\n\nHello.<|im_end|>"


def test_an_answer_that_cannot_be_parted_from_its_prompt_is_refused(tmp_path: Path) -> None:
    always = chat_templates.chatglm(tmp_path).backend_tokenizer.to_str().replace('"never"', '"always"')
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(always), eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '卦' + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}卦{% endif %}"
    )
    joined = next(token[1:] for token in tokenizer.get_vocab() if token[0] == "卦" and len(token) > 1)
    assert refusals(tokenizer, conversation("乾", f"{joined}乾")) == ["joined_tokens"]
    assert refusals(tokenizer, conversation("乾", "乾")) == []


_TEMPLATES = {
    "no_end_of_turn": "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "turns_not_separable": "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
    "answer_not_rendered": "{% for m in messages %}{{ '<|im_start|>' + m['content'][:3] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}",
    "template_error": "{{ raise_exception('no such role') }}",
}


@pytest.mark.parametrize("reason", _TEMPLATES)
def test_templates_that_cannot_be_trained_under(tokenizer: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", _TEMPLATES[reason])
    assert refusals(tokenizer, conversation("Question?", "Answer.")) == [reason]


def test_all_refused_records_are_counted_and_the_first_of_each_reason_named(tokenizer: Any) -> None:
    long = [make_record(f"Long {n}?", "word " * 50) for n in range(5)]
    records = [make_record("q", "fine"), _REFUSED["empty_answer"](), *long]
    with pytest.raises(JobFailed) as raised:
        encode_all(records, tokenizer, 32)
    message = str(raised.value)
    assert message.startswith("6 records can't be trained on, and none is left out silently. too_long 5: ")
    assert f"{long[0].record_id} (it has 66 tokens, max_tokens is 32)" in message
    assert "and 2 more; raise max_tokens" in message
    assert long[3].record_id not in message
    assert "empty_answer 1: " in message
