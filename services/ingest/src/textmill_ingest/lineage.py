"""Which corpora, datasets and models came out of a document or a corpus, read from their manifests."""

from collections.abc import Iterator
from typing import Literal, TypeVar

from textmill.contracts.base import Contract
from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.documents import CorpusManifest
from textmill.contracts.runs import ModelManifest
from textmill.errors import NotFound
from textmill.store import ObjectStore

ManifestT = TypeVar("ManifestT", bound=Contract)


class Dependent(Contract):
    kind: Literal["corpus", "dataset", "model"]
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


def manifests(store: ObjectStore, prefix: str, kind: type[ManifestT], after: str = "") -> Iterator[ManifestT]:
    """All manifests below the prefix in the order of their ids, from the first past ``after``. Lazy."""
    start = f"{prefix}{after}/~" if after else ""
    for item in store.list(prefix, after=start):
        if item.key.endswith("/manifest.json") and item.key.count("/") == 2:
            yield kind.model_validate_json(store.get(item.key))


def made_of_document(store: ObjectStore, document_id: str) -> list[Dependent]:
    """Everything downstream of a document. Reads every manifest: costs one request each."""
    corpora = (m.corpus_id for m in manifests(store, "corpora/", CorpusManifest) if document_id in m.document_ids)
    datasets = (m.dataset_id for m in manifests(store, "datasets/", DatasetManifest) if document_id in m.document_ids)
    models = (m.model_id for m in manifests(store, "models/", ModelManifest) if document_id in m.lineage.document_ids)
    return [
        *(Dependent(kind="corpus", id=i) for i in corpora),
        *(Dependent(kind="dataset", id=i) for i in datasets),
        *(Dependent(kind="model", id=i) for i in models),
    ]


def made_of_corpus(store: ObjectStore, corpus_id: str) -> list[Dependent]:
    made = manifests(store, "datasets/", DatasetManifest)
    datasets = (m.dataset_id for m in made if corpus_id in (m.corpus_id, *m.more_corpus_ids))
    models = (m.model_id for m in manifests(store, "models/", ModelManifest) if m.lineage.corpus_id == corpus_id)
    return [*(Dependent(kind="dataset", id=i) for i in datasets), *(Dependent(kind="model", id=i) for i in models)]


def get_manifest(store: ObjectStore, prefix: str, id_: str, kind: type[ManifestT]) -> ManifestT:
    """Raises ``NotFound``."""
    try:
        return kind.model_validate_json(store.get(f"{prefix}{id_}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no {prefix.rstrip('/')} manifest of {id_}; if its job still runs, wait for it") from exc
