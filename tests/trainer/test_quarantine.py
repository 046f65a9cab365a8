"""What the replay leaves out, what it concludes, and what a run leaves out from the start."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.trainer.conftest import make_records, write_records
from tests.trainer.runs_made_up import MadeUpRun, record_id

from textmill.contracts.anomalies import AnomalyReport, Suspect
from textmill.errors import JobFailed
from textmill_trainer.loop import Interrupted, LoopSettings
from textmill_trainer.losswatch import Origin
from textmill_trainer.model import LoraSettings, add_lora, load_nf4
from textmill_trainer.prepare import Example, encode_all, read_records
from textmill_trainer.quarantine import (
    LEAST_CONTROLS,
    LEAST_OF_A_QUESTION,
    ReplayPlan,
    count,
    judge,
    keep_all_but,
    plan_replay,
)
from textmill_trainer.record_losses import RECORD_LOSSES_FILE, read_record_losses
from textmill_trainer.replay import copy_weights, replay
from textmill_trainer.supervised import Supervised


def suspect(record: str) -> Suspect:
    return Suspect(
        record_id=record, passage_id="psg_1", document_id="doc_1", score=9.0, tokens=12, seen=[], preview="An answer"
    )


def report(*record_ids: str) -> AnomalyReport:
    return AnomalyReport(
        records=300, epochs_seen=3.0, judged=True, threshold=5.0, suspects=[suspect(i) for i in record_ids]
    )


def plan(*suspects: str, controls: int = 20) -> ReplayPlan:
    return ReplayPlan(suspects, [f"control_{n}" for n in range(controls)])


def control_losses(controls: int = 20) -> dict[str, float]:
    rng = random.Random(0)
    return {f"control_{n}": 1.0 * 1.2 ** rng.gauss(0, 1) for n in range(controls)}


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_a_suspect_far_above_unseen_good_records_is_confirmed_and_one_among_them_cleared() -> None:
    losses = control_losses() | {"rec_bad": 6.0, "rec_fine": 1.1}
    judged = judge(report("rec_bad", "rec_fine"), plan("rec_bad", "rec_fine"), losses)
    assert [(s.record_id, s.verdict) for s in judged.suspects] == [("rec_bad", "confirmed"), ("rec_fine", "cleared")]
    assert judged.replayed
    assert judged.confirmed == ["rec_bad"]
    replayed = judged.suspects[0].replayed
    assert replayed is not None
    assert replayed.expected == pytest.approx(1.0, abs=0.2)
    assert replayed.loss == 6.0 > replayed.limit > replayed.expected


def test_a_suspect_is_held_to_unseen_answers_to_its_own_question() -> None:
    """Answers to the hard question cost nine times as much, so that beside all of them no slip stands out."""
    losses = {i: loss * (9 if n % 2 else 1) for n, (i, loss) in enumerate(control_losses().items())}
    hard = {i: "hard" if n % 2 else "easy" for n, i in enumerate(losses)}
    asked = hard | {"rec_slip": "easy", "rec_hard": "hard"}
    left_out = ReplayPlan(["rec_slip", "rec_hard"], list(losses), asked)
    found = losses | {"rec_slip": 5.0, "rec_hard": 9.5}
    judged = judge(report("rec_slip", "rec_hard"), left_out, found)
    assert [s.verdict for s in judged.suspects] == ["confirmed", "cleared"]
    mixed = judge(report("rec_slip", "rec_hard"), ReplayPlan(left_out.suspects, left_out.controls), found)
    assert [s.verdict for s in mixed.suspects] == ["cleared", "cleared"]


def test_each_question_of_a_suspect_has_controls_of_its_own() -> None:
    origins = MadeUpRun().origins
    made = plan_replay([suspect(record_id(n)) for n in (0, 1, 3, 6, 9)], origins, seed=1)
    asked = Counter(made.questions[i] for i in made.controls)
    assert asked == {origins["rec_0"].question: LEAST_OF_A_QUESTION, origins["rec_1"].question: LEAST_OF_A_QUESTION}


def test_a_suspect_that_was_not_replayed_stays_suspected() -> None:
    judged = judge(report("rec_bad", "rec_over"), plan("rec_bad"), control_losses() | {"rec_bad": 6.0})
    assert [s.verdict for s in judged.suspects] == ["confirmed", "suspected"]
    assert judged.suspects[1].replayed is None


def test_too_few_controls_leave_all_suspected_and_say_so() -> None:
    few = LEAST_CONTROLS - 1
    judged = judge(report("rec_bad"), plan("rec_bad", controls=few), {})
    assert [s.verdict for s in judged.suspects] == ["suspected"]
    assert not judged.replayed
    assert str(few) in judged.note


def test_the_short_form_counts_verdicts() -> None:
    judged = judge(report("a", "b", "c"), plan("a", "b"), control_losses() | {"a": 9.0, "b": 1.0})
    counts = count(judged.model_copy(update={"left_out": ("x", "y")}))
    assert (counts.suspected, counts.confirmed, counts.cleared, counts.left_out) == (1, 1, 1, 2)


# -- the plan ----------------------------------------------------------------------------------------------------------


def origins_of_facts(facts: int, wordings: int) -> dict[str, Origin]:
    """``rec_<fact>_<wording>``; three questions a passage."""
    questions = ("trigrams", "lines", "meaning")
    return {
        f"rec_{fact}_{w}": Origin(f"psg_{fact // 3}", "doc_1", questions[fact % 3], "An answer")
        for fact in range(facts)
        for w in range(wordings)
    }


def test_as_many_controls_as_suspects_and_none_of_a_suspects_fact() -> None:
    origins = MadeUpRun().origins
    bad = [record_id(n) for n in range(0, 300, 15)]
    made = plan_replay([suspect(i) for i in bad], origins, seed=1)
    assert list(made.suspects) == bad
    assert len(made.controls) >= len(bad)
    assert len(set(made.controls)) == len(made.controls)
    facts = {(origins[i].passage_id, origins[i].question) for i in bad}
    assert facts.isdisjoint({(origins[i].passage_id, origins[i].question) for i in made.controls})


def test_controls_lose_as_many_wordings_of_a_fact_as_the_suspects_do() -> None:
    origins = origins_of_facts(60, wordings=4)
    whole_facts = [suspect(f"rec_{fact}_{w}") for fact in (0, 7, 11) for w in range(4)]
    made = plan_replay(whole_facts, origins, seed=1)
    by_fact: dict[tuple[str | None, str], int] = {}
    for i in made.controls:
        key = origins[i].passage_id, origins[i].question
        by_fact[key] = by_fact.get(key, 0) + 1
    assert set(by_fact.values()) == {4}
    single = plan_replay([suspect("rec_0_1")], origins, seed=1)
    assert len({(origins[i].passage_id, origins[i].question) for i in single.controls}) == len(single.controls)


def test_a_replay_never_leaves_out_more_than_a_share() -> None:
    origins = MadeUpRun(records=60).origins
    made = plan_replay([suspect(record_id(n)) for n in range(40)], origins, seed=1)
    assert len(made.left_out) <= 0.3 * 60
    assert made.suspects[0] == record_id(0)


def test_where_all_records_are_of_one_fact_single_ones_are_controls() -> None:
    origins = {f"rec_{n}": Origin("psg_1", "doc_1", "pairs", "An answer") for n in range(80)}
    made = plan_replay([suspect("rec_3"), suspect("rec_9")], origins, seed=1)
    assert len(set(made.controls) - {"rec_3", "rec_9"}) == LEAST_CONTROLS


# -- leaving out -------------------------------------------------------------------------------------------------------


def test_named_records_are_left_out_however_often_a_run_starts(tmp_path: Path) -> None:
    records = make_records(6)
    path = tmp_path / "train.parquet"
    write_records(path, records)
    for _ in range(2):
        keep_all_but(path, [records[1].record_id, records[4].record_id])
        assert [r.record_id for r in read_records(path)] == [records[n].record_id for n in (0, 2, 3, 5)]


def test_an_unknown_record_or_all_of_them_cannot_be_left_out(tmp_path: Path) -> None:
    records = make_records(3)
    path = tmp_path / "train.parquet"
    write_records(path, records)
    with pytest.raises(JobFailed, match="rec_unknown"):
        keep_all_but(path, ["rec_unknown"])
    with pytest.raises(JobFailed, match="all 3 records"):
        keep_all_but(path, [r.record_id for r in records])


# -- the replay itself, with a real small model ------------------------------------------------------------------------

SETTINGS = LoopSettings(
    epochs=8, batch_size=4, learning_rate=5e-3, warmup_ratio=0.1, evaluations=0, checkpoints=0, seed=0,
    max_padded_tokens=1_024,
)  # fmt: skip


@pytest.fixture
def examples(tokenizer: object) -> list[Example]:
    return encode_all(make_records(16), tokenizer, 128)  # type: ignore[arg-type]


@pytest.fixture
def model(tiny_base: Path) -> PeftModel:
    return add_lora(load_nf4(tiny_base, torch.device("cpu")), LoraSettings(4, 8, 0.0), seed=0)


def replayed(
    model: PeftModel,
    examples: list[Example],
    left_out: frozenset[str],
    start: Mapping[str, torch.Tensor],
    folder: Path,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    return replay(model, start, Supervised(), examples, left_out, SETTINGS, 32, folder / "quarantine", stopping)


def test_a_replay_scores_what_it_left_out_and_gives_the_model_back(
    model: PeftModel, examples: list[Example], tmp_path: Path
) -> None:
    start = copy_weights(model)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.01)
    trained = copy_weights(model)
    unseen = frozenset(e.record_id for e in examples[:3])
    losses = replayed(model, examples, unseen, start, tmp_path)
    assert losses.keys() == unseen
    steps = list(read_record_losses(tmp_path / "quarantine" / RECORD_LOSSES_FILE))
    assert len(steps) == 16  # half of the run's 32
    assert unseen.isdisjoint(r.record_id for s in steps for r in s.records)
    assert all(torch.equal(weight, trained[name]) for name, weight in copy_weights(model).items())
    again = replayed(model, examples, unseen, start, tmp_path)
    assert again == losses
    assert replayed(model, examples, unseen, trained, tmp_path) != losses


def test_a_stopped_replay_gives_the_model_back(model: PeftModel, examples: list[Example], tmp_path: Path) -> None:
    trained = copy_weights(model)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        replayed(model, examples, frozenset({examples[0].record_id}), trained, tmp_path, lambda: next(asked))
    assert all(torch.equal(weight, trained[name]) for name, weight in copy_weights(model).items())
