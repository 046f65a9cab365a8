"""Builds what a job generates with, from its options: ledgers, generator, strategies, judge. Knows no datasets."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.synthesis import Judge as JudgeOptions
from textmill.contracts.synthesis import SynthOptions
from textmill.store import ObjectStore
from textmill_synth.asking.asker import Asker, wanted_wordings
from textmill_synth.asking.phrasings import PhrasingWriter
from textmill_synth.finishing import Finishing, Variants
from textmill_synth.judge import Judge, open_judge
from textmill_synth.ladder import Ladder, RungTally
from textmill_synth.ledger import Ledger
from textmill_synth.llm import ChatClient, open_llm
from textmill_synth.llm.endpoint import Endpoint
from textmill_synth.probe import Capability, probe
from textmill_synth.prompts import load_prompts
from textmill_synth.settings import SynthSettings
from textmill_synth.strategies.base import Generator, Strategy
from textmill_synth.strategies.bridge import Bridge
from textmill_synth.strategies.conversation import Conversation
from textmill_synth.strategies.evolve import Evolve
from textmill_synth.strategies.logged import Logged
from textmill_synth.strategies.pairs import Pairs
from textmill_synth.strategies.passage import Extractive
from textmill_synth.strategies.prompt import owner_prompts
from textmill_synth.strategies.qa import QuestionAnswering
from textmill_synth.strategies.self_instruct import SelfInstruct
from textmill_synth.strategies.styles import StyledSummaries
from textmill_synth.strategies.summary import Summary
from textmill_synth.strategies.tools import tool_calls

Observe = Callable[[str], None]
Guard = Callable[[Endpoint], Endpoint]


@dataclass(frozen=True)
class Assembly:
    """``ledgers`` and ``clients`` are all that calls go through, the judge's own included."""

    generator: Generator
    capability: Capability
    rungs: RungTally
    strategies: Sequence[Strategy]
    fallback: Strategy | None
    finishing: Finishing
    ledgers: Sequence[Ledger]
    clients: Sequence[ChatClient]


@asynccontextmanager
async def open_assembly(
    settings: SynthSettings,
    store: ObjectStore,
    options: SynthOptions,
    observe: Observe = lambda outcome: None,
    guard: Guard = lambda endpoint: endpoint,
) -> AsyncIterator[Assembly]:
    """Leaving it flushes the ledgers. Raises ``DependencyDown`` when an endpoint can't be probed."""
    model = options.model or settings.llm_model
    async with AsyncExitStack() as stack:

        async def opened(url: str | None, model: str | None) -> tuple[ChatClient, Ledger]:
            client = await stack.enter_async_context(open_llm(settings, store, url, model, observe, guard))
            return client, await stack.enter_async_context(Ledger(store, client))

        ways = [await opened(options.llm_url, options.model)]
        if options.judge and options.judge.url:
            ways.append(await opened(options.judge.url, options.judge.model))
        clients, ledgers = zip(*ways, strict=True)
        ledger = ledgers[0]
        asks_llm = not set(options.strategies) <= {"passage", "logged"}
        capability = await probe(ledger, model, settings.response_mode) if asks_llm else Capability("text")
        generator = Generator(
            ledger, model, options.temperature, options.max_answer_tokens, capability.form, capability.enforced
        )
        ladder = Ladder(generator, RungTally())
        yield Assembly(
            generator=generator,
            capability=capability,
            rungs=ladder.tally,
            strategies=[build_strategy(name, options, ladder) for name in dict.fromkeys(options.strategies)],
            fallback=Extractive(options.question_sets) if options.extractive_fallback else None,
            finishing=Finishing(
                await _judge(settings, options.judge, generator, ledgers[-1]) if options.judge else None,
                _asker(options, generator),
                _variants(options, ladder),
            ),
            ledgers=ledgers,
            clients=clients,
        )


def build_strategy(name: StrategyName, options: SynthOptions, ladder: Ladder) -> Strategy:
    """Raises ``BadRequest`` for options that the strategy can't work with."""
    match name:
        case "qa":
            prompts, key_prompts = load_prompts("qa"), load_prompts("qa-key")
            return QuestionAnswering(ladder, prompts, key_prompts, options.question_sets, options.context)
        case "pairs":
            return Pairs(ladder, load_prompts("pairs"), options.pairs_per_passage)
        case "summary":
            return Summary(ladder, load_prompts("summary"))
        case "passage":
            return Extractive(options.question_sets)
        case "bridge":
            return Bridge(ladder, load_prompts("bridge"))
        case "styles":
            return StyledSummaries(ladder, load_prompts("styles"), options.styles)
        case "conversation":
            return Conversation(ladder, load_prompts("conversation"), options.turns)
        case "tools":
            return tool_calls(ladder, load_prompts("tools"), options.tools)
        case "self_instruct":
            prompts = load_prompts("self-instruct")
            return SelfInstruct(ladder, prompts, options.seed_tasks, options.pairs_per_passage)
        case "evolve":
            return Evolve(ladder, load_prompts("evolve"), options.evolutions)
        case "prompt":
            return owner_prompts(ladder, load_prompts("prompt-form"), options.prompts)
        case "logged":
            return Logged()


async def _judge(settings: SynthSettings, wanted: JudgeOptions, generator: Generator, ledger: Ledger) -> Judge:
    if wanted.model is None and wanted.url is None:
        return open_judge(ledger, generator.model, generator.form == "json" and generator.enforced)
    model = wanted.model or generator.model
    return open_judge(ledger, model, (await probe(ledger, model, settings.response_mode)).enforced)


def _asker(options: SynthOptions, generator: Generator) -> Asker | None:
    """None when no further wordings are wanted."""
    if not wanted_wordings(options.asking):
        return None
    writer = PhrasingWriter(generator, load_prompts("phrasing"), load_prompts("phrasing-check"))
    return Asker(options.asking, options.seed, writer)


def _variants(options: SynthOptions, ladder: Ladder) -> Variants | None:
    return Variants(ladder, load_prompts("variants"), options.answer_variants) if options.answer_variants > 1 else None
