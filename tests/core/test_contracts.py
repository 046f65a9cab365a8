"""What every stored or sent value promises: ids that sort, counts that add up, no surprise fields, whole chains."""

import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pkgutil import iter_modules

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from textmill import contracts
from textmill.contracts.base import Contract, Id, content_id, new_id
from textmill.contracts.datasets import Counts
from textmill.contracts.jobs import CorpusJob, DeployJob, EvaluateJob, Job, LoadtestJob, SynthJob, TrainJob
from textmill.jobs import parse_job


def all_contracts() -> list[type[BaseModel]]:
    modules = [import_module(m.name) for m in iter_modules(contracts.__path__, f"{contracts.__name__}.")]
    found = {v for m in modules for v in vars(m).values() if isinstance(v, type) and issubclass(v, Contract)}
    return sorted(found, key=lambda c: c.__name__)


def test_ids_are_unique_and_sort_by_time() -> None:
    first = [new_id("job") for _ in range(10_000)]
    time.sleep(0.002)
    later = new_id("job")
    assert first == sorted(first)
    assert first[-1] < later
    assert len(set(first)) == len(first)


def test_ids_are_unique_among_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = [i for batch in pool.map(lambda _: [new_id("job") for _ in range(500)], range(16)) for i in batch]
    assert len(set(ids)) == len(ids)


def test_ids_of_two_processes_differ_even_in_the_same_instant() -> None:
    chances = {new_id("job")[-15:] for _ in range(1_000)}  # what no clock decides: 60 bits
    assert len(chances) == 1_000


def test_an_id_is_a_uuid_of_version_7_with_its_kind() -> None:
    value = new_id("ds")
    TypeAdapter(Id).validate_python(value)
    bits = value.removeprefix("ds_")
    assert (bits[12], bits[16] in "89ab") == ("7", True)
    milliseconds = int(bits[:12], 16)
    assert abs(milliseconds / 1000 - time.time()) < 60


def test_content_ids_tell_parts_apart() -> None:
    assert content_id("pas", "a", "b") == content_id("pas", "a", "b")
    assert len({content_id("pas", "a", "b"), content_id("pas", "ab"), content_id("pas", "b", "a")}) == 3


@settings(max_examples=50)
@given(
    accepted=st.integers(0, 99),
    dead=st.integers(0, 99),
    reasons=st.dictionaries(st.sampled_from(["language", "format", "ungrounded"]), st.integers(1, 99)),
)
def test_counts_that_add_up_are_taken(accepted: int, dead: int, reasons: dict[str, int]) -> None:
    rejected = sum(reasons.values())
    whole = {"requested": accepted + rejected + dead, "accepted": accepted, "rejected": rejected}
    Counts(**whole, dead_lettered=dead, rejected_by_reason=reasons)


@pytest.mark.parametrize(
    "counts",
    [
        {"requested": 3, "accepted": 2},
        {"requested": 2, "accepted": 2, "dead_lettered": 1},
        {"requested": 1, "rejected": 1},
        {"requested": 2, "rejected": 2, "rejected_by_reason": {"language": 1}},
        {"requested": 1, "accepted": 1, "rejected_by_reason": {"language": 1}},
    ],
)
def test_counts_that_lose_or_invent_a_record_are_refused(counts: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"lost or invented|reasons add up"):
        Counts.model_validate(counts)


@pytest.mark.parametrize("contract", all_contracts(), ids=lambda c: c.__name__)
def test_every_contract_is_frozen_and_refuses_unknown_fields(contract: type[BaseModel]) -> None:
    assert contract.model_config.get("frozen") is True
    assert contract.model_config.get("extra") == "forbid"


def test_a_contract_cannot_be_changed() -> None:
    job = SynthJob(corpus_id=new_id("cor"))
    with pytest.raises(ValidationError, match="frozen"):
        job.seed = 7  # type: ignore[misc]


def test_a_misspelt_field_is_named() -> None:
    with pytest.raises(ValidationError, match=r"temprature\n.*not permitted"):
        SynthJob.model_validate({"corpus_id": new_id("cor"), "temprature": 0.5})


@pytest.mark.parametrize("version", [0, 2, "1.0"])
def test_another_schema_version_is_refused(version: object) -> None:
    with pytest.raises(ValidationError, match="schema_version"):
        CorpusJob.model_validate({"schema_version": version})


def chain() -> Job:
    dataset_id, model_id = new_id("ds"), new_id("mdl")
    return CorpusJob(
        document_ids=(new_id("doc"),),
        then=(
            SynthJob(corpus_id=new_id("cor"), dataset_id=dataset_id, system_prompt="你是易经的读者。"),
            TrainJob(dataset_id=dataset_id, model_id=model_id),
            DeployJob(name="zhouyi", model_id=model_id),
            EvaluateJob(dataset_id=dataset_id, before="base", after="zhouyi"),
            LoadtestJob(model="zhouyi", prompts=("What is hexagram 7?",), concurrencies=(1, 2)),
        ),
    )


def test_a_chain_survives_json() -> None:
    job = chain()
    again = parse_job(job.to_json())
    assert again == job
    assert [type(j) for j in again.then] == [type(j) for j in job.then]


def test_a_chain_is_handed_on_link_by_link_and_loses_none() -> None:
    job: Job | None = chain()
    assert job is not None
    expected = [job.job_id, *(j.job_id for j in job.then)]
    walked = []
    while job is not None:
        walked.append(job.job_id)
        job = parse_job(job.to_json()).next_job()
    assert walked == expected


def test_a_job_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        parse_job(b'{"kind": "brew"}')
