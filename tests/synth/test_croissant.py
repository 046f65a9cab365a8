"""The Croissant file tells the truth about the files beside it."""

import hashlib
import io
import json

import pyarrow.parquet as pq
from datasets_made import put_dataset, put_texts, records_of

from textmill.store import MemoryStore
from textmill_synth.croissant import with_croissant


def test_files_splits_and_fields_are_as_described() -> None:
    store = MemoryStore()
    corpus_id = put_texts(store)
    manifest = put_dataset(store, corpus_id, records_of(store, corpus_id))
    prefix = manifest.card_key.removesuffix("README.md")
    checks: list[None] = []
    described = with_croissant(store, manifest, prefix, lambda: checks.append(None))
    assert described.exports == {**manifest.exports, "croissant": f"{prefix}croissant.json"}
    found = json.loads(store.get(described.exports["croissant"]))
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert {"@context", "@type", "name", "description", "license", "datePublished"} <= set(found)
    files = {file["@id"]: file for file in found["distribution"]}
    assert set(files) == {*manifest.exports, "records-train", "records-eval", "records-heldout"}
    for file in files.values():
        data = store.get(prefix + file["contentUrl"])
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["contentSize"] == f"{len(data)} B"
    assert [record_set["@id"] for record_set in found["recordSet"]] == ["train", "heldout"], "eval is empty"
    for record_set in found["recordSet"]:
        for field in record_set["field"]:
            for source in [field["source"]] if "source" in field else [sub["source"] for sub in field["subField"]]:
                data = store.get(prefix + files[source["fileObject"]["@id"]]["contentUrl"])
                assert source["extract"]["column"] in pq.read_schema(io.BytesIO(data)).names
    assert checks, "a long upload can be stopped"
