"""A whole synth job on a real S3 server: uploads, range reads and empty objects behave as in memory."""

import json

import pytest
from corpora import context, put_corpus, settings, zhouyi_questions, zhouyi_texts
from fault_llm import FaultLlm

from textmill.contracts.jobs import SynthJob
from textmill.store import S3Store
from textmill_synth.stored import StoredDatasets
from textmill_synth.worker import SynthHandler


@pytest.mark.slow
def test_a_job_and_its_readers(s3_store: S3Store, llm: FaultLlm) -> None:
    corpus_id = put_corpus(s3_store, zhouyi_texts("zh", 3), "zh", "gb18030")
    job = SynthJob(corpus_id=corpus_id, question_sets=(zhouyi_questions("zh"),), context="sentence")
    for attempt, paid in ((1, 9), (2, 9)):
        output = SynthHandler(settings(llm.url))(job, context(s3_store, attempt))
        assert llm.paid == paid
    s3_store.put(output.manifest_key, json.dumps(output.manifest).encode())
    datasets = StoredDatasets(s3_store)
    assert list(datasets.dataset_ids()) == [job.dataset_id]
    assert datasets.rejects(job.dataset_id, 0, 10) == []
    [record] = datasets.records(job.dataset_id, "train", 5, 1)
    assert datasets.lineage(job.dataset_id, record.record_id).evidence.verbatim
    datasets.delete(job.dataset_id)
    assert list(s3_store.list(f"datasets/{job.dataset_id}/")) == []
