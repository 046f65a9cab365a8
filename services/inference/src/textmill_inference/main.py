"""The inference service: builds its adapters from the settings, wires them, and runs."""

import threading
from collections.abc import Callable

from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
from textmill.worker import Worker
from textmill_inference.api import build_router
from textmill_inference.engine.port import AttachedEngine, Engine, ModelFolder
from textmill_inference.engine.supervisor import Care, LocalEngine
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.evaluation.evaluate import Evaluator
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.loadtest.job import Loadtester
from textmill_inference.rollout.deployments import Deployments
from textmill_inference.settings import InferenceSettings


def engine_maker(settings: InferenceSettings) -> Callable[[str], Engine]:
    """Makes local vLLM engines that take turns at starting."""
    launcher = VllmLauncher(settings.max_model_len, settings.kv_cache_gib, settings.engine_args)
    care = Care(start_timeout_s=settings.start_timeout_s)
    turn = threading.Semaphore(1)
    logs = settings.cache_dir / "logs"
    return lambda name: LocalEngine(name, launcher, logs / f"engine-{name}.log", care, turn)


def main() -> None:
    settings = InferenceSettings()
    store, bus, jobs = open_backends(settings)
    attached = {name: AttachedEngine(name, url) for name, url in settings.engines.items()}
    deployments = Deployments(
        store, settings.cache_dir / "models", engine_maker(settings), settings.base_name, attached
    )
    key = settings.client_key.get_secret_value()
    worker = Worker(
        jobs,
        bus,
        {
            "deploy": deployments.deploy,
            "evaluate": Evaluator(settings.own_url, key, settings.lm_eval_folder),
            "loadtest": Loadtester(settings.own_url, key),
        },
        group="textmill-inference",
        pace=pace(settings),
    )

    def check_store() -> None:
        store.exists("ready")

    app = create_app(
        "inference",
        jobs=jobs,
        kinds=("deploy", "evaluate", "loadtest"),
        checks={"store": check_store, "base model": deployments.check_base},
        token=settings.token,
    )
    app.include_router(build_router(jobs, store, deployments))
    gateway = Gateway(app, deployments.engines, KeyRing(settings.api_keys), settings.hold_s)
    restore = threading.Thread(
        target=deployments.restore, args=(ModelFolder(settings.base_model),), name="restore", daemon=True
    )
    restore.start()
    run_service(app, worker, settings, serve=gateway, on_stop=deployments.stop)


if __name__ == "__main__":
    main()
