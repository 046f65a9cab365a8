"""The kinds of job that ingest does: crawl URLs into documents, keep harvested traffic as one, split documents into a
corpus.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from textmill.contracts.documents import CorpusManifest, CrawlManifest, CrawlOutcome, Document, Language, Passage
from textmill.contracts.jobs import CorpusJob, CrawlJob, HarvestJob, JobKind, Output, SplitRule
from textmill.errors import BadRequest, JobFailed, NotFound, Transient
from textmill.store import ObjectStore
from textmill.worker import Handler, JobContext
from textmill_ingest.crawl import Politeness, crawl
from textmill_ingest.documents import Source, get_document, keep_document
from textmill_ingest.encoding import EncodingProbe
from textmill_ingest.extract import passages_of
from textmill_ingest.fetch import Page
from textmill_ingest.lineage import get_manifest
from textmill_ingest.media import MAX_NAME_BYTES, media_type_of, parse_content_type

_LOOK_UP_EVERY = 200
"""Passages between two looks at whether to stop; well under a second's work."""
_TEMPORARY = ("connection_failed", "timeout", "robots_txt_unreachable", "http_429", "http_5")


def handlers(politeness: Politeness) -> Mapping[JobKind, Handler]:
    return {
        "corpus": build_corpus,
        "crawl": lambda job, context: run_crawl(job, context, politeness),
        "harvest": keep_harvest,
    }


# -- corpora -----------------------------------------------------------------------------------------------------------


def build_corpus(job: CorpusJob, context: JobContext) -> Output:
    """Split the job's documents and those of its crawls; one JSON line a passage.

    Raises:
        BadRequest: a document or crawl is unknown, or a document isn't what it says it is.
        JobFailed: there is not one passage in all of them.
    """
    documents = [_document(context.store, document_id) for document_id in _document_ids(context.store, job)]
    tally = _Tally()
    key = f"corpora/{job.corpus_id}/{_place(context)}/passages.jsonl"
    context.store.put_stream(key, _lines(documents, job.split, context, tally))
    if not tally.passages:
        context.store.delete(key)
        names = ", ".join(f"{d.name!r}" for d in documents[:10])
        raise JobFailed(f"no passage in {len(documents)} document(s) ({names}), so the corpus would be empty")
    manifest = CorpusManifest(
        corpus_id=job.corpus_id,
        document_ids=[document.document_id for document in documents],
        passages_key=key,
        passages=tally.passages,
        passages_by_document={d.document_id: tally.by_document[d.document_id] for d in documents},
        characters=tally.characters,
        languages=dict(tally.languages),
    )
    return Output(manifest_key=f"corpora/{job.corpus_id}/manifest.json", manifest=manifest.model_dump(mode="json"))


@dataclass
class _Tally:
    characters: int = 0
    by_document: Counter[str] = field(default_factory=Counter)
    languages: Counter[Language] = field(default_factory=Counter)

    @property
    def passages(self) -> int:
        return self.by_document.total()

    def count(self, passage: Passage) -> None:
        self.characters += len(passage.text)
        self.by_document[passage.document_id] += 1
        self.languages[passage.language] += 1


def _document_ids(store: ObjectStore, job: CorpusJob) -> list[str]:
    wanted = list(job.document_ids)
    for crawl_id in job.crawl_ids:
        try:
            wanted += get_manifest(store, "crawls/", crawl_id, CrawlManifest).document_ids
        except NotFound as exc:
            raise BadRequest(str(exc)) from exc
    if not wanted:
        raise BadRequest("the corpus names no document; give document_ids or crawl_ids")
    return list(dict.fromkeys(wanted))


def _document(store: ObjectStore, document_id: str) -> Document:
    try:
        return get_document(store, document_id)
    except NotFound as exc:
        raise BadRequest(f"{exc}: never uploaded, or deleted since; name the documents to use in document_ids") from exc


def _lines(documents: Iterable[Document], rule: SplitRule, context: JobContext, tally: _Tally) -> Iterator[bytes]:
    documents = list(documents)
    total = sum(document.size_bytes for document in documents)
    before = 0
    for document in documents:
        for passage in _passages(document, rule, context.store):
            tally.count(passage)
            if tally.passages % _LOOK_UP_EVERY == 1:
                context.raise_if_stopped()
                done = before + passage.span.byte_end
                context.progress("splitting", done, total, "bytes", passages=tally.passages)
            yield passage.to_json() + b"\n"
        context.raise_if_stopped()
        before += document.size_bytes
    context.progress("splitting", total, total, "bytes", passages=tally.passages)


def _passages(document: Document, rule: SplitRule, store: ObjectStore) -> Iterator[Passage]:
    try:
        yield from passages_of(document, store.stream(document.raw_key, chunk_bytes=1 << 18), rule)
    except BadRequest as exc:
        raise JobFailed(f"{document.name!r} ({document.document_id}): {exc}") from exc


def _place(context: JobContext) -> str:
    """Tells this attempt's output from any other's, in any life of the job."""
    return f"attempt-{context.scratch.rstrip('/').rpartition('/')[2]}"


# -- crawls ------------------------------------------------------------------------------------------------------------


def run_crawl(job: CrawlJob, context: JobContext, politeness: Politeness) -> Output:
    """Fetch the job's URLs. Missing pages are outcomes; only a crawl without one document is a failure.

    Raises:
        Transient: no URL gave a document, and each failure may pass.
        JobFailed: no URL gave a document.
    """
    outcomes = asyncio.run(_crawl(job, context, politeness))
    if all(outcome.document_id is None for outcome in outcomes):
        passing = all((outcome.reason or "").startswith(_TEMPORARY) for outcome in outcomes)
        raise (Transient if passing else JobFailed)(_nothing(outcomes))
    manifest = CrawlManifest(crawl_id=job.crawl_id, outcomes=outcomes)
    return Output(manifest_key=f"crawls/{job.crawl_id}/manifest.json", manifest=manifest.model_dump(mode="json"))


async def _crawl(job: CrawlJob, context: JobContext, politeness: Politeness) -> list[CrawlOutcome]:
    def keep(url: str, page: Page) -> str:
        return keep_page(context.store, url, page)

    def settled(done: int) -> None:
        context.progress("fetching", done, len(job.urls), "pages")

    context.progress("fetching", 0, len(job.urls), "pages")
    work = asyncio.create_task(crawl(job.urls, politeness, keep, settled))
    while not work.done():
        await asyncio.wait([work], timeout=0.2)
        if context.stopping.is_set():
            work.cancel()
            await asyncio.wait([work])
            context.raise_if_stopped()
    try:
        return work.result()
    except ExceptionGroup as exc:
        # What one page's task raised, the store's being down most of all, is what the job met.
        raise exc.exceptions[0] from exc


def keep_page(store: ObjectStore, url: str, page: Page) -> str:
    """The page as a document. UTF-8 goes before the charset the server claims, which is often a default nobody set.

    Raises:
        BadRequest: no text, or of no media type that is taken.
    """
    given, charset = parse_content_type(page.content_type)
    name = url.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    media_type = media_type_of(given, url.partition("?")[0].rpartition("/")[2] or "page.html")
    if charset is not None and not _is_utf8(page.body):
        try:
            return keep_document(store, [page.body], Source(name, media_type, charset, page.url)).document.document_id
        except BadRequest:
            pass
    return keep_document(store, [page.body], Source(name, media_type, None, page.url)).document.document_id


def _is_utf8(body: bytes) -> bool:
    probe = EncodingProbe()
    probe.feed(body)
    try:
        return probe.finish() is not None
    except BadRequest:
        return False


def _nothing(outcomes: list[CrawlOutcome]) -> str:
    reasons = Counter(outcome.reason for outcome in outcomes)
    first = outcomes[0]
    counted = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
    return f"none of {len(outcomes)} URL(s) gave a document: {counted}; the first was {first.url}: {first.detail}"


# -- harvests ----------------------------------------------------------------------------------------------------------


def keep_harvest(job: HarvestJob, context: JobContext) -> Output:
    """The rows of a harvest as a document. The same rows under the same name are the same document.

    Raises:
        JobFailed: the rows are gone.
    """
    source = Source(job.name, "application/jsonl", "utf-8")
    try:
        document = keep_document(context.store, context.store.stream(job.rows_key), source).document
    except NotFound as exc:
        raise JobFailed(f"the rows of {job.harvest_id} are gone ({exc}): harvest the traffic again") from exc
    return Output(
        manifest_key=f"traffic/harvests/{job.harvest_id}/document.json", manifest=document.model_dump(mode="json")
    )
