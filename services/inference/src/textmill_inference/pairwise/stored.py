"""A comparison in the store. All but the setup's prompts is create-only, so whatever was read once stays so.

::

    comparisons/<id>/setup.json                       prompts and salt, as the first attempt found them
    comparisons/<id>/answers/<hash>.json              one answer each; nothing is asked twice
    comparisons/<id>/judgements/<pair>-<0 or 1>.json  the judge's two looks at a pair
    comparisons/<id>/attempt-<n>/sides.jsonl, pairs.jsonl
    comparisons/<id>/manifest.json                    written last
    comparisons/<id>/votes/<pair>/<voter>.json        one vote a pair and voter
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from textmill.contracts.base import Id, StoredContract, content_id
from textmill.contracts.pairwise import ComparedPrompt, ComparisonManifest, Judgement, Pair, Side, Vote
from textmill.errors import NotFound
from textmill.store import ObjectStore

COMPARISONS = "comparisons/"
_MOST_OPEN = 8


class Setup(StoredContract):
    """What the first attempt decided, for all that come after it."""

    comparison_id: Id
    salt: str
    prompts: Sequence[ComparedPrompt]


def prefix_of(comparison_id: str) -> str:
    return f"{COMPARISONS}{comparison_id}/"


def manifest_key(comparison_id: str) -> str:
    return f"{prefix_of(comparison_id)}manifest.json"


def answer_key(comparison_id: str, *identity: str) -> str:
    return f"{prefix_of(comparison_id)}answers/{content_id('ans', *identity)}.json"


def judgement_key(comparison_id: str, pair_id: str, order: int) -> str:
    return f"{prefix_of(comparison_id)}judgements/{pair_id}-{order}.json"


def voter_hash(voter: str) -> str:
    return content_id("vtr", " ".join(voter.split()).casefold())


def vote_key(comparison_id: str, pair_id: str, voter: str) -> str:
    return f"{prefix_of(comparison_id)}votes/{pair_id}/{voter_hash(voter)}.json"


@dataclass
class StoredComparison:
    """A finished comparison. What it has read it keeps: none of it ever changes."""

    store: ObjectStore
    manifest: ComparisonManifest
    _votes: dict[str, Vote] = field(default_factory=dict)
    _judgements: dict[str, Judgement] = field(default_factory=dict)

    @cached_property
    def sides(self) -> Mapping[str, Side]:
        """By prompt id."""
        lines = self.store.get(self.manifest.sides_key).split(b"\n")
        sides = (Side.model_validate_json(line) for line in lines if line)
        return {side.prompt.prompt_id: side for side in sides}

    @cached_property
    def pairs(self) -> Mapping[str, Pair]:
        """By pair id."""
        lines = self.store.get(self.manifest.pairs_key).split(b"\n")
        pairs = (Pair.model_validate_json(line) for line in lines if line)
        return {pair.pair_id: pair for pair in pairs}

    def text(self, pair: Pair, model: str) -> str:
        return next(a.text for a in self.sides[pair.prompt_id].answers if a.model == model)

    def vote_keys(self) -> list[str]:
        return [info.key for info in self.store.list(f"{prefix_of(self.manifest.comparison_id)}votes/")]

    def votes(self) -> list[Vote]:
        """All there are now."""
        keys = self.vote_keys()
        for key in keys:
            if key not in self._votes:
                self._votes[key] = Vote.model_validate_json(self.store.get(key))
        return [self._votes[key] for key in keys]

    def judgements(self) -> list[Judgement]:
        keys = [info.key for info in self.store.list(f"{prefix_of(self.manifest.comparison_id)}judgements/")]
        for key in keys:
            if key not in self._judgements:
                self._judgements[key] = Judgement.model_validate_json(self.store.get(key))
        return [self._judgements[key] for key in keys]


class Comparisons:
    """Opens finished comparisons; the last few stay in memory."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open: dict[str, StoredComparison] = {}
        self._lock = threading.Lock()

    def get(self, comparison_id: str) -> StoredComparison:
        """Raises ``NotFound``."""
        with self._lock:
            found = self._open.get(comparison_id)
        if found is not None:
            return found
        try:
            data = self._store.get(manifest_key(comparison_id))
        except NotFound as exc:
            raise NotFound(
                f"no comparison {comparison_id!r}, or not all its answers are there: GET /v1/jobs tells how far it is"
            ) from exc
        found = StoredComparison(self._store, ComparisonManifest.model_validate_json(data))
        with self._lock:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            return self._open.setdefault(comparison_id, found)
