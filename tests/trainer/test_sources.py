"""What each objective learns from: which source a job must name, and how it is split by document."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from textmill.contracts.documents import CorpusManifest, Document, Encoding, Passage, Span
from textmill.contracts.jobs import TrainJob
from textmill.contracts.preferences import PreferencePair
from textmill.errors import BadRequest, NotFound
from textmill.store import MemoryStore
from textmill_trainer.preferences import keep_pairs, parse_pairs
from textmill_trainer.pretrain import read_texts
from textmill_trainer.sources import held_out, read_source
from textmill_trainer.workfolder import WorkFolder

DATASET, CORPUS, PREFERENCES = "ds_" + "1" * 32, "cor_" + "1" * 32, "prf_" + "1" * 32


def document_id(n: int) -> str:
    return f"doc_{n:032x}"


def put_corpus(store: MemoryStore, texts: list[str], exact: bool = True) -> None:
    """Passages are the paragraphs of each text, as ingest splits at blank lines."""
    passages, counts = b"", {}
    for n, text in enumerate(texts):
        raw = text.encode("utf-16")
        document = Document(
            document_id=document_id(n), sha256=f"{n:064x}", size_bytes=len(raw), name="t.txt", media_type="text/plain",
            encoding=Encoding(name="utf-16", method="bom", confidence=1.0),
        )  # fmt: skip
        store.put(f"documents/{document.document_id}.json", document.to_json())
        store.put(document.raw_key, raw)
        counts[document.document_id], at = 0, 0
        for part in text.split():
            at = text.index(part, at)
            span = Span(char_start=at, char_end=at + len(part), byte_start=2 * at, byte_end=2 * (at + len(part)))
            passage = Passage(
                passage_id=f"psg_{n}_{at}", document_id=document.document_id, document_sha256=document.sha256,
                index=counts[document.document_id], text=part, language="en", span=span, exact=exact,
            )  # fmt: skip
            passages += passage.to_json() + b"\n"
            counts[document.document_id] += 1
            at += len(part)
    store.put(f"corpora/{CORPUS}/passages.jsonl", passages)
    manifest = CorpusManifest(
        corpus_id=CORPUS, document_ids=[document_id(n) for n in range(len(texts))],
        passages_key=f"corpora/{CORPUS}/passages.jsonl", passages=sum(counts.values()), characters=100, languages={},
    )  # fmt: skip
    store.put(f"corpora/{CORPUS}/manifest.json", manifest.to_json())


def fetched(store: MemoryStore, root: Path, **changes: Any) -> dict[str, dict[str, str]]:
    """Of each split the text by document."""
    job = TrainJob(objective="pretrain", corpus_id=CORPUS, **changes)
    folder = WorkFolder(root)
    read_source(store, job).fetch(folder)
    return {split: {t.document_id: t.text for t in read_texts(folder.lines(split))} for split in ("train", "eval")}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "'supervised' trains on dataset_id and nothing else; given: none"),
        ({"corpus_id": CORPUS}, "trains on dataset_id and nothing else; given: corpus_id"),
        ({"objective": "pretrain", "dataset_id": DATASET}, "'pretrain' trains on corpus_id and nothing else"),
        (
            {"objective": "dpo", "preferences_id": PREFERENCES, "dataset_id": DATASET},
            "given: dataset_id, preferences_id",
        ),
    ],
)
def test_a_job_names_the_one_source_it_needs(body: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainJob.model_validate(body)


def test_a_job_as_it_was_before_there_were_objectives(tmp_path: Path) -> None:
    job = TrainJob.model_validate({"dataset_id": DATASET, "epochs": 2})
    assert (job.objective, job.source_id) == ("supervised", DATASET)


def test_documents_come_whole_with_their_own_white_space(tmp_path: Path) -> None:
    store = MemoryStore()
    texts = ["One\nTwo\n\n\nThree", "乾 坤\r\n屯", *(f"more{n}" for n in range(8))]
    put_corpus(store, texts)
    found = fetched(store, tmp_path, eval_share=0.0)
    assert found == {"train": {document_id(n): text for n, text in enumerate(texts)}, "eval": {}}


def test_where_the_original_does_not_tell_a_blank_line_divides(tmp_path: Path) -> None:
    marked_up, gone, other = MemoryStore(), MemoryStore(), MemoryStore()
    for store in (marked_up, gone, other):
        put_corpus(store, ["One Two"], exact=store is not marked_up)
    gone.delete(f"raw/{0:064x}")
    other.put(f"raw/{0:064x}", "Something else".encode("utf-16"))
    for n, store in enumerate((marked_up, gone, other)):
        assert fetched(store, tmp_path / str(n), eval_share=0.0)["train"] == {document_id(0): "One\n\nTwo"}


def test_evaluation_is_on_documents_never_trained_on(tmp_path: Path) -> None:
    store = MemoryStore()
    put_corpus(store, [f"text{n} end" for n in range(20)])
    found = fetched(store, tmp_path, eval_share=0.25)
    assert (len(found["train"]), len(found["eval"])) == (15, 5)
    assert not set(found["train"]) & set(found["eval"])
    assert fetched(store, tmp_path, eval_share=0.25, seed=7) == found


def test_of_a_single_document_the_end_is_held_out(tmp_path: Path) -> None:
    store = MemoryStore()
    put_corpus(store, [" ".join(f"w{n}" for n in range(20))])
    found = fetched(store, tmp_path, eval_share=0.1)
    assert found["eval"] == {document_id(0): "w18 w19"}
    assert found["train"][document_id(0)].endswith("w16 w17")


def test_who_is_held_out_follows_from_the_key_alone() -> None:
    keys = [document_id(n) for n in range(10)]
    few = held_out(keys, 0.2)
    assert len(few) == 2
    assert few == held_out(list(reversed(keys)), 0.2)
    assert few < held_out(keys, 0.5)
    assert not held_out(keys, 0.0)
    assert not held_out(keys[:1], 0.5)
    assert len(held_out(keys[:2], 0.01)) == 1


def test_pairs_of_one_prompt_or_document_stay_together(tmp_path: Path) -> None:
    store = MemoryStore()
    rows = [
        f'{{"prompt": "p{n % 5}", "chosen": "c{n}", "rejected": "r"'
        + (f', "document_id": "{document_id(n % 2)}"}}' if n >= 10 else "}")
        for n in range(20)
    ]
    manifest, _ = keep_pairs(store, parse_pairs("\n".join(rows).encode()))
    folder = WorkFolder(tmp_path)
    source = read_source(store, TrainJob(objective="dpo", preferences_id=manifest.preferences_id, eval_share=0.3))
    source.fetch(folder)
    train, evaluation = (
        [PreferencePair.model_validate_json(line) for line in folder.lines(s).read_bytes().splitlines()]
        for s in ("train", "eval")
    )
    assert len(train) + len(evaluation) == 20
    origins = [{p.document_id or p.messages[0].content for p in pairs} for pairs in (train, evaluation)]
    assert not origins[0] & origins[1]
    assert len(origins[1]) == 2
    assert source.document_ids == [document_id(0), document_id(1)]


def test_sources_that_are_not_there_are_named() -> None:
    store = MemoryStore()
    with pytest.raises(NotFound, match="no corpus"):
        read_source(store, TrainJob(objective="pretrain", corpus_id=CORPUS))
    with pytest.raises(NotFound, match="POST /v1/preferences"):
        read_source(store, TrainJob(objective="dpo", preferences_id=PREFERENCES))
    put_corpus(store, [""])
    with pytest.raises(BadRequest, match="no passages"):
        read_source(store, TrainJob(objective="pretrain", corpus_id=CORPUS))
