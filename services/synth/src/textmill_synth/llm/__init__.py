"""One controller per LLM endpoint: concurrency, rate limits, retries, failover. See ``open_llm``.

request.py    what is asked and answered         client.py       the one way to make a call: retries, failover
retry.py      how often one call is tried        concurrency.py  how many tries at once
endpoint.py   one try over HTTP                  limits.py       requests and tokens a minute, which all workers ...
breaker.py    waits while an endpoint is down    claims.py       ... share through a log in the store
hedging.py    asks stragglers a second time      open.py         wires all of it from the settings
"""

from textmill_synth.llm.client import ChatClient as ChatClient
from textmill_synth.llm.client import Route as Route
from textmill_synth.llm.client import Stats as Stats
from textmill_synth.llm.concurrency import Concurrency as Concurrency
from textmill_synth.llm.endpoint import HttpEndpoint as HttpEndpoint
from textmill_synth.llm.open import open_llm as open_llm
from textmill_synth.llm.request import CallFailed as CallFailed
from textmill_synth.llm.request import ChatRequest as ChatRequest
from textmill_synth.llm.request import Completion as Completion
from textmill_synth.llm.request import Fault as Fault
from textmill_synth.llm.request import FaultKind as FaultKind
from textmill_synth.llm.request import Llm as Llm
from textmill_synth.llm.request import Schema as Schema
from textmill_synth.llm.retry import RetryPolicy as RetryPolicy
