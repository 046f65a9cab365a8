"""HTTP to the services: JSON in and out, uploads streamed from disk, problem details turned back into errors."""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import urllib3

from textmill import tracing
from textmill.contracts.base import new_id
from textmill.contracts.documents import Document
from textmill.contracts.jobs import Job, JobView
from textmill.errors import BadRequest, Conflict, DependencyDown, NotFound, TextmillError, Unauthorized
from textmill_cli.settings import SERVICE_OF_KIND, CliSettings

_ERRORS: Mapping[int, type[TextmillError]] = {401: Unauthorized, 404: NotFound, 409: Conflict}
_SUBMIT_PATHS = {
    "crawl": "/v1/crawls", "corpus": "/v1/corpora", "synth": "/v1/datasets", "train": "/v1/runs",
    "preflight": "/v1/preflights", "mix": "/v1/mixtures", "freeze": "/v1/freezes", "export": "/v1/exports",
    "deploy": "/v1/deployments", "evaluate": "/v1/evaluations", "loadtest": "/v1/loadtests",
    "compare": "/v1/comparisons",
}  # fmt: skip


class Client:
    """Raises ``DependencyDown`` when a service can't be reached or says 503; other refusals by their status."""

    def __init__(self, settings: CliSettings) -> None:
        self._settings = settings
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=3, read=60), maxsize=8)

    def get(self, service: str, path: str) -> Any:
        return json.loads(self.request("GET", service, path))

    def request(
        self,
        method: str,
        service: str,
        path: str,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        url = self._settings.urls()[service] + path
        token = self._settings.token.get_secret_value()
        given = ({"Authorization": f"Bearer {token}"} if token else {}) | dict(headers or {})
        current = tracing.traceparent()
        if current is not None and method != "GET":
            # Looking at a job again and again is no part of its trace.
            given["traceparent"] = current
        try:
            response = self._http.request(method, url, body=body, headers=given)
        except urllib3.exceptions.HTTPError as exc:
            raise DependencyDown(f"{service} at {url} can't be reached; is it up? ('textmill status' tells)") from exc
        if response.status >= 400:
            raise _error(service, response.status, response.data)
        return response.data

    def stream(self, service: str, path: str, last_event_id: str = "") -> Iterator[str]:
        """The lines of server-sent events as they come, from the one after ``last_event_id``."""
        url = self._settings.urls()[service] + path
        token = self._settings.token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            response = self._http.request("GET", url, headers=headers, preload_content=False)
            if response.status >= 400:
                raise _error(service, response.status, response.read())
            rest = b""
            for data in response.stream(65_536):
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode() for line in lines)
        except urllib3.exceptions.HTTPError as exc:
            raise DependencyDown(f"{service} at {url} broke off or can't be reached") from exc

    def upload(self, path: Path, name: str) -> Document:
        """Stream a file to ingest, trying again while it can't be reached. The same bytes twice are one document."""
        query = f"/v1/documents?name={quote(name)}"
        headers = {"Content-Type": "application/octet-stream"}
        data = json.loads(self._persist("ingest", query, lambda: path.open("rb"), headers))
        documents = data["items"] if isinstance(data, dict) and "items" in data else [data]
        return Document.model_validate(documents[0])

    def submit(self, job: Job) -> JobView:
        """Submit under an idempotency key, trying again while the service can't be reached."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": new_id("idm")}
        answer = self._persist(
            SERVICE_OF_KIND[job.kind], _SUBMIT_PATHS[job.kind], lambda: io.BytesIO(job.to_json()), headers
        )
        return JobView.model_validate_json(answer)

    def job(self, kind: str, job_id: str) -> JobView:
        return JobView.model_validate(self.get(SERVICE_OF_KIND[kind], f"/v1/jobs/{job_id}"))

    def find_job(self, job_id: str) -> JobView:
        """A job of any kind. Raises ``NotFound``."""
        for service in dict.fromkeys(SERVICE_OF_KIND.values()):
            try:
                return JobView.model_validate(self.get(service, f"/v1/jobs/{job_id}"))
            except NotFound:
                continue
        raise NotFound(f"no service knows the job {job_id}; 'textmill jobs list' shows all")

    def chain(self, job_id: str) -> Iterator[JobView]:
        """The job and those after it, as far as they were started."""
        view: JobView | None = self.find_job(job_id)
        while view is not None:
            yield view
            if view.next_job_id is None:
                return
            try:
                view = self.job(view.job.then[0].kind, view.next_job_id)
            except NotFound:
                return

    def _persist(
        self,
        service: str,
        path: str,
        body: Callable[[], BinaryIO],
        headers: Mapping[str, str],
        patience_s: float = 60.0,
    ) -> bytes:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with body() as stream:
                    return self.request("POST", service, path, stream, headers)
            except DependencyDown as exc:
                if time.monotonic() > deadline:
                    raise
                time.sleep(exc.retry_after_s or 1.0)


def _error(service: str, status: int, body: bytes) -> TextmillError:
    try:
        problem = json.loads(body)
        detail = problem.get("detail") or problem.get("error", {}).get("message") or body.decode()
    except (ValueError, AttributeError):
        detail = body.decode(errors="replace")[:500]
    message = f"{service}: {detail}"
    if status in (429, 500, 502, 503, 504):
        return DependencyDown(message)
    return _ERRORS.get(status, BadRequest)(message)
