"""A comparison from its job to its results: with real servers, killed in the middle, voted on blind."""

import re
import threading
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from textmill.contracts.jobs import CompareJob
from textmill.contracts.pairwise import ComparisonManifest, ComparisonResults
from textmill.errors import Cancelled, DependencyDown, JobFailed
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.loadtest.keyrefs import SET_ASIDE, KeySource
from textmill_inference.pairwise.api import comparisons_router
from textmill_inference.pairwise.job import Comparer

PROMPTS = tuple(f"question {n}" for n in range(6))


def job(**changed):
    return CompareJob.model_validate({"models": ["good", "bad"], "prompts": PROMPTS, "concurrency": 2, **changed})


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def run(models, store):
    """Does the job and commits it, as a worker would."""

    def run(wanted, attempt=1, key=""):
        ctx = JobContext(store, attempt, f"scratch/x/1-{attempt}/")
        output = Comparer(models.url, key, KeySource(environ={f"{SET_ASIDE}JUDGE": "sk-judge"}).key)(wanted, ctx)
        manifest = ComparisonManifest.model_validate(output.manifest)
        store.create(output.manifest_key, manifest.to_json())
        return manifest

    return run


@pytest.fixture
def client(models, store):
    jobs = Jobs(store)
    app = create_app("inference", jobs=jobs, kinds=("compare",), checks={})
    app.include_router(comparisons_router(store, jobs, Comparer(models.url, "", KeySource(environ={}).key)))
    return TestClient(app)


def vote_all(client, comparison_id, voter, prefers="right: "):
    """Votes for the answer that begins so, whatever side it stands on. The pairs in the order they were shown."""
    base, seen = f"/v1/comparisons/{comparison_id}", []
    while (pair := client.get(f"{base}/next", params={"voter": voter}).json()["pair"]) is not None:
        choice = "left" if pair["left"].startswith(prefers) else "right"
        seen.append((pair["pair_id"], pair["left"]))
        vote = {"pair_id": pair["pair_id"], "voter": voter, "choice": choice}
        assert client.post(f"{base}/votes", json=vote).status_code == 201
        assert len(seen) < 100
    return seen


def test_every_model_is_asked_every_prompt_once(run, models):
    manifest = run(job())
    assert sorted(models.asked) == sorted((model, prompt) for model in ("good", "bad") for prompt in PROMPTS)
    assert (manifest.prompts, manifest.pairs, manifest.same, manifest.failed) == (6, 6, 0, 0)


def test_equal_answers_and_missing_ones_are_not_voted_on(run, models):
    models.refuse = {"question 3"}
    manifest = run(job(models=["good", "bad", "same"]))
    assert (manifest.pairs, manifest.same, manifest.failed) == (10, 5, 3)


def test_a_killed_attempt_leaves_its_answers_to_the_next(run, models, store):
    wanted = job(judge={"model": "good"})
    models.answers["good"] = lambda messages: "VERDICT: TIE" if len(messages) == 2 else "right"
    models.busy_after = 5
    with pytest.raises(DependencyDown, match="503"):
        run(wanted)
    assert len(list(store.list(f"comparisons/{wanted.comparison_id}/answers/"))) == 5
    models.busy_after = 15
    with pytest.raises(DependencyDown):
        run(wanted, attempt=2)
    models.busy_after = None
    manifest = run(wanted, attempt=3)
    # Twelve answers and twelve looks, each asked for once over all three attempts.
    assert len(models.asked) == len(set(models.asked)) == 24
    assert manifest.judged == 12


def test_prompts_stay_those_of_the_first_attempt(run, models, store):
    wanted = job()
    models.busy_after = 1
    with pytest.raises(DependencyDown):
        run(wanted)
    models.busy_after = None
    run(wanted.model_copy(update={"prompts": ("something else",)}), attempt=2)
    assert "something else" not in {prompt for _, prompt in models.asked}


def test_an_unknown_model_fails_the_job(run):
    with pytest.raises(JobFailed, match="no model nobody"):
        run(job(models=["good", "nobody"]))


def test_a_cancelled_comparison_lets_go(models, store, waits):
    models.gate.clear()
    ctx = JobContext(store, 1, "scratch/x/1-1/")
    caught = []

    def work():
        try:
            Comparer(models.url, "", KeySource(environ={}).key)(job(), ctx)
        except Cancelled as exc:
            caught.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    waits(lambda: bool(models.keys), "the first question")
    ctx.stop(Cancelled("by its owner"))
    thread.join(60)
    assert caught


def test_keys_go_where_they_belong(run, models):
    run(job(), key="sk-ours")
    assert models.keys == {"Bearer sk-ours"}
    models.keys.clear()
    models.answers["good"] = lambda messages: f"right {len(messages)}"
    elsewhere = {"model": "good", "url": f"{models.url}/v1", "key_from": {"env": f"{SET_ASIDE}JUDGE"}}
    run(job(judge=elsewhere))
    assert models.keys == {None, "Bearer sk-judge"}
    models.keys.clear()
    run(job(judge={**elsewhere, "key_from": None}), key="sk-ours")
    assert models.keys == {"Bearer sk-ours", None}


def test_a_judge_that_cant_be_asked_is_refused_at_once(client):
    for judge, what in (
        ({"model": "j", "url": "ftp://x"}, "no HTTP"),
        ({"model": "j", "key_from": {"env": f"{SET_ASIDE}X"}}, "no variable"),
    ):
        body = {"models": ["a", "b"], "prompts": ["x"], "judge": judge}
        answer = client.post("/v1/comparisons", json=body)
        assert (answer.status_code, what in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    "changed",
    [
        {"models": ["a", "a"]},
        {"models": ["a"]},
        {"prompts": []},
        {"dataset_id": "ds_" + "0" * 32},
        {"judge": {"model": "j", "api_key": "sk-secret"}},
    ],
)
def test_what_cant_be_compared_is_refused(client, changed):
    body = {"models": ["a", "b"], "prompts": ["x"], **changed}
    assert client.post("/v1/comparisons", json=body).status_code == 422


def test_a_voter_sees_each_pair_once_and_blind(run, client, models):
    manifest = run(job())
    first = vote_all(client, manifest.comparison_id, "Ann")
    second = vote_all(client, manifest.comparison_id, "Bo")
    assert len({pair_id for pair_id, _ in first}) == len(first) == 6
    assert {pair_id for pair_id, _ in first} == {pair_id for pair_id, _ in second}
    # The same name, written otherwise, is the same voter.
    assert client.get(f"/v1/comparisons/{manifest.comparison_id}/next?voter=%20ann").json() == {
        "pair": None,
        "voted": 6,
    }
    results = client.get(f"/v1/comparisons/{manifest.comparison_id}/results").json()
    assert results["standings"][0]["pairs"][0]["wins"] == 12


def test_sides_are_shuffled_over_pairs_and_over_voters(run, client, monkeypatch):
    monkeypatch.setattr("textmill_inference.pairwise.job.secrets", SimpleNamespace(token_hex=lambda size: "5a" * size))
    manifest = run(job(prompts=tuple(f"q{n}" for n in range(40))))
    sides = {}
    for voter in ("Ann", "Bo"):
        sides[voter] = dict(vote_all(client, manifest.comparison_id, voter))
        right_on_the_left = sum(left.startswith("right") for left in sides[voter].values())
        assert 8 <= right_on_the_left <= 32
    assert sum(sides["Ann"][pair] != sides["Bo"][pair] for pair in sides["Ann"]) >= 8


def test_nothing_that_a_voter_is_shown_names_a_model(run, client):
    manifest = run(job())
    base = f"/v1/comparisons/{manifest.comparison_id}"
    shown = client.get(f"{base}/next?voter=Ann").text
    pair_id = client.get(f"{base}/next?voter=Ann").json()["pair"]["pair_id"]
    shown += client.post(f"{base}/votes", json={"pair_id": pair_id, "voter": "Ann", "choice": "tie"}).text
    without_ids = re.sub(r"pr_[0-9a-f]{32}", "", shown)  # "bad" is a number, too
    assert "good" not in without_ids
    assert "bad" not in without_ids
    assert client.get(base).json()["salt"] == ""
    assert client.get(f"{base}/results").json()["comparison"]["salt"] == ""
    assert manifest.salt


def test_a_vote_stays_as_it_is(run, client):
    manifest = run(job())
    base = f"/v1/comparisons/{manifest.comparison_id}"
    pair_id = client.get(f"{base}/next?voter=Ann").json()["pair"]["pair_id"]
    vote = {"pair_id": pair_id, "voter": "Ann", "choice": "left"}
    statuses = [client.post(f"{base}/votes", json={**vote, "choice": c}).status_code for c in ("left", "left", "right")]
    assert statuses == [201, 200, 409]
    unknown = {**vote, "pair_id": "pr_" + "0" * 32}
    assert client.post(f"{base}/votes", json=unknown).status_code == 404
    assert client.post(f"{base}/votes", json={**vote, "choice": "best"}).status_code == 422


def test_pairs_with_the_fewest_votes_come_first(run, client):
    manifest = run(job())
    base = f"/v1/comparisons/{manifest.comparison_id}"
    seen = []
    for voter in "abcdef":
        pair = client.get(f"{base}/next?voter={voter}").json()["pair"]
        seen.append(pair["pair_id"])
        client.post(f"{base}/votes", json={"pair_id": pair["pair_id"], "voter": voter, "choice": "tie"})
    assert len(set(seen)) == 6


def test_a_judge_that_goes_by_the_side_decides_nothing(run, client, models):
    models.answers["judge"] = lambda messages: "VERDICT: A"
    manifest = run(job(judge={"model": "judge"}))
    results = results_of(client, manifest)
    head = results.standings[0].pairs[0]
    assert (head.wins, head.losses, head.ties, head.shown) == (0, 0, 6, None)
    assert results.position_bias.always_first == 6
    assert results.position_bias.consistency == 0


def test_a_judge_that_knows_decides_and_agrees_with_people(run, client, models):
    def judge(messages):
        shown = messages[-1]["content"]
        a = shown[shown.index("===== A =====") : shown.index("===== B =====")]
        return "VERDICT: A" if "right:" in a else "VERDICT: B"

    models.answers["judge"] = judge
    manifest = run(job(judge={"model": "judge"}, prompts=tuple(f"q{n}" for n in range(30))))
    vote_all(client, manifest.comparison_id, "Ann")
    vote_all(client, manifest.comparison_id, "Bo")
    results = results_of(client, manifest)
    by_source = {standing.source: standing for standing in results.standings}
    assert by_source["judge"].pairs[0].shown == by_source["people"].pairs[0].shown == "good"
    assert by_source["people"].pairs[0].wins == 60
    assert by_source["people"].ratings[0].model == "good"
    assert results.position_bias.consistency == 1
    assert (results.people_agree, results.people_agree_on) == (1, 30)
    assert (results.judge_agrees, results.judge_agrees_on) == (1, 30)
    assert any("held by the prior" in note for note in results.notes)


def test_few_votes_show_no_difference(run, client):
    manifest = run(job(prompts=("one", "two")))
    vote_all(client, manifest.comparison_id, "Ann")
    assert results_of(client, manifest).standings[0].pairs[0].shown is None


def test_an_unreadable_judge_counts_for_nobody(run, client, models):
    models.answers["judge"] = lambda messages: "Both are fine answers."
    results = results_of(client, run(job(judge={"model": "judge"})))
    assert results.standings == []
    assert results.position_bias.unreadable == 6
    assert results.notes == ["Nobody has voted yet."]


def test_answers_side_by_side_in_pages(run, client):
    manifest = run(job())
    base = f"/v1/comparisons/{manifest.comparison_id}/answers"
    first = client.get(f"{base}?limit=4").json()
    rest = client.get(f"{base}?limit=4&after={first['next_after']}").json()
    asked = [side["prompt"]["messages"][0]["content"] for side in first["items"] + rest["items"]]
    assert sorted(asked) == sorted(PROMPTS)
    assert [a["model"] for a in first["items"][0]["answers"]] == ["good", "bad"]
    assert rest["next_after"] is None
    assert [item["comparison_id"] for item in client.get("/v1/comparisons").json()["items"]] == [manifest.comparison_id]


def test_pages_load_nothing_from_elsewhere(client):
    for name in ("vote", "results"):
        page = client.get(f"/compare/{name}")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in page.text


def test_pages_are_open_and_their_data_is_not(models, store):
    from pydantic import SecretStr

    jobs = Jobs(store)
    app = create_app("inference", jobs=jobs, kinds=("compare",), checks={}, token=SecretStr("t"))
    app.include_router(comparisons_router(store, jobs, Comparer(models.url, "", KeySource(environ={}).key)))
    client = TestClient(app)
    assert client.get("/compare/vote").status_code == 200
    assert client.get("/v1/comparisons").status_code == 401


def results_of(client, manifest):
    return ComparisonResults.model_validate(client.get(f"/v1/comparisons/{manifest.comparison_id}/results").json())
