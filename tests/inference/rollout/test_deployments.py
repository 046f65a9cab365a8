"""Deployments on fake engines: what the store remembers, what is served, and what comes back."""

import threading

import pytest
from tests.inference.rollout.published import ONE, PARITY, THREE, TWO, FakeEngine, FakeEngines, publish

from textmill.contracts.jobs import DeployJob
from textmill.errors import BadRequest, Cancelled, Conflict, DependencyDown, JobFailed, NotFound, TextmillError
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.engine.port import ModelFolder
from textmill_inference.gateway.ports import Outcome
from textmill_inference.rollout.deployments import Deployments
from textmill_inference.rollout.restore import Restorer
from textmill_inference.rollout.watch import Watch


@pytest.fixture
def store():
    made = MemoryStore()
    for model_id in (ONE, TWO, THREE):
        publish(made, model_id)
    return made


@pytest.fixture
def engines():
    return FakeEngines()


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"base weights")
    return ModelFolder(folder)


@pytest.fixture
def make(store, engines, tmp_path):
    made = []

    def build(attached=None, store=store):
        made.append(Deployments(store, tmp_path / "cache", engines, "base", attached or {}, drain_s=60, settle_s=0))
        return made[-1]

    yield build
    for deployments in made:
        deployments.stop()


def deploy(deployments, store, model_id, name="tuned", **fields):
    job = DeployJob(name=name, model_id=model_id, **fields)
    return job, deployments.deploy(job, JobContext(store, 1, "scratch/"))


def served(deployments, name="tuned"):
    return deployments.routes()[name].stable[0]


def model_of(upstream):
    return upstream.engine.folder.model_id


def answer(upstream, times, failing=0):
    for n in range(times):
        upstream.note(Outcome(500 if n < failing else 200, True, 5, 0.1))


# -- the stable version ------------------------------------------------------------------------------------------------


def test_a_deployment_is_served_and_remembered(make, store, engines):
    deployments = make()
    job, output = deploy(deployments, store, ONE)
    assert output.manifest_key == f"deployments/history/{job.deployment_id}.json"
    assert output.manifest["model_id"] == ONE
    state = deployments.records.get("tuned")
    assert (state.deployment_id, state.parity) == (job.deployment_id, PARITY)
    assert served(deployments).engine is engines.made[0]
    assert (engines.made[0].folder.path / "config.json").read_bytes() == ONE.encode()


def test_the_next_model_takes_the_same_engine_and_files_stay_for_one_rollback(make, store, engines, tmp_path):
    deployments = make()
    for model_id in (ONE, TWO, THREE):
        deploy(deployments, store, model_id)
    assert len(engines.made) == 1
    assert model_of(served(deployments)) == THREE
    assert [one.model_id for one in deployments.records.get("tuned").previous] == [TWO, ONE]
    assert sorted(folder.name for folder in (tmp_path / "cache").iterdir()) == [TWO, THREE]


def test_what_cannot_be_swapped_gets_a_second_engine_and_the_first_ends_when_its_answers_have(
    make, store, engines, waits
):
    deployments = make()
    deploy(deployments, store, ONE)
    old = served(deployments)
    old.engine.swaps = False
    old.in_flight = 1
    deploy(deployments, store, TWO)
    new = served(deployments)
    assert (model_of(old), model_of(new)) == (ONE, TWO)
    assert [engine.label for engine in engines.made] == ["tuned", "tuned#2"]
    assert not old.engine.stopped
    assert [live.upstream for live in deployments.table.leaving("tuned")] == [old]
    old.in_flight = 0
    waits(lambda: old.engine.stopped, "the old engine to end")
    waits(lambda: not deployments.table.leaving("tuned"), "it to be forgotten")
    new.engine.swaps = False
    deploy(deployments, store, THREE)
    assert engines.made[-1].label == "tuned"


def test_without_room_for_a_second_engine_the_first_is_started_anew(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    engines.made[0].swaps, engines.full = False, "3 GiB are free"
    deploy(deployments, store, TWO)
    assert len(engines.made) == 1
    assert model_of(served(deployments)) == TWO


def test_an_engine_that_does_not_answer_is_not_kept_beside_a_second_one(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    engines.made[0].ready = False
    deploy(deployments, store, TWO)
    assert len(engines.made) == 1
    assert engines.made[0].ready


def test_a_second_engine_that_is_refused_leaves_all_as_it_was(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    engines.made[0].swaps, engines.error = False, JobFailed("other weights")
    with pytest.raises(JobFailed, match="other weights"):
        deploy(deployments, store, TWO)
    assert model_of(served(deployments)) == ONE
    assert deployments.records.get("tuned").model_id == ONE
    assert (engines.made[0].stopped, engines.made[1].stopped) == (False, True)


def test_a_version_that_the_store_does_not_know_is_not_served(make, store, engines):
    class Down(MemoryStore):
        broken = False

        def put(self, key, data):
            if self.broken and key == "deployments/tuned.json":
                raise DependencyDown("no store")
            super().put(key, data)

    down = Down()
    for model_id in (ONE, TWO):
        publish(down, model_id)
    deployments = make(store=down)
    deploy(deployments, down, ONE)
    engines.made[0].swaps, down.broken = False, True
    with pytest.raises(DependencyDown):
        deploy(deployments, down, TWO)
    assert model_of(served(deployments)) == ONE
    assert engines.made[1].stopped
    down.broken = False
    deploy(deployments, down, TWO)
    assert model_of(served(deployments)) == TWO


def test_an_attempt_that_is_repeated_changes_nothing(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    job, first = deploy(deployments, store, TWO)
    again = deployments.deploy(job, JobContext(store, 2, "scratch/"))
    assert again == first
    assert [one.model_id for one in deployments.records.get("tuned").previous] == [ONE]


@pytest.mark.parametrize(("name", "why"), [("base", "stays for comparison"), ("theirs", "aren't ours")])
def test_what_is_not_ours_cannot_be_replaced_or_dropped(make, store, name, why):
    deployments = make({"theirs": [FakeEngine("theirs", "theirs", None)]})
    with pytest.raises(BadRequest, match=why):
        deploy(deployments, store, ONE, name=name)
    with pytest.raises(BadRequest, match="settings"):
        deployments.undeploy(name)


def test_a_model_that_is_not_published_is_not_found(make, store):
    with pytest.raises(NotFound):
        deploy(make(), store, "mdl_" + "9" * 32)


def test_a_model_that_does_not_start_is_not_listed_and_leaves_no_engine(make, store, engines):
    engines.error = JobFailed("no such tensor")
    deployments = make()
    with pytest.raises(JobFailed):
        deploy(deployments, store, ONE)
    assert engines.made[0].stopped
    assert deployments.routes() == {}
    assert deployments.records.all() == []


def test_a_model_that_the_engine_refuses_leaves_the_deployment_as_it_was(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    engines.made[0].error = JobFailed("other weights")
    with pytest.raises(JobFailed, match="other weights"):
        deploy(deployments, store, TWO)
    assert deployments.records.get("tuned").model_id == ONE
    assert not engines.made[0].stopped


def test_a_cancelled_deployment_is_not_remembered(make, store):
    deployments = make()
    deploy(deployments, store, ONE)
    ctx = JobContext(store, 1, "scratch/")
    ctx.stop(Cancelled("by its owner"))
    with pytest.raises(Cancelled):
        deployments.deploy(DeployJob(name="tuned", model_id=TWO), ctx)
    assert deployments.records.get("tuned").model_id == ONE


def test_a_name_that_is_dropped_is_gone_and_its_engine_ends(make, store, engines, waits):
    deployments = make()
    deploy(deployments, store, ONE)
    deployments.undeploy("tuned")
    assert (deployments.routes(), deployments.records.all()) == ({}, [])
    waits(lambda: engines.made[0].stopped, "the engine to end")
    with pytest.raises(NotFound):
        deployments.undeploy("tuned")


def test_a_rollback_is_a_job_like_others(make, store):
    deployments = make()
    deploy(deployments, store, ONE)
    second, _ = deploy(deployments, store, TWO)
    job = deployments.rollback("tuned", second.deployment_id)
    deployments.deploy(job, JobContext(store, 1, "scratch/"))
    assert model_of(served(deployments)) == ONE
    assert deployments.records.get("tuned").previous == ()
    assert deployments.rollback("tuned", second.deployment_id) is None


# -- canary and shadow -------------------------------------------------------------------------------------------------


def test_a_canary_runs_beside_the_stable_version_until_it_is_promoted(make, store, engines, waits):
    deployments = make()
    deploy(deployments, store, ONE)
    job, output = deploy(deployments, store, TWO, canary_percent=20)
    assert output.manifest["canary"]["percent"] == 20
    route = deployments.routes()["tuned"]
    assert (model_of(route.stable[0]), model_of(route.canary), route.canary_share) == (ONE, TWO, 0.2)
    assert deployments.adjust("tuned", "canary", 50).canary.percent == 50
    assert deployments.routes()["tuned"].canary_share == 0.5
    with pytest.raises(Conflict, match="not dep_"):
        deployments.promote("tuned", "dep_" + "0" * 32)
    after = deployments.promote("tuned", job.deployment_id)
    assert (after.model_id, after.canary, after.parity) == (TWO, None, PARITY)
    assert deployments.promote("tuned", job.deployment_id) == after
    assert model_of(served(deployments)) == TWO
    waits(lambda: engines.made[0].stopped, "the old engine to end")
    with pytest.raises(Conflict, match="no canary"):
        deployments.promote("tuned")


def test_an_aborted_canary_leaves_and_aborting_twice_is_once(make, store, engines, waits):
    deployments = make()
    deploy(deployments, store, ONE)
    deploy(deployments, store, TWO, canary_percent=20)
    state = deployments.abort("tuned")
    assert (state.canary, state.model_id, state.last_trial.outcome) == (None, ONE, "aborted")
    assert deployments.abort("tuned") == state
    assert deployments.routes()["tuned"].canary is None
    waits(lambda: engines.made[1].stopped, "the canary's engine to end")
    assert not engines.made[0].stopped


def test_there_is_no_canary_of_nothing_nor_without_room_nor_under_another_deployment(make, store, engines):
    deployments = make()
    with pytest.raises(JobFailed, match="answers with nothing yet"):
        deploy(deployments, store, ONE, canary_percent=20)
    deploy(deployments, store, ONE)
    engines.full = "3 GiB are free"
    with pytest.raises(JobFailed, match="no room for a canary beside 'tuned': 3 GiB are free"):
        deploy(deployments, store, TWO, canary_percent=20)
    engines.full = ""
    deploy(deployments, store, TWO, canary_percent=20)
    with pytest.raises(JobFailed, match="promote or abort it first"):
        deploy(deployments, store, THREE)
    assert model_of(served(deployments)) == ONE


def test_a_canary_that_fails_is_taken_back_with_its_figures(make, store, engines, waits):
    deployments = make()
    deploy(deployments, store, ONE)
    answer(served(deployments), 500, failing=500)
    deploy(deployments, store, TWO, canary_percent=20, min_requests=40)
    watch, route = Watch(deployments), deployments.routes()["tuned"]
    answer(route.stable[0], 100)
    answer(route.canary, 39, failing=39)
    watch.look()
    assert deployments.routes()["tuned"].canary is route.canary
    answer(route.canary, 1)
    watch.look()
    assert deployments.routes()["tuned"].canary is None
    end = deployments.records.get("tuned").last_trial
    assert (end.outcome, end.figures.trial.errors, end.figures.trial.requests) == ("aborted_automatically", 39, 40)
    assert (end.figures.stable.errors, end.figures.stable.requests) == (0, 100)
    assert "39 of 40 requests failed (97.5%)" in end.reason
    waits(lambda: engines.made[1].stopped, "the canary's engine to end")


def test_a_canary_that_falls_silent_is_taken_back(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    deploy(deployments, store, TWO, canary_percent=20)
    engines.made[1].ready, engines.made[1].trouble = False, "it died"
    with pytest.raises(Conflict, match="doesn't answer now: it died"):
        deployments.promote("tuned")
    Watch(deployments, silence_s=60).look()
    assert deployments.records.get("tuned").canary is not None
    Watch(deployments, silence_s=0).look()
    assert "it died" in deployments.records.get("tuned").last_trial.reason


def test_a_shadow_gets_copies_and_never_answers(make, store):
    deployments = make()
    deploy(deployments, store, ONE)
    deploy(deployments, store, TWO, shadow_percent=50)
    route = deployments.routes()["tuned"]
    assert {model_of(route.choose(sample)) for sample in (0.0, 0.5, 0.99)} == {ONE}
    assert [route.take_shadow() is not None for _ in range(4)] == [False, True, False, True]
    answer(route.tap.upstream, 2, failing=1)
    answer(route.stable[0], 4)
    figures = deployments.abort("tuned").last_trial.figures
    assert (figures.trial.errors, figures.trial.requests, figures.stable.requests) == (1, 2, 4)
    assert figures.error_excess == 0.5


def test_a_change_does_not_wait_for_a_deployment_under_way(make, store):
    deployments = make()
    deploy(deployments, store, ONE)
    with deployments.table.named("tuned").lock, pytest.raises(Conflict, match="under way"):
        deployments.promote("tuned")


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_an_adapter_is_served_on_the_base_models_engine_and_replaced_without_one_of_its_own(
    make, store, engines, base, waits
):
    deployments = make()
    Restorer(deployments, base).run()
    host = engines.made[0]
    deploy(deployments, store, ONE, unmerged=True)
    first = served(deployments)
    assert (first.engine, first.name, first.ready) == (host, "tuned", True)
    assert (host.adapters[first.model].path / "adapter_model.safetensors").read_bytes() == b"adapter of " + ONE.encode()
    deploy(deployments, store, TWO, unmerged=True)
    second = served(deployments)
    assert second.model != first.model
    waits(lambda: first.model not in host.adapters, "the old adapter to go")
    assert len(engines.made) == 1
    deploy(deployments, store, THREE)
    assert served(deployments).engine is engines.made[1]
    waits(lambda: host.adapters == {}, "the adapter to go")
    assert not host.stopped


def test_an_adapter_of_another_base_or_of_none_is_refused(make, store, base):
    publish(store, ONE, base=b"another base")
    publish(store, TWO, adapter=False)
    deployments = make()
    with pytest.raises(DependencyDown, match="takes the adapters"):
        deploy(deployments, store, ONE, unmerged=True)
    Restorer(deployments, base).run()
    with pytest.raises(JobFailed, match="was trained on other weights"):
        deploy(deployments, store, ONE, unmerged=True)
    with pytest.raises(JobFailed, match="has no adapter"):
        deploy(deployments, store, TWO, unmerged=True)


# -- after a restart ---------------------------------------------------------------------------------------------------


def test_a_restarted_service_brings_all_back(make, store, engines, base):
    first = make()
    Restorer(first, base).run()
    deploy(first, store, ONE)
    deploy(first, store, TWO, canary_percent=20, max_error_excess=0.1)
    deploy(first, store, THREE, shadow_percent=10)
    deploy(first, store, TWO, name="light", unmerged=True)
    route = first.routes()["tuned"]
    answer(route.stable[0], 10, failing=1)
    answer(route.canary, 4, failing=2)
    Watch(first, store_every_s=0).look()
    store.put("deployments/history/dep_x.json", b"not a deployment of now")
    second = make()
    Restorer(second, base).run()
    route, light = second.routes()["tuned"], served(second, "light")
    assert (model_of(route.stable[0]), model_of(route.canary), route.canary_share) == (ONE, TWO, 0.2)
    assert (model_of(route.tap.upstream), route.tap.share) == (THREE, 0.1)
    assert (light.engine, light.ready) == (served(second, "base").engine, True)
    answer(route.canary, 2)
    figures = second.counted(second.table.named("tuned"), second.records.get("tuned")).canary.figures
    assert (figures.trial.errors, figures.trial.requests) == (2, 6)
    assert (figures.stable.errors, figures.stable.requests) == (1, 10)


def test_all_names_are_listed_before_the_first_engine_is_up_and_one_that_fails_holds_up_no_other(
    make, store, engines, base, waits
):
    first = make()
    deploy(first, store, ONE, name="a-broken-one")
    deploy(first, store, TWO, name="sound")
    engines.hold = threading.Event()
    second = make()
    store.delete(f"models/{ONE}/manifest.json")
    thread = threading.Thread(target=Restorer(second, base, again_s=0.05).run)
    thread.start()
    waits(lambda: set(second.routes()) == {"base", "a-broken-one", "sound"}, "the names to be listed")
    assert not served(second, "sound").ready
    engines.hold.set()
    waits(lambda: served(second, "sound").ready, "the sound one to be up")
    assert not served(second, "a-broken-one").ready
    publish(store, ONE)
    thread.join(60)
    assert served(second, "a-broken-one").ready


def test_a_deployment_during_the_restore_wins(make, store, engines, base):
    deploy(make(), store, ONE)
    second = make()
    restorer = Restorer(second, base)
    assert restorer._list_all()
    deploy(second, store, TWO)
    restorer.run()
    assert model_of(served(second)) == TWO


def test_stop_ends_a_restore_that_still_tries(make, store, engines, base, waits):
    engines.error = JobFailed("no model there")
    deployments = make()
    thread = threading.Thread(target=Restorer(deployments, base).run)
    thread.start()
    waits(lambda: "base" in deployments.routes(), "the restore to begin")
    deployments.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_readiness_is_the_base_models(make, engines, base):
    deployments = make()
    with pytest.raises(TextmillError, match="not started"):
        deployments.check_base()
    Restorer(deployments, base).run()
    deployments.check_base()
    engines.made[0].ready, engines.made[0].trouble = False, "it died"
    with pytest.raises(TextmillError, match="it died"):
        deployments.check_base()


def test_attached_replicas_are_not_started_here(make, engines, base):
    attached = [FakeEngine("base", "base", None), FakeEngine("base", "base", None)]
    deployments = make({"base": attached})
    Restorer(deployments, base).run()
    assert engines.made == []
    with pytest.raises(TextmillError):
        deployments.check_base()
    attached[1].ready = True
    deployments.check_base()
    assert deployments.routes()["base"].choose(0.0).engine is attached[1]
    deployments.stop()
    assert all(engine.stopped for engine in attached)
