"""The HTTP API of ingest: documents in and out, crawls and corpora as jobs.

Uploads are read on the event loop and stored on threads of their own; everything else is short and blocking, and runs
on the thread pool. Knows nothing of how text is read or split.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import SecretStr
from starlette.requests import ClientDisconnect

from textmill.contracts.base import Contract
from textmill.contracts.documents import CorpusManifest, CrawlManifest, Document
from textmill.contracts.jobs import CorpusJob, CrawlJob
from textmill.errors import BadRequest, Conflict, NotFound
from textmill.http import create_app, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_ingest.documents import (
    Kept,
    Source,
    delete_document,
    get_document,
    keep_document,
    list_documents,
    missing_documents,
)
from textmill_ingest.lineage import Dependent, get_manifest, made_of_corpus, made_of_document, manifests
from textmill_ingest.media import clean_name, media_type_of, parse_content_type
from textmill_ingest.multipart import FileReader, boundary_of
from textmill_ingest.pipe import read_on_thread

Limit = Annotated[int, Query(ge=1, le=1000)]
Given = Annotated[str | None, Query(max_length=255)]
Keep = Callable[[Source, AsyncIterator[bytes]], Awaitable[Kept]]


class DocumentPage(Contract):
    """``next_after`` is the ``after`` of the next page, None at the end."""

    items: list[Document]
    next_after: str | None


class CorpusPage(Contract):
    items: list[CorpusManifest]
    next_after: str | None


class CrawlPage(Contract):
    items: list[CrawlManifest]
    next_after: str | None


class Uploaded(Contract):
    """The answer to a multipart upload: one document for each file, in the order they came."""

    documents: list[Document]


class Deleted(Contract):
    """``dependents`` were made of what is gone and are still there. ``bytes_deleted``: the originals are gone too."""

    id: str
    dependents: list[Dependent]
    bytes_deleted: bool


def build_app(store: ObjectStore, jobs: Jobs, token: SecretStr, uploads_at_once: int = 2) -> FastAPI:
    """``uploads_at_once`` bounds memory; more uploads wait, and their clients with them."""
    threads = ThreadPoolExecutor(uploads_at_once, thread_name_prefix="upload")
    checks = {"store": lambda: _check_store(store)}
    app = create_app("ingest", jobs=jobs, kinds=("corpus", "crawl", "harvest"), checks=checks, token=token)
    app.include_router(_upload_router(store, threads), tags=["documents"])
    app.include_router(_document_router(store), tags=["documents"])
    app.include_router(submission_router("/v1/crawls", CrawlJob, jobs), tags=["crawls"])
    app.include_router(_crawl_router(store), tags=["crawls"])
    check = partial(_check_corpus, store)
    app.include_router(submission_router("/v1/corpora", CorpusJob, jobs, check=check), tags=["corpora"])
    app.include_router(_corpus_router(store), tags=["corpora"])
    return app


def _check_store(store: ObjectStore) -> None:
    store.exists("documents/none")


# -- uploads -----------------------------------------------------------------------------------------------------------


def _upload_router(store: ObjectStore, threads: ThreadPoolExecutor) -> APIRouter:
    router = APIRouter()

    async def keep(source: Source, chunks: AsyncIterator[bytes]) -> Kept:
        return await read_on_thread(chunks, lambda read: keep_document(store, read, source), threads)

    @router.post(
        "/v1/documents",
        status_code=201,
        response_model=Document | Uploaded,
        summary="Upload documents: a raw body with ?name=, or multipart/form-data with one or more files",
    )
    async def upload(
        request: Request, name: Given = None, media_type: Given = None, encoding: Given = None
    ) -> Response:
        header = request.headers.get("content-type", "")
        body = _body(request)
        if header.lower().startswith("multipart/form-data"):
            return await _keep_files(keep, body, header, media_type, encoding)
        if name is None:
            raise BadRequest("a raw upload needs ?name=<file name>; or send multipart/form-data")
        kept = await keep(_source(name, header, media_type, encoding), body)
        return _answer(kept.document, created=kept.created)

    return router


async def _keep_files(
    keep: Keep, body: AsyncIterator[bytes], header: str, media_type: str | None, encoding: str | None
) -> Response:
    kept: list[Kept] = []
    async for part in FileReader(body, boundary_of(header)).files():
        source = _source(part.name, part.content_type, media_type, encoding)
        kept.append(await keep(source, part.chunks))
    if not kept:
        raise BadRequest("the form holds no file")
    return _answer(Uploaded(documents=[k.document for k in kept]), created=any(k.created for k in kept))


def _source(name: str, content_type: str, media_type: str | None, encoding: str | None) -> Source:
    given, charset = parse_content_type(content_type)
    name = clean_name(name)
    return Source(name, media_type_of(media_type or given, name), encoding or charset)


async def _body(request: Request) -> AsyncIterator[bytes]:
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if chunk:
                yield chunk
    except ClientDisconnect as exc:
        raise BadRequest(f"the client went away after {received} bytes; nothing of this file was kept") from exc


def _answer(content: Contract, created: bool) -> Response:
    return Response(content.to_json(), status_code=201 if created else 200, media_type="application/json")


# -- documents ---------------------------------------------------------------------------------------------------------


def _document_router(store: ObjectStore) -> APIRouter:
    router = APIRouter(prefix="/v1/documents")

    @router.get("", summary="Documents in the order of their ids")
    def index(limit: Limit = 100, after: str = "") -> DocumentPage:
        items = list_documents(store, limit + 1, after)
        more = len(items) > limit
        return DocumentPage(items=items[:limit], next_after=items[limit - 1].document_id if more else None)

    @router.get("/{document_id}", summary="One document")
    def get(document_id: str) -> Document:
        return get_document(store, document_id)

    @router.get("/{document_id}/raw", summary="The original bytes")
    def raw(document_id: str) -> StreamingResponse:
        document = get_document(store, document_id)
        headers = {"Content-Length": str(document.size_bytes), "ETag": f'"{document.sha256}"', **_NO_SNIFFING}
        media_type = f"{document.media_type}; charset={document.encoding.name}"
        return StreamingResponse(store.stream(document.raw_key), media_type=media_type, headers=headers)

    @router.delete("/{document_id}", summary="Delete a document; refused while something was made of it")
    def delete(document_id: str, force: bool = False) -> Deleted:
        get_document(store, document_id)
        dependents = made_of_document(store, document_id)
        _refuse_if_used("document", document_id, dependents, force)
        bytes_deleted = delete_document(store, document_id)
        return Deleted(id=document_id, dependents=dependents, bytes_deleted=bytes_deleted)

    return router


# A private HTML document must not run in the reader's browser on our origin.
_NO_SNIFFING = {
    "X-Content-Type-Options": "nosniff",
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "sandbox",
}


def _refuse_if_used(what: str, id_: str, dependents: list[Dependent], force: bool) -> None:
    if dependents and not force:
        named = ", ".join(str(d) for d in dependents[:50]) + (" and more" if len(dependents) > 50 else "")
        raise Conflict(f"{what} {id_} was used for {named}; delete them first, or add ?force=true")


# -- crawls and corpora ------------------------------------------------------------------------------------------------


def _crawl_router(store: ObjectStore) -> APIRouter:
    router = APIRouter(prefix="/v1/crawls")

    @router.get("", summary="Finished crawls in the order of their ids")
    def index(limit: Limit = 100, after: str = "") -> CrawlPage:
        items = list(islice(manifests(store, "crawls/", CrawlManifest, after), limit + 1))
        more = len(items) > limit
        return CrawlPage(items=items[:limit], next_after=items[limit - 1].crawl_id if more else None)

    @router.get("/{crawl_id}", summary="One finished crawl: what became of each URL")
    def get(crawl_id: str) -> CrawlManifest:
        return get_manifest(store, "crawls/", crawl_id, CrawlManifest)

    return router


def _corpus_router(store: ObjectStore) -> APIRouter:
    router = APIRouter(prefix="/v1/corpora")

    @router.get("", summary="Finished corpora in the order of their ids")
    def index(limit: Limit = 100, after: str = "") -> CorpusPage:
        items = list(islice(manifests(store, "corpora/", CorpusManifest, after), limit + 1))
        more = len(items) > limit
        return CorpusPage(items=items[:limit], next_after=items[limit - 1].corpus_id if more else None)

    @router.get("/{corpus_id}", summary="One finished corpus")
    def get(corpus_id: str) -> CorpusManifest:
        return get_manifest(store, "corpora/", corpus_id, CorpusManifest)

    @router.get("/{corpus_id}/passages", summary="All its passages, one JSON object a line")
    def passages(corpus_id: str) -> StreamingResponse:
        manifest = get_manifest(store, "corpora/", corpus_id, CorpusManifest)
        return StreamingResponse(store.stream(manifest.passages_key), media_type="application/jsonl")

    @router.delete("/{corpus_id}", summary="Delete a corpus; refused while something was made of it")
    def delete(corpus_id: str, force: bool = False) -> Deleted:
        get_manifest(store, "corpora/", corpus_id, CorpusManifest)
        dependents = made_of_corpus(store, corpus_id)
        _refuse_if_used("corpus", corpus_id, dependents, force)
        # The manifest goes last, so that a delete that broke off can be sent again.
        keys = [item.key for item in store.list(f"corpora/{corpus_id}/")]
        for key in sorted(keys, key=lambda k: k.endswith("/manifest.json")):
            store.delete(key)
        return Deleted(id=corpus_id, dependents=dependents, bytes_deleted=True)

    return router


def _check_corpus(store: ObjectStore, job: CorpusJob) -> None:
    """Refuse at once what would fail later for want of its documents."""
    if not job.document_ids and not job.crawl_ids:
        raise BadRequest("a corpus needs document_ids or crawl_ids")
    missing = missing_documents(store, job.document_ids)
    missing += [crawl_id for crawl_id in job.crawl_ids if not store.exists(f"crawls/{crawl_id}/manifest.json")]
    if missing:
        raise NotFound(f"the corpus names what isn't there: {', '.join(missing[:20])}; upload or crawl it first")
