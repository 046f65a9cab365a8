"""Texts that are nearly the same meet; the cost of many that share a key stays linear."""

import json
import os
import random
import subprocess
import sys

from textmill_synth.quality.minhash import MeetingPlace, meeting_keys
from textmill_synth.quality.wording import read_wording

WORDS = ("fog", "bell", "tower", "log", "oil", "wick", "reef", "gull", "tide", "chart", "crew", "sail", "mast", "rope")


def meetings(*texts: str) -> list[tuple[int, int]]:
    place = MeetingPlace()
    for number, text in enumerate(texts):
        place.add(number, meeting_keys(read_wording(text)))
    return list(place.meetings())


def long_text(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=60))


def test_short_texts_meet_by_their_content_words() -> None:
    assert meetings("What is Qian?", "What is Kun?", "So what's Qian?") == [(2, 0)]
    assert meetings("乾卦是什么？", "坤卦是什么？", "请问乾卦是什么呢") == [(2, 0)]


def test_long_texts_meet_by_their_shingles() -> None:
    texts = [long_text(n) for n in range(20)]
    changed = [f"{text} and the keeper wrote it down" for text in texts]
    assert meetings(*texts) == []
    assert meetings(*texts, *changed) == [(20 + n, n) for n in range(20)]


def test_no_text_and_equal_keys_of_many_rows() -> None:
    assert meetings() == []
    found = meetings(*["What is Qian?"] * 100)
    assert (99, 0) in found
    assert (99, 98) in found
    assert len(found) <= 100 * 8
    assert len(set(found)) == len(found)


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from textmill_synth.quality.minhash import meeting_keys\n"
        "from textmill_synth.quality.wording import read_wording\n"
        f"print(meeting_keys(read_wording({long_text(1)!r})))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert json.loads(found.stdout) == meeting_keys(read_wording(long_text(1)))
    assert len(meeting_keys(read_wording(long_text(1)))) == 17
    assert len(meeting_keys(read_wording("What is Qian?"))) == 1


def test_a_number_keeps_long_texts_apart() -> None:
    assert meetings(f"{long_text(1)} 17", f"{long_text(1)} 17 or so") == [(1, 0)]
    assert meetings(f"{long_text(1)} 17", f"{long_text(1)} 18 or so") == []
