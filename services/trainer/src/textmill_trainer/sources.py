"""What a train job learns from, by objective: records of a dataset, the text of a corpus, or preference pairs.

Each is split into training and evaluation by document, so that what is evaluated on was not trained on in other words.
No torch.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.documents import CorpusManifest, Document, Passage
from textmill.contracts.jobs import TrainJob
from textmill.contracts.preferences import PreferencePair
from textmill.errors import BadRequest, NotFound
from textmill.store import ObjectStore
from textmill_trainer.preferences import read_pairs, read_preferences
from textmill_trainer.runstore import download
from textmill_trainer.workfolder import RawText, WorkFolder


@dataclass(frozen=True)
class TrainingSource:
    """``described`` counts it for a reader of the model card; ``fetch`` puts the splits into a work folder."""

    described: str
    document_ids: Sequence[str]
    fetch: Callable[[WorkFolder], None]
    dataset_id: str | None = None
    corpus_id: str | None = None
    preferences_id: str | None = None


def read_source(store: ObjectStore, job: TrainJob) -> TrainingSource:
    """Raises ``NotFound`` if there is no such source, ``BadRequest`` if it has nothing to train on."""
    if job.objective == "pretrain":
        return _corpus(store, job.source_id, job.eval_share)
    if job.objective == "dpo":
        return _preferences(store, job.source_id, job.eval_share)
    return _dataset(store, job.source_id)


def held_out(keys: Collection[str], share: float) -> frozenset[str]:
    """Which of the keys are evaluated on: the same in every run, at least one of two, none of a single one."""
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    count = max(1, round(share * len(distinct))) if share > 0 and len(distinct) > 1 else 0
    return frozenset(distinct[:count])


# -- a dataset ---------------------------------------------------------------------------------------------------------


def _dataset(store: ObjectStore, dataset_id: str) -> TrainingSource:
    manifest = DatasetManifest.model_validate_json(store.get(f"datasets/{dataset_id}/manifest.json"))
    if not manifest.records.get("train"):
        raise BadRequest(f"dataset {dataset_id} has no records in its train split: look at its rejects")

    def fetch(folder: WorkFolder) -> None:
        download(store, manifest.records_keys["train"], folder.records("train"))
        for split in ("eval", "heldout"):
            if manifest.records.get(split):
                download(store, manifest.records_keys[split], folder.records(split))

    return TrainingSource(
        described=f"{manifest.records['train']} records made from {len(manifest.document_ids)} documents",
        document_ids=manifest.document_ids,
        fetch=fetch,
        dataset_id=dataset_id,
        corpus_id=manifest.corpus_id,
    )


# -- a corpus ----------------------------------------------------------------------------------------------------------


def _corpus(store: ObjectStore, corpus_id: str, eval_share: float) -> TrainingSource:
    try:
        manifest = CorpusManifest.model_validate_json(store.get(f"corpora/{corpus_id}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no corpus {corpus_id!r}: its corpus job must have succeeded before it can be used") from exc
    if not manifest.passages:
        raise BadRequest(f"corpus {corpus_id} has no passages, so there is no text to train on")

    def fetch(folder: WorkFolder) -> None:
        held = held_out(manifest.document_ids, eval_share)
        download(store, manifest.passages_key, folder.root / "passages.jsonl")
        with folder.lines("train").open("wb") as train, folder.lines("eval").open("wb") as evaluation:
            for document_id, group in groupby(_passages(folder.root / "passages.jsonl"), lambda p: p.document_id):
                trained, kept = _divide(list(group), document_id in held, 0.0 if held else eval_share)
                for file, passages in ((train, trained), (evaluation, kept)):
                    if passages:
                        text = RawText(document_id=document_id, text=document_text(store, passages))
                        file.write(text.to_json() + b"\n")

    return TrainingSource(
        described=f"{manifest.characters} characters of {len(manifest.document_ids)} documents",
        document_ids=manifest.document_ids,
        fetch=fetch,
        corpus_id=corpus_id,
    )


def document_text(store: ObjectStore, passages: Sequence[Passage]) -> str:
    """Passages of one document in one piece, with the white space that stood between them in the original.

    Where that can't be told (markup was taken out, or the original is gone), a blank line stands between them.
    """
    original = _original(store, passages[0].document_id) if all(p.exact for p in passages) else ""
    if any(original[p.span.char_start : p.span.char_end] != p.text for p in passages):
        original = ""
    parts = [passages[0].text]
    for before, after in pairwise(passages):
        gap = original[before.span.char_end : after.span.char_start]
        between = gap if original and not gap.strip() else "\n\n"
        parts += [between, after.text]
    return "".join(parts)


def _original(store: ObjectStore, document_id: str) -> str:
    try:
        document = Document.model_validate_json(store.get(f"documents/{document_id}.json"))
        return store.get(document.raw_key).decode(document.encoding.name, errors="replace")
    except NotFound:
        return ""


def _passages(path: Path) -> Iterator[Passage]:
    with path.open("rb") as file:
        yield from (Passage.model_validate_json(line) for line in file if line.strip())


def _divide(passages: list[Passage], held: bool, tail_share: float) -> tuple[list[Passage], list[Passage]]:
    """What of a document is trained on and what is held out: all, none, or its end where it is the only document."""
    if held:
        return [], passages
    keep = round(len(passages) * tail_share)
    if tail_share > 0 and len(passages) > 1:
        keep = max(1, keep)
    return passages[: len(passages) - keep], passages[len(passages) - keep :]


# -- preferences -------------------------------------------------------------------------------------------------------


def _preferences(store: ObjectStore, preferences_id: str, eval_share: float) -> TrainingSource:
    manifest = read_preferences(store, preferences_id)

    def fetch(folder: WorkFolder) -> None:
        pairs = read_pairs(store.get(manifest.pairs_key).splitlines())
        held = held_out([_origin(pair) for pair in pairs], eval_share)
        with folder.lines("train").open("wb") as train, folder.lines("eval").open("wb") as evaluation:
            for pair in pairs:
                file = evaluation if _origin(pair) in held else train
                file.write(pair.to_json() + b"\n")

    return TrainingSource(
        described=f"{manifest.pairs} preference pairs",
        document_ids=manifest.document_ids,
        fetch=fetch,
        preferences_id=preferences_id,
    )


def _origin(pair: PreferencePair) -> str:
    """What must not be on both sides of the split: the document, or the prompt where no document is named."""
    return pair.document_id or "\n".join(message.content for message in pair.messages)
