"""The fault server of ``textmill fault-llm`` on a thread of its own, told by the test what to say to which request.

It answers with the sentence in the prompt unless told otherwise. ``faults`` maps the number of a request (from 0) to
what goes wrong with it; ``always`` is for all others.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from textmill_cli.fault_llm.content import answer
from textmill_cli.fault_llm.prompt import read_prompt
from textmill_cli.fault_llm.replies import Decision, Drip, Garbage, Hang, Received, Reply, Say, Stall, Status
from textmill_cli.fault_llm.server import FaultServer

__all__ = ["Drip", "Fault", "FaultLlm", "Garbage", "Hang", "Say", "Stall", "Status", "answer_from_passage"]

Fault = Reply


@dataclass
class FaultLlm:
    """``paid`` counts the chat completions that were given out."""

    always: Fault | None = None
    faults: dict[int, Fault] = field(default_factory=dict)
    answer: Callable[[str], str] | None = None
    requests: list[Mapping[str, object]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paid: int = 0
    delay_s: float = 0.0

    def __enter__(self) -> "FaultLlm":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = FaultServer(self._decide)
        port = asyncio.run_coroutine_threadsafe(self._server.start("127.0.0.1", 0), self._loop).result(60)
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    @property
    def most_at_once(self) -> int:
        return self._server.stats.most_at_once

    def _decide(self, received: Received) -> Decision:
        number = len(self.requests)
        self.requests.append(received.body)
        self.headers.append(received.headers)
        fault = self.faults.get(number, self.always)
        reply = fault if fault is not None else self._said(received)
        if isinstance(reply, Say):
            self.paid += 1
        return Decision(reply, type(reply).__name__, self.delay_s)

    def _said(self, received: Received) -> Say:
        prompt = read_prompt(received.body)
        if self.answer is not None:
            return Say(self.answer(received.body["messages"][-1]["content"]))  # type: ignore[index, call-overload]
        if "response_format" in received.body:
            return Say(answer(prompt, received.body).text)
        return Say(answer_from_passage(prompt.text))


def answer_from_passage(prompt: str) -> str:
    """The sentence that the prompt shows, and some rambling after it."""
    shown = re.findall(r'The answer is: "(.*)"|答案是：“(.*)”', prompt)
    assert shown, prompt
    return (shown[-1][0] or shown[-1][1]) + " And more"
