"""The inference service: builds its adapters from the settings, wires them, and runs."""

import threading
from collections.abc import Mapping

from textmill.contracts.jobs import JobKind
from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
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


def main() -> None:
    settings = InferenceSettings()
    store, bus, jobs = open_backends(settings)
    options = EngineSettings()
    deployments = Deployments(
        store,
        settings.cache_dir / "models",
        local_engines(settings, options),
        settings.base_name,
        {name: [AttachedEngine(name, url) for url in urls] for name, urls in settings.replicas().items()},
        options.drain_s,
    )
    directory = EngineDirectory(settings.behind) if settings.behind else None

    def routes() -> Mapping[str, Route]:
        return deployments.routes() if directory is None else {**directory.routes(), **deployments.routes()}

    key = settings.client_key.get_secret_value() or new_secret()
    access = open_access(settings, AccessSettings(), store, key, lambda: addresses(routes()))
    load = LoadtestSettings()
    loadtester = Loadtester(
        settings.own_url,
        key,
        KeySource(load.secrets),
        lambda model: engine_urls(routes(), model),
        lambda key, traces: Generator(key=key, workers=load.workers, read_trace=traces),
    )
    comparer = Comparer(settings.own_url, key, KeySource(load.secrets).key)
    request_log = RequestLog(store)
    handlers: dict[JobKind, Handler] = {
        "evaluate": Evaluator(settings.own_url, key, settings.lm_eval_folder),
        "loadtest": loadtester,
        "compare": comparer,
    }
    if directory is None:
        handlers["deploy"] = deployments.deploy
    worker = Worker(
        jobs,
        bus,
        handlers,
        group="textmill-inference",
        pace=pace(settings),
    )

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
    gateway = Gateway(app, routes, access.keys, settings.hold_s, admission=access.admission, recorder=request_log)
    if directory is None:
        restorer = Restorer(deployments, ModelFolder(settings.base_model))
        threading.Thread(target=restorer.run, name="restore", daemon=True).start()
        threading.Thread(target=Watch(deployments).run, name="rollout-watch", daemon=True).start()

    def stop() -> None:
        deployments.stop()
        if directory is not None:
            directory.stop()
        request_log.stop()

    # Engines behind another service are told of by that one.
    VllmMetrics(lambda: (url for urls in addresses(deployments.routes()).values() for url in urls))
    request_log.start()
    run_service(app, worker, settings, serve=gateway, on_stop=stop)


if __name__ == "__main__":
    main()
