"""Text in pieces to lines, with their ends, in bounded memory."""

import re
from collections.abc import Iterable, Iterator

LONGEST_LINE = 64 * 1024
# A carriage return at the very end may be half of a \r\n, so it waits for the next piece.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r(?!\Z))")


def lines_of(chunks: Iterable[str]) -> Iterator[str]:
    r"""Lines ending in \n, \r\n or \r; one beyond 64 Ki characters comes in several fragments without an end."""
    rest = ""
    for chunk in chunks:
        text, end = rest + chunk, 0
        for match in _LINE.finditer(text):
            end = match.end()
            yield match.group()
        rest = text[end:]
        if len(rest) > LONGEST_LINE:
            cut = len(rest) - rest.endswith("\r")
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest
