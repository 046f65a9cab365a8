"""From a recipe to one chain of jobs, all ids in place, so that the servers can walk it without the client."""

from collections.abc import Sequence
from typing import Any

from textmill.contracts.jobs import (
    CorpusJob,
    CrawlJob,
    DeployJob,
    EvaluateJob,
    Job,
    LoadtestJob,
    PreflightJob,
    SynthJob,
    TrainJob,
)
from textmill.errors import BadRequest
from textmill_cli.recipe import Recipe, Synthesis


def chain_of(recipe: Recipe, document_ids: Sequence[str]) -> Job:
    """The first job of the recipe, carrying all that follow."""
    jobs, corpus_id = _to_corpus(recipe, document_ids)
    return _chained([*jobs, *_from_corpus(recipe, corpus_id)])


def preflight_of(recipe: Recipe, document_ids: Sequence[str], passages: int) -> Job:
    """The first job of a preflight. The model that is asked what it knows is the one the evaluation compares with.

    Raises ``BadRequest`` when the recipe makes no records.
    """
    if recipe.synthesis is None:
        raise BadRequest("a preflight tries the section 'synthesis', and the recipe has none; add it")
    jobs, corpus_id = _to_corpus(recipe, document_ids)
    base_model = recipe.evaluation.before if recipe.evaluation is not None else None
    pilot = {"corpus_id": corpus_id, "passages": passages, "base_model": base_model}
    return _chained([*jobs, PreflightJob.model_validate({**_synth_options(recipe.synthesis), **pilot})])


def _to_corpus(recipe: Recipe, document_ids: Sequence[str]) -> tuple[list[Job], str]:
    jobs: list[Job] = []
    crawl_ids: tuple[str, ...] = ()
    if recipe.sources.urls:
        crawl = CrawlJob(urls=recipe.sources.urls)
        crawl_ids = (crawl.crawl_id,)
        jobs.append(crawl)
    corpus = CorpusJob(document_ids=tuple(document_ids), crawl_ids=crawl_ids, split=recipe.split)
    return [*jobs, corpus], corpus.corpus_id


def _synth_options(synthesis: Synthesis) -> dict[str, Any]:
    return synthesis.model_dump(exclude={"questions"})


def _chained(jobs: Sequence[Job]) -> Job:
    first, *rest = jobs
    return first.model_copy(update={"then": tuple(rest)})


def _from_corpus(recipe: Recipe, corpus_id: str) -> list[Job]:
    """What follows the corpus. Raw text is trained on as it is; a dataset made beside it is for the evaluation."""
    jobs: list[Job] = []
    dataset: dict[str, str] = {}
    if recipe.synthesis is not None:
        synth = SynthJob.model_validate({**_synth_options(recipe.synthesis), "corpus_id": corpus_id})
        dataset = {"dataset_id": synth.dataset_id}
        jobs.append(synth)
    if recipe.training is None:
        return jobs
    source = {"corpus_id": corpus_id} if recipe.training.objective == "pretrain" else dataset
    train = TrainJob.model_validate({**recipe.training.model_dump(), **source})
    jobs.append(train)
    if recipe.deployment is None:
        return jobs
    name = recipe.deployment.name
    jobs.append(DeployJob(name=name, model_id=train.model_id))
    if recipe.evaluation is not None:
        evaluation = {**recipe.evaluation.model_dump(), **dataset, "after": name}
        jobs.append(EvaluateJob.model_validate(evaluation))
    if recipe.loadtest is not None:
        load = {**recipe.loadtest.model_dump(), **dataset, "model": name}
        jobs.append(LoadtestJob.model_validate(load))
    return jobs
