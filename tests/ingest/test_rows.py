"""JSON lines and CSV: the text of each row, and where it stands."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_cases import passages

from textmill_ingest.rows import BadRow, csv_rows, json_rows

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('"\\\n\r,;\t/'), max_size=30)


def raw_of(passage, data: bytes, codec: str = "utf-8") -> str:
    return data[passage.span.byte_start : passage.span.byte_end].decode(codec)


def test_each_json_line_is_a_unit_with_its_own_span():
    data = '{"id": 1, "text": "地中有水。"}\n\n{"meta": {"text": "no"}, "content": "a\\tb \\u5e08"}\n'.encode()
    found = passages(data, "application/jsonl")
    assert [(p.text, p.exact, raw_of(p, data)) for p in found] == [
        ("地中有水。", True, "地中有水。"),
        ("a\tb 师", False, "a\\tb \\u5e08"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 2 is no JSON object"),
        ("[1]", "line 2 is no JSON object"),
        ('{"text": "a"} x', "line 2 is no JSON object"),
        ('{"question": "q", "answer": "a"}', "line 2 has no text: its fields are 'question', 'answer', one of 'text'"),
        ('{"text": 7}', "line 2: field 'text' is int"),
        ('{"text": "\\ud83d"}', "line 2: field 'text' holds half a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_named(line, message):
    with pytest.raises(BadRow, match=message):
        list(json_rows(['{"text": "fine"}\n', line]))


@given(
    records=st.lists(st.fixed_dictionaries({"n": st.none() | st.floats() | TEXT, "text": TEXT}), max_size=5),
    ascii_=st.booleans(),
)
def test_json_texts_are_what_json_reads(records, ascii_):
    lines = [json.dumps(record, ensure_ascii=ascii_) + "\n" for record in records]
    raw = "".join(lines)
    for row, record in zip(json_rows(lines), records, strict=True):
        assert row.text == record["text"]
        for segment in row.segments:
            source = raw[segment.raw_start : segment.raw_start + segment.raw_length]
            extracted = row.text[segment.text_start : segment.text_start + segment.text_length]
            assert json.loads(f'"{source}"') == extracted


def test_csv_rows_keep_quotes_newlines_and_spans():
    data = 'Id,Content\r\n1,"he said ""go"",\r\nthen left"\r\n2,平文\r\n'.encode("gb18030")
    found = passages(data, "text/csv")
    assert [(p.text, p.exact, raw_of(p, data, "gb18030")) for p in found] == [
        ('he said "go",\nthen left', False, 'he said ""go"",\r\nthen left'),
        ("平文", True, "平文"),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1,2\n", "line 1 names the columns 'a', 'b'; one of 'text', 'content', 'body'"),
        ("id,text\n1,one\n2,two, too\n", "ends in line 3 has 3 cells, the header has 2"),
        ('id,text\n1,"never\nclosed\n', "the quote opened in line 2 is never closed"),
        ('id,text\n1,"a"b\n', "line 2: text follows a closing quote"),
        ("", "line 1 names the columns none"),
    ],
)
def test_a_bad_table_is_named(table, message):
    with pytest.raises(BadRow, match=message):
        list(csv_rows(io.StringIO(table, newline="")))


@given(cells=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t"))
def test_csv_texts_are_what_csv_wrote(cells, delimiter):
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *cells])
    raw = sink.getvalue()
    rows = list(csv_rows(raw.splitlines(keepends=True) if "\x0b" in raw else io.StringIO(raw, newline="")))
    assert [row.text for row in rows] == [text for _, text in cells]
    for row in rows:
        first, last = row.segments[0], row.segments[-1]
        source = raw[first.raw_start : last.raw_start + last.raw_length]
        assert source.replace('""', '"') == row.text
