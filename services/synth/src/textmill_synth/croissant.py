"""Describes a dataset in Croissant 1.0 (ML Commons, JSON-LD): its files with their hashes, its splits, their fields.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

import hashlib
import json
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from textmill.contracts.datasets import DatasetManifest, Record, Split
from textmill.store import ObjectStore
from textmill_synth.export import EXPORT_MEDIA_TYPES

FILE_NAME = "croissant.json"
LICENSE = "Not licensed to anyone: made from the owner's private text"
_PARQUET = "application/x-parquet"
"""As Croissant's readers know it; the registered name is another."""
_TERMS = (
    "citeAs column conformsTo extract field fileProperty fileObject fileSet format includes isLiveDataset jsonPath key "
    "md5 parentField path recordSet references regex repeated replace separator source subField transform"
)
_CONTEXT: dict[str, JsonValue] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    **{term: f"cr:{term}" for term in _TERMS.split()},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
_SPLITS: Mapping[Split, str] = {
    "train": "Records to train on",
    "eval": "Records of documents that train doesn't know",
    "heldout": "Facts of train, in wordings that were never trained on",
}
_FIELDS: Mapping[str, str] = {
    "record_id": "The record's id, from its content",
    "strategy": "How the record was made",
    "axis": "In what respect the wording differs from the plain question",
    "language": "en or zh",
    "document_id": "The document that the answer comes from",
    "document_sha256": "SHA-256 of the document's bytes",
    "passage_id": "The passage of the document",
    "evidence": "The piece of the passage that bears the answer out, word for word",
    "prompt_version": "The version of the prompt that asked for the answer",
    "model": "The model that wrote the answer",
    "call_id": "The call in the ledger",
}
_MESSAGE_FIELDS: Mapping[str, str] = {"role": "system, user, assistant or tool", "content": "What is said"}


def with_croissant(
    store: ObjectStore, manifest: DatasetManifest, prefix: str, check: Callable[[], None]
) -> DatasetManifest:
    """Write ``croissant.json`` beside the other files; the manifest then names it among the exports.

    Reads all files once, for their hashes. ``check`` is called for each megabyte.
    """
    keys = {**{f"records-{split}": key for split, key in manifest.records_keys.items()}, **manifest.exports}
    files = [_file(store, name, key, check) for name, key in keys.items()]
    key = f"{prefix}{FILE_NAME}"
    store.put(key, json.dumps(_describe(manifest, files), ensure_ascii=False, indent=1).encode())
    return manifest.model_copy(update={"exports": {**manifest.exports, "croissant": key}})


def _describe(manifest: DatasetManifest, files: list[JsonValue]) -> JsonValue:
    splits = [split for split in manifest.records_keys if manifest.records[split]]
    rows = ", ".join(f"{count} {split}" for split, count in manifest.records.items())
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.dataset_id,
        "description": f"Questions and answers from {len(manifest.document_ids)} private documents, made by textmill: "
        f"{rows} records. Each says which sentence of which document it comes from.",
        "license": {"@type": "sc:CreativeWork", "name": LICENSE},
        "datePublished": manifest.created_at.isoformat(),
        "version": "1.0.0",
        "distribution": files,
        "recordSet": [_record_set(split) for split in splits],
    }


def _file(store: ObjectStore, name: str, key: str, check: Callable[[], None]) -> JsonValue:
    digest, size_bytes = hashlib.sha256(), 0
    for chunk in store.stream(key):
        check()
        digest.update(chunk)
        size_bytes += len(chunk)
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": _base(key),
        "contentSize": f"{size_bytes} B",
        "encodingFormat": EXPORT_MEDIA_TYPES.get(name, _PARQUET),
        "sha256": digest.hexdigest(),
    }


def _record_set(split: Split) -> JsonValue:
    fields = [_field(split, name, description) for name, description in _FIELDS.items()]
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": _SPLITS[split],
        "key": {"@id": f"{split}/record_id"},
        "field": [*fields, _messages(split)],
    }


def _field(split: Split, name: str, description: str) -> JsonValue:
    assert name in Record.model_fields
    return {
        "@type": "cr:Field",
        "@id": f"{split}/{name}",
        "name": name,
        "description": description,
        "dataType": "sc:Text",
        "source": {"fileObject": {"@id": f"records-{split}"}, "extract": {"column": name}},
    }


def _messages(split: Split) -> JsonValue:
    source: JsonValue = {"fileObject": {"@id": f"records-{split}"}, "extract": {"column": "messages"}}
    return {
        "@type": "cr:Field",
        "@id": f"{split}/messages",
        "name": "messages",
        "description": "The conversation",
        "repeated": True,
        "subField": [
            {
                "@type": "cr:Field",
                "@id": f"{split}/messages/{name}",
                "name": name,
                "description": description,
                "dataType": "sc:Text",
                "source": {**source, "transform": {"jsonPath": name}},  # type: ignore[dict-item]
            }
            for name, description in _MESSAGE_FIELDS.items()
        ],
    }


def _base(key: str) -> str:
    return key.rsplit("/", 1)[-1]
