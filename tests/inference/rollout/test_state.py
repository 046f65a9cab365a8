"""What is remembered of a name, step by step, and when a canary is taken back."""

import pytest

from textmill.contracts.jobs import DeployJob
from textmill.contracts.serving import Canary, ModelVersion, Shadow, TrialFigures
from textmill.errors import Conflict, NotFound
from textmill_inference.rollout import state as states
from textmill_inference.rollout.tally import Counts, compare, excess_low, wilson


def version(n):
    return ModelVersion(deployment_id=f"dep_{n:032d}", model_id=f"mdl_{n:032d}")


def deployed(*numbers):
    state = None
    for n in numbers:
        state = states.with_stable(state, "tuned", version(n))
    return state


def canary(n, **fields):
    given = {"percent": 10, "max_error_excess": 0.05, "min_requests": 50}
    return Canary(**version(n).model_dump(), **(given | fields))


def models(state):
    return [int(one.model_id[4:]) for one in (states.stable_of(state), *state.previous)]


def test_the_versions_before_are_kept_latest_first_and_not_for_ever():
    assert models(deployed(1, 2, 3)) == [3, 2, 1]
    assert len(deployed(*range(1, 20)).previous) == states.KEPT_VERSIONS


def test_the_same_deployment_twice_is_once():
    assert models(deployed(1, 2, 2)) == [2, 1]


def test_the_same_model_deployed_again_is_no_version_to_go_back_to():
    again = version(2).model_copy(update={"deployment_id": "dep_" + "9" * 32})
    assert models(states.with_stable(deployed(1, 2), "tuned", again)) == [2, 1]
    light = again.model_copy(update={"unmerged": True})
    assert models(states.with_stable(deployed(1, 2), "tuned", light)) == [2, 2, 1]


def test_a_rollback_goes_back_step_by_step_and_never_forward():
    state = deployed(1, 2, 3)
    for expected in ([2, 1], [1]):
        job = states.rollback_job(state)
        back = ModelVersion(deployment_id=job.deployment_id, model_id=job.model_id)
        state = states.with_stable(state, "tuned", back, job.rollback_from)
        assert models(state) == expected
        again = states.with_stable(state, "tuned", back, job.rollback_from)
        assert models(again) == expected
    with pytest.raises(NotFound, match="no version to go back to"):
        states.rollback_job(state)


def test_a_promoted_canary_is_stable_and_can_be_rolled_back():
    state = states.promoted(states.with_trial(deployed(1), canary(2)))
    assert models(state) == [2, 1]
    assert state.canary is None
    assert (state.last_trial.outcome, state.deployment_id) == ("promoted", version(2).deployment_id)
    assert states.rollback_job(state).model_id == version(1).model_id
    with pytest.raises(Conflict, match="no canary"):
        states.promoted(state)


def test_with_a_canary_there_is_no_rollback_but_an_abort():
    state = states.with_trial(deployed(1, 2), canary(3))
    with pytest.raises(Conflict, match="abort that"):
        states.rollback_job(state)
    state = states.without_trial(state, state.canary, "aborted", "slow")
    assert (state.canary, state.last_trial.reason) == (None, "slow")
    assert models(state) == [2, 1]


def test_a_new_canary_replaces_the_one_before_and_leaves_the_shadow():
    state = states.with_trial(deployed(1), Shadow(**version(9).model_dump(), percent=5))
    state = states.with_trial(states.with_trial(state, canary(2)), canary(3))
    assert state.last_trial.outcome == "replaced"
    assert state.last_trial.model_id == version(2).model_id
    assert state.shadow.percent == 5
    assert states.model_ids([state]) == {version(n).model_id for n in (1, 3, 9)}


def test_a_job_is_for_one_role():
    job = DeployJob(name="tuned", model_id=version(1).model_id, canary_percent=0)
    assert isinstance(states.of_job(job, version(1)), Canary)
    assert states.of_job(DeployJob(name="tuned", model_id=version(1).model_id), version(1)) is None
    with pytest.raises(ValueError, match="exclude each other"):
        DeployJob(name="tuned", model_id=version(1).model_id, canary_percent=1, shadow_percent=1)


def figures(errors, requests, stable_errors, stable_requests):
    return compare(Counts(requests=requests, errors=errors), Counts(requests=stable_requests, errors=stable_errors))


@pytest.mark.parametrize(
    ("counts", "taken_back"),
    [
        ((49, 49, 0, 500), False),
        ((25, 50, 0, 49), False),
        ((25, 50, 0, 500), True),
        ((3, 60, 0, 500), False),
        ((4, 50, 2, 50), False),
        ((10, 50, 0, 50), True),
        ((250, 500, 250, 500), False),
        ((0, 50, 25, 500), False),
    ],
    ids=[
        "too few",
        "too few beside",
        "fails",
        "within the bound",
        "could be luck",
        "fails, equals",
        "both fail",
        "better",
    ],
)
def test_a_canary_is_taken_back_for_failing_more_than_the_stable_version(counts, taken_back):
    reason = states.judge(canary(2), figures(*counts))
    assert bool(reason) == taken_back, reason


def test_the_reason_has_the_figures():
    assert states.judge(canary(2), figures(25, 50, 5, 500)) == (
        "25 of 50 requests failed (50.0%), of the stable version's 5 of 500 (1.0%): 49.0% more, "
        "at most 5.0% are allowed"
    )


def test_the_intervals_are_those_of_the_papers():
    # Newcombe 1998, table II, case (a): 56/70 and 48/80, method 10 gives 0.0524 to 0.3339; Wilson of 81/263: Newcombe
    # 1998 (single proportion), table I: 0.2553 to 0.3662.
    assert excess_low(56, 70, 48, 80) == pytest.approx(0.0524, abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert excess_low(1, 1, 0, 0) == -1.0


def test_counts_survive_being_written_down():
    counts = Counts(requests=4, errors=1, tokens=30, streamed=2, seconds=6.0, ttft_seconds=1.0)
    assert Counts.of(counts.figures()) == counts
    assert TrialFigures().error_excess_low == -1
