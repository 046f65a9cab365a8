"""From a recipe to one chain of jobs, all ids in place, so that the servers can walk it without the client."""

from collections.abc import Sequence

from textmill.contracts.jobs import (
    CorpusJob,
    CrawlJob,
    DeployJob,
    EvaluateJob,
    Job,
    LoadtestJob,
    SynthJob,
    TrainJob,
)
from textmill_cli.recipe import Recipe


def chain_of(recipe: Recipe, document_ids: Sequence[str]) -> Job:
    """The first job of the recipe, carrying all that follow."""
    jobs: list[Job] = []
    crawl_ids: tuple[str, ...] = ()
    if recipe.sources.urls:
        crawl = CrawlJob(urls=recipe.sources.urls)
        crawl_ids = (crawl.crawl_id,)
        jobs.append(crawl)
    corpus = CorpusJob(document_ids=tuple(document_ids), crawl_ids=crawl_ids, split=recipe.split)
    jobs.append(corpus)
    if recipe.synthesis is not None:
        jobs += _from_corpus(recipe, corpus.corpus_id)
    first, *rest = jobs
    return first.model_copy(update={"then": tuple(rest)})


def _from_corpus(recipe: Recipe, corpus_id: str) -> list[Job]:
    assert recipe.synthesis is not None
    options = recipe.synthesis.model_dump(exclude={"questions"})
    synth = SynthJob.model_validate({**options, "corpus_id": corpus_id})
    jobs: list[Job] = [synth]
    if recipe.training is None:
        return jobs
    train = TrainJob.model_validate({**recipe.training.model_dump(), "dataset_id": synth.dataset_id})
    jobs.append(train)
    if recipe.deployment is None:
        return jobs
    name = recipe.deployment.name
    jobs.append(DeployJob(name=name, model_id=train.model_id))
    if recipe.evaluation is not None:
        evaluation = {**recipe.evaluation.model_dump(), "dataset_id": synth.dataset_id, "after": name}
        jobs.append(EvaluateJob.model_validate(evaluation))
    if recipe.loadtest is not None:
        load = {**recipe.loadtest.model_dump(), "dataset_id": synth.dataset_id, "model": name}
        jobs.append(LoadtestJob.model_validate(load))
    return jobs
