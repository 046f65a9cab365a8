"""Errors on OpenAI's routes, in the shape that every OpenAI client parses."""

import json

from starlette.types import Send


class OpenAIError(Exception):
    """An answer that refuses. ``model`` is the metric's label, known models only: names are the client's to invent."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        model: str = "",
        retry_after_s: int | None = None,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.model = model
        self.code = code
        self.retry_after_s = retry_after_s
        self._allow = allow
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    async def answer(self, send: Send, request_id: str = "") -> None:
        body = json.dumps({"error": self._error}, ensure_ascii=False).encode("utf-8", "replace")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self._allow:
            headers.append((b"allow", self._allow.encode()))
        if request_id:
            headers.append((b"x-request-id", request_id.encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def error_event(message: str, code: str = "engine_lost") -> bytes:
    """The same as a server-sent event, for a stream that has begun."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}, ensure_ascii=False).encode() + b"\n\n"
