"""Preference pairs in the store: uploaded once, all lines or none. No torch."""

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message
from textmill.contracts.preferences import PreferenceLine, PreferencePair, PreferencesManifest
from textmill.errors import BadRequest, NotFound
from textmill.store import ObjectStore

_SHOWN_LINES = 20


def parse_pairs(data: bytes) -> list[PreferencePair]:
    """The pairs of an upload in JSON lines; one that stands there twice is kept once.

    Raises:
        BadRequest: with the number of every line that is no pair and what is wrong there, up to twenty.
    """
    pairs: dict[str, PreferencePair] = {}
    wrong: list[str] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            pair = _pair_of(PreferenceLine.model_validate_json(line))
            pairs[pair.pair_id] = pair
        except ValidationError as exc:
            wrong.append(f"line {number}: {_in_words(exc)}")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN_LINES} more lines" if len(wrong) > _SHOWN_LINES else ""
        raise BadRequest(f"nothing was stored; {'; '.join(wrong[:_SHOWN_LINES])}{more}")
    if not pairs:
        raise BadRequest('the upload holds no pair; each line is {"prompt": ..., "chosen": ..., "rejected": ...}')
    return list(pairs.values())


def keep_pairs(store: ObjectStore, pairs: Sequence[PreferencePair]) -> tuple[PreferencesManifest, bool]:
    """Store them under an id that follows from their content. False if they were there already."""
    data = b"".join(pair.to_json() + b"\n" for pair in pairs)
    sha256 = hashlib.sha256(data).hexdigest()
    preferences_id = content_id("prf", sha256)
    prefix = f"preferences/{preferences_id}/"
    manifest = PreferencesManifest(
        preferences_id=preferences_id,
        pairs=len(pairs),
        pairs_key=f"{prefix}pairs.jsonl",
        sha256=sha256,
        document_ids=sorted({p.document_id for p in pairs if p.document_id is not None}),
    )
    if store.exists(f"{prefix}manifest.json"):
        return read_preferences(store, preferences_id), False
    store.put(manifest.pairs_key, data)
    if store.create(f"{prefix}manifest.json", manifest.to_json()):
        return manifest, True
    return read_preferences(store, preferences_id), False


def read_preferences(store: ObjectStore, preferences_id: str) -> PreferencesManifest:
    """Raises ``NotFound``."""
    try:
        return PreferencesManifest.model_validate_json(store.get(f"preferences/{preferences_id}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no preferences {preferences_id!r}: upload the pairs with POST /v1/preferences") from exc


def read_pairs(lines: Iterable[bytes]) -> list[PreferencePair]:
    return [PreferencePair.model_validate_json(line) for line in lines if line.strip()]


def _pair_of(line: PreferenceLine) -> PreferencePair:
    messages = line.messages or (Message(role="user", content=line.prompt or ""),)
    said = [message.model_dump_json() for message in messages]
    return PreferencePair(
        pair_id=content_id("prp", *said, line.chosen, line.rejected),
        messages=messages,
        chosen=line.chosen,
        rejected=line.rejected,
        document_id=line.document_id,
    )


def _in_words(exc: ValidationError) -> str:
    found = []
    for error in exc.errors(include_url=False, include_input=False):
        where = ".".join(map(str, error["loc"]))
        # Its parser was given one line, and calls that line 1.
        what = error["msg"].removeprefix("Value error, ").replace(" at line 1 column ", " at column ")
        found.append(f"{where}: {what}" if where else what)
    return ", ".join(found)
