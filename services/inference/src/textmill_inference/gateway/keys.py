"""Who may ask for completions: holders of a key whose SHA-256 is on the list. Keys themselves are never stored."""

import hashlib
from collections.abc import Iterable

from textmill_inference.gateway.openai_errors import OpenAIError


class KeyRing:
    """An empty list lets everybody in, which is for one machine only."""

    def __init__(self, sha256_digests: Iterable[str] = ()) -> None:
        self._digests = frozenset(sha256_digests)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ``OpenAIError`` (401). Comparing digests leaks no timing of the key itself."""
        if not self._digests:
            return
        for name, value in headers:
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                if scheme.lower() == b"bearer" and hashlib.sha256(key.strip()).hexdigest() in self._digests:
                    return
                raise OpenAIError(401, "this API key is not known here", code="invalid_api_key")
        raise OpenAIError(401, "send your API key as 'Authorization: Bearer KEY'", code="missing_api_key")
