"""The report's figures are the stored ones, and its page shows what was rejected."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from textmill.contracts.anomalies import AnomalyReport, Suspect, SuspectVerdict
from textmill.contracts.base import new_id
from textmill.contracts.datasets import BudgetSpent, Cost, Counts, DatasetManifest, RungYield
from textmill.contracts.gates import ParityCheck
from textmill.contracts.jobs import CorpusJob, JobView, Result
from textmill.contracts.load import ClosedLoop
from textmill.contracts.loadreport import ErrorBudget, Latencies, Level, LoadtestReport, Verdict
from textmill.contracts.loadtest import ErrorClass
from textmill.contracts.masking import MaskedSplit, MaskingReport, ShownRecord
from textmill.contracts.packing import PackingReport
from textmill.contracts.preflight import Interval
from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.contracts.serving import Answer, Deployment, EvaluationReport, ModelScore, TaskScore
from textmill.contracts.trainforecast import ForecastTruth, MemoryForecast, Setup, TrainForecast
from textmill.contracts.verdict import DocumentGap, TrainVerdict
from textmill_cli.report import Findings, as_json, write


def suspect(record_id: str, score: float, odd: list[str], verdict: SuspectVerdict) -> Suspect:
    return Suspect(
        record_id=record_id, passage_id="psg_a", document_id="doc_a", score=score, tokens=9, seen=[], odd=odd,
        preview=f'summary:"<u>of {record_id}</u>', verdict=verdict,
    )  # fmt: skip


def findings() -> Findings:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    view = JobView(
        job=CorpusJob(), state="succeeded", life=1, attempts=2, started_at=now,
        result=Result(state="succeeded", attempt=2, finished_at=now.replace(second=7)),
    )  # fmt: skip
    counts = Counts(requested=5, accepted=3, rejected=2, rejected_by_reason={"repetition": 2})
    dataset = DatasetManifest(
        dataset_id=new_id("ds"), corpus_id=new_id("cor"), records={"train": 30}, counts=counts,
        counts_by_strategy={"qa": counts}, cost=Cost(prompt_tokens=100, completion_tokens=9), calls=5, calls_reused=1,
        records_keys={}, rejects_key="r", card_key="c", exports={}, document_ids=["doc"], prompt_versions=[], models=[],
        rungs={
            "as_asked": RungYield(tried=5, gained=3, accepted=2),
            "asked_again": RungYield(tried=2, gained=1, accepted=1),
        },
        rows_made=33, dropped_by_rule={"near_duplicate": 3}, hedged_calls=1,
        budget_spent=BudgetSpent(
            calls=5, prompt_tokens=90, completion_tokens=9, cost=0.25, refused=7, ended_by="max_cost"
        ),
    )  # fmt: skip
    times = Latencies(samples=70, mean=2.0, max=4.0, p50=2.0, p90=3.0, p99=None, quantiles=())
    levels = [
        Level(
            number=n, kind="concurrency", load=n, arrivals=ClosedLoop(concurrency=n), concurrency=n, started_at=0,
            began_s=0, valid=True, doubts=(), requests=8, succeeded=7, errors={ErrorClass.TIMEOUT: 1}, not_sent=0,
            seconds=4.0, requests_per_s=2.0, output_tokens_per_s=50.0 * n, prompt_tokens=7, output_tokens=70,
            in_flight=n, ttft_ms=times, itl_ms=times, e2e_ms=times.model_copy(update={"p50": None}), ttft_sent_ms=times,
            e2e_sent_ms=times, per_token_ms=None, lateness_ms=None,
        )
        for n in (1, 2)
    ]  # fmt: skip

    def score(model: str, correct: bool) -> ModelScore:
        answer = Answer(
            record_id="rec", question="Which?", key_facts=["line 2"], expected="x", answer="<b>y</b>", correct=correct
        )
        return ModelScore(model=model, questions=1, correct=int(correct), accuracy=float(correct), answers=[answer])

    return Findings(
        views=[view],
        dataset=dataset,
        rejects=[{"reason": "repetition", "raw_response": "again again <script>", "detail": "the same words"}],
        steps=[
            StepMetrics(
                step=n,
                epoch=n / 2,
                loss=3.0 / n,
                learning_rate=1e-3,
                gradient_norm=1.0,
                tokens=9,
                tokens_per_s=9.0,
                seconds=1.0,
            )
            for n in (1, 2)
        ],
        evals=[EvalMetrics(step=2, epoch=1.0, eval_loss=1.5)],
        forecast=TrainForecast(
            base_model="base",
            parameters=9,
            trained_parameters=1,
            steps=2,
            tokens=Interval(expected=18),
            seconds=Interval(expected=100),
            seconds_by_stage={"training": 90.0, "merge": 10.0},
            cost=None,
            memory=MemoryForecast(terms=[]),
            asked=Setup(max_padded_tokens=9),
            setup=Setup(max_padded_tokens=9),
            learning_rate=1e-3,
            rank=16,
            truth=ForecastTruth(steps=2, tokens=18, seconds=75.0, seconds_off=0.2),
        ),
        masking=MaskingReport(
            max_tokens=64,
            end_of_turn=["<|im_end|>"],
            splits=[
                MaskedSplit(
                    split="train",
                    records=30,
                    examples=30,
                    tokens=1_000,
                    supervised_tokens=400,
                    longest=50,
                    shortest=20,
                    lengths=[],
                )
            ],
            split_by_turn=0,
            shown=[
                ShownRecord(
                    record_id="rec_shown",
                    split="train",
                    tokens=9,
                    supervised_tokens=3,
                    examples=1,
                    shown_as="longest",
                    preview="<|im_start|>user Which?<|im_start|>assistant ⟦line 2<|im_end|>⟧",
                )
            ],
            refused=[],
        ),
        packing=PackingReport(
            packed=True,
            shared=True,
            spared_share=0.14,
            reason="",
            records=30,
            tokens=1_000,
            padding_share=0.03,
            rows_padded=30,
            microbatches_padded=4,
            microbatches_packed=4,
            difference=2e-7,
            leak=0.7,
            steps=2,
            steps_counting_records=2,
        ),
        anomalies=AnomalyReport(
            records=300,
            epochs_seen=3.0,
            judged=True,
            threshold=5.0,
            odd_threshold=2.5,
            suspects=[suspect("rec_odd", 6.5, ["has : (1 of 100)"], "confirmed")],
            surprising=[suspect("rec_hard", 7.25, [], "suspected")],
        ),
        deployment=Deployment(
            name="tuned",
            deployment_id="dep",
            model_id="mdl",
            parity=ParityCheck(
                conversations=16,
                prompts_identical=15,
                prompts_compared=16,
                tokens=200,
                top1_exact=0.99,
                top1_agreement=0.995,
                ties=1,
                tie_nats=0.26,
                mean_logprob_difference=1.2e-4,
                max_logprob_difference=0.01,
                seconds=1.0,
            ),
        ),
        verdict=TrainVerdict(
            verdict="memorized",
            sentence="It recites <em>8 of 8</em>.",
            advice=["Add ways of asking."],
            warnings=["It is losing general abilities."],
            wordings="template",
            start=EvalMetrics(step=0, epoch=0.0, train_loss=4.25, probe_loss=4.28, exact_recall=0.0),
            last=EvalMetrics(step=2, epoch=1.0, train_loss=0.001, probe_loss=0.375, exact_recall=1.0, kl_to_base=0.612),
            documents=[DocumentGap(document_id="doc_a", loss=3.5, rise=-0.5, gap=3.25)],
            perplexity_before=72.24,
            perplexity_after=1.45,
        ),
        evaluation=EvaluationReport(
            evaluation_id="e",
            dataset_id="d",
            before=score("base", False),
            after=score("tuned", True),
            tasks=[TaskScore(task="gsm8k", metric="exact_match", before=0.125, after=0.25)],
        ),
        loadtest=LoadtestReport(
            loadtest_id="l",
            target="http://127.0.0.1",
            model="tuned",
            levels=levels,
            seconds=8,
            verdict=Verdict(answer="measured", headline="It gave up to 100 tokens/s."),
            budget=ErrorBudget(
                added_ttft_p50_ms=None,
                added_ttft_p99_ms=None,
                added_inter_token_p99_ms=None,
                lateness_p99_ms=None,
                worst_cpu=0,
                valid_stages=2,
                invalid_stages=0,
            ),
        ),
    )


def test_the_figures_are_the_stored_ones() -> None:
    figures = as_json(findings(), 61.0)
    assert figures["seconds"] == 61.0
    assert figures["accuracy"] == {"before": 0.0, "after": 1.0, "questions": 1}
    records = figures["records"]
    assert isinstance(records, dict)
    assert {k: records[k] for k in ("requested", "accepted", "rejected", "dead_lettered")} == {
        "requested": 5, "accepted": 3, "rejected": 2, "dead_lettered": 0,
    }  # fmt: skip
    assert figures["stages"] == [
        {"kind": "corpus", "job_id": findings_job(figures), "state": "succeeded", "attempts": 2, "seconds": 7.0}
    ]


def test_records_that_stand_out_are_shown_with_their_text_and_counted_without(tmp_path: Path) -> None:
    page = write(findings(), tmp_path, "zhouyi", None).read_text()
    assert "1 of 300 records are suspects" in page
    assert "summary:&#34;&lt;u&gt;of rec_odd&lt;/u&gt;" in page
    assert "has : (1 of 100)" in page
    assert "1 look like the others and are hard to learn" in page
    assert "14 % of positions were spared" in page
    assert "400 of 1000 tokens count in the loss (40 %)" in page
    assert "⟦line 2&lt;|im_end|&gt;⟧" in page
    figures = json.loads((tmp_path / "report.json").read_text())
    assert [s["record_id"] for s in figures["anomalies"]["suspects"]] == ["rec_odd"]
    assert "<u>" not in (tmp_path / "report.json").read_text()
    assert "⟦" not in (tmp_path / "report.json").read_text()


def test_a_run_whose_records_were_not_judged_says_why(tmp_path: Path) -> None:
    few = AnomalyReport(records=9, epochs_seen=3.0, judged=False, threshold=5.0, note="9 records: too few")
    page = write(replace(findings(), anomalies=few), tmp_path, "zhouyi", None).read_text()
    assert "Not judged: 9 records: too few." in page
    clean = few.model_copy(update={"judged": True, "note": ""})
    assert (
        "None of 9 records is suspect." in write(replace(findings(), anomalies=clean), tmp_path, "z", None).read_text()
    )


def findings_job(figures: dict[str, object]) -> str:
    stages = figures["stages"]
    assert isinstance(stages, list)
    return str(stages[0]["job_id"])


def test_the_page_shows_plots_rejects_and_answers_and_escapes_them(tmp_path: Path) -> None:
    page = write(findings(), tmp_path, "zhouyi", 61.0).read_text()
    assert page.count("<svg") == 3
    assert "again again &lt;script&gt;" in page
    assert "&lt;b&gt;y&lt;/b&gt;" in page
    assert "repetition 2" in page
    assert '<td>gsm8k</td><td>exact_match</td><td class="n">0.125</td><td class="n">0.250</td>' in page
    assert json.loads((tmp_path / "report.json").read_text())["loadtest"]["levels"][1]["concurrency"] == 2


def test_the_page_has_the_verdict_in_words_and_figures(tmp_path: Path) -> None:
    page = " ".join(write(findings(), tmp_path, "zhouyi", 61.0).read_text().split())
    assert '<b class="bad">memorized.</b> It recites &lt;em&gt;8 of 8&lt;/em&gt;.' in page
    assert '<li class="bad">It is losing general abilities.</li><li>Add ways of asking.</li>' in page
    assert "(made by templates)" in page
    rows = dict(re.findall(r"<tr><td>([^<]*)</td>((?:<td class=\"n\">[^<]*</td>){3})</tr>", page))
    assert re.findall(r">([^<]*)</td>", rows["loss in other wordings (made by templates)"]) == ["4.280", "0.375", ""]
    assert re.findall(r">([^<]*)</td>", rows["KL to the base on general prompts, nats a token"]) == ["", "0.612", ""]
    assert "72.24 for the base, 1.45 for the tuned model" in page
    assert '<td class="n">-0.500</td><td class="n">+3.250</td>' in page
    assert json.loads((tmp_path / "report.json").read_text())["verdict"]["verdict"] == "memorized"


def test_the_page_balances_what_was_asked_for_row_by_row(tmp_path: Path) -> None:
    page = " ".join(write(findings(), tmp_path, "zhouyi", 61.0).read_text().split())
    cells = re.findall(r"<td>(qa|all)</td>((?:<td[^>]*>[^<]*</td>\s*)+)", page)
    assert [name for name, _ in cells] == ["qa", "all"]
    for _, row in cells:
        assert re.findall(r">([^<]*)</td>", row)[:8] == ["5", "=", "3", "+", "2", "+", "0", "60 %"]
    assert '<td>asked again</td><td class="n">2</td><td class="n">1</td><td class="n">50 %</td>' in page
    assert "33 rows were made of 3 answers" in page
    assert "near duplicate 3." in page
    assert "<code>max_cost</code> ended it: 7 calls were not made" in page
    assert "0.25 in the money of the prices" in page


def test_the_figures_have_rungs_drops_and_the_budget() -> None:
    figures = as_json(findings(), None)
    records, llm = figures["records"], figures["llm"]
    assert isinstance(records, dict)
    assert isinstance(llm, dict)
    assert (records["rows_made"], records["rows_dropped"]) == (33, {"near_duplicate": 3})
    assert records["rungs"]["asked_again"] == {"tried": 2, "gained": 1, "accepted": 1}  # type: ignore[index, call-overload]
    assert llm["budget_spent"]["ended_by"] == "max_cost"  # type: ignore[index, call-overload]


def test_the_gates_and_the_forecast_are_told_with_what_became_of_them(tmp_path: Path) -> None:
    page = " ".join(write(findings(), tmp_path, "zhouyi", 61.0).read_text().split())
    assert "15 of 16 prompts token for token, the same likeliest token at 99.00 % of 200 tokens" in page
    assert "(ties counted: 99.50 %), log-probabilities 1.2e-04 nats apart" in page
    assert "The steps took 75 s, 90 s had been forecast." in page
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["parity"]["top1_agreement"] == 0.995
    assert figures["forecast"]["truth"]["seconds_off"] == 0.2


def test_a_run_that_ended_early_still_has_a_page(tmp_path: Path) -> None:
    page = write(Findings(views=findings().views), tmp_path, "short", None).read_text()
    assert "corpus" in page
    assert "<svg" not in page
