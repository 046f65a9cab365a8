"""Counts tokens from the usage that an answer ends with, without parsing the answer."""

import re

from textmill_inference.gateway import metrics

_COUNT = {kind: re.compile(rb'"%s_tokens":\s*(\d+)' % kind.encode()) for kind in ("prompt", "completion")}
_TAIL = 4096


def count_tokens(model: str, tail: bytes) -> None:
    """``tail`` is a whole JSON answer or the end of a stream. A stream without usage in it counts nothing."""
    end = tail[-_TAIL:]
    for kind, pattern in _COUNT.items():
        found = pattern.findall(end)
        if found:
            metrics.TOKENS.labels(model, kind).inc(int(found[-1]))
