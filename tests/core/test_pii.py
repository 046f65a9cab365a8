"""Personal data with right check digits is found, other numbers are left alone. All numbers are made up."""

import pytest

from textmill.pii import is_bank_card, is_resident_id, pii_kinds, pii_spans

TABLE = {
    "打13800138000联系他。": ("mobile",),
    "电话：138-0013-8000": ("mobile",),
    "call +86 138 0013 8000 now": ("mobile",),
    "手机１３８００１３８０００。": ("mobile",),
    "电话是12800138000": (),
    "订单号 138001380001": (),
    "订单号X13800138000": (),
    "身份证号11010519491231002X": ("resident_id",),
    "身份证号11010519491231002x。": ("resident_id",),
    "身份证 110105 19491231 002X": ("resident_id",),
    "身份证号440524188001010014": ("resident_id",),
    "身份证号110105194912310021": (),
    "身份证号11010519491331002X": (),
    "身份证号11010519490231002X": (),
    "卡号4539 1488 0343 6467": ("bank_card",),
    "卡号6222021234567890128": ("bank_card",),
    "card 378282246310005": ("bank_card",),
    "卡号4539148803436468": (),
    "at 1700000000000 ms": (),
    "pi is 3.14159265358979323846": (),
    "写信给 li.lei@example.com。": ("email",),
    "邮箱是li.lei@example.com.cn": ("email",),
    "see @property and a@b": (),
    "第三卦，六爻，公元前1046年": (),
    "li@example.com 13800138000": ("email", "mobile"),
    "": (),
}


@pytest.mark.parametrize("text", TABLE)
def test_kinds_in_a_text(text: str) -> None:
    assert pii_kinds(text) == TABLE[text]


def test_each_check_digit_but_one_is_wrong() -> None:
    assert [d for d in "0123456789X" if is_resident_id(f"53010219200508011{d}")] == ["X"]
    assert [d for d in "0123456789" if is_bank_card(f"453914880343646{d}")] == ["7"]


def test_one_changed_digit_is_seen() -> None:
    for number, check in (("440524188001010014", is_resident_id), ("6222021234567890128", is_bank_card)):
        assert check(number)
        for place, digit in enumerate(number):
            changed = f"{number[:place]}{(int(digit) + 1) % 10}{number[place + 1 :]}"
            assert not check(changed)


SPANS = {
    "打１３８00138000、li@example.com": [("mobile", 1, 12), ("email", 13, 27)],
    "13800138000 13900139000": [("mobile", 0, 11), ("mobile", 12, 23)],
    "no. 12 13800138000-4539 1488 0343 6467": [("mobile", 7, 18), ("bank_card", 19, 38)],
    "𝟏𝟑𝟖𝟎𝟎𝟏𝟑𝟖𝟎𝟎𝟎": [("mobile", 0, 11)],
    "订单号 138001380001": [],
    "": [],
}


@pytest.mark.parametrize("text", SPANS)
def test_spans_are_places_in_the_text_as_it_stands(text: str) -> None:
    assert [(span.kind, span.start, span.end) for span in pii_spans(text)] == SPANS[text]


def test_a_span_holds_what_its_kind_says() -> None:
    for text, kinds in TABLE.items():
        assert tuple(sorted({span.kind for span in pii_spans(text)})) == kinds
