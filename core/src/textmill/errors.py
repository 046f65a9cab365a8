"""All errors that textmill raises on purpose.

TextmillError
├── BadRequest            400  what was asked can't be done as asked; the message says what to change
│   ├── UndecodableText   422  bytes that are no text in any encoding tried
│   ├── IdempotencyClash  422  a known Idempotency-Key came with another body
│   └── EditFailsChecks   422  a reviewer's answer doesn't hold against its passage, and wasn't overridden
├── NotFound              404  no such thing
├── Conflict              409  it exists already, or something depends on it
├── Unauthorized          401  no key, or a wrong one
├── JobFailed             500  the job's own work failed and would fail again
├── Transient             503  the job's own work failed and may succeed when tried again
│   └── DependencyDown    503  a store, broker, LLM or engine can't be reached: pause, burn no attempt
└── Stopped                    not failures: raised inside a handler that has to let go
    ├── Cancelled              the owner cancelled the job
    ├── LeaseLost              another worker took the job over
    └── Draining               this worker is shutting down

Adapters turn what libraries raise into these, with ``from``. Only the worker loop and the HTTP edge catch them all.
"""

import re


class TextmillError(Exception):
    """Carries what the HTTP edge and the worker loop need to know, and a message for a person."""

    status = 500
    retryable = False
    retry_after_s: float | None = None

    @property
    def code(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class BadRequest(TextmillError):
    status = 400


class UndecodableText(BadRequest):
    status = 422


class IdempotencyClash(BadRequest):
    status = 422


class EditFailsChecks(BadRequest):
    status = 422


class NotFound(TextmillError):
    status = 404


class Conflict(TextmillError):
    status = 409


class Unauthorized(TextmillError):
    status = 401


class JobFailed(TextmillError):
    """The work can't be done, however often it is tried."""


class Transient(TextmillError):
    """The work failed this time. ``retry_after_s`` is the least delay that the other side asked for."""

    status = 503
    retryable = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DependencyDown(Transient):
    """Something the work needs can't be reached. The worker pauses until it can; the attempt isn't counted."""

    def __init__(self, message: str, retry_after_s: float | None = 2.0) -> None:
        super().__init__(message, retry_after_s)


class Stopped(TextmillError):
    """The handler has to let go of its job now."""


class Cancelled(Stopped):
    pass


class LeaseLost(Stopped):
    pass


class Draining(Stopped):
    pass
