"""Runs a load test as a job: builds its sides, keeps what it finds, writes its report.

All of a test lies below ``loadtests/<id>/``: ``job.json`` says whose it is, ``events/`` is what happened, ``<part>/``
holds an attempt's stages (each whole, as ``Measured``), server series, HTML and CSV, and ``report.json`` comes last.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from textmill.contracts.jobs import LoadtestJob, Output
from textmill.contracts.load import Target, TraceEntry
from textmill.contracts.loadoptions import KeyFrom, LoadtestEvent, LoadtestOwner
from textmill.contracts.loadreport import LoadtestReport, ServerSeries, Side
from textmill.contracts.loadtest import Measured
from textmill.errors import BadRequest
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_inference.loadtest.events import EventLog, owner_key
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.keyrefs import KeySource
from textmill_inference.loadtest.knee import find_knee
from textmill_inference.loadtest.levels import error_budget
from textmill_inference.loadtest.prompts import read_trace, traffic_of
from textmill_inference.loadtest.report import csv_of, page_of
from textmill_inference.loadtest.run import Findings, LoadRun, RunsStages, SidePlan, Tell
from textmill_inference.loadtest.series import Readings, Scraper, all_series, metrics_url
from textmill_inference.loadtest.thresholds import scaling_for
from textmill_inference.loadtest.verdict import verdict_of

log = logging.getLogger(__name__)
ReadTrace = Callable[[str], Iterable[TraceEntry]]
MakeGenerator = Callable[[str, ReadTrace], RunsStages]
"""With the target's key (empty for none) and what reads a stored trace."""
EngineUrls = Callable[[str], Sequence[str]]


def loadtest_key(loadtest_id: str) -> str:
    return f"loadtests/{loadtest_id}/report.json"


def make_generator(key: str, traces: ReadTrace) -> RunsStages:
    return Generator(key=key, read_trace=traces)


def nobody(event: LoadtestEvent) -> None:
    pass


def no_engines(model: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Loadtester:
    """Handles ``LoadtestJob``. ``key`` goes to our own gateway only, never to another target.

    ``engine_urls`` gives the engines behind a model name of ours, whose metrics are read beside the gateway's.
    ``listener`` hears each event as it happens.
    """

    gateway_url: str
    key: str = ""
    keys: KeySource = field(default_factory=KeySource)
    engine_urls: EngineUrls = no_engines
    generator: MakeGenerator = make_generator
    listener: Tell = nobody

    def check(self, job: LoadtestJob) -> None:
        """What can be refused before the job is stored. Raises ``BadRequest``."""
        for url in (job.target_url, job.metrics_url):
            if url is not None:
                check_url(url)
        self.keys.check(job.key_from)
        if job.versus is not None:
            for url in (job.versus.target_url, job.versus.metrics_url):
                if url is not None:
                    check_url(url)
            self.keys.check(job.versus.key_from)

    def __call__(self, job: LoadtestJob, ctx: JobContext) -> Output:
        self.check(job)
        name_owner(ctx.store, job)
        events = EventLog(ctx.store, job.loadtest_id)
        telling = _Telling(events, ctx, self.listener)
        with self._sides(job, ctx.store) as (sides, places):
            run = LoadRun(
                job,
                traffic_of(job, ctx.store),
                sides,
                telling,
                lambda: _stopping(ctx),
                rounds=job.versus.rounds if job.versus else 0,
                keep=lambda number, measured: ctx.store.put(
                    stage_key(job.loadtest_id, events.part, number), measured.to_json()
                ),
            )
            telling.planned = run.planned()
            found = run.play()
        series = all_series(places, found.levels[0].started_at) if found.levels else []
        notes = [place.trouble for place in places if place.trouble]
        report = self._report(job, found, sides, notes)
        telling(LoadtestEvent(at_s=found.seconds, verdict=report.verdict))
        report = _keep(ctx.store, report, found.stages, series, events.part)
        return Output(manifest_key=loadtest_key(job.loadtest_id), manifest=report.model_dump(mode="json"))

    # -- the sides -------------------------------------------------------------------------------------------------

    @contextmanager
    def _sides(self, job: LoadtestJob, store: ObjectStore) -> Iterator[tuple[dict[Side, SidePlan], list[Readings]]]:
        """The targets with their generators and scrapers; the scrapers end with the block."""
        scrapers: list[Scraper] = []
        try:
            sides: dict[Side, SidePlan] = {
                "a": self._side(store, scrapers, job.target_url, job.model, job.key_from, job.metrics_url)
            }
            if (other := job.versus) is not None:
                url = other.target_url or job.target_url
                place = other.key_from or (job.key_from if other.target_url is None else None)
                sides["b"] = self._side(store, scrapers, url, other.model, place, other.metrics_url)
            yield sides, [scraper.readings for scraper in scrapers]
        finally:
            for scraper in scrapers:
                scraper.stop()

    def _side(
        self,
        store: ObjectStore,
        scrapers: list[Scraper],
        url: str | None,
        model: str,
        place: KeyFrom | None,
        metrics: str | None,
    ) -> SidePlan:
        target = (url or self.gateway_url).rstrip("/")
        key = self.keys.key(place) if place is not None else self.key if url is None else ""
        started = self._scrapers(url, target, model, metrics)
        scrapers += started.values()
        return SidePlan(
            target=Target(url=target, model=model),
            generator=self.generator(key, lambda trace: read_trace(store, trace)),
            key=key,
            metrics={
                part: scraper.readings
                for name, scraper in started.items()
                for part in (("engine", "gateway") if name == "server" else (name,))
            },
        )

    def _scrapers(self, url: str | None, target: str, model: str, metrics: str | None) -> dict[str, Scraper]:
        """Ours has its gateway's and its engines' metrics; of another target one page may hold either kind."""
        if url is not None or metrics is not None:
            page = metrics or metrics_url(target)
            return {"server": Scraper(page, lambda: [page], model).start()}
        own = metrics_url(target)
        found = {"gateway": Scraper("the gateway", lambda: [own], model).start()}
        if self.engine_urls(model):
            engines = lambda: [f"{engine}/metrics" for engine in self.engine_urls(model)]  # noqa: E731
            found["engine"] = Scraper("the engine", engines).start()
        return found

    # -- the report ------------------------------------------------------------------------------------------------

    def _report(
        self, job: LoadtestJob, found: Findings, sides: dict[Side, SidePlan], notes: Sequence[str]
    ) -> LoadtestReport:
        valid = [level for level in found.levels if level.valid and level.side == "a"]
        kinds = {level.kind for level in valid}
        throughputs = [level.output_tokens_per_s or level.requests_per_s for level in valid]
        knee = find_knee([level.load for level in valid], throughputs) if len(kinds) == 1 else None
        other = sides.get("b")
        return LoadtestReport(
            loadtest_id=job.loadtest_id,
            target=sides["a"].target.url,
            model=job.model,
            versus_target=other.target.url if other else None,
            versus_model=other.target.model if other else None,
            verdict=verdict_of(found.levels, found.capacity, knee, found.comparisons),
            slo=job.judged_by(),
            levels=found.levels,
            capacity=found.capacity,
            knee=knee,
            comparisons=found.comparisons,
            scaling=scaling_for(found.levels, found.capacity, knee),
            budget=error_budget(found.stages),
            seconds=found.seconds,
            notes=list(dict.fromkeys(notes)),
        )


@dataclass
class _Telling:
    """Events go to the log; the job's progress shows the last of them."""

    events: EventLog
    ctx: JobContext
    listener: Tell
    planned: int | None = None
    done: int = 0
    stage: str = "starting"

    def __call__(self, event: LoadtestEvent) -> None:
        self.events.tell(event)
        self.listener(event)
        figures: dict[str, float] = {}
        if event.stage is not None:
            word = "concurrent" if event.stage.arrivals.kind == "closed" else "per second"
            self.stage = f"{event.stage.load:g} {word}"
        elif event.level is not None:
            self.done += 1
            figures = {"output_tokens_per_s": event.level.output_tokens_per_s}
        elif event.second is not None:
            figures = {"succeeded": event.second.succeeded, "in_flight": event.second.in_flight}
        self.ctx.progress(self.stage, self.done, self.planned, "levels", **figures)


def _stopping(ctx: JobContext) -> bool:
    ctx.raise_if_stopped()
    return False


def name_owner(store: ObjectStore, job: LoadtestJob) -> None:
    """So that readers who have the load test's id find its job, from before it starts."""
    owner = LoadtestOwner(loadtest_id=job.loadtest_id, job_id=job.job_id)
    store.create(owner_key(job.loadtest_id), owner.to_json())


def stage_key(loadtest_id: str, part: int, number: int) -> str:
    return f"loadtests/{loadtest_id}/{part:06d}/stages/{number:04d}.json"


def read_stages(store: ObjectStore, report: LoadtestReport) -> list[Measured]:
    """What each stage measured, whole. Raises ``NotFound``."""
    prefix = report.files["stages"]
    return [Measured.model_validate_json(store.get(info.key)) for info in list(store.list(prefix))]


def _keep(
    store: ObjectStore, report: LoadtestReport, stages: Sequence[Measured], series: Sequence[ServerSeries], part: int
) -> LoadtestReport:
    """Write what the stages, each kept when it was over, come to; the report itself is the job's manifest, its end."""
    base = f"loadtests/{report.loadtest_id}/{part:06d}/"
    files = {name: f"{base}{name}" for name in ("report.html", "report.csv", "series.json")} | {
        "stages": f"{base}stages/"
    }
    report = report.model_copy(update={"files": files})
    store.put(files["series.json"], json.dumps([s.model_dump(mode="json") for s in series]).encode())
    store.put(files["report.csv"], csv_of(report).encode())
    store.put(files["report.html"], page_of(report, stages, series).encode())
    return report


def check_url(url: str) -> None:
    """Raises ``BadRequest`` for what is no HTTP address. That it holds no password, its contract has seen to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"{url!r} is no HTTP address; give one like http://127.0.0.1:8100")
