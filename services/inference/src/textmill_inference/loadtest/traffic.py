"""The requests that a worker sends: their bodies, made fast enough for the hot path.

A made-up prompt is a slice of one long text of random words, behind a number of its own, so that no two prompts share
a beginning (and a server's prefix cache finds only what the test means it to find): a slice costs 2 us, drawing 1,000
words would cost 300. Every draw follows from the traffic's seed and the worker's number.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence

from textmill.contracts.load import (
    Empirical,
    Fixed,
    GivenPrompts,
    Lengths,
    LogNormal,
    MadeUpPrompts,
    Message,
    Normal,
    Target,
    TraceEntry,
    Traffic,
    Uniform,
)
from textmill_inference.loadtest.orders import Gauge

WORDS = tuple(
    word
    for line in (
        "the of and to in is was for on that by this with from they have had her his were are not you which all be she",
        "one there been their has would when more who will no out so up time people year way day man thing world life",
        "hand part child eye woman place work week case point water room book house line story night city",
    )
    for word in line.split()
)
"""Common ones: one token each in most vocabularies."""
_TEXT_WORDS = 60_000
_MOST_DRAWS = 1_000
Draw = Callable[[], int]


class Requests:
    """Makes request bodies. ``gauge`` turns lengths in tokens into words."""

    def __init__(
        self, target: Target, traffic: Traffic, gauge: Gauge, worker: int = 0, workers: int = 1, continuous: bool = True
    ) -> None:
        self._traffic = traffic
        self._chat = traffic.api == "chat"
        # One seed for each worker, and the shared text from the seed alone: prefixes must be the same everywhere.
        self._output = draw(traffic.output, random.Random(f"{traffic.seed} output {worker}"))
        self._words = MadeUp(traffic.prompts, gauge, worker) if isinstance(traffic.prompts, MadeUpPrompts) else None
        self._made_up = self._words or MadeUp(MadeUpPrompts(lengths=Fixed(value=64)), gauge, worker)
        self._given = _in_turn(traffic.prompts, self._chat, worker, workers)
        self._head = json.dumps(_fixed_fields(target, traffic, continuous), ensure_ascii=False)[:-1].encode()

    def next(self, entry: TraceEntry | None = None) -> bytes:
        """The body of the next request, or of a trace's."""
        if entry is not None and entry.messages:
            prompt = _prompt(entry.messages, self._chat)
        elif entry is not None and entry.prompt_tokens:
            prompt = self._quoted(self._made_up.text(entry.prompt_tokens))
        elif self._words is not None:
            prompt = self._quoted(self._words.next())
        else:
            prompt = next(self._given)
        exact = self._traffic.exact_output
        tokens = self._output()
        if entry is not None and entry.output_tokens:
            exact, tokens = True, entry.output_tokens
        limits = b',"max_tokens":%d,"min_tokens":%d,"ignore_eos":true}' if exact else b',"max_tokens":%d}'
        return self._head + prompt + limits % ((tokens, tokens) if exact else (tokens,))

    def _quoted(self, text: bytes) -> bytes:
        """``text`` has nothing that JSON would escape."""
        if self._chat:
            return b',"messages":[{"role":"user","content":"' + text + b'"}]'
        return b',"prompt":"' + text + b'"'


class MadeUp:
    """Prompts of random words. The same seed gives the same shared prefixes in each worker, and other prompts."""

    def __init__(self, prompts: MadeUpPrompts, gauge: Gauge, worker: int) -> None:
        self._gauge = gauge
        self._lengths = draw(prompts.lengths, random.Random(f"{prompts.seed} lengths {worker}"))
        self._starts = random.Random(f"{prompts.seed} starts {worker}")
        text = random.Random(f"{prompts.seed} text")
        words = [text.choice(WORDS) for _ in range(_TEXT_WORDS)]
        self._text = " ".join(words).encode()
        self._offsets = [0, *itertools.accumulate(len(word) + 1 for word in words)]
        self._prefixes = itertools.cycle(_prefixes(prompts, gauge))
        self._prefix_tokens = prompts.shared_prefix_tokens
        self._worker = worker
        self._number = 0

    def next(self) -> bytes:
        return self.text(self._lengths())

    def text(self, tokens: int) -> bytes:
        """About so many tokens, the shared prefix among them."""
        self._number += 1
        prefix = next(self._prefixes)
        own = b"%d.%d " % (self._worker, self._number)
        return prefix + own + self._slice(words_for(tokens - self._prefix_tokens, self._gauge))

    def _slice(self, words: int) -> bytes:
        whole, rest = divmod(words, _TEXT_WORDS // 2)
        start = self._starts.randrange(_TEXT_WORDS // 2)
        piece = self._text[self._offsets[start] : self._offsets[start + rest] - 1] if rest else b""
        if not whole:
            return piece
        half = self._text[: self._offsets[_TEXT_WORDS // 2]]
        return half * whole + piece


def words_for(tokens: int, gauge: Gauge) -> int:
    return max(1, round((tokens - gauge.base) / gauge.per_word))


def draw(lengths: Lengths, source: random.Random) -> Draw:
    """Lengths of a distribution, each at least 1."""
    match lengths:
        case Fixed():
            return lambda: max(1, lengths.value)
        case Uniform():
            return lambda: max(1, source.randint(lengths.low, lengths.high))
        case Normal():
            return _inside(lambda: source.gauss(lengths.mean, lengths.deviation), lengths.low, lengths.high)
        case LogNormal():
            return _inside(lambda: lengths.median * source.lognormvariate(0, lengths.sigma), lengths.low, lengths.high)
        case Empirical():
            weights = list(itertools.accumulate(lengths.weights)) or None
            return lambda: max(1, source.choices(lengths.values, cum_weights=weights)[0])


def mean_length(lengths: Lengths) -> float:
    """Of 1,000 draws: near enough to plan with."""
    one = draw(lengths, random.Random(0))
    return sum(one() for _ in range(1_000)) / 1_000


def _inside(one: Callable[[], float], low: int, high: int) -> Draw:
    """Drawn again until it lies within; clamped when it hardly ever does."""

    def drawn() -> int:
        value = 0
        for _ in range(_MOST_DRAWS):
            value = round(one())
            if max(1, low) <= value <= high:
                return value
        return min(max(1, low, value), high)

    return drawn


def _prefixes(prompts: MadeUpPrompts, gauge: Gauge) -> list[bytes]:
    if not prompts.shared_prefix_tokens:
        return [b""]
    words = max(1, round(prompts.shared_prefix_tokens / gauge.per_word))
    source = random.Random(f"{prompts.seed} prefixes")
    return [(" ".join(source.choices(WORDS, k=words)) + " ").encode() for _ in range(prompts.prefix_groups)]


def _in_turn(prompts: GivenPrompts | MadeUpPrompts, chat: bool, worker: int, workers: int) -> Iterator[bytes]:
    """Each worker begins elsewhere and takes every ``workers``-th, so that together they go round."""
    if isinstance(prompts, MadeUpPrompts):
        return iter(())
    ready = [_prompt(messages, chat) for messages in prompts.conversations]
    return (ready[number % len(ready)] for number in itertools.count(worker, workers))


def _prompt(messages: Sequence[Message], chat: bool) -> bytes:
    if chat:
        value = [{"role": message.role, "content": message.content} for message in messages]
        return b',"messages":' + json.dumps(value, ensure_ascii=False).encode()
    text = "\n\n".join(message.content for message in messages)
    return b',"prompt":' + json.dumps(text, ensure_ascii=False).encode()


def _fixed_fields(target: Target, traffic: Traffic, continuous: bool) -> dict[str, object]:
    fields: dict[str, object] = {"model": target.model, **traffic.sampling}
    if traffic.stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True} | ({"continuous_usage_stats": True} if continuous else {})
    return fields
