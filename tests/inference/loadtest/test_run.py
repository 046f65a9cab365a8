"""A whole load test over a made-up server: stages, order, verdict, report and page. Nothing is sent."""

import json
import re
from xml.etree import ElementTree

import pytest
import yaml
from made_up import MadeUpServer, measured
from pydantic import ValidationError

from textmill.contracts.capacity import CapacityOptions
from textmill.contracts.jobs import LoadtestJob
from textmill.contracts.load import ConstantRate
from textmill.contracts.loadoptions import KeyFrom, Versus
from textmill.contracts.loadreport import LoadtestReport
from textmill.contracts.slo import Limit, Slo
from textmill.errors import BadRequest, Cancelled
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.loadtest.job import Loadtester, read_stages
from textmill_inference.loadtest.keyrefs import KeySource

KEY = "sk-the-very-secret-key"
SLO = Slo(limits=(Limit(measure="ttft", percent=99, ms=400),))


@pytest.fixture
def ctx():
    return JobContext(MemoryStore(), 1, "scratch/")


def play(ctx, server, secrets=None, environ=None, **options):
    """The report of a job against a made-up server, and the keys its generators were given."""
    given = []

    def generator(key, traces):
        given.append(key)
        return server

    tester = Loadtester("http://127.0.0.1:9", "own", KeySource(secrets, environ or {}), generator=generator)
    job = LoadtestJob(**{"model": "m", "target_url": "http://127.0.0.1:9/v1", **options})
    output = tester(job, ctx)
    assert output.manifest_key == f"loadtests/{job.loadtest_id}/report.json"
    return LoadtestReport.model_validate(output.manifest), given


def everything(store):
    """All that is stored, as text."""
    return "\n".join(store.get(info.key).decode() for info in list(store.list("")))


def test_a_sweep_measures_each_load_and_finds_the_knee(ctx):
    report, _ = play(ctx, MadeUpServer(12), concurrencies=(1, 2, 4, 8, 16, 32, 64))
    assert [level.concurrency for level in report.levels] == [1, 2, 4, 8, 16, 32, 64]
    assert report.knee.load == pytest.approx(12, rel=0.1)
    assert report.verdict.headline.startswith("It gave up to")
    assert "Throughput stops growing at about 12 concurrent requests." in report.verdict.reasons
    assert len(read_stages(ctx.store, report)) == 7


def test_the_stages_of_a_cancelled_test_are_kept(ctx):
    server = MadeUpServer(12)

    class Stopped:
        def run(self, stage, on_news, stopping):
            if len(server.stages) == 2:
                ctx.stop(Cancelled("enough"))
            return server.run(stage, on_news, stopping)

    with pytest.raises(Cancelled, match="enough"):
        play(ctx, Stopped(), concurrencies=(1, 2, 4))
    kept = [info.key for info in ctx.store.list("loadtests/") if "/stages/" in info.key]
    assert [key.rpartition("/")[2] for key in kept] == ["0001.json", "0002.json"]


def test_without_loads_the_default_sweep_is_made(ctx):
    server = MadeUpServer(1000)
    play(ctx, server)
    assert [stage.load.concurrency for stage in server.stages] == [1, 2, 4, 8, 16, 32, 64]


def test_a_sweep_with_an_slo_says_up_to_where_it_held(ctx):
    report, _ = play(ctx, MadeUpServer(12, spread=0.001), concurrencies=(4, 8, 16, 32), slo=SLO)
    assert report.verdict.headline == (
        "It met the SLO up to 8 concurrent requests and missed it from 16 concurrent requests on."
    )
    assert "capacity search" in report.verdict.advice[0]


def test_a_capacity_search_answers_the_question_first(ctx):
    report, _ = play(ctx, MadeUpServer(100.5, spread=0.01), slo=SLO, capacity=CapacityOptions(wanted=60))
    assert (report.verdict.answer, report.verdict.headline) == (
        "yes", "Yes: it holds 60 concurrent requests within the SLO.",
    )  # fmt: skip
    assert report.capacity.low <= 100.5 <= report.capacity.high
    assert re.match(
        r"The capacity lies from \d+ to \d+ concurrent requests, with 90% confidence.", report.verdict.reasons[0]
    )
    assert {level.purpose for level in report.levels} == {"explore", "confirm"}
    report, _ = play(ctx, MadeUpServer(100.5, spread=0.01), slo=SLO, capacity=CapacityOptions(wanted=1000))
    assert report.verdict.headline.startswith("No: it doesn't hold 1,000 concurrent requests within the SLO; it holds ")
    assert "ttft p99 400 ms: " in report.verdict.reasons[1]


def test_a_rate_is_searched_with_other_arrivals_each_time(ctx):
    server = MadeUpServer(50.5, spread=0.01)
    report, _ = play(ctx, server, slo=SLO, capacity=CapacityOptions(kind="rate"))
    assert report.capacity.low <= 50.5 <= report.capacity.high
    assert {stage.load.kind for stage in server.stages} == {"poisson"}
    assert len({stage.load.seed for stage in server.stages}) == len(server.stages)


def test_invalid_stages_end_in_no_verdict_and_in_no_figure(ctx):
    server = MadeUpServer(100, spoils=lambda load: True)
    report, _ = play(ctx, server, slo=SLO, capacity=CapacityOptions(wanted=1000))
    assert (report.verdict.answer, report.capacity.verdict) == ("invalid", "undecided")
    assert report.verdict.reasons == ("requests were sent up to 90 ms late, 5 ms are allowed",)
    assert (report.budget.valid_stages, report.budget.invalid_stages) == (0, 13)
    assert (report.knee, report.scaling) == (None, None)


def test_a_target_that_answers_nothing_has_no_capacity(ctx):
    report, _ = play(ctx, MadeUpServer(10, failing=50), slo=SLO, capacity=CapacityOptions())
    assert report.capacity.stopped == "no answers"
    assert len(report.levels) == 1
    assert "answered nothing" in report.verdict.headline


def test_two_targets_take_turns_a_b_b_a(ctx):
    server = MadeUpServer(100)
    versus = Versus(target_url="http://127.0.0.1:10", model="other", rounds=2)
    report, _ = play(ctx, server, concurrencies=(8, 16), versus=versus)
    assert [level.side for level in report.levels] == list("abbaabba") * 2
    assert [stage.target.model for stage in server.stages[:4]] == ["m", "other", "other", "m"]
    assert [(found.load, found.pairs, found.interleaved) for found in report.comparisons] == [
        (8, 4, True),
        (16, 4, True),
    ]
    assert (report.versus_target, report.versus_model) == ("http://127.0.0.1:10", "other")


def test_stages_are_long_enough_for_the_percentile_and_calibrated_by_the_last(ctx):
    server = MadeUpServer(2.5, spread=0.001)
    play(ctx, server, slo=SLO, capacity=CapacityOptions(max_stages=3), seconds_per_level=10)
    assert [stage.seconds for stage in server.stages] == [10, 60, 60]
    assert server.stages[0].expects.ttft_ms == 100
    assert server.stages[2].expects.ttft_ms == pytest.approx(100, rel=0.1)
    assert server.stages[2].expects.itl_ms == pytest.approx(20, rel=0.01)


def test_a_cancelled_test_lets_go(ctx):
    ctx.stop(Cancelled("by its owner"))
    with pytest.raises(Cancelled):
        play(ctx, MadeUpServer(10))


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_by_reference_is_sent_and_never_stored(ctx, caplog):
    caplog.set_level("DEBUG")
    server = MadeUpServer(10, failing=3, detail=f"Incorrect API key provided: {KEY}")
    place = KeyFrom(env="TEXTMILL_INFERENCE_LOADTEST_KEY_X")
    report, given = play(
        ctx, server, environ={"TEXTMILL_INFERENCE_LOADTEST_KEY_X": f"{KEY}\n"}, key_from=place, concurrencies=(1, 2)
    )
    assert given == [KEY]
    assert report.levels[0].error_samples[0].detail == "Incorrect API key provided: [key]"
    stored = everything(ctx.store)
    assert "loadtests/" in " ".join(info.key for info in ctx.store.list(""))
    assert KEY not in stored
    assert KEY not in caplog.text
    assert KEY not in str(ctx.current)


def test_a_key_comes_from_a_mounted_secret(ctx, tmp_path):
    (tmp_path / "vendor").write_text(KEY)
    _, given = play(ctx, MadeUpServer(10), secrets=tmp_path, key_from=KeyFrom(secret="vendor"), concurrencies=(1,))
    assert given == [KEY]
    assert KEY not in everything(ctx.store)


def test_our_own_key_goes_to_our_own_gateway_alone(ctx):
    assert play(ctx, MadeUpServer(10), concurrencies=(1,))[1] == [""]
    assert play(ctx, MadeUpServer(10), concurrencies=(1,), target_url=None)[1] == ["own"]
    versus = Versus(target_url="http://127.0.0.1:10", model="other", rounds=1)
    assert play(ctx, MadeUpServer(10), concurrencies=(1,), target_url=None, versus=versus)[1] == ["own", ""]


def test_variables_that_were_not_set_aside_are_refused_and_so_are_ways_out_of_the_folder(ctx, tmp_path):
    (tmp_path / "empty").write_text("")
    for place, message in (
        (KeyFrom(env="TEXTMILL_STORE_SECRET_KEY"), "not set aside"),
        (KeyFrom(env="TEXTMILL_INFERENCE_LOADTEST_KEY_NONE"), "no variable"),
        (KeyFrom(secret="nobody"), "no secret"),
        (KeyFrom(secret="empty"), "at least 8"),
    ):
        with pytest.raises(BadRequest, match=message):
            play(ctx, MadeUpServer(10), secrets=tmp_path, environ={"TEXTMILL_STORE_SECRET_KEY": "x"}, key_from=place)
    with pytest.raises(ValueError, match="pattern"):
        KeyFrom(secret="../up")
    with pytest.raises(ValueError, match="one place"):
        KeyFrom(env="A", secret="b")


def test_a_key_written_into_the_job_is_refused(ctx):
    with pytest.raises(BadRequest, match="written in the load test itself"):
        play(
            ctx, MadeUpServer(10), environ={"TEXTMILL_INFERENCE_LOADTEST_KEY": KEY},
            key_from=KeyFrom(env="TEXTMILL_INFERENCE_LOADTEST_KEY"), prompts=(f"My key is {KEY}",),
        )  # fmt: skip
    for url in ("http://user:pass@127.0.0.1:9", "http://127.0.0.1:9?key=x"):
        with pytest.raises(ValidationError, match="name the key by key_from") as caught:
            play(ctx, MadeUpServer(10), target_url=url)
        # The HTTP edge tells the message alone.
        assert "pass@" not in caught.value.errors()[0]["msg"]


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def reported(ctx):
    report, _ = play(
        ctx, MadeUpServer(100.5, spread=0.02, seed=3), slo=SLO, capacity=CapacityOptions(wanted=60), model="<b>m</b>"
    )
    return report, ctx.store


def test_the_page_stands_alone_and_says_the_verdict_first(reported):
    report, store = reported
    page = store.get(report.files["report.html"]).decode()
    assert not re.search(
        r"(?:src|href|url)\s*[=(]|@import|<script|https?://(?!127\.0\.0\.1|prometheus\.monitoring)", page
    )
    assert page.index("Yes: it holds 60 concurrent requests") < page.index("<svg")
    assert "&lt;b&gt;m&lt;/b&gt;" in page
    assert "<b>m</b>" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) >= 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
    for title in (
        "Throughput against load",
        "The search for the capacity",
        "Where the time went",
        "Histogram: end to end",
    ):
        assert title in page


def test_stages_with_few_requests_have_dashes_for_percentiles(ctx):
    """What the made-up server never gives: 5 requests in a stage, and none at all."""
    server = MadeUpServer(10)
    server.run = lambda stage, on_news, stopping: measured(ttft_ms=[100] * 5, itl_ms=(), stage=stage)
    report, _ = play(ctx, server, concurrencies=(1, 2), slo=SLO)
    assert "<td>–</td>" in ctx.store.get(report.files["report.html"]).decode()
    server.run = lambda stage, on_news, stopping: measured(ttft_ms=(), itl_ms=(), stage=stage)
    report, _ = play(ctx, server, concurrencies=(1, 2))
    assert report.verdict.headline == "The target answered no request; the errors below say why."


def test_the_table_has_a_line_a_stage_and_leaves_out_what_samples_do_not_support(reported):
    report, store = reported
    lines = store.get(report.files["report.csv"]).decode().splitlines()
    assert len(lines) == 1 + len(report.levels)
    head = lines[0].split(",")
    assert {"load", "slo_met", "errors_429", "ttft_ms_p99", "ttft_sent_ms_p99", "lateness_ms_p99"} <= set(head)
    assert json.loads(store.get(report.files["series.json"])) == []


def test_thresholds_are_computed_from_what_was_confirmed(reported):
    report, _ = reported
    low = report.capacity.low
    assert report.scaling.measured_in_flight == low
    assert report.scaling.in_flight == pytest.approx(0.8 * low, rel=0.01)
    keda, hpa = yaml.safe_load(report.scaling.keda), yaml.safe_load(report.scaling.hpa)
    assert keda["spec"]["triggers"][0]["metadata"]["threshold"] == f"{report.scaling.in_flight:g}"
    target = hpa["spec"]["metrics"][0]["external"]["target"]
    quantity = target["averageValue"]
    assert float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1) == report.scaling.in_flight


def test_a_rate_becomes_requests_in_flight(ctx):
    report, _ = play(ctx, MadeUpServer(50.5, spread=0.01), slo=SLO, capacity=CapacityOptions(kind="rate"))
    assert report.scaling.measured_in_flight == pytest.approx(round(report.capacity.low), abs=1)
    assert "requests per second" in report.scaling.source


def test_other_arrivals_have_their_mean_rate_as_their_load(ctx):
    report, _ = play(ctx, MadeUpServer(50), loads=(ConstantRate(rate_per_s=2.5),))
    assert [(v.kind, v.load, v.concurrency) for v in report.levels] == [("rate", 2.5, None)]
    assert "2.5 requests per second" in report.verdict.headline
