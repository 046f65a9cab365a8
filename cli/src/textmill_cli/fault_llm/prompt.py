"""Finds in a prompt, whoever wrote it, the text it is about and the question it asks. English and Chinese."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from pydantic import JsonValue

_LABELS = "text|passage|context|document|source|文字|原文|段落|文本|材料"
_SHOWN = re.compile(rf"^\W*(?:{_LABELS})\W*[:：]\s*", re.IGNORECASE | re.MULTILINE)
_QUESTION = re.compile(r"^\W*(?:question|问题)\W*[:：]\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_QUOTED = re.compile(r'(?:\bis|是)[:：]\s*(?:"([^"\n]{8,})"|“([^”\n]{8,})”)\s*$', re.MULTILINE)
_INSTRUCTION = re.compile(r"^\W*(?:question|reply|answer|write|return|respond|问题|请)", re.IGNORECASE)
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?]+[\"')\]]*(?=\s|$)|[。！？]+[”』」）]*|(?=\n|$))")
_WORD = re.compile(r"[\u3400-\u9fff]|\w{3,}")
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Prompt:
    """The messages of a request as one text, the last at its end."""

    text: str

    @cached_property
    def chinese(self) -> bool:
        return _HAN.search(self.passage) is not None

    @cached_property
    def question(self) -> str:
        """The last line that is labelled as a question; empty if there is none."""
        found = _QUESTION.findall(self.text)
        return found[-1] if found else ""

    @cached_property
    def passage(self) -> str:
        """What stands quoted behind ``is:``, or behind a label such as ``Text:``, or else the longest paragraph."""
        labelled = [*_SHOWN.finditer(self.text)]
        quoted = [*_QUOTED.finditer(self.text)]
        if quoted and (not labelled or quoted[-1].start() > labelled[-1].start()):
            return str(quoted[-1][1] or quoted[-1][2])
        if labelled:
            return "\n\n".join(_before_instructions(self.text[labelled[-1].end() :]))
        return max(re.split(r"\n\s*\n", self.text), key=len)

    @cached_property
    def sentences(self) -> Sequence[str]:
        """Those of the passage, each as it stands there. Never empty."""
        return [sentence for sentence, _ in _sentences(self.passage)]

    @cached_property
    def answer(self) -> str:
        """The sentence that shares most words with the question; without a question the first."""
        asked = _words(self.question)
        return max(_sentences(self.passage), key=lambda sentence: len(asked & sentence[1]))[0]


def read_prompt(body: Mapping[str, JsonValue]) -> Prompt:
    """Raises ``ValueError`` when the body has no messages with text."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list with at least one message")
    return Prompt("\n\n".join(text for message in messages for text in _texts(message)))


@lru_cache(maxsize=4096)
def _sentences(passage: str) -> Sequence[tuple[str, frozenset[str]]]:
    """Each sentence with its words: for a server the costliest step, and many prompts show one passage."""
    found = [match[0].strip() for match in _SENTENCE.finditer(passage)]
    return [(sentence, _words(sentence)) for sentence in found if sentence] or [("Nothing.", frozenset())]


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _texts(message: JsonValue) -> Iterator[str]:
    """A message's content is a string, or a list of parts of which some are text."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    elif content is not None:
        raise ValueError("the content of a message must be a string or a list of parts")


def _before_instructions(shown: str) -> Iterator[str]:
    """The first paragraph, and those after it up to one that tells the model what to do."""
    first, *others = re.split(r"\n\s*\n", shown.strip())
    yield first
    for paragraph in others:
        if _INSTRUCTION.search(paragraph):
            return
        yield paragraph
