"""The inference service: builds its adapters from the settings, wires them, and runs."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from textmill.contracts.jobs import JobKind
from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
from textmill.store import ObjectStore
from textmill.worker import Handler, Worker
from textmill_inference.api import build_router
from textmill_inference.engine.launcher import Care
from textmill_inference.engine.maker import VllmEngines
from textmill_inference.engine.port import AttachedEngine, ModelFolder
from textmill_inference.engine.settings import EngineSettings
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.engine.vllm_metrics import VllmMetrics
from textmill_inference.evaluation.evaluate import Evaluator
from textmill_inference.flywheel.api import traffic_router
from textmill_inference.flywheel.log import RequestLog
from textmill_inference.gateway.access import open_access
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keystore import new_secret
from textmill_inference.loadtest.api import loadtest_router
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.job import Loadtester
from textmill_inference.loadtest.keyrefs import KeySource
from textmill_inference.loadtest.settings import LoadtestSettings
from textmill_inference.pairwise.api import comparisons_router
from textmill_inference.pairwise.job import Comparer
from textmill_inference.rollout.deployments import Deployments
from textmill_inference.rollout.directory import EngineDirectory
from textmill_inference.rollout.forward import engine_router, forwarding_router
from textmill_inference.rollout.restore import Restorer
from textmill_inference.rollout.routes import Route
from textmill_inference.rollout.watch import Watch
from textmill_inference.settings import AccessSettings, InferenceSettings


def local_engines(settings: InferenceSettings, options: EngineSettings) -> VllmEngines:
    """vLLM on this machine, one start at a time."""
    launcher = VllmLauncher(settings.max_model_len, settings.kv_cache_gib, settings.engine_args, options)
    care = Care(start_timeout_s=settings.start_timeout_s, drain_s=options.drain_s)
    return VllmEngines(launcher, care, settings.cache_dir / "logs", settings.base_name)


def addresses(routes: Mapping[str, Route]) -> dict[str, list[str]]:
    """Of the engines behind each served name that answer now."""
    return {
        name: [upstream.url for upstream in (*route.stable, route.canary) if upstream is not None and upstream.ready]
        for name, route in routes.items()
    }


def engine_urls(routes: Mapping[str, Route], model: str) -> list[str]:
    """Where a model's replicas are now: load tests read their metrics."""
    route = routes.get(model)
    return [upstream.url for upstream in route.stable] if route is not None else []


@dataclass(frozen=True)
class Serving:
    """What answers, and by which names. ``directory`` stands in for our own engines where another server has them."""

    deployments: Deployments
    directory: EngineDirectory | None

    def routes(self) -> Mapping[str, Route]:
        own = self.deployments.routes()
        return own if self.directory is None else {**self.directory.routes(), **own}

    def start(self, base_model: Path) -> None:
        if self.directory is None:
            restorer = Restorer(self.deployments, ModelFolder(base_model))
            threading.Thread(target=restorer.run, name="restore", daemon=True).start()
            threading.Thread(target=Watch(self.deployments).run, name="rollout-watch", daemon=True).start()
        # Engines behind another service are told of by that one.
        VllmMetrics(lambda: (url for urls in addresses(self.deployments.routes()).values() for url in urls))

    def stop(self) -> None:
        self.deployments.stop()
        if self.directory is not None:
            self.directory.stop()


def open_serving(settings: InferenceSettings, store: ObjectStore) -> Serving:
    options = EngineSettings()
    attached = {name: [AttachedEngine(name, url) for url in urls] for name, urls in settings.replicas().items()}
    engines = local_engines(settings, options)
    deployments = Deployments(
        store, settings.cache_dir / "models", engines, settings.base_name, attached, options.drain_s
    )
    return Serving(deployments, EngineDirectory(settings.behind) if settings.behind else None)


def open_loadtester(settings: InferenceSettings, load: LoadtestSettings, key: str, serving: Serving) -> Loadtester:
    return Loadtester(
        settings.own_url,
        key,
        KeySource(load.secrets),
        lambda model: engine_urls(serving.routes(), model),
        lambda key, traces: Generator(key=key, workers=load.workers, read_trace=traces),
    )


def main() -> None:
    settings, load = InferenceSettings(), LoadtestSettings()
    store, bus, jobs = open_backends("inference", settings)
    serving = open_serving(settings, store)
    deployments, directory = serving.deployments, serving.directory
    key = settings.client_key.get_secret_value() or new_secret()
    access = open_access(settings, AccessSettings(), store, key, lambda: addresses(serving.routes()))
    loadtester = open_loadtester(settings, load, key, serving)
    comparer = Comparer(settings.own_url, key, KeySource(load.secrets).key)
    request_log = RequestLog(store)
    handlers: dict[JobKind, Handler] = {
        "evaluate": Evaluator(settings.own_url, key, settings.lm_eval_folder),
        "loadtest": loadtester,
        "compare": comparer,
    }
    if directory is None:
        handlers["deploy"] = deployments.deploy
    worker = Worker(jobs, bus, handlers, group="textmill-inference", pace=pace(settings))

    def check_store() -> None:
        store.exists("ready")

    app = create_app(
        "inference",
        jobs=jobs,
        kinds=("deploy", "evaluate", "loadtest", "compare"),
        checks={"store": check_store, "base model": directory.check if directory else deployments.check_base},
        token=settings.token,
        also=access.keys.may_control,
    )
    app.include_router(engine_router())
    app.include_router(access.router)
    if directory is not None:
        app.include_router(forwarding_router(settings.behind))
    app.include_router(build_router(jobs, store, deployments))
    app.include_router(loadtest_router(jobs, store, loadtester))
    app.include_router(comparisons_router(store, jobs, comparer))
    app.include_router(traffic_router(store, jobs))
    gateway = Gateway(
        app, serving.routes, access.keys, settings.hold_s, admission=access.admission, recorder=request_log
    )

    def stop() -> None:
        serving.stop()
        request_log.stop()

    serving.start(settings.base_model)
    request_log.start()
    run_service(app, worker, settings, serve=gateway, on_stop=stop)


if __name__ == "__main__":
    main()
