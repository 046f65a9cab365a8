"""Approved and corrected answers become a dataset: rows here, then a document, a corpus and records, each a job.

The rows are a snapshot. ``HarvestJob`` (ingest) keeps them as a document, ``CorpusJob`` makes a passage of each row,
``SynthJob`` with the strategy ``logged`` a record of each passage; so a record leads back through its passage's span
to the row, which names the request. What the jobs promise they promise here, too: each is rung through Kafka.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from textmill.contracts.base import content_id, new_id
from textmill.contracts.datasets import Message
from textmill.contracts.jobs import CorpusJob, HarvestJob, SplitRule, SynthJob
from textmill.contracts.traffic import HarvestManifest, HarvestRow, NewHarvest, Verdict, transcript
from textmill.errors import BadRequest, NotFound
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_inference.flywheel.judged import Judged, Looked, judged

HARVESTS = "traffic/harvests/"
_WHOLE_ROWS = SplitRule(method="budget", max_characters=100_000)
"""A row is a passage, never two."""


def harvest(store: ObjectStore, jobs: Jobs, new: NewHarvest) -> HarvestManifest:
    """Write the rows and submit the jobs.

    Raises:
        BadRequest: nobody approved or corrected anything that the filter covers.
    """
    looked, taken, rows = Looked(), Counter[Verdict](), []
    for one in judged(store, new, new.with_redacted, looked):
        row = _row(one, new.take)
        if isinstance(row, HarvestRow):
            rows.append(row.to_json() + b"\n")
            taken[row.verdict] += 1
        else:
            looked.left_out[row] += 1
    if not rows:
        raise BadRequest(f"no answer to learn from: of {looked.at} exchanges, left out {dict(looked.left_out)}")
    manifest = _submit(store, jobs, new, rows, looked, taken)
    store.create(f"{HARVESTS}{manifest.harvest_id}/manifest.json", manifest.to_json())
    return manifest


def read_harvest(store: ObjectStore, harvest_id: str) -> HarvestManifest:
    """Raises ``NotFound``."""
    try:
        return HarvestManifest.model_validate_json(store.get(f"{HARVESTS}{harvest_id}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no harvest {harvest_id!r}; GET /v1/traffic/documents lists them") from exc


def harvests_with(store: ObjectStore, request_id: str) -> Iterator[str]:
    """Ids of the harvests that have this request. Reads them all."""
    for info in store.list(HARVESTS):
        if info.key.endswith("/rows.jsonl"):
            rows = (HarvestRow.model_validate_json(line) for line in store.get(info.key).split(b"\n") if line)
            if any(row.request_id == request_id for row in rows):
                yield info.key.split("/")[2]


def _row(one: Judged, take: Sequence[Verdict]) -> HarvestRow | str:
    """The row, or why there is none."""
    if one.verdict is None:
        return "called_wrong"
    if one.verdict not in take:
        return f"{one.verdict}_not_wanted"
    messages = [m.model_copy(update={"content": _tidy(m.content)}) for m in one.messages]
    answer = Message(role="assistant", content=_tidy(one.better or one.said))
    try:
        text = transcript([*messages, answer])
    except ValueError:
        return "no_transcript"
    if len(text) > _WHOLE_ROWS.max_characters:
        return "too_long"
    return HarvestRow(
        text=text,
        request_id=one.exchange.request_id,
        verdict=one.verdict,
        model=one.exchange.model,
        at=one.exchange.at,
        feedback_ids=one.feedback_ids,
    )


def _tidy(text: str) -> str:
    """As ingest will have it: line ends are newlines, and no white space around."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _submit(
    store: ObjectStore, jobs: Jobs, new: NewHarvest, rows: Sequence[bytes], looked: Looked, taken: Counter[Verdict]
) -> HarvestManifest:
    harvest_id, corpus_id, dataset_id = new_id("hrv"), new_id("cor"), new_id("ds")
    name, rows_key = f"traffic-{harvest_id}.jsonl", f"{HARVESTS}{harvest_id}/rows.jsonl"
    # What ingest will call the document: by its bytes and its name.
    document_id = content_id("doc", hashlib.sha256(b"".join(rows)).hexdigest(), name)
    store.put_stream(rows_key, rows)
    synth = SynthJob(
        corpus_id=corpus_id,
        dataset_id=dataset_id,
        strategies=("logged",),
        extractive_fallback=False,
        asking=new.asking,
        quality=new.quality,
    )
    corpus = CorpusJob(corpus_id=corpus_id, document_ids=(document_id,), split=_WHOLE_ROWS)
    job = HarvestJob(harvest_id=harvest_id, rows_key=rows_key, name=name, then=(corpus, synth))
    jobs.submit(job)
    return HarvestManifest(
        harvest_id=harvest_id,
        job_id=job.job_id,
        looked_at=looked.at,
        taken=dict(taken),
        left_out=dict(looked.left_out),
        feedback_without_exchange=looked.without_exchange,
        rows_key=rows_key,
        document_id=document_id,
        corpus_id=corpus_id,
        dataset_id=dataset_id,
        source=new.plain(),
    )
