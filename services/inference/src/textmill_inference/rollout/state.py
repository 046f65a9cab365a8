"""What the store remembers of a name, before and after each step of a rollout. Pure functions of stored values."""

from collections.abc import Sequence

from textmill.contracts.jobs import DeployJob
from textmill.contracts.serving import Canary, Deployment, ModelVersion, Shadow, TrialEnd, TrialFigures
from textmill.errors import Conflict, NotFound

KEPT_VERSIONS = 10
Trial = Canary | Shadow


def stable_of(state: Deployment) -> ModelVersion:
    return ModelVersion(
        deployment_id=state.deployment_id,
        model_id=state.model_id,
        unmerged=state.unmerged,
        parity=state.parity,
        created_at=state.created_at,
    )


def with_stable(
    state: Deployment | None, name: str, version: ModelVersion, taken_back: str | None = None
) -> Deployment:
    """``version`` answers from now on; ``taken_back`` is a deployment that is no longer one to go back to.

    The same model deployed again is no other version.
    """
    if state is None:
        return Deployment(name=name, **_fields(version))
    same = (state.model_id, state.unmerged) == (version.model_id, version.unmerged)
    before = [*state.previous] if same else [stable_of(state), *state.previous]
    if taken_back is not None:
        before = _behind(before, taken_back, version.model_id)
    kept = [one for one in before if one.deployment_id != version.deployment_id]
    return state.model_copy(update={**_fields(version), "previous": tuple(kept[:KEPT_VERSIONS])})


def with_trial(state: Deployment, trial: Trial) -> Deployment:
    """One of the same role that was there before ends."""
    role = "canary" if isinstance(trial, Canary) else "shadow"
    before: Trial | None = getattr(state, role)
    update: dict[str, object] = {role: trial}
    if before is not None and before.deployment_id != trial.deployment_id:
        update["last_trial"] = ended(before, "replaced", f"by deployment {trial.deployment_id}")
    return state.model_copy(update=update)


def without_trial(state: Deployment, trial: Trial, outcome: str, reason: str) -> Deployment:
    role = "canary" if isinstance(trial, Canary) else "shadow"
    return state.model_copy(update={role: None, "last_trial": ended(trial, outcome, reason)})


def promoted(state: Deployment) -> Deployment:
    """The canary is the stable version. Raises ``Conflict`` without one."""
    canary = state.canary
    if canary is None:
        raise Conflict(f"{state.name!r} has no canary to promote: deploy one with canary_percent")
    version = ModelVersion(**{name: getattr(canary, name) for name in ModelVersion.model_fields})
    return with_stable(without_trial(state, canary, "promoted", ""), state.name, version)


def rollback_job(state: Deployment) -> DeployJob:
    """The job that brings the version before back.

    Raises:
        Conflict: a canary is under way.
        NotFound: there was none before.
    """
    if state.canary is not None:
        raise Conflict(f"{state.name!r} has a canary: abort that, and the stable version answers all requests again")
    if not state.previous:
        raise NotFound(f"{state.name!r} has answered with one model only: there is no version to go back to")
    before = state.previous[0]
    return DeployJob(
        name=state.name, model_id=before.model_id, unmerged=before.unmerged, rollback_from=state.deployment_id
    )


def model_ids(states: Sequence[Deployment]) -> set[str]:
    """The models whose files are worth keeping: those that answer, on trial or not, and one to go back to."""
    found: set[str] = set()
    for state in states:
        trials = [trial for trial in (state.canary, state.shadow) if trial is not None]
        found |= {state.model_id, *(one.model_id for one in (*trials, *state.previous[:1]))}
    return found


def ended(trial: Trial, outcome: str, reason: str) -> TrialEnd:
    return TrialEnd.model_validate(
        {
            "role": "canary" if isinstance(trial, Canary) else "shadow",
            "outcome": outcome,
            "reason": reason,
            "deployment_id": trial.deployment_id,
            "model_id": trial.model_id,
            "figures": trial.figures,
        }
    )


def of_job(job: DeployJob, version: ModelVersion) -> Trial | None:
    """The trial that a job asks for; None if it asks for the stable version."""
    fields = {name: getattr(version, name) for name in ModelVersion.model_fields}
    if job.canary_percent is not None:
        return Canary(
            **fields,
            percent=job.canary_percent,
            max_error_excess=job.max_error_excess,
            min_requests=job.min_requests,
        )
    if job.shadow_percent is not None:
        return Shadow(**fields, percent=job.shadow_percent)
    return None


def judge(canary: Canary, figures: TrialFigures) -> str:
    """Why the canary is to be taken back; empty if there is no reason (yet)."""
    trial, stable = figures.trial, figures.stable
    if min(trial.requests, stable.requests) < canary.min_requests:
        return ""
    if figures.error_excess <= canary.max_error_excess or figures.error_excess_low <= 0:
        return ""
    return (
        f"{trial.errors} of {trial.requests} requests failed ({trial.error_rate:.1%}), of the stable version's "
        f"{stable.errors} of {stable.requests} ({stable.error_rate:.1%}): {figures.error_excess:.1%} more, at most "
        f"{canary.max_error_excess:.1%} are allowed"
    )


def _fields(version: ModelVersion) -> dict[str, object]:
    return {name: getattr(version, name) for name in ModelVersion.model_fields}


def _behind(before: list[ModelVersion], taken_back: str, model_id: str) -> list[ModelVersion]:
    """The versions before the one that a rollback has brought back."""
    left = [one for one in before if one.deployment_id != taken_back]
    return left[1:] if left and left[0].model_id == model_id else left
