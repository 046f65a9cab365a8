"""Encodings are found by proof, in any chunking, and undecodable bytes are an error with an offset."""

import codecs
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_cases import chunked, found_encoding

from textmill.errors import BadRequest, UndecodableText
from textmill_ingest.decoding import Ruler, decode_pieces
from textmill_ingest.encoding import declared_encoding

FRENCH = "Il était une fois un garçon très pressé qui préférait la forêt à la ville."
GERMAN = "Für die Überprüfung müssen größere Mengen geprüft werden."
TRADITIONAL = "我們今天去學校上課，老師說這個問題很重要。"
JAPANESE = "今日は天気がいいから、散歩しましょう。"
KOREAN = "한국어 문장은 이렇게 씁니다. 오늘은 날씨가 좋습니다."
RUSSIAN = "Сегодня хорошая погода, пойдём гулять в парк."


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_decides(mark, name):
    found = found_encoding(mark + "乾 Qian".encode(name), chunk_bytes=1)
    assert (found.name, found.method, found.confidence) == (name, "bom", 1.0)


@pytest.mark.parametrize("text", ["plain", "", "乾为天，元亨利贞。", "a\r\nb", "é", "😀"])
def test_strict_utf8_is_certain(text):
    found = found_encoding(text.encode(), chunk_bytes=1)
    assert (found.name, found.method, found.confidence) == ("utf-8", "utf-8", 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "乾为天",
        "师卦：坤上坎下，地中有水。",
        "屯：元亨，利贞，勿用，有攸往，利建侯。",
        "The hexagram 师 (shi) stands for the army: 地水师。",
        "師卦由坤坎兩卦組成，象徵軍隊與紀律。我們學習這個問題。",
    ],
)
def test_short_chinese_in_gb18030_is_found(text):
    found = found_encoding(text.encode("gb18030"), chunk_bytes=1)
    assert (found.name, found.method) == ("gb18030", "gb18030")
    assert found.confidence > 0.9


@pytest.mark.parametrize(
    ("text", "encoding", "allowed"),
    [
        (FRENCH, "latin-1", {"cp1252", "cp1250"}),
        (GERMAN, "latin-1", {"cp1252", "cp1250"}),
        (TRADITIONAL, "big5", {"big5"}),
        (JAPANESE, "shift_jis", {"cp932"}),
        (KOREAN, "euc_kr", {"cp949"}),
        (RUSSIAN, "koi8_r", {"koi8-r"}),
        (RUSSIAN, "cp1251", {"cp1251"}),
    ],
)
def test_what_only_looks_like_gb18030_is_detected_and_reads_right(text, encoding, allowed):
    data = text.encode(encoding)
    found = found_encoding(data)
    assert found.method == "detected"
    assert found.name in allowed
    assert found.confidence < 1.0
    assert data.decode(found.name) == text


def test_utf16_without_a_mark_is_not_taken_for_utf8_with_nuls():
    data = "Hexagram seven is the army.\n".encode("utf-16-le") * 3
    assert found_encoding(data).name == "utf-16-le"


@pytest.mark.parametrize("data", [bytes(range(256)) * 4, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + os.urandom(4000)])
def test_binary_bytes_are_refused_with_offsets(data):
    with pytest.raises(UndecodableText, match=r"utf-8 .* at byte \d+.*gb18030 .* at byte \d+"):
        found_encoding(data)


def test_the_offset_is_that_of_the_bad_byte_whatever_the_chunks():
    data = "好".encode() * 100 + b"\xff" + b"tail"
    for size in (1, 7, 64, 1000):
        with pytest.raises(UndecodableText, match="utf-8 fails at byte 300 "):
            found_encoding(data, chunk_bytes=size)


def test_a_mark_that_the_bytes_break_is_an_error_not_a_guess():
    with pytest.raises(UndecodableText, match="mark of utf-8, but utf-8 fails at byte 5"):
        found_encoding(codecs.BOM_UTF8 + b"ok\xff")


def test_a_declared_encoding_is_proved():
    data = "été".encode("latin-1")
    assert declared_encoding("latin-1", lambda: [data]).method == "declared"
    with pytest.raises(UndecodableText, match="declared as 'utf-8', but utf-8 fails at byte 0"):
        declared_encoding("utf-8", lambda: [data])
    with pytest.raises(BadRequest, match="unknown encoding 'klingon'"):
        declared_encoding("klingon", lambda: [data])
    with pytest.raises(BadRequest, match="shifts between states"):
        declared_encoding("iso2022_jp", lambda: [data])


@given(
    text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200),
    codec=st.sampled_from(["utf-8", "utf-16-le", "utf-32-be", "gb18030"]),
    size=st.integers(1, 50),
)
def test_every_character_keeps_its_byte(text, codec, size):
    text = text.lstrip("\ufeff")
    data = text.encode(codec)
    ruler, read = Ruler(codec), ""
    for piece in decode_pieces(chunked(data, size), codec):
        ruler.feed(piece)
        read += piece.text
    assert read == text
    for position in range(len(text) + 1):
        if text:
            assert ruler.byte_at(position) == len(text[:position].encode(codec))


def test_a_character_with_two_codes_of_different_length_keeps_its_bytes():
    # euc_jp reads 8F A2 B7 as a tilde, whose own code is a single byte.
    data = "漢".encode("euc_jp") + b"\x8f\xa2\xb7" + "字~".encode("euc_jp")
    for size in range(1, len(data)):
        ruler, read = Ruler("euc_jp"), ""
        for piece in decode_pieces(chunked(data, size), "euc_jp"):
            ruler.feed(piece)
            read += piece.text
        assert read == "漢~字~"
        assert [ruler.byte_at(i) for i in range(5)] == [0, 2, 5, 7, 8]
