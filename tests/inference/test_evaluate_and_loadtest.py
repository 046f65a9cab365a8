"""Both jobs against a real gateway in front of a real server: from the dataset in the store to the report."""

import hashlib
import io
import threading

import pyarrow
import pyarrow.parquet
import pytest

from textmill.contracts.datasets import Counts, DatasetManifest, Message, Record
from textmill.contracts.documents import Span
from textmill.contracts.jobs import EvaluateJob, LoadtestJob
from textmill.contracts.loadoptions import LoadtestOptions
from textmill.contracts.loadreport import LoadtestReport
from textmill.contracts.serving import EvaluationReport
from textmill.errors import BadRequest, Cancelled, DependencyDown, JobFailed, NotFound
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.evaluation.evaluate import Evaluator
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.job import Loadtester

DATASET = "ds_" + "1" * 32


def record(index, facts):
    return Record(
        record_id=f"rec_{index}", split="heldout", strategy="qa", language="en", key_facts=facts,
        messages=[
            Message(role="system", content="Be brief."),
            Message(role="user", content=f"Question {index}?"),
            Message(role="assistant", content="Seven has six lines."),
        ],
        question_id="lines", way="w", document_id="doc_1", document_sha256="0", passage_id="p", evidence="six lines",
        evidence_span=Span(char_start=0, char_end=1, byte_start=0, byte_end=1),
    )  # fmt: skip


@pytest.fixture
def store():
    made = MemoryStore()
    records = [record(0, ["six lines"]), record(1, ["eight lines"]), record(2, ["seven", "six"]), record(3, [])]
    table = pyarrow.Table.from_pylist([r.model_dump(mode="json") for r in records])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    made.put("datasets/x/heldout.parquet", buffer.getvalue())
    manifest = DatasetManifest(
        dataset_id=DATASET, corpus_id="cor_1", records={"heldout": 4}, counts=Counts(), counts_by_strategy={},
        cost={}, calls=0, calls_reused=0, records_keys={"heldout": "datasets/x/heldout.parquet"}, rejects_key="",
        card_key="", exports={}, document_ids=(), prompt_versions=(), models=(),
    )  # fmt: skip
    made.put(f"datasets/{DATASET}/manifest.json", manifest.to_json())
    return made


@pytest.fixture
def ctx(store):
    return JobContext(store, 1, "scratch/")


def evaluation(**changed):
    return EvaluateJob(**{"dataset_id": DATASET, "before": "small", "after": "small", "concurrency": 2, **changed})


def test_an_evaluation_scores_what_the_models_say(gateway, ctx):
    job = evaluation()
    output = Evaluator(gateway.url)(job, ctx)
    report = EvaluationReport.model_validate(output.manifest)
    assert output.manifest_key == f"evaluations/{job.evaluation_id}/report.json"
    assert [answer.correct for answer in report.after.answers] == [True, False, True]
    assert report.before.accuracy == pytest.approx(2 / 3)
    assert report.after.answers[0].answer == "Seven has six lines"
    assert report.after.answers[0].expected == "Seven has six lines."
    first = gateway.engine.bodies[0]
    assert (first["temperature"], first["max_tokens"]) == (0, 48)
    assert [message["role"] for message in first["messages"]] == ["system", "user"]


def test_no_more_questions_than_asked_for(gateway, ctx):
    Evaluator(gateway.url)(evaluation(max_questions=1), ctx)
    assert len(gateway.engine.bodies) == 2


def test_an_unknown_model_fails_the_evaluation(gateway, ctx):
    with pytest.raises(JobFailed, match="404"):
        Evaluator(gateway.url)(evaluation(after="large"), ctx)


def test_a_gateway_that_is_away_is_a_dependency(ctx):
    with pytest.raises(DependencyDown, match="gateway at"):
        Evaluator("http://127.0.0.1:9")(evaluation(), ctx)


def test_a_dataset_that_is_not_there(gateway, ctx):
    with pytest.raises(NotFound, match="no dataset"):
        Evaluator(gateway.url)(evaluation(dataset_id="ds_" + "2" * 32), ctx)


def test_a_cancelled_evaluation_lets_go(gateway, ctx, waits):
    gateway.engine.gap_s = 30
    caught = []

    def work():
        try:
            Evaluator(gateway.url)(evaluation(), ctx)
        except Cancelled as exc:
            caught.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    waits(lambda: len(gateway.engine.bodies) == 2, "the first two questions")
    ctx.stop(Cancelled("by its owner"))
    thread.join(60)
    assert caught
    waits(lambda: gateway.engine.cancelled == 2, "the questions under way to be cancelled")


def load(**changed):
    values = {
        "model": "small",
        "concurrencies": (1, 4),
        "requests_per_level": 8,
        "seconds_per_level": 20,
        "warm_up_s": 0,
    }
    return LoadtestJob(**{**values, **changed})


def load_tester(url, key=""):
    """Uncalibrated, since here nothing is concluded from times, and without a look that the server would count."""
    return Loadtester(url, key, generator=lambda key, traces: Generator(key=key, calibrate_s=0, workers=1, look=False))


def run(gateway, ctx, **changed):
    job = load(**changed)
    output = load_tester(gateway.url)(job, ctx)
    assert output.manifest_key == f"loadtests/{job.loadtest_id}/report.json"
    return LoadtestReport.model_validate(output.manifest)


def test_a_load_test_reports_each_level(gateway, ctx):
    gateway.engine.gap_s = 0.01
    report = run(gateway, ctx, dataset_id=DATASET)
    assert [level.concurrency for level in report.levels] == [1, 4]
    for level in report.levels:
        assert (level.requests, level.succeeded, level.errors) == (8, 8, {})
        assert level.output_tokens == 8 * 4
        assert level.itl_ms.samples == 8 * 3
        assert level.ttft_ms.mean >= 10
        assert level.e2e_ms.mean >= 40
        assert (level.ttft_ms.p50, level.ttft_ms.p99) == (None, None)
    assert {body["messages"][-1]["content"] for body in gateway.engine.bodies} == {f"Question {i}?" for i in range(3)}
    assert report.verdict.headline


def test_errors_are_counted_by_class(gateway, ctx):
    gateway.engine.error_status = 429
    assert run(gateway, ctx, concurrencies=(1,), requests_per_level=2).levels[0].errors == {"429": 2}
    gateway.engine.error_status = 400
    level = run(gateway, ctx, concurrencies=(1,), requests_per_level=2).levels[0]
    assert (level.errors, level.error_samples[0].status) == ({"4xx": 2}, 400)
    gateway.engine.error_status, gateway.engine.break_after = None, 2
    assert run(gateway, ctx, concurrencies=(1,), requests_per_level=2).levels[0].errors == {"broken_stream": 2}


def test_our_key_goes_to_our_gateway_alone(make_gateway, ctx):
    gateway = make_gateway(keys=(hashlib.sha256(b"sk-secret").hexdigest(),))
    report = LoadtestReport.model_validate(
        load_tester(gateway.url, "sk-secret")(load(concurrencies=(1,), requests_per_level=2), ctx).manifest
    )
    assert report.levels[0].succeeded == 2
    load_tester("http://127.0.0.1:9", "sk-secret")(
        load(concurrencies=(1,), requests_per_level=1, target_url=gateway.engine.url), ctx
    )
    assert all("authorization" not in headers for headers in gateway.engine.headers)


def test_a_cancelled_load_test_ends_its_generator(gateway, ctx, waits):
    gateway.engine.gap_s = 30
    caught = []

    def work():
        try:
            load_tester(gateway.url)(load(), ctx)
        except Cancelled as exc:
            caught.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    waits(lambda: gateway.engine.bodies != [], "the first request")
    ctx.stop(Cancelled("by its owner"))
    thread.join(60)
    assert caught
    waits(lambda: gateway.engine.cancelled >= 1, "the request under way to be cancelled")


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8100", "http://"])
def test_a_target_that_is_no_http_address_is_refused(url):
    with pytest.raises(BadRequest, match="no HTTP address"):
        Loadtester("").check(load(target_url=url))


def test_a_recipes_options_are_still_those_of_before():
    options = LoadtestOptions(concurrencies=(1, 4), requests_per_level=8, seconds_per_level=5, max_tokens=9)
    assert [arrivals.concurrency for arrivals in options.sweep()] == [1, 4]
    with pytest.raises(ValueError, match="at least one level"):
        LoadtestOptions(concurrencies=())
