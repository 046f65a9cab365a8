"""Finds out how bytes are to be read as text, honestly and in constant memory: no guess passes unproved.

The order is byte-order mark, strict UTF-8, strict GB18030 that reads as Chinese, then charset-normalizer's guess, each
proved by decoding all of the bytes. The first two are decided while the bytes stream by; only files that fail both
cost another reading. Knows nothing of stores.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from charset_normalizer import CharsetMatch, from_bytes

from textmill.contracts.documents import Encoding
from textmill.errors import BadRequest, UndecodableText
from textmill_ingest.chinese import ChineseEvidence

Read = Callable[[], Iterable[bytes]]
"""Reads all the bytes again, from the start."""
# UTF-32 first: its little-endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
LONGEST_MARK = 4
_CANDIDATES = ["big5", "cp932", "euc_jp", "cp949", "cp1252", "cp1250", "cp1251", "koi8_r", "utf_16_le", "utf_16_be"]
"""What charset-normalizer may answer. Its full list of ninety has look-alikes that win on short texts."""
_STATEFUL = ("utf-7", "hz", "iso2022")
_SAMPLE_BYTES = 64 * 1024
_PLAUSIBLE = 0.5


class DecodingProof:
    """Decodes a stream strictly and drops the text: either all of it is text in this encoding, or where it isn't.

    A NUL counts as undecodable: no text file has one, binary files and UTF-16 without a mark do.
    """

    def __init__(self, codec: str, see: Callable[[str], None] | None = None) -> None:
        self.codec = codec
        self.error: str | None = None
        self._decoder = codecs.getincrementaldecoder(codec)("strict")
        self._decoded_bytes = 0
        self._see = see

    def feed(self, chunk: bytes, final: bool = False) -> None:
        if self.error is not None:
            return
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as exc:
            self.error = f"{self.codec} fails at byte {self._decoded_bytes + exc.start} ({exc.reason})"
            return
        if "\0" in text:
            before = text[: text.index("\0")].encode(self.codec)
            self.error = f"{self.codec} meets a NUL at byte {self._decoded_bytes + len(before)}"
            return
        self._decoded_bytes += pending + len(chunk) - len(self._decoder.getstate()[0])
        if self._see is not None:
            self._see(text)

    def finish(self) -> bool:
        self.feed(b"", final=True)
        return self.error is None


class EncodingProbe:
    """Watches bytes stream by. ``finish`` answers when a mark or strict UTF-8 decided, else None."""

    def __init__(self) -> None:
        self._head = b""
        self._mark: str | None = None
        self._proof: DecodingProof | None = None

    def feed(self, chunk: bytes) -> None:
        if self._proof is None:
            self._head += chunk
            if len(self._head) < LONGEST_MARK:
                return
            chunk = self._start()
        assert self._proof is not None
        self._proof.feed(chunk)

    def finish(self) -> Encoding | None:
        """
        Raises:
            UndecodableText: a byte-order mark promised an encoding that the bytes don't keep.
        """
        if self._proof is None:
            head = self._start()
            assert self._proof is not None
            self._proof.feed(head)
        if self._proof.finish():
            return Encoding(name=self._proof.codec, method="bom" if self._mark else "utf-8", confidence=1.0)
        if self._mark is not None:
            raise UndecodableText(f"the file begins with the mark of {self._mark}, but {self._proof.error}")
        return None

    def _start(self) -> bytes:
        self._mark = mark_of(self._head)
        self._proof = DecodingProof(self._mark or "utf-8")
        return self._head


def mark_of(head: bytes) -> str | None:
    """The encoding whose byte-order mark the bytes begin with."""
    return next((codec for mark, codec in BYTE_ORDER_MARKS if head.startswith(mark)), None)


def mark_bytes(head: bytes, codec: str) -> int:
    """How many bytes of ``head`` are the byte-order mark of ``codec``."""
    return next((len(mark) for mark, of in BYTE_ORDER_MARKS if of == codec and head.startswith(mark)), 0)


def declared_encoding(name: str, read: Read) -> Encoding:
    """What the caller says, proved.

    Raises:
        BadRequest: no such encoding, or one that can't be read from any place.
        UndecodableText: the bytes aren't text in it.
    """
    codec = _codec_name(name, read)
    proof = _prove(codec, read)
    if proof.error is not None:
        raise UndecodableText(f"declared as {name!r}, but {proof.error}; leave the encoding out to have it found")
    return Encoding(name=codec, method="declared", confidence=1.0)


def detect_encoding(read: Read) -> Encoding:
    """What ``EncodingProbe`` couldn't settle: GB18030, then detection. Reads the bytes up to five times.

    Raises:
        UndecodableText: with the byte offset at which each encoding failed.
    """
    utf8 = _prove("utf-8", read)
    evidence = ChineseEvidence()
    chinese = _prove("gb18030", read, evidence.add)
    if chinese.error is None and evidence.confidence >= _PLAUSIBLE:
        return Encoding(name="gb18030", method="gb18030", confidence=round(evidence.confidence, 4))
    failures = [utf8.error, chinese.error or "gb18030 gives characters that no Chinese text has"]
    for match in _guesses(read):
        proof = _prove(match.codec, read)
        if proof.error is None:
            return Encoding(name=match.codec, method="detected", confidence=match.confidence)
        failures.append(proof.error)
    raise UndecodableText(
        f"the bytes are no text in any encoding tried: {'; '.join(f for f in failures if f)}; "
        "if this is text, declare its encoding with ?encoding="
    )


@dataclass(frozen=True)
class _Guess:
    codec: str
    confidence: float


def _guesses(read: Read) -> list[_Guess]:
    """charset-normalizer's best guesses on the lines that decide, at most three."""
    matches = from_bytes(_sample(read()), cp_isolation=_CANDIDATES)
    return [_Guess(codecs.lookup(m.encoding).name, _confidence(m)) for m in list(matches)[:3]]


def _confidence(match: CharsetMatch) -> float:
    """1 less the share of mess it saw, halved where it recognised no language."""
    certainty = (1.0 - match.chaos) * (0.5 + 0.5 * min(1.0, match.coherence))
    return round(max(0.0, min(1.0, certainty)), 4)


def _sample(chunks: Iterable[bytes]) -> bytes:
    """Lines that aren't plain ASCII, or the head of the file where NULs say that it isn't made of byte lines."""
    sample, rest, head = bytearray(), b"", b""
    for chunk in chunks:
        head = head or chunk[:_SAMPLE_BYTES]
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.isascii():
                sample += line[:_SAMPLE_BYTES] + b"\n"
        if len(sample) >= _SAMPLE_BYTES or len(rest) >= _SAMPLE_BYTES:
            break
    if b"\0" in head:
        return head[: len(head) // 2 * 2]
    return bytes(sample + rest[:_SAMPLE_BYTES])


def _prove(codec: str, read: Read, see: Callable[[str], None] | None = None) -> DecodingProof:
    proof = DecodingProof(codec, see)
    for chunk in _in_pieces(read()):
        proof.feed(chunk)
        if proof.error is not None:
            return proof
    proof.finish()
    return proof


def _in_pieces(chunks: Iterable[bytes], size: int = 1 << 16) -> Iterator[bytes]:
    """Chunks of at most 64 KiB, so that a decoded chunk stays small."""
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def _codec_name(name: str, read: Read) -> str:
    try:
        codec = codecs.lookup(name).name
        codecs.getincrementaldecoder(codec)
        b"".decode(codec)
    except (LookupError, ValueError) as exc:
        raise BadRequest(
            f"unknown encoding {name!r}; known are utf-8, gb18030, big5, shift_jis, cp1252 and others"
        ) from exc
    if codec.startswith(_STATEFUL):
        raise BadRequest(f"encoding {name!r} shifts between states, so byte spans mean nothing; convert it to utf-8")
    if codec in {"utf-16", "utf-32"}:
        head = next(iter(read()), b"")
        return mark_of(head) or f"{codec}-le"
    return {"utf-8-sig": "utf-8", "gb2312": "gb18030", "gbk": "gb18030"}.get(codec, codec)
