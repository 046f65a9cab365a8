"""The judge accepts on a "supported" with a real quotation, and on nothing else."""

import asyncio
import json

import pytest

from textmill.contracts.documents import Language
from textmill_synth.judge import open_judge
from textmill_synth.ledger import Call
from textmill_synth.llm import ChatRequest, Completion

PASSAGE = "Repairs up to EUR 120 are borne by the Tenant, larger repairs by the Landlord."


class OneReply:
    """A ledger whose LLM says the same to everything."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.asked: list[tuple[ChatRequest, str, str]] = []

    async def ask(self, request: ChatRequest, shard: str, prompt_version: str) -> Call:
        self.asked.append((request, shard, prompt_version))
        return Call("call-1", Completion(self.reply, "stop", 10, 5), reused=False)


def reason(reply: str, language: Language = "en") -> str | None:
    judge = open_judge(OneReply(reply), "examiner", structured=True)
    finding = asyncio.run(judge.verdict(PASSAGE, "Who pays?", "The Tenant pays small repairs.", language, "ab"))
    return finding.reason if finding else None


def verdict(word: str, quote: str) -> str:
    return json.dumps({"verdict": word, "quote": quote})


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (verdict("supported", "Repairs up to EUR 120 are borne by the Tenant"), None),
        (verdict("supported", "the tenant pays for everything"), "judge_unclear"),
        (verdict("supported", ""), "judge_unclear"),
        (verdict("contradicted", "larger repairs by the Landlord"), "judge_unsupported"),
        (verdict("contradicted", "the roof is leaking"), "judge_unclear"),
        (verdict("not_supported", ""), "judge_unsupported"),
        (verdict("maybe", "larger repairs by the Landlord"), "judge_unclear"),
        ('{"verdict": "supported"}', "judge_unclear"),
        ('{"verdict": "supported", "quote": "larger repairs", "why": "so"}', "judge_unclear"),
        ("Yes, it is supported.", "judge_unclear"),
        ("", "judge_unclear"),
    ],
)
def test_a_judgement_is_read_strictly(reply: str, expected: str | None) -> None:
    assert reason(reply) == expected


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("structured", [True, False])
def test_the_judge_is_shown_the_source_and_asked_for_json(language: Language, structured: bool) -> None:
    ledger = OneReply(verdict("not_supported", ""))
    judge = open_judge(ledger, "examiner", structured)
    asyncio.run(judge.verdict(PASSAGE, "Who pays?", "The Tenant.", language, "ab"))
    [(request, shard, version)] = ledger.asked
    text = "\n".join(message.content for message in request.messages)
    assert all(part in text for part in (PASSAGE, "Who pays?", "The Tenant.", '"verdict"', '"quote"'))
    assert (request.model, request.temperature, shard) == ("examiner", 0.0, "ab")
    assert (request.schema is not None) is structured
    assert version.startswith(f"judge.{language}@")
