"""The main text of a page, and the way back into its markup."""

import html

from hypothesis import given
from hypothesis import strategies as st
from ingest_cases import passages

from textmill_ingest.html_text import page_text

PAGE = """<!doctype html>
<html><head><title>T</title><script>var x = "<p>no</p>";</script></head><body>
<nav><a href="/">Home</a> <a href="/a">About</a></nav>
<article><h1>Hexagram 7 &amp; the Army</h1>
<p>The <b>Army</b> needs perseverance&nbsp;and a strong man.
Good fortune comes to those who wait &ldquo;long&rdquo;.</p>
<h2>Lines</h2><p>Six lines, of which only the second is solid. An army must set forth in proper order, or it fails.</p>
<ul><li>first item of the list here</li><li>second item, &#x5e08; in Chinese</li></ul>
<p>Six lines, of which only the second is solid. An army must set forth in proper order, or it fails.</p>
</article><footer>(c) 2020</footer></body></html>"""


def test_main_text_without_navigation_and_scripts():
    text = page_text(PAGE).text
    assert "strong man" in text
    assert "second item, 师 in Chinese" in text
    assert "About" not in text
    assert "var x" not in text


def test_sections_follow_the_page_s_own_headings():
    found = passages(PAGE.encode(), "text/html", method="headings")
    assert [p.heading for p in found] == ["Hexagram 7 & the Army", "Lines"]


def test_every_passage_leads_back_to_its_markup():
    data = PAGE.encode("utf-16")
    for passage in passages(data, "text/html", method="budget", max_characters=60):
        raw = data[passage.span.byte_start : passage.span.byte_end].decode("utf-16-le")
        assert PAGE[passage.span.char_start : passage.span.char_end] == raw
        bare = html.unescape(raw.replace("<b>", "").replace("</b>", "")).replace("\xa0", " ")
        assert passage.text.removeprefix("- ").split()[0] in bare
        assert passage.text.split()[-1] in bare


def test_the_same_page_read_thrice_still_has_its_text():
    long = PAGE.replace("Six lines", "Six lines " + "of earth over water, water under earth, " * 20)
    assert len({page_text(long).text for _ in range(5)}) == 1


def test_a_page_without_main_text_gives_all_that_is_visible():

    assert page_text("<p>tiny <i>page</i></p><script>no</script>").text.split() == ["tiny", "page"]


def test_a_page_without_text_gives_none():
    assert passages(b"<html><body><script>1</script></body></html>", "text/html") == []


@given(
    st.lists(
        st.sampled_from(
            [
                "<p>",
                "</p>",
                "<b>",
                "&amp;",
                "&#65;",
                "text here. ",
                "师",
                "\n",
                "<!-- c -->",
                "<br/>",
                "<h2>",
                "</h2>",
                "<script>",
                "</script>",
                "&bogus;",
                "<",
                "&",
            ]
        ),
        max_size=40,
    ).map("".join)
)
def test_any_markup_is_read_and_every_segment_lies_inside_it(source):
    page = page_text(source)
    text_at = raw_at = 0
    for segment in page.segments:
        assert segment.text_start == text_at
        assert segment.raw_start >= raw_at
        text_at, raw_at = segment.text_start + segment.text_length, segment.raw_start + segment.raw_length
    assert text_at == len(page.text)
    assert raw_at <= len(source)
