"""The loss watch on made-up runs: what stands out is found, what doesn't isn't, and too little is called too little."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.trainer.conftest import make_record, write_records
from tests.trainer.runs_made_up import MadeUpRun, record_id

from textmill.contracts.anomalies import AnomalyReport
from textmill_trainer.losswatch import LEAST_SPIKE, ODD_THRESHOLD, LossWatch, Origin, read_origins
from textmill_trainer.observing import StepSeen
from textmill_trainer.record_losses import StepLosses
from textmill_trainer.workfolder import WorkFolder

BAD = [record_id(n) for n in range(7, 300, 20)]


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    folder = WorkFolder(tmp_path)
    folder.reports.mkdir(parents=True, exist_ok=True)
    return folder


def watched(
    folder: WorkFolder,
    run: MadeUpRun,
    steps: Sequence[StepSeen] | None = None,
    origins: Mapping[str, Origin] | None = None,
) -> LossWatch:
    """A watch that has seen the run, or these steps of it. As in the loop, a step is written before it is shown."""
    folder.record_losses.unlink(missing_ok=True)
    watch = LossWatch(folder, run.origins if origins is None else origins)
    for seen in run.steps() if steps is None else steps:
        line = StepLosses(seen.metrics.step, seen.metrics.epoch, seen.records).to_json()
        with folder.record_losses.open("ab") as file:
            file.write(line + b"\n")
        watch.step(seen)
    return watch


def suspects(report: AnomalyReport) -> set[str]:
    """All that stand out: the made-up answers have one form, so that what does is surprising."""
    assert not report.suspects or not report.surprising
    return {s.record_id for s in (*report.suspects, *report.surprising)}


@pytest.mark.parametrize("seed", range(5))
def test_planted_records_are_found_and_no_others(folder: WorkFolder, seed: int) -> None:
    report = watched(folder, MadeUpRun(bad=BAD, seed=seed)).report()
    assert suspects(report) == set(BAD)


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_run_raises_no_alarm(folder: WorkFolder, seed: int) -> None:
    report = watched(folder, MadeUpRun(seed=seed)).report()
    assert report.judged
    assert not report.suspects
    assert not report.spikes


def test_evidence_of_all_passes_is_put_together(folder: WorkFolder) -> None:
    # In a single pass so small an excess drowns in the noise of its records; over six it doesn't.
    found = {n: suspects(watched(folder, MadeUpRun(epochs=n, bad=BAD, excess=0.6)).report()) for n in (1, 6)}
    assert len(found[6] & set(BAD)) > len(found[1] & set(BAD))
    assert len(found[6] - set(BAD)) <= 1


def test_a_long_slip_among_easy_tokens_is_found(folder: WorkFolder) -> None:
    # Five times as long at the same loss a token: five times the surprise in all.
    found = suspects(watched(folder, MadeUpRun(bad=BAD, excess=0.0, longer=5)).report())
    assert found <= set(BAD)
    assert len(found) >= len(BAD) - 1


def test_where_each_asks_something_else_length_is_no_sign(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD, excess=0.0, longer=5)
    unlike = {i: replace(o, question=i) for i, o in run.origins.items()}
    assert not suspects(watched(folder, run, origins=unlike).report())
    strange = MadeUpRun(bad=BAD, excess=1.8)
    assert suspects(watched(folder, strange, origins=unlike).report()) == set(BAD)


def test_among_uneven_lengths_records_are_compared_with_their_like(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD, excess=2.0, uneven=True)
    unlike = {i: replace(o, question=i) for i, o in run.origins.items()}
    found = suspects(watched(folder, run, origins=unlike).report())
    assert found <= set(BAD)
    assert len(found) >= len(BAD) - 1


def test_a_hard_question_is_not_an_anomaly(folder: WorkFolder) -> None:
    # All answers to one question have twice the loss of the others.
    hard = [record_id(n) for n in range(2, 300, 3)]
    assert len(suspects(watched(folder, MadeUpRun(bad=hard, excess=0.7)).report())) <= 1


def test_a_spike_names_the_records_that_made_it(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD, excess=3.0)
    spikes = watched(folder, run).report().spikes
    steps = {seen.metrics.step: {r.record_id for r in seen.records} for seen in run.steps()}
    assert spikes
    for spike in spikes:
        assert spike.record_ids
        assert set(spike.record_ids) == steps[spike.step] & set(BAD)
        assert spike.loss > spike.expected


def test_a_jump_that_no_chart_shows_is_no_spike(folder: WorkFolder) -> None:
    """Late in a run, when all is learnt, little is many times what is expected."""
    run = MadeUpRun(bad=BAD, excess=3.0)
    learnt = [replace(s, records=[replace(r, loss=r.loss / 100) for r in s.records]) for s in run.steps()]
    spikes = watched(folder, run, learnt).report().spikes
    assert all(spike.loss > spike.expected + LEAST_SPIKE for spike in spikes)
    assert len(spikes) < len(watched(folder, run).report().spikes)


def test_a_suspect_is_traced_to_its_passage_and_document(folder: WorkFolder) -> None:
    suspect = watched(folder, MadeUpRun(bad=["rec_67"])).report().surprising[0]
    assert (suspect.record_id, suspect.passage_id, suspect.document_id) == ("rec_67", "psg_22", "doc_2")
    assert suspect.preview == "Answer 67."
    assert suspect.verdict == "suspected"
    assert [round(s.epoch) for s in suspect.seen] == [0, 1, 2]
    assert all(s.loss > s.expected for s in suspect.seen)


def answering(run: MadeUpRun, answers: Mapping[str, str]) -> dict[str, Origin]:
    return {i: replace(o, answer=answers.get(i, o.answer)) for i, o in run.origins.items()}


def test_a_rare_form_and_a_higher_loss_make_a_suspect(folder: WorkFolder) -> None:
    """Each of both alone doesn't: of these records every third has an excess that its loss alone hardly shows."""
    odd = {i: f'summary:"{i}' for i in BAD}
    weak = MadeUpRun(bad=BAD[::3], excess=0.5)
    report = watched(folder, weak, origins=answering(weak, odd)).report()
    assert suspects(report) == {s.record_id for s in report.suspects} == set(BAD[::3])
    assert "has : (5 of 100)" in report.suspects[0].odd
    assert all(s.score > ODD_THRESHOLD for s in report.suspects)
    assert len(suspects(watched(folder, weak).report())) <= 1
    easy = MadeUpRun()
    assert not suspects(watched(folder, easy, origins=answering(easy, odd)).report())


def test_a_high_loss_in_the_common_form_is_surprising_and_no_alarm(folder: WorkFolder) -> None:
    report = watched(folder, MadeUpRun(bad=BAD)).report()
    assert {s.record_id for s in report.surprising} == set(BAD)
    assert not any(s.odd for s in report.surprising)
    assert not report.suspects


def test_without_answers_to_compare_loss_alone_decides(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD)
    report = watched(folder, run, origins=answering(run, dict.fromkeys(run.origins, ""))).report()
    assert {s.record_id for s in report.suspects} == set(BAD)
    assert not report.surprising


def test_few_records_are_not_judged(folder: WorkFolder) -> None:
    report = watched(folder, MadeUpRun(records=47, bad=["rec_1"])).report()
    assert not report.judged
    assert not report.suspects
    assert "47 records" in report.note


def test_nothing_is_judged_before_a_whole_pass(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD)
    report = watched(folder, run, run.steps()[:20]).report()
    assert not report.judged
    assert "passes" in report.note


def test_numbers_that_are_none_are_left_to_the_loop(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD)
    steps = [
        replace(seen, records=[*seen.records[:-1], replace(seen.records[-1], loss=float("nan"))])
        for seen in run.steps()
    ]
    found = suspects(watched(folder, run, steps).report())
    assert found
    assert found <= set(BAD)


def test_general_records_mixed_in_are_no_suspects(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD)
    known = {i: o for i, o in run.origins.items() if i not in BAD}
    report = watched(folder, run, origins=known).report()
    assert report.records == len(known)
    assert not report.suspects


def test_without_origins_records_are_judged_all_the_same(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD, excess=4.0)
    report = watched(folder, run, origins={}).report()
    assert suspects(report) == set(BAD)
    assert {s.passage_id for s in report.suspects} == {None}


def test_the_report_is_written_after_each_pass(folder: WorkFolder) -> None:
    run = MadeUpRun(bad=BAD)
    for passes in (1, 2, 3):  # the third is the last
        steps = run.steps()[: passes * 38]
        watched(folder, run, steps)
        report = AnomalyReport.model_validate_json(folder.report("anomalies").read_bytes())
        assert report.epochs_seen == passes
        folder.report("anomalies").unlink()
        watched(folder, run, steps[:37])
        assert not folder.report("anomalies").exists()


def test_origins_are_read_from_the_records_that_are_trained_on(tmp_path: Path) -> None:
    record = make_record("What is it?", "A lamp.", passage_id="psg_9")
    write_records(tmp_path / "train.parquet", [record])
    origin = read_origins(tmp_path / "train.parquet")[record.record_id]
    assert (origin.passage_id, origin.document_id, origin.answer) == ("psg_9", record.document_id, "A lamp.")
    assert read_origins(tmp_path / "none.parquet") == {}
