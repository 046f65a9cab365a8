"""An endpoint that exists in virtual time only: what it answers, and when, is a function of the test."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from textmill.contracts.datasets import Message
from textmill_synth.llm import ChatRequest, Completion, Fault

REQUEST = ChatRequest("m", (Message(role="user", content="hello"),), 0.0, 16)
ANSWER = Completion("Hi.", "stop", 10, 2, "m", "virtual")
SERVER_ERROR = Fault("llm_server_error", "500")
DOWN = Fault("llm_server_error", "503", endpoint_down=True)
RATE_LIMITED = Fault("llm_rate_limited", "429")

Reply = tuple[Completion | Fault, float]
"""What comes, and after how many seconds. Past the deadline it is a timeout."""


@dataclass
class VirtualEndpoint:
    """``reply`` is told the request and how many are under way, itself among them."""

    reply: Callable[[ChatRequest, int], Reply]
    url: str = "virtual"
    began: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        self.began.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            outcome, after_s = self.reply(request, self.at_once)
            await asyncio.sleep(min(after_s, deadline_s))
            return outcome if after_s <= deadline_s else Fault("llm_timeout", "no whole answer")
        finally:
            self.at_once -= 1
