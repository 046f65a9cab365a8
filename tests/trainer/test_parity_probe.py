"""The probe says what the published model does, in the prompts that its own template makes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_record, make_records, write_records
from tests.trainer.test_merge import CPU
from tests.trainer.test_preference import encode_pairs

from textmill.contracts.datasets import Message
from textmill.contracts.gates import PARITY_FILE, ParityProbe
from textmill.contracts.preferences import PreferencePair
from textmill_trainer.model import load_16bit
from textmill_trainer.parity import ANSWER_TOKENS, CONVERSATIONS, MAX_TOKENS, answer_start, choose, write_probe
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.workfolder import WorkFolder


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return load_16bit(tiny_base, CPU)


def test_a_probe_is_what_the_model_says_to_its_own_prompts(model: Any, tokenizer: Any, folder: WorkFolder) -> None:
    said = [
        Message(role="user", content="What is one?"),
        Message(role="assistant", content="One is one."),
        Message(role="user", content="And two?"),
        Message(role="assistant", content="Two is two."),
    ]
    records = [make_record("What is one?", "x", messages=said), *make_records(3)]
    write_records(folder.records("train"), records)
    examples = encode_all(records, tokenizer, 200)
    probe = write_probe(model, tokenizer, folder, "supervised", examples)
    assert probe is not None
    assert (folder.merged / PARITY_FILE).read_bytes() == probe.to_json()
    assert ParityProbe.model_validate_json(probe.to_json()).to_json() == probe.to_json()
    first = max(probe.conversations, key=lambda c: len(c.messages))
    assert [m["content"] for m in first.messages] == ["What is one?", "One is one.", "And two?"]
    rendered = tokenizer.apply_chat_template(list(first.messages), add_generation_prompt=True, return_dict=True)
    assert list(first.prompt_ids) == rendered["input_ids"]
    assert tokenizer.decode([t.token_id for t in first.continuation]) == "Two is two.<|im_end|>"

    ids = torch.tensor([[*first.prompt_ids, *(t.token_id for t in first.continuation)]])
    expected = model(input_ids=ids).logits[0].float().log_softmax(-1)
    for place, token in enumerate(first.continuation, start=len(first.prompt_ids)):
        assert token.logprob == pytest.approx(expected[place - 1, token.token_id].item(), abs=1e-3)
        assert token.top_ids[0] == expected[place - 1].argmax()
        assert list(token.top_logprobs) == sorted(token.top_logprobs, reverse=True)


def test_the_messages_of_an_earlier_turn_are_not_mistaken_for_the_last(
    model: Any, tokenizer: Any, folder: WorkFolder
) -> None:
    record = make_record("One?", "One.")
    write_records(folder.records("train"), [record])
    other = encode_all([make_record("Two?", "Two.")], tokenizer, 100)[0]
    example = Example(record.record_id, "d", other.token_ids, other.supervised)
    probe = write_probe(model, tokenizer, folder, "supervised", [example])
    assert probe is not None
    assert probe.conversations[0].messages == ()


def test_preferences_are_asked_for_the_chosen_answer(model: Any, tokenizer: Any, folder: WorkFolder) -> None:
    pair = PreferencePair(
        pair_id="p", messages=(Message(role="user", content="Yes or no?"),), chosen="Yes.", rejected="No."
    )
    for split, lines in (("train", pair.to_json()), ("eval", b"")):
        folder.lines(split).write_bytes(lines)
    chosen = encode_pairs([pair], tokenizer)[0].chosen
    probe = write_probe(model, tokenizer, folder, "dpo", [chosen])
    assert probe is not None
    assert [m["content"] for m in probe.conversations[0].messages] == ["Yes or no?"]
    assert tokenizer.decode([t.token_id for t in probe.conversations[0].continuation]) == "Yes.<|im_end|>"


def test_raw_text_is_split_in_the_middle_and_has_no_messages(model: Any, tokenizer: Any, folder: WorkFolder) -> None:
    text = Example("r", "d", tuple(range(5, 15)), (True,) * 10)
    probe = write_probe(model, tokenizer, folder, "pretrain", [text])
    assert probe is not None
    assert list(probe.conversations[0].prompt_ids) == [5, 6, 7, 8, 9]
    assert [t.token_id for t in probe.conversations[0].continuation] == [10, 11, 12, 13, 14]
    assert probe.conversations[0].messages == ()


def test_what_is_asked_is_bounded(model: Any, tokenizer: Any, folder: WorkFolder) -> None:
    long = Example("long", "d", (7,) * (MAX_TOKENS + 1), (True,) * (MAX_TOKENS + 1))
    short = [Example(f"s{n}", "d", (7,) * 200, (False,) * 20 + (True,) * 180) for n in range(CONVERSATIONS + 3)]
    assert choose([long, *short]) == short[:CONVERSATIONS]
    assert write_probe(model, tokenizer, folder, "pretrain", [long]) is None
    assert not (folder.merged / PARITY_FILE).exists()
    probe = write_probe(model, tokenizer, folder, "pretrain", short[:1])
    assert probe is not None
    assert len(probe.conversations[0].continuation) == ANSWER_TOKENS


@pytest.mark.parametrize(("supervised", "start"), [("0001110", 3), ("0011001", 6), ("0111111", 3), ("1111111", 3)])
def test_where_the_last_answer_begins(supervised: str, start: int) -> None:
    assert answer_start(Example("r", "d", (1,) * 7, tuple(s == "1" for s in supervised))) == start
