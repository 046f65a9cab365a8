"""Whole jobs with asking options, against a real server: coverage and drops in the manifest, and the same set twice."""

import io
import re

import pyarrow.parquet as pq
import pytest
from corpora import context, settings, zhouyi_job
from fault_llm import FaultLlm, answer_from_passage

from textmill.contracts.datasets import DatasetManifest, Record
from textmill.contracts.documents import Language
from textmill.contracts.jobs import SynthJob
from textmill.contracts.quality import Drop
from textmill.contracts.synthesis import AskingOptions
from textmill.store import MemoryStore
from textmill_synth.topics import normal_form
from textmill_synth.worker import SynthHandler

RULES = AskingOptions(quotas={"register": 2, "persona": 2, "indirect": 2, "keyword": 1, "typo": 1, "follow_up": 1})


def run(job: SynthJob, store: MemoryStore, llm: FaultLlm) -> DatasetManifest:
    output = SynthHandler(settings(llm.url))(job, context(store))
    return DatasetManifest.model_validate(output.manifest)


def records(store: MemoryStore, manifest: DatasetManifest, split: str) -> list[Record]:
    table = pq.read_table(io.BytesIO(store.get(manifest.records_keys[split])))  # type: ignore[index]
    return [Record.model_validate(row) for row in table.to_pylist()]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_set_has_the_wordings_that_were_wanted_and_says_so(llm: FaultLlm, language: Language) -> None:
    store = MemoryStore()
    manifest = run(zhouyi_job(store, 4, language, asking=RULES), store, llm)
    assert {axis: c.wanted for axis, c in manifest.coverage.items()} == {a: 12 * q for a, q in RULES.quotas.items()}
    assert {axis: c.filled for axis, c in manifest.coverage.items()} == {a: 12 * q for a, q in RULES.quotas.items()}
    train, held_out = records(store, manifest, "train"), records(store, manifest, "heldout")
    assert {r.axis for r in train} == {"plain", *RULES.quotas}
    asked = {normal_form("".join(m.content for m in r.messages[:-1])) for r in held_out}
    assert not asked & {normal_form("".join(m.content for m in r.messages[:-1])) for r in train}
    for record in train:
        assert len(record.messages) == (4 if record.axis == "follow_up" else 2)
        assert all(key in record.answer for key in record.key_facts)


def test_the_same_job_makes_the_same_set(llm: FaultLlm) -> None:
    store = MemoryStore()
    job = zhouyi_job(store, 3, asking=RULES)
    made = [run(job, store, llm), run(job.model_copy(update={"dataset_id": "ds_" + "0" * 32}), store, llm)]
    ids = [[r.record_id for r in records(store, manifest, "train")] for manifest in made]
    assert ids[0] == ids[1]


def test_phrasings_of_the_llm_are_checked_and_those_not_kept_are_in_the_drop_ledger(llm: FaultLlm) -> None:
    store = MemoryStore()
    llm.answer = written_or_answered
    manifest = run(zhouyi_job(store, 2, asking=AskingOptions(llm_phrasings=2)), store, llm)
    coverage = manifest.coverage["plain"]
    assert (coverage.wanted, coverage.filled, coverage.missing) == (12, 6, {"number_changed": 6})
    written = [r for r in records(store, manifest, "train") if r.wording_call_id]
    assert len(written) == 6
    assert all(r.question.startswith("In your own words") and r.wording_call_id != r.call_id for r in written)
    assert any(version.startswith("phrasing.en@") for version in manifest.prompt_versions)
    assert manifest.drops_key is not None
    drops = [Drop.model_validate_json(line) for line in store.get(manifest.drops_key).splitlines()]
    assert [d.rule for d in drops].count("number_changed") == 6
    assert manifest.dropped_by_rule["number_changed"] == 6


def written_or_answered(prompt: str) -> str:
    """Two wordings, the second about another hexagram; for a check, the sentence of the text that answers it."""
    question = re.search(r"Question: (.+)", prompt)
    if question is None:
        return "Hello."
    if "different wordings" in prompt:
        other = re.sub("[0-9]+", "64", question[1])
        return f"question: In your own words: {question[1]}\nquestion: In your own words: {other}"
    if "Text: " not in prompt:
        return answer_from_passage(prompt)
    about = next(n for n, word in ((1, "trigrams"), (2, "lines"), (3, "stand for")) if word in question[1])
    return re.findall(r"[^.]+\.", prompt)[about].strip()


def test_without_options_nothing_is_wanted(llm: FaultLlm) -> None:
    store = MemoryStore()
    manifest = run(zhouyi_job(store, 1), store, llm)
    assert manifest.coverage == {}
