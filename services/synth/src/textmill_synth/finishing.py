"""What is done with an accepted answer before it becomes records: judged, asked in more ways, said in other words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Language, Passage
from textmill_synth.asking.asker import Asker
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.grounding import ALL_CHECKS
from textmill_synth.judge import Judge
from textmill_synth.ladder import Found, Ladder, Shape
from textmill_synth.llm import CallFailed
from textmill_synth.numerals import numbers
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Answered
from textmill_synth.strategies.base import Answer, DeadLetter, Outcome, Rejection, Settlement, rejected
from textmill_synth.topics import Further, normal_form


@dataclass(frozen=True)
class Finishing:
    """Each part may be left out. The judge comes first: nothing is spent on an answer that it doesn't let pass."""

    judge: Judge | None = None
    asker: Asker | None = None
    variants: "Variants | None" = None

    async def finish(self, passage: Passage, strategy: StrategyName, answer: Answer) -> Sequence[Outcome]:
        """The answer or what became of it, and behind it the outcome of each further answer that was asked for."""
        try:
            finding = await self._judged(passage, answer) if self.judge else None
        except CallFailed as exc:
            return [DeadLetter(exc.kind, f"the judge gave no answer: {exc}")]
        if finding:
            return [rejected(finding, answer.prompted)]
        if self.asker:
            answer = await self.asker.extend(passage, answer)
        return await self.variants.write(passage, strategy, answer) if self.variants else [answer]

    async def _judged(self, passage: Passage, answer: Answer) -> Finding | None:
        """Each turn of a conversation is judged, with what was said before it. A quotation needs no judge."""
        if self.judge is None or answer.prompted is None:
            return None
        others = {q.passage.passage_id: q.passage.text for q in answer.more_evidence}
        shown = "\n\n".join({passage.passage_id: passage.text, **others}.values())
        shard = passage.document_sha256[:2]
        for question, reply in _exchanges(answer):
            finding = await self.judge.verdict(shown, question, reply, passage.language, shard)
            if finding:
                return finding
        return None


@dataclass(frozen=True)
class Variants:
    """Up to ``count`` answers to one question. Its wordings are dealt out among them: each has one answer.

    Only answers that an LLM wrote, and that have wordings enough, get variants.
    """

    ladder: Ladder
    prompts: dict[Language, Prompt]
    count: int

    async def write(self, passage: Passage, strategy: StrategyName, answer: Answer) -> Sequence[Outcome]:
        wanted = min(self.count, len(answer.topic.ask)) - 1
        if wanted < 1 or answer.prompted is None or answer.before or answer.between:
            return [answer]
        prompt = self.prompts[passage.language]
        shape, question = Shape(Answered, wanted), answer.topic.ask[0].question
        try:
            found = await self.ladder.ask(
                strategy, passage, prompt, shape, shown=passage.text, question=question, answer=answer.text
            )
        except CallFailed as exc:
            return [answer, *[DeadLetter(exc.kind, str(exc))] * wanted]
        if isinstance(found, Rejection):
            return [answer, *[found] * wanted]
        settlements: list[Settlement] = [answer]
        for number in range(wanted):
            settlements.append(self._settle(passage, answer, settlements, found, number, prompt))
        return _dealt(settlements)

    def _settle(
        self,
        passage: Passage,
        answer: Answer,
        so_far: Sequence[Settlement],
        found: Sequence[Found[Answered]],
        number: int,
        prompt: Prompt,
    ) -> Settlement:
        if number >= len(found):
            return rejected(Finding("missing", f"only {len(found)} further answers came"), found[-1].prompted)
        item, prompted = found[number].item, found[number].prompted
        if isinstance(item, Finding):
            return rejected(item, prompted)
        text = item.answer.strip()
        finding = _variant_finding(passage, answer, text, prompt)
        if finding is None and normal_form(text) in {normal_form(s.text) for s in so_far if isinstance(s, Answer)}:
            finding = Finding("duplicate", "the same answer in the same words")
        return rejected(finding, prompted) if finding else replace(answer, text=text, prompted=prompted)


def _variant_finding(passage: Passage, answer: Answer, text: str, prompt: Prompt) -> Finding | None:
    candidate = Candidate(
        answer=text,
        question=answer.topic.ask[0].question,
        passage=passage.text,
        language=passage.language,
        key=passage.text[slice(*answer.topic.key)] if answer.topic.key else None,
        instructions=prompt.instructions,
        max_characters=2 * len(answer.text) + 100,
        evidence=answer.evidence,
    )
    if lost := numbers(answer.text) ^ numbers(text):
        return Finding("key_missing", f"not the same numbers as in the answer it puts in other words: {sorted(lost)}")
    return first_finding(candidate, ALL_CHECKS)


def _dealt(settlements: Sequence[Settlement]) -> Sequence[Settlement]:
    """The training wordings dealt out among the answers; all else stays with the first."""
    answers = [s for s in settlements if isinstance(s, Answer)]
    topic, turn = answers[0].topic, iter(range(len(answers)))
    dealt: list[Settlement] = []
    for settlement in settlements:
        if isinstance(settlement, Answer):
            number = next(turn)
            ask = topic.ask[number :: len(answers)]
            own = replace(topic, ask=ask)
            if number:
                own = replace(own, held_out=(), further=Further())
            settlement = replace(settlement, topic=own)
        dealt.append(settlement)
    return dealt


def _exchanges(answer: Answer) -> Sequence[tuple[str, str]]:
    """Each question, led by all that was said before it, with its answer."""
    question = answer.topic.ask[0].question
    turns = [*(m.content for m in answer.before), question, answer.text]
    return [("\n".join(turns[: n + 1]), turns[n + 1]) for n in range(0, len(turns) - 1, 2)]
