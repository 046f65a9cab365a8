"""Planted personal data never reaches the store, whatever form it comes in; other numbers do."""

import json

import pytest
from traffic_made import EVERYONE, MoodyStore, exchanged, stored_text

from textmill.contracts.traffic import NewFeedback
from textmill_inference.flywheel.feedback import keep_feedback
from textmill_inference.flywheel.log import LogBounds, RequestLog
from textmill_inference.flywheel.redact import WITHHELD, Redactor
from textmill_inference.flywheel.segments import write_policy

PLANTED = {
    "打13800138000找我": "打[mobile]找我",
    "phone +86 138 0013 8000, thanks": "phone [mobile], thanks",
    "手机１３８００１３８０００。": "手机[mobile]。",
    "13800138000 13900139000": "[mobile] [mobile]",
    "身份证号11010519491231002X": "身份证号[resident_id]",
    "卡号6222021234567890128和4539 1488 0343 6467": "卡号[bank_card]和[bank_card]",
    "write to li.lei@example.com.cn!": "write to [email]!",
    "ｌｉ＠example.com": "[email]",
}


@pytest.mark.parametrize("text", PLANTED)
def test_planted_data_is_taken_out_and_the_rest_stays(text):
    assert Redactor().text(text) == PLANTED[text]


@pytest.mark.parametrize(
    "text", ["第三卦，六爻，公元前1046年", "订单号 138001380001", "3.14159265358979323846", "🙂 a@b"]
)
def test_what_is_no_personal_data_stays_to_the_letter(text):
    redact = Redactor()
    assert redact.text(text) == text
    assert not redact.counts


def test_what_only_the_normal_form_shows_is_withheld_as_a_whole():
    # U+2469 is one character for "10": no span of the original is the number.
    redact = Redactor()
    assert redact.text("call 139001390\u2469") == WITHHELD
    assert redact.counts["mobile"] == 1


def test_every_string_of_a_request_is_looked_at():
    given = {
        "role": "user",
        "content": [{"type": "text", "text": "13800138000"}, {"type": "image_url", "url": "data:image/png;base64,AA"}],
        "li@example.com": 13800138000,
        "n": 3,
        "ok": True,
    }
    assert Redactor().mapping(given) == {
        "role": "user",
        "content": [{"type": "text", "text": "[mobile]"}, {"type": "image_url", "url": "[data]"}],
        "[email]": "[mobile]",
        "n": 3,
        "ok": True,
    }


def test_nothing_planted_reaches_the_store():
    store = MoodyStore()
    write_policy(store, EVERYONE)
    log = RequestLog(store, LogBounds(flush_s=0.01))
    secrets = ["13800138000", "11010519491231002X", "6222021234567890128", "li@example.com", "alice"]
    request = {
        "model": "small",
        "user": "alice",
        "metadata": {"who": "alice"},
        "messages": [{"role": "user", "content": " ".join(secrets[:4]), "name": "13800138000"}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "mail li@example.com"}}],
        "stop": ["13800138000"],
    }
    call = {"index": 0, "function": {"name": "dial", "arguments": '{"number": "138 0013 8000"}'}}
    choice = {"index": 0, "message": {"content": "卡号6222021234567890128", "tool_calls": [call]}}
    log.start()
    log.record(exchanged(request=request, answer=json.dumps({"choices": [choice]}).encode()))
    log.stop()
    feedback = NewFeedback(request_id="req_0", corrected_answer="问li@example.com", comment="我是13800138000")
    keep_feedback(store, feedback)
    texts = list(stored_text(store))
    assert len(texts) == 3
    for secret in (*secrets, "138 0013 8000"):
        assert not [text for text in texts if secret in text], f"{secret} was stored"
