"""The parity gate on real child processes that are, or aren't, the model that was published."""

import json
import threading
import time

import pytest
from prometheus_client import REGISTRY
from tests.inference import toy_model
from tests.inference.stand_in import NEVER, QUICK, StandIn, is_running, reply, server_of

from textmill.contracts.gates import ParityCheck, ParityProbe, ParityToken
from textmill.errors import JobFailed
from textmill_inference.engine.openai_api import EngineApi
from textmill_inference.engine.parity import TIE_NATS, Tally, _compare_answer, compare, refusal
from textmill_inference.engine.port import ModelFolder
from textmill_inference.engine.supervisor import LocalEngine


def model(tmp_path, name, shape=1, published="1", **files):
    """A folder with a probe of its ``published`` weights. ``files`` are written afterwards: not what was published."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": shape}))
    (folder / "answer.txt").write_text(f"I am {name}")
    (folder / "weights.txt").write_text(published)
    (folder / "parity.json").write_text(toy_model.probe(folder, ["one?", "two?", "three?"]))
    for file, text in files.items():
        (folder / f"{file}.txt").write_text(text)
    return ModelFolder(folder, name)


@pytest.fixture
def engine(tmp_path):
    made = LocalEngine("proven", StandIn(), tmp_path / "engine.log", QUICK)
    yield made
    made.stop()


def test_the_published_model_is_served_and_its_parity_known(tmp_path, engine):
    assert engine.serve(model(tmp_path, "one"), NEVER) == "started"
    check = engine.parity
    assert (check.prompts_identical, check.prompts_compared, check.conversations, check.tokens) == (3, 3, 3, 24)
    assert (check.top1_exact, check.top1_agreement, check.ties) == (1.0, 1.0, 0)
    assert check.max_logprob_difference < 1e-9
    assert REGISTRY.get_sample_value("textmill_engine_parity_top1_ratio", {"model": "proven"}) == 1.0


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"template": "[{role}]{content}"}, "other tokens of 3 of 3 prompts"),
        ({"weights": "2"}, "nats a token off the published model's on 24 tokens"),
        ({"noise": "0.2"}, "0.2 nats a token off"),
    ],
)
def test_another_template_or_weight_is_refused(tmp_path, engine, files, why):
    with pytest.raises(JobFailed, match=rf"bad is not served as 'proven': .*{why}"):
        engine.serve(model(tmp_path, "bad", **files), NEVER)
    assert not engine.ready
    assert engine.parity is None
    assert why in engine.trouble


def test_bf16_noise_is_not_refused(tmp_path, engine):
    assert engine.serve(model(tmp_path, "one", noise="0.02"), NEVER) == "started"
    assert engine.parity.mean_logprob_difference == pytest.approx(0.02)


def test_a_refused_engine_is_not_started_again_and_again(tmp_path, engine, waits):
    bad = model(tmp_path, "bad", template="x{content}{role}")
    with pytest.raises(JobFailed):
        engine.serve(bad, NEVER)
    with pytest.raises(JobFailed, match="other tokens"):
        engine.serve(bad, NEVER)
    time.sleep(20 * QUICK.first_backoff_s)
    assert engine._starts == 1
    assert engine.serve(model(tmp_path, "good"), NEVER) == "restarted"
    assert engine.ready


def test_a_refused_swap_in_place_brings_the_model_before_back(tmp_path, engine):
    good = model(tmp_path, "good")
    engine.serve(good, NEVER)
    server = server_of(engine)
    with pytest.raises(JobFailed, match=r"bad is not served as 'proven': .*nats a token off"):
        engine.serve(model(tmp_path, "bad", weights="2"), NEVER)
    assert engine.ready
    assert engine.folder == good
    assert is_running(server)
    assert reply(engine)["choices"][0]["text"] == "I am good"
    assert engine.parity.top1_agreement == 1.0


def test_a_swap_in_place_answers_nobody_before_it_is_proven(tmp_path, engine, waits):
    engine.serve(model(tmp_path, "one"), NEVER)
    two = model(tmp_path, "two", published="2")
    (two.path / "slow_proof").touch()
    swap = threading.Thread(target=engine.serve, args=(two, NEVER))
    swap.start()
    waits(lambda: reply(engine)["choices"][0]["text"] == "I am two", "the weights to be swapped")
    assert not engine.ready
    (two.path / "go").touch()
    swap.join(60)
    assert engine.ready
    assert engine.parity.tokens == 24


def test_a_refused_restart_brings_the_model_before_back(tmp_path, engine, waits):
    engine.serve(model(tmp_path, "good"), NEVER)
    with pytest.raises(JobFailed, match="bad is not served"):
        engine.serve(model(tmp_path, "bad", shape=2, noise="1"), NEVER)
    waits(lambda: engine.ready, "the model before to be back")
    assert reply(engine)["choices"][0]["text"] == "I am good"


def test_a_model_without_a_probe_is_served(tmp_path, engine):
    older = model(tmp_path, "older", template="anything {role} {content}")
    (older.path / "parity.json").unlink()
    assert engine.serve(older, NEVER) == "started"
    assert engine.parity is None


def test_a_damaged_probe_is_refused(tmp_path, engine):
    damaged = model(tmp_path, "damaged")
    (damaged.path / "parity.json").write_text("{}")
    with pytest.raises(JobFailed, match="not a parity probe"):
        engine.serve(damaged, NEVER)


def test_conversations_too_long_for_the_engine_are_left_out(tmp_path, engine):
    folder = model(tmp_path, "one")
    engine.serve(folder, NEVER)
    api = EngineApi(engine.url, "proven")
    for questions, compared in ((["short?", "l" + "o" * 300 + "ng?"], 1), (["l" + "o" * 300 + "ng?"], None)):
        probe = ParityProbe.model_validate_json(toy_model.probe(folder.path, questions))
        check = compare(api, probe)
        assert (check.conversations if check else None) == compared


class Said:
    """An engine that finds these log-probabilities at the last token."""

    def __init__(self, logprobs):
        self._logprobs = logprobs

    def logprobs(self, token_ids, top):
        return [{token_ids[1]: -1.0}] * (len(token_ids) - 2) + [self._logprobs]


@pytest.mark.parametrize(
    ("published", "engine", "exact", "ties"),
    [
        ({7: -0.1, 8: -2.5}, {7: -0.1, 8: -2.5}, 1, 0),
        ({7: -0.70, 8: -0.71}, {7: -0.72, 8: -0.69}, 0, 1),
        ({7: -0.70, 8: -0.70}, {8: -0.70, 7: -0.70}, 1, 0),
        ({7: -0.70, 8: -0.71}, {7: -1.0, 8: -0.5}, 0, 0),
        ({7: -0.5, 8: -1.0}, {7: -0.72, 8: -0.69}, 0, 0),
        ({7: -0.70, 8: -0.71}, {7: -0.72, 9: -0.69}, 0, 0),
    ],
    ids=["same", "tie", "equal", "not for the engine", "not for the model", "a token that the model didn't name"],
)
def test_a_tie_is_one_on_both_sides(published, engine, exact, ties):
    token = ParityToken(
        token_id=7, logprob=published[7], top_ids=list(published), top_logprobs=list(published.values())
    )
    probe = ParityProbe.model_validate(
        {"conversations": [{"record_id": "r", "prompt_ids": [1], "continuation": [token.model_dump()]}], "dtype": "x"}
    )
    tally = Tally()
    _compare_answer(Said(engine), probe.conversations[0], tally)
    assert (tally.exact, tally.ties) == (exact, ties)


def checked(**changes):
    fields = {
        "conversations": 1, "prompts_identical": 1, "prompts_compared": 1, "tokens": 1000, "top1_exact": 1.0,
        "top1_agreement": 1.0, "ties": 0, "tie_nats": TIE_NATS, "mean_logprob_difference": 0.0,
        "max_logprob_difference": 0.0, "seconds": 0.0,
    }  # fmt: skip
    return ParityCheck.model_validate(fields | changes)


def test_the_bounds():
    assert refusal(checked()) == ""
    assert refusal(checked(top1_exact=0.98, top1_agreement=0.996)) == ""
    assert "99.40% of 1000 tokens" in refusal(checked(top1_agreement=0.994))
    assert "nan nats" in refusal(checked(mean_logprob_difference=float("nan")))
