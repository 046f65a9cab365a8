"""Keeps one engine running as a child on this machine: starts, watches, restarts, swaps and ends it.

One thread for each engine does all of it, and lives as long as the child does (the guard's death signal hangs on
that thread). It knows a ``Launcher`` for the command line and ``EngineApi`` for the answers, and no model.
"""

import contextlib
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Literal

from textmill.contracts.gates import ParityCheck
from textmill.errors import DependencyDown, JobFailed, TextmillError
from textmill_inference.engine.adapters import Adapters
from textmill_inference.engine.geometry import same_geometry
from textmill_inference.engine.launcher import Care, Launcher
from textmill_inference.engine.metrics import ENGINE_READY, ENGINE_RESTARTS, ENGINE_START_SECONDS
from textmill_inference.engine.openai_api import EngineApi
from textmill_inference.engine.parity import ParityGate
from textmill_inference.engine.port import ModelFolder, SwapKind
from textmill_inference.engine.process import GuardedProcess

log = logging.getLogger(__name__)
_Swapped = Literal["swapped", "not begun", "unknown"]


class LocalEngine:
    """``turn`` is shared by all engines of a machine: one starts at a time, since each start wants all cores.

    ``label`` tells engines of one name apart in metrics and logs.
    """

    def __init__(
        self,
        name: str,
        launcher: Launcher,
        log_path: Path,
        care: Care | None = None,
        turn: threading.Semaphore | None = None,
        label: str = "",
    ) -> None:
        self._name = name
        self._label = label or name
        self._launcher = launcher
        self._log_path = log_path
        self._care = care or Care()
        self._turn = turn or threading.Semaphore(1)
        self._gate = ParityGate(self._label)
        self._adapters = Adapters(name)
        self._refused = ""
        self._folder: ModelFolder | None = None
        self._url = ""
        self._trouble = "not started"
        self._failures = 0
        self._starts = 0
        self._losses = 0
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._anew = threading.Event()
        self._wake = threading.Event()
        self._serving = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def url(self) -> str:
        return self._url

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def trouble(self) -> str:
        return "" if self.ready else self._trouble

    @property
    def folder(self) -> ModelFolder | None:
        return self._folder

    @property
    def parity(self) -> ParityCheck | None:
        return self._gate.check_of(self._folder)

    def suspect(self) -> None:
        self._wake.set()

    def knows(self, model: str) -> bool:
        return model == self._name or self._adapters.knows(model)

    def begin(self, folder: ModelFolder) -> None:
        """Start to serve, without waiting for it."""
        self._folder = folder
        self._thread = threading.Thread(target=self._run, name=f"engine-{self._label}", daemon=True)
        self._thread.start()

    def serve(self, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        with self._serving:
            before = self._folder
            if self._thread is None:
                self.begin(folder)
                return "started" if self._wait_ready(folder, stopping, None) else None
            if before == folder:
                return "unchanged" if self._wait_ready(folder, stopping, None) else None
            if before is not None and self._fits(folder):
                outcome = self._swap(before, folder)
                if outcome == "swapped":
                    return "in_place"
            self._let_end()
            self._start_anew(folder)
            return "restarted" if self._wait_ready(folder, stopping, before) else None

    def swap(self, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        with self._serving:
            before = self._folder
            if before is None or not self.ready:
                return None
            if before == folder:
                return "unchanged"
            outcome = self._swap(before, folder) if self._fits(folder) else "not begun"
            if outcome != "unknown":
                return "in_place" if outcome == "swapped" else None
            self._start_anew(folder)
            return "restarted" if self._wait_ready(folder, stopping, before) else None

    def load_adapter(self, model: str, folder: ModelFolder) -> ParityCheck | None:
        if not self.ready:
            raise DependencyDown(f"the engine of {self._name!r} doesn't answer now: {self._trouble}")
        return self._adapters.load(self._url, model, folder)

    def unload_adapter(self, model: str) -> None:
        self._adapters.unload(self._url, model)

    def begin_stop(self) -> None:
        """Let it end, without waiting for it."""
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        self.begin_stop()
        if self._thread is not None:
            self._thread.join()
        # Its label may never come again, and an engine that was ended is not one that is down.
        with contextlib.suppress(KeyError):
            ENGINE_READY.remove(self._label)

    # -- changing the model ----------------------------------------------------------------------------------------

    def _fits(self, folder: ModelFolder) -> bool:
        """Whether the weights could be loaded into the process that runs."""
        return self.ready and self._folder is not None and same_geometry(self._folder.path, folder.path)

    def _swap(self, before: ModelFolder, folder: ModelFolder) -> _Swapped:
        """Load the weights into the process that runs. After "unknown" the engine has to be started anew.

        A model with a parity probe is not ready until it has passed: the gateway holds requests for so long.

        Raises:
            JobFailed: it did not pass; the model before it is back, or is being started anew.
        """
        began, proving, life = time.monotonic(), self._gate.has_probe(folder), self._life()
        api = EngineApi(self._url, self._name)
        if proving:
            self._ready.clear()
        if not self._paused(api):
            self._ready_again(life)
            return "not begun"
        # From here on a crash must bring up the new model, as a success would.
        self._folder = folder
        try:
            api.reload(folder.path)
            refusal = self._gate.refusal(folder, api)
        except TextmillError as exc:
            log.warning("no swap in place; restarting instead", extra={"engine": self._label, "error": str(exc)})
            return "unknown"
        if refusal:
            self._swap_back(before, api, life)
            raise JobFailed(f"model {folder.model_id or folder.path} is not served as {self._name!r}: {refusal}")
        self._ready_again(life)
        log.info("weights swapped", extra={"engine": self._label, "ms": round((time.monotonic() - began) * 1e3, 1)})
        return "swapped"

    def _life(self) -> tuple[int, int]:
        """Changes when the process is lost, or another one started."""
        return self._starts, self._losses

    def _ready_again(self, life: tuple[int, int]) -> None:
        """Unless the process was lost in the meantime: then it is ready when the next one answers."""
        if life == self._life():
            self._ready.set()

    def _paused(self, api: EngineApi) -> bool:
        """False if the answers under way take too long; then the engine goes on as before."""
        try:
            api.pause(self._care.swap_drain_s)
        except TextmillError as exc:
            log.info("no swap in place", extra={"engine": self._label, "error": str(exc)})
            self._resume(api)
            return False
        return True

    def _resume(self, api: EngineApi) -> None:
        try:
            api.resume()
        except TextmillError as exc:
            log.warning("the engine doesn't resume", extra={"engine": self._label, "error": str(exc)})
            self.suspect()

    def _let_end(self) -> None:
        """Before the process ends: no new requests, and time for the answers under way."""
        if self.ready:
            self._ready.clear()
            try:
                EngineApi(self._url, self._name).pause(self._care.drain_s)
            except TextmillError as exc:
                log.warning("ended with answers under way", extra={"engine": self._label, "error": str(exc)})

    def _swap_back(self, before: ModelFolder, api: EngineApi, life: tuple[int, int]) -> None:
        """The model before, which was served until now, needs no second proof."""
        self._folder = before
        try:
            api.pause(self._care.swap_drain_s)
            api.reload(before.path)
        except TextmillError as exc:
            log.warning("no swap back; restarting instead", extra={"engine": self._label, "error": str(exc)})
            self._start_anew(before)
        else:
            self._ready_again(life)

    def _start_anew(self, folder: ModelFolder) -> None:
        self._ready.clear()
        self._folder = folder
        self._failures = 0
        self._refused = ""
        self._anew.set()
        self._wake.set()

    def _wait_ready(self, folder: ModelFolder, stopping: threading.Event, before: ModelFolder | None) -> bool:
        """True when it answers. A model that fails twice to start is given up, and the one before it comes back."""
        deadline = time.monotonic() + self._care.start_timeout_s * 2
        while not self.ready or self._anew.is_set():
            if stopping.is_set() or self._stop.is_set():
                if before is not None:
                    self._start_anew(before)
                return False
            if self._refused or self._failures >= 2 or time.monotonic() > deadline:
                how = "is not served" if self._refused else "doesn't start"
                reason = f"model {folder.model_id or folder.path} {how} as {self._name!r}: {self._trouble}"
                if before is not None:
                    self._start_anew(before)
                raise JobFailed(reason)
            stopping.wait(0.1)
        return True

    # -- the engine's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._serve_once()
            except Exception as exc:
                self._failed(f"{type(exc).__name__}: {exc}")
                log.exception("engine supervision failed; it goes on", extra={"engine": self._label})
            if not self._stop.is_set() and not self._anew.is_set():
                self._back_off()
            self._wait_while_refused()

    def _serve_once(self) -> None:
        """One life of the child, from its start to its end."""
        if not self._take_turn():
            return
        process: GuardedProcess | None = None
        try:
            try:
                self._anew.clear()
                process = self._launch()
                came_up = self._until_ready(process)
            finally:
                self._turn.release()
            if came_up:
                self._watch(process)
        finally:
            self._ready.clear()
            self._adapters.lost()
            ENGINE_READY.labels(self._label).set(0)
            if process is not None:
                process.stop()

    def _take_turn(self) -> bool:
        """False if it is to stop, which may come while another engine takes minutes to start."""
        while not self._stop.is_set():
            if self._turn.acquire(timeout=0.2):
                return True
        return False

    def _launch(self) -> GuardedProcess:
        assert self._folder is not None
        if not (self._folder.path / "config.json").is_file():
            raise FileNotFoundError(f"no model at {self._folder.path}: config.json is missing")
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._trouble = "starting"
        if self._starts:
            ENGINE_RESTARTS.labels(self._label).inc()
        self._starts += 1
        log.info("engine starting", extra={"engine": self._label, "model": str(self._folder.path), "port": port})
        command = self._launcher.command(self._folder.path, self._name, port)
        return GuardedProcess(command, self._launcher.environment(), self._log_path, self._care.stop_grace_s)

    def _until_ready(self, process: GuardedProcess) -> bool:
        began = time.monotonic()
        api = EngineApi(self._url, self._name)
        while not self._stop.is_set() and not self._anew.is_set():
            seconds = time.monotonic() - began
            if not process.alive():
                self._failed(f"it ended after {seconds:.0f} s: {process.last_words()} (log: {self._log_path})")
                return False
            if seconds > self._care.start_timeout_s:
                self._failed(f"it didn't answer within {seconds:.0f} s (log: {self._log_path})")
                return False
            if _answers(api):
                if not self._passes(api):
                    return False
                self._adapters.bring_back(self._url)
                ENGINE_START_SECONDS.labels(self._label).observe(seconds)
                ENGINE_READY.labels(self._label).set(1)
                log.info("engine ready", extra={"engine": self._label, "seconds": round(seconds, 1)})
                self._ready.set()
                return True
            self._stop.wait(self._care.probe_every_s)
        return False

    def _passes(self, api: EngineApi) -> bool:
        """Whether the engine does what the model did when it was published, as far as can be told."""
        assert self._folder is not None
        try:
            refusal = self._gate.refusal(self._folder, api)
        except TextmillError as exc:
            self._failed(f"it can't be compared with the published model: {exc}")
            return False
        if refusal:
            self._failed(refusal)
            self._refused = refusal
        return not refusal

    def _wait_while_refused(self) -> None:
        """Starting it again would cost a minute and end the same."""
        while self._refused and not self._stop.is_set() and not self._anew.is_set():
            self._wake.wait(0.2)
            self._wake.clear()

    def _watch(self, process: GuardedProcess) -> None:
        """Until the child dies, hangs, or is told to end."""
        api, misses, since = EngineApi(self._url, self._name), 0, time.monotonic()
        while not self._stop.is_set() and not self._anew.is_set():
            self._wake.wait(self._care.look_every_s)
            self._wake.clear()
            if not process.alive():
                self._failed(f"it died: {process.last_words(2)}")
                return
            try:
                if not api.healthy():
                    self._failed("it says that its engine core is dead")
                    return
                misses = 0
            except DependencyDown as exc:
                misses += 1
                if misses >= self._care.misses:
                    self._failed(f"it doesn't answer any more: {exc}")
                    return
            if time.monotonic() - since > self._care.max_backoff_s:
                self._failures = 0

    def _failed(self, reason: str) -> None:
        self._trouble = reason
        self._failures += 1
        self._losses += 1
        self._ready.clear()
        log.warning("engine lost", extra={"engine": self._label, "reason": reason, "failures": self._failures})

    def _back_off(self) -> None:
        delay_s = min(self._care.max_backoff_s, self._care.first_backoff_s * 2 ** max(0, self._failures - 1))
        until = time.monotonic() + delay_s
        while time.monotonic() < until and not self._stop.is_set() and not self._anew.is_set():
            self._wake.wait(0.1)
            self._wake.clear()


def _answers(api: EngineApi) -> bool:
    try:
        return api.answers()
    except DependencyDown:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
