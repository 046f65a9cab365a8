"""Which media type a file is taken for."""

import pytest

from textmill.errors import BadRequest
from textmill_ingest.media import UnsupportedMedia, clean_name, media_type_of, parse_content_type


@pytest.mark.parametrize(
    ("given", "name", "media_type"),
    [
        ("", "a.TXT", "text/plain"),
        ("application/octet-stream", "a.md", "text/markdown"),
        ("text/html", "a.txt", "text/html"),
        ("application/x-ndjson", "a", "application/jsonl"),
        ("application/vnd.ms-excel", "a.csv", "text/csv"),
    ],
)
def test_the_given_type_goes_before_the_extension(given, name, media_type):
    assert media_type_of(given, name) == media_type


@pytest.mark.parametrize(("given", "name"), [("", "a.pdf"), ("application/pdf", "a.txt"), ("", "noext")])
def test_other_types_are_refused_and_the_allowed_ones_named(given, name):
    with pytest.raises(UnsupportedMedia, match="allowed are text/plain, text/markdown, text/html"):
        media_type_of(given, name)


def test_content_types_are_taken_apart():
    assert parse_content_type('Text/HTML; charset="GB2312"') == ("text/html", "GB2312")
    assert parse_content_type("") == ("application/octet-stream", None)


def test_names_lose_their_path_and_control_characters():
    assert clean_name("C:\\tmp\\师.txt") == "师.txt"
    assert clean_name("../../etc/pass\x00wd") == "passwd"
    with pytest.raises(BadRequest, match="at most 255"):
        clean_name("师" * 86)
