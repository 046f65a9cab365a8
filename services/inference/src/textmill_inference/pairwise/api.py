"""HTTP routes of comparisons, and the two pages for people. All plain ``def``: the store blocks."""

from importlib import resources
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import HTMLResponse

from textmill.contracts.base import Contract
from textmill.contracts.jobs import CompareJob
from textmill.contracts.pairwise import ComparisonManifest, ComparisonResults, NewVote, NextPair, Side
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_inference.pairwise.job import Comparer
from textmill_inference.pairwise.results import results_of
from textmill_inference.pairwise.stored import COMPARISONS, Comparisons
from textmill_inference.pairwise.voting import next_pair, take_vote

ComparisonId = Annotated[str, Path(pattern=r"^cmp_[0-9a-f]{32}$")]
Voter = Annotated[str, Query(min_length=1, max_length=100)]
_BASE = "/v1/comparisons"
# A page loads nothing from elsewhere, and nobody may frame it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class VoteTaken(Contract):
    """Tells nothing of the models."""

    pair_id: str
    choice: str


def comparisons_router(store: ObjectStore, jobs: Jobs, comparer: Comparer) -> APIRouter:
    """Everything under ``/v1/comparisons``, and the pages ``/compare/vote`` and ``/compare/results``."""
    comparisons = Comparisons(store)
    router = APIRouter(tags=["comparisons"])
    router.include_router(submission_router(_BASE, CompareJob, jobs, comparer.check_job))
    router.include_router(_reading_router(store, comparisons))
    router.include_router(_voting_router(comparisons))
    router.include_router(_pages_router())
    return router


def _reading_router(store: ObjectStore, comparisons: Comparisons) -> APIRouter:
    router = APIRouter(prefix=_BASE)

    @router.get("", summary="Finished comparisons, oldest first")
    def list_comparisons(after: str = "", limit: Annotated[int, Query(ge=1, le=500)] = 50) -> Page:
        start = f"{COMPARISONS}{after}/~" if after else ""
        keys = (i.key for i in store.list(COMPARISONS, after=start) if i.key.endswith("/manifest.json"))
        found = list(islice((key.split("/")[1] for key in keys), limit + 1))
        items = [_shown(comparisons.get(comparison_id).manifest) for comparison_id in found[:limit]]
        return Page(items=list(items), next_after=found[limit - 1] if len(found) > limit else None)

    @router.get("/{comparison_id}", summary="One comparison: models, prompts, pairs")
    def get_comparison(comparison_id: ComparisonId) -> ComparisonManifest:
        return _shown(comparisons.get(comparison_id).manifest)

    @router.get("/{comparison_id}/answers", summary="All models' answers side by side, with their names")
    def get_answers(
        comparison_id: ComparisonId,
        after: Annotated[int, Query(ge=0, description="the next_after of the page before")] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Page:
        sides: list[Side] = list(islice(comparisons.get(comparison_id).sides.values(), after, after + limit + 1))
        return Page(items=sides[:limit], next_after=str(after + limit) if len(sides) > limit else None)

    @router.get("/{comparison_id}/results", summary="Ratings and win rates with intervals, by people and by the judge")
    def get_results(comparison_id: ComparisonId) -> ComparisonResults:
        results = results_of(comparisons.get(comparison_id))
        return results.model_copy(update={"comparison": _shown(results.comparison)})

    return router


def _voting_router(comparisons: Comparisons) -> APIRouter:
    router = APIRouter(prefix=_BASE)

    @router.get("/{comparison_id}/next", summary="A pair that this voter hasn't voted on, blind")
    def get_next(comparison_id: ComparisonId, voter: Voter) -> NextPair:
        return next_pair(comparisons.get(comparison_id), voter)

    @router.post("/{comparison_id}/votes", status_code=201, response_model=VoteTaken, summary="Vote on a pair, once")
    def post_vote(comparison_id: ComparisonId, new: NewVote) -> Response:
        vote, created = take_vote(comparisons.get(comparison_id), new)
        taken = VoteTaken(pair_id=vote.pair_id, choice=vote.choice)
        return Response(taken.to_json(), status_code=201 if created else 200, media_type="application/json")

    return router


def _pages_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/compare/vote")
    def vote_page() -> HTMLResponse:
        return _page("vote.html")

    @router.get("/compare/results")
    def results_page() -> HTMLResponse:
        return _page("results.html")

    return router


def _page(name: str) -> HTMLResponse:
    """A page holds no data: it asks the API for it, with the token that its reader types in."""
    text = resources.files("textmill_inference.pairwise").joinpath(name).read_text(encoding="utf-8")
    return HTMLResponse(text, headers=_PAGE_HEADERS)


def _shown(manifest: ComparisonManifest) -> ComparisonManifest:
    """Without the salt, by which a voter could tell the sides apart."""
    return manifest.model_copy(update={"salt": ""})
