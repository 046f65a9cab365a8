"""Corpora: every passage counted, nothing unknown or empty passed over in silence."""

import json

import pytest
from ingest_cases import context_for, kept

from textmill.contracts.base import new_id
from textmill.contracts.documents import CorpusManifest, CrawlManifest, CrawlOutcome, Document, Passage
from textmill.contracts.jobs import CorpusJob, HarvestJob, SplitRule
from textmill.errors import BadRequest, Cancelled, JobFailed
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_ingest.documents import Source, keep_document
from textmill_ingest.worker import build_corpus, keep_harvest


def built(store: MemoryStore, job: CorpusJob) -> tuple[CorpusManifest, list[Passage]]:
    output = build_corpus(job, context_for(store))
    manifest = CorpusManifest.model_validate(output.manifest)
    assert output.manifest_key == f"corpora/{job.corpus_id}/manifest.json"
    lines = store.get(manifest.passages_key).splitlines()
    return manifest, [Passage.model_validate_json(line) for line in lines]


def test_a_corpus_holds_all_passages_of_its_documents_in_order():
    store = MemoryStore()
    a = kept(store, "一。\n\n二。".encode(), "a.txt")
    b = kept(store, b'{"text": "three"}\n', "b.jsonl", "application/jsonl")
    blank = kept(store, b" \n", "c.txt")
    ids = (a.document_id, b.document_id, blank.document_id, a.document_id)
    manifest, passages = built(store, CorpusJob(document_ids=ids))
    assert [p.text for p in passages] == ["一。", "二。", "three"]
    assert manifest.document_ids == list(ids[:3])
    assert manifest.passages_by_document == {a.document_id: 2, b.document_id: 1, blank.document_id: 0}
    assert (manifest.passages, manifest.characters, manifest.languages) == (3, 9, {"zh": 2, "en": 1})


def test_crawled_documents_come_after_named_ones():
    store = MemoryStore()
    page = keep_document(store, [b"page"], Source("http://x/1", "text/plain")).document
    outcomes = [
        CrawlOutcome(url="http://x/1", document_id=page.document_id),
        CrawlOutcome(url="http://x/2", reason="http_404"),
    ]
    manifest = CrawlManifest(crawl_id=new_id("crl"), outcomes=outcomes)
    store.put(f"crawls/{manifest.crawl_id}/manifest.json", manifest.to_json())
    named = kept(store, b"named")
    _, passages = built(store, CorpusJob(document_ids=(named.document_id,), crawl_ids=(manifest.crawl_id,)))
    assert [p.text for p in passages] == ["named", "page"]


def test_the_split_rule_is_followed():
    store = MemoryStore()
    document = kept(store, b"# A\ntext\n\nmore\n# B\ntext", "a.md", "text/markdown")
    rule = SplitRule(method="headings")
    _, passages = built(store, CorpusJob(document_ids=(document.document_id,), split=rule))
    assert [p.heading for p in passages] == ["A", "B"]


def test_unknown_documents_and_crawls_are_named():
    store = MemoryStore()
    document_id, crawl_id = new_id("doc"), new_id("crl")
    with pytest.raises(BadRequest, match=document_id):
        built(store, CorpusJob(document_ids=(document_id,)))
    with pytest.raises(BadRequest, match=crawl_id):
        built(store, CorpusJob(crawl_ids=(crawl_id,)))
    with pytest.raises(BadRequest, match="names no document"):
        built(store, CorpusJob())


def test_an_empty_corpus_is_a_failure():
    store = MemoryStore()
    document = kept(store, b" \n \n", "blank.txt")
    with pytest.raises(JobFailed, match=r"no passage in 1 document\(s\) \('blank.txt'\)"):
        built(store, CorpusJob(document_ids=(document.document_id,)))
    assert list(store.list("corpora/")) == []


def test_a_bad_row_fails_the_job_and_names_document_and_line():
    store = MemoryStore()
    document = kept(store, b'{"text": "a"}\n{"q": 1}\n', "faq.jsonl", "application/jsonl")
    with pytest.raises(JobFailed, match=r"'faq.jsonl' \(doc_\w+\): line 2 has no text"):
        built(store, CorpusJob(document_ids=(document.document_id,)))


def test_a_cancelled_job_stops_between_passages():
    store = MemoryStore()
    document = kept(store, b"line\n\n" * 1000)
    context = context_for(store)
    context.stop(Cancelled("cancelled"))
    with pytest.raises(Cancelled):
        build_corpus(CorpusJob(document_ids=(document.document_id,)), context)
    assert list(store.list("corpora/")) == []


def test_a_long_document_is_left_before_its_end():
    class Watched(JobContext):
        looks = 0

        def raise_if_stopped(self) -> None:
            self.looks += 1
            if self.looks == 3:
                raise Cancelled("cancelled")

    store = MemoryStore()
    document = kept(store, b"line\n\n" * 1000)
    context = Watched(store, 1, "scratch/job_x/1-1/")
    with pytest.raises(Cancelled):
        build_corpus(CorpusJob(document_ids=(document.document_id,)), context)
    assert 0 < context.current.done < document.size_bytes


def test_progress_tells_bytes_and_passages():
    store = MemoryStore()
    document = kept(store, b"line\n\n" * 1000)
    context = context_for(store)
    output = build_corpus(CorpusJob(document_ids=(document.document_id,)), context)
    assert context.current.done == context.current.total == document.size_bytes
    assert context.current.figures == {"passages": 1000}
    assert json.loads(json.dumps(output.manifest))["passages"] == 1000


def test_a_harvest_is_kept_as_a_document_however_often_it_is_done():
    store = MemoryStore()
    job = HarvestJob(harvest_id=new_id("hrv"), rows_key="traffic/harvests/x/rows.jsonl", name="traffic-x.jsonl")
    store.put(job.rows_key, b'{"text": "[user]\\nhi\\n\\n[assistant]\\nhello"}\n')
    first, again = (Document.model_validate(keep_harvest(job, context_for(store)).manifest) for _ in range(2))
    assert first == again
    assert (first.name, first.media_type) == ("traffic-x.jsonl", "application/jsonl")
    _, passages = built(store, CorpusJob(document_ids=(first.document_id,)))
    assert passages[-1].text.endswith("hello")


def test_a_harvest_whose_rows_are_gone_fails():
    job = HarvestJob(harvest_id=new_id("hrv"), rows_key="traffic/harvests/x/rows.jsonl", name="x.jsonl")
    with pytest.raises(JobFailed, match="harvest the traffic again"):
        keep_harvest(job, context_for(MemoryStore()))
