"""A server that plays what a test scripts: right answers and wrong ones, byte for byte."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

STREAM = (
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    b'data: {"choices":[{"delta":{"content":"b"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)


def answer(body: bytes, status: str = "200 OK", kind: str = "text/event-stream", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


GOOD = answer(STREAM)


@dataclass
class Scripted:
    """Gives its answers in turn, one a request; None closes the connection without one, ``hang`` is never answered.

    An answer with ``cut`` at its end is followed by the connection's end.
    """

    hang = b"hang"
    cut = b"<cut>"
    answers: Sequence[bytes | None] = (GOOD,)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await _request(reader):
                said = self.answers[len(self.requests) % len(self.answers)]
                self.requests.append(request)
                if said == self.hang:
                    await reader.read()
                    return
                if said is None:
                    writer.transport.abort()
                    return
                writer.write(said.removesuffix(self.cut))
                await writer.drain()
                if said.endswith(self.cut):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head + await reader.readexactly(int(length.split(b":")[1]))
