"""Takes personal data out of whatever is about to be stored. What can't be cleaned is replaced as a whole.

Puts ``[mobile]``, ``[resident_id]``, ``[bank_card]`` or ``[email]`` in its place. Names and addresses aren't found: no
check digit tells them from other words.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from textmill.pii import pii_kinds, pii_spans

WITHHELD = "[withheld: personal data that could not be taken out]"


@dataclass
class Redactor:
    """For one exchange: ``counts`` says what was taken out of all that it was given, by kind."""

    counts: Counter[str] = field(default_factory=Counter)

    def text(self, text: str) -> str:
        """The text without personal data."""
        parts, at = [], 0
        for span in pii_spans(text):
            parts += [text[at : span.start], f"[{span.kind}]"]
            at = span.end
            self.counts[span.kind] += 1
        redacted = "".join([*parts, text[at:]]) if parts else text
        if left := pii_kinds(redacted):
            # Seen only once the text is brought to its normal form, so nobody can say which characters to take out.
            self.counts.update(left)
            return WITHHELD
        return redacted

    def value(self, value: JsonValue) -> JsonValue:
        """The same with every string in it redacted, keys of objects too; pictures and sounds are left out."""
        match value:
            case str():
                return self.text(value) if not value.startswith("data:") else "[data]"
            case dict():
                return self.mapping(value)
            case list():
                return [self.value(item) for item in value]
            case int() if not isinstance(value, bool):
                return self._number(value)
            case _:
                return value

    def mapping(self, value: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        return {self.text(key): self.value(item) for key, item in value.items()}

    def _number(self, value: int) -> JsonValue:
        """A telephone number is one without quotes, too."""
        text = str(value)
        redacted = self.text(text)
        return value if redacted == text else redacted
