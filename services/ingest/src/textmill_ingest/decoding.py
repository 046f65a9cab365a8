"""Bytes to text, piece by piece, without losing count: every character keeps the byte it came from."""

import codecs
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from textmill.errors import UndecodableText
from textmill_ingest.encoding import LONGEST_MARK, mark_bytes

# Each character has one way to be written in these, so that its length in bytes follows from the character.
_ONE_TO_ONE = ("utf-8", "utf-16-", "utf-32-", "gb18030", "cp125", "iso8859", "koi8", "ascii")
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Piece:
    """A run of decoded text: where it begins in the file, in characters (the mark not counted) and in bytes."""

    text: str
    char_start: int
    byte_start: int


def decode_pieces(chunks: Iterable[bytes], codec: str) -> Iterator[Piece]:
    """Strictly, in constant memory; a byte-order mark is skipped.

    Raises:
        UndecodableText: with the byte offset.
    """
    decoder = codecs.getincrementaldecoder(codec)("strict")
    char_at, byte_at = 0, 0
    for raw, final in _runs(chunks):
        if byte_at == 0 and char_at == 0 and (skip := mark_bytes(raw, codec)):
            raw, byte_at = raw[skip:], skip
        pending: bytes = decoder.getstate()[0]
        try:
            text = decoder.decode(raw, final)
        except UnicodeDecodeError as exc:
            raise UndecodableText(f"{codec} fails at byte {byte_at + exc.start} ({exc.reason})") from exc
        source = pending + raw
        source = source[: len(source) - len(decoder.getstate()[0])]
        if text:
            yield from _pieces(text, source, codec, char_at, byte_at)
        char_at, byte_at = char_at + len(text), byte_at + len(source)


def _runs(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Runs of at most 64 KiB, the first long enough to show a mark, and an empty final one."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) < LONGEST_MARK:
            continue
        for start in range(0, len(head), _PIECE_BYTES):
            yield head[start : start + _PIECE_BYTES], False
        head = b""
    if head:
        yield head, False
    yield b"", True


def _pieces(text: str, source: bytes, codec: str, char_at: int, byte_at: int) -> Iterator[Piece]:
    """One piece where lengths follow from the characters, else one for each character (legacy double codes)."""
    if codec.startswith(_ONE_TO_ONE) or text.encode(codec, "replace") == source:
        yield Piece(text, char_at, byte_at)
        return
    decoder = codecs.getincrementaldecoder(codec)("strict")
    start, count = 0, 0
    for at in range(len(source)):
        character = decoder.decode(source[at : at + 1])
        if character:
            yield Piece(character, char_at + count, byte_at + start)
            start, count = at + 1, count + len(character)


class Ruler:
    """Byte offsets of ascending character offsets. Holds only the pieces that are not yet passed."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._pieces: deque[Piece] = deque()
        self._char = 0
        self._byte = 0

    def feed(self, piece: Piece) -> None:
        if not self._pieces:
            self._char, self._byte = piece.char_start, piece.byte_start
        self._pieces.append(piece)

    def byte_at(self, char: int) -> int:
        """Offsets must not fall; each costs the characters since the one before."""
        if char < self._char:
            raise ValueError(f"character {char} lies before {self._char}, which the ruler has passed")
        while len(self._pieces) > 1 and char >= self._pieces[1].char_start:
            self._pieces.popleft()
            self._char, self._byte = self._pieces[0].char_start, self._pieces[0].byte_start
        if char > self._char:
            piece = self._pieces[0]
            passed = piece.text[self._char - piece.char_start : char - piece.char_start]
            self._char, self._byte = char, self._byte + len(passed.encode(self._codec))
        return self._byte
