"""Finds the words of an answer that are not in its language. Foreign words that its source uses are allowed.

Knows Chinese by its characters, English by its small words, and other European tongues by theirs.
"""

import re

from textmill.contracts.documents import Language
from textmill_synth.tokens import lower, tokens

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_FOREIGN_SCRIPT = re.compile(r"[\u0400-\u04ff\u0590-\u06ff\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\uac00-\ud7af]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
_ENGLISH_GLUE_LIST = "the a an is are was were be of to in and or that it its for with on as by from this has at not"
_ENGLISH_GLUE = frozenset(_ENGLISH_GLUE_LIST.split())
_FOREIGN_GLUE_LIST = """
der die das und ist nicht mit von zu den dem ein eine wird auf le la les des est une un et du au aux il elle ne pas dans
qui que el los las en es por para del y se su não em foi da do na os uma il di che per non della gli sono het een van a
"""
_FOREIGN_GLUE = frozenset(_FOREIGN_GLUE_LIST.split())


def foreign_words(answer: str, passage: str, question: str, language: Language) -> list[str]:
    """Words and characters of another tongue that neither the passage nor the question has."""
    scripts = _FOREIGN_SCRIPT.findall(answer)
    scripts += _HAN.findall(answer) if language == "en" else _LATIN_WORD.findall(answer)
    foreign = [word for word in scripts if word.lower() not in lower(passage) and word.lower() not in lower(question)]
    if foreign or (language == "zh" and _HAN.search(answer)):
        return foreign
    return _not_english(answer, passage) if language == "en" else _not_chinese(answer, passage)


def _not_chinese(answer: str, passage: str) -> list[str]:
    """All words of an answer without a Chinese character, unless it stands in the passage like that."""
    copied = answer.strip().lower() in lower(passage)
    return answer.split() if _LATIN_WORD.search(answer) and not copied else []


def _not_english(answer: str, passage: str) -> list[str]:
    """The answer's own words where they are of another European tongue: by its small words, or by the lack of any."""
    words, source = tokens(answer), lower(passage)
    other = [w for w in words if w in _FOREIGN_GLUE or not w.isascii()]
    if not other:
        return []
    own = [w for w in words if w not in source]
    if len(other) >= 2 and len(other) > sum(w in _ENGLISH_GLUE for w in words) and len(own) * 3 >= len(words):
        return other
    accented = any(not w.isascii() for w in own)
    return own if accented and len(words) >= 6 and not _ENGLISH_GLUE & set(words) else []
